"""Send requests like programs that use tritonclient, over gRPC and HTTP; the last line is the result."""

import os
import queue
from pathlib import Path

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

ARCHIVES = Path(os.environ["ARCHIVES"])
PNG = (ARCHIVES / "digits" / "samples" / "seven.png").read_bytes()
EMAIL = (ARCHIVES / "topics" / "samples" / "email.txt").read_bytes()
ROWS = np.array([[5.0, 3.4, 1.5, 0.2], [6.6, 3.0, 5.6, 2.1]], np.float32)
TOKEN = f"Bearer {os.environ['TOKEN']}"


class Side:
    """One of the two clients, with one interface."""

    def __init__(self, module, address, header):
        self.module, self.header = module, header
        self.client = module.InferenceServerClient(address)

    @property
    def over_http(self):
        return self.module is tritonclient.http

    def __getattr__(self, name):
        return lambda *args, **more: getattr(self.client, name)(*args, headers={self.header: TOKEN}, **more)

    def tensor(self, name, array, datatype, **more):
        tensor_input = self.module.InferInput(name, list(array.shape), datatype)
        return tensor_input.set_data_from_numpy(array, **(more if self.over_http else {})) or tensor_input

    def iris(self, rows=ROWS, **more):
        return self.tensor("measurements", rows, "FP32", **more)


def error_of(call):
    try:
        call()
    except InferenceServerException as error:
        return f"{error.status()} {error.message()}"
    raise AssertionError("it was not refused")


def texts(*items):
    return np.array(items, dtype=object)


def check(side):
    assert side.is_server_live()
    assert side.is_server_ready()
    assert side.is_model_ready("digits")
    infer = side.infer

    answer = infer("iris", [side.iris()], request_id="one")
    probabilities = answer.as_numpy("probabilities")
    assert probabilities.shape == (2, 3)
    assert probabilities.dtype == np.float32
    assert probabilities.argmax(1).tolist() == [0, 2]
    response = answer.get_response()
    assert (response["id"] if side.over_http else response.id) == "one"

    for shape in ((2,), (2, 1)):
        topics = infer("topics", [side.tensor("text", texts(EMAIL, EMAIL).reshape(shape), "BYTES")])
        assert topics.as_numpy("label").tolist() == [b"email", b"email"]
        assert topics.as_numpy("probability").min() > 0.9
    digits = infer("digits", [side.tensor("image", texts(PNG), "BYTES")])
    assert digits.as_numpy("label").tolist() == [b"7"]

    chosen = [side.module.InferRequestedOutput("probability")]
    answer = infer("digits", [side.tensor("image", texts(PNG), "BYTES")], outputs=chosen)
    assert answer.as_numpy("label") is None
    assert answer.as_numpy("probability").shape == (1,)
    best = infer("iris", [side.iris()], outputs=[side.module.InferRequestedOutput("probabilities", class_count=1)])
    assert [item.split(b":")[1] for item in best.as_numpy("probabilities").ravel()] == [b"0", b"2"]

    for array, datatype in ((ROWS.astype(np.float16), "FP16"), (ROWS.astype(np.float64), "FP64")):
        again = infer("iris", [side.tensor("measurements", array, datatype)])
        assert np.allclose(again.as_numpy("probabilities"), probabilities, atol=1e-2)

    wrong = error_of(lambda: infer("iris", [side.iris(ROWS[:, :2])]))
    assert "float32 of the shape [4] is expected" in wrong, wrong
    assert ("400" if side.over_http else "INVALID_ARGUMENT") in wrong, wrong
    unknown = error_of(lambda: infer("nothing", [side.iris()]))
    code = "404" if side.over_http else "StatusCode.NOT_FOUND"
    assert unknown == f"{code} Model not found: nothing", unknown
    unsupported = error_of(lambda: side.get_system_shared_memory_status())
    assert "shared memory is not supported" in unsupported, unsupported
    unsupported = error_of(lambda: side.load_model("iris"))
    assert "management API" in unsupported, unsupported

    metadata, config = side.get_model_metadata("iris"), side.get_model_config("iris")
    statistics, index = side.get_inference_statistics("iris"), side.get_model_repository_index()
    server = side.get_server_metadata()
    if side.over_http:
        assert metadata["inputs"] == [{"name": "measurements", "datatype": "FP32", "shape": [-1, 4]}]
        assert config["input"][0]["dims"] == [4]
        assert statistics["model_stats"][0]["inference_stats"]["success"]["count"] > 0
        assert {"digits", "iris"} <= {described["name"] for described in index if described["state"] == "READY"}
        assert "binary_tensor_data" in server["extensions"]
    else:
        assert list(metadata.inputs[0].shape) == [-1, 4]
        assert list(config.config.input[0].dims) == [4]
        assert config.config.input[0].data_type == tritonclient.grpc.model_config_pb2.TYPE_FP32
        assert statistics.model_stats[0].inference_stats.success.count > 0
        assert {"digits", "iris"} <= {model.name for model in index.models if model.state == "READY"}
        assert "binary_tensor_data" in server.extensions


def check_http(side):
    expected = side.infer("iris", [side.iris()]).as_numpy("probabilities")
    for binary in (True, False):
        for binary_output in (True, False):
            outputs = [side.module.InferRequestedOutput("probabilities", binary_data=binary_output)]
            answer = side.infer("iris", [side.iris(binary_data=binary)], outputs=outputs)
            assert np.allclose(answer.as_numpy("probabilities"), expected)
    for algorithm in ("gzip", "deflate"):
        for what in ("request", "response"):
            answer = side.infer("iris", [side.iris()], **{f"{what}_compression_algorithm": algorithm})
            assert np.allclose(answer.as_numpy("probabilities"), expected)
    assert np.allclose(side.async_infer("iris", [side.iris()]).get_result().as_numpy("probabilities"), expected)


def check_grpc(side):
    expected = side.infer("iris", [side.iris()]).as_numpy("probabilities")
    for algorithm in ("gzip", "deflate"):
        answer = side.infer("iris", [side.iris()], compression_algorithm=algorithm)
        assert np.allclose(answer.as_numpy("probabilities"), expected)
    answers = queue.Queue()
    side.client.start_stream(lambda result, error: answers.put((result, error)), headers={side.header: TOKEN})
    names = ["iris"] * 5 + ["nothing"] + ["iris"] * 5
    for number, name in enumerate(names):
        side.client.async_stream_infer(name, [side.iris()], request_id=str(number))
    for number, name in enumerate(names):
        result, error = answers.get(timeout=60)
        if name == "nothing":
            assert "Model not found: nothing" in error.message()
        else:
            assert error is None, error
            assert result.get_response().id == str(number)
            assert np.allclose(result.as_numpy("probabilities"), expected)
    side.client.stop_stream()


over_grpc = Side(tritonclient.grpc, os.environ["GRPC"], "authorization")
over_http = Side(tritonclient.http, os.environ["REST"].removeprefix("http://"), "Authorization")
for one in (over_grpc, over_http):
    check(one)
check_grpc(over_grpc)
check_http(over_http)
print("all is well")
