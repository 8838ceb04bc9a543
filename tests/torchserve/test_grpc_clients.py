"""torchmar.grpc implements TorchServe's gRPC contract against the real server, with the exceptions of REST."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc_tools
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet

from tests.support.grpc_handlers import HANDLERS
from tests.support.packing import pack_handler
from tests.support.paths import ROOT, SAMPLES
from tests.support.servers import write_config
from torchmar import archive, exchange
from torchmar.connection import Endpoint
from torchmar.engines.addresses import free_ports
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import (
    ConflictError,
    ConnectError,
    InsecureError,
    NotFoundError,
    ResponseTimeoutError,
    ServerError,
    TorchmarError,
    UnauthorizedError,
)
from torchmar.grpc import GrpcInference, GrpcManagement, GrpcOpenInference
from torchmar.grpc.wire import inference_pb2, management_pb2, open_inference_pb2
from torchmar.inference import Tensor
from torchmar.management import ManagementClient

WIRE = ROOT / "torchmar" / "grpc" / "wire"
SEVEN = SAMPLES / "seven.png"
SEQUENCES = {
    "minWorkers": 1, "maxWorkers": 1, "batchSize": 2, "maxBatchDelay": 20,
    "sequenceBatching": True, "sequenceMaxIdleMSec": 2000, "maxNumSequence": 4, "maxSequenceJobQueueSize": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[TorchServe]:
    """Run a real TorchServe with the Open Inference Protocol."""
    folder = tmp_path_factory.mktemp("grpc")
    store = folder / "model_store"
    store.mkdir()
    shutil.copy(digits, store)
    topics = archive.build(ROOT / "archives" / "topics", store).path
    for name, code in HANDLERS.items():
        pack_handler(store, code, name=name, config=SEQUENCES if name == "counting" else {})
    config_file = write_config(folder, ts_open_inference_protocol="true")
    with TorchServe(config_file, store, folder / "run") as running:
        running.load(store / digits.name)
        running.load(topics)
        for name in HANDLERS:
            running.load(store / f"{name}-1.0.mar")
        yield running


@pytest.fixture
def inference(server: TorchServe) -> Iterator[GrpcInference]:
    with GrpcInference(server.server) as client:
        yield client


@pytest.fixture
def management(server: TorchServe) -> Iterator[GrpcManagement]:
    with GrpcManagement(server.server) as client:
        yield client


@pytest.fixture
def open_inference(server: TorchServe) -> Iterator[GrpcOpenInference]:
    with GrpcOpenInference(server.server) as client:
        yield client


def compiled(folder: Path, *files: str) -> FileDescriptorSet:
    """Return the descriptors that the protocol buffer compiler reads from the contracts in a folder."""
    included = Path(grpc_tools.__file__).parent / "_proto"
    target = folder / "descriptors"
    places = [f"--proto_path={folder}", f"--proto_path={included}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *places, f"--descriptor_set_out={target}", *files]
    subprocess.run(command, check=True, capture_output=True)
    return FileDescriptorSet.FromString(target.read_bytes())


def contract(descriptors: FileDescriptorSet) -> dict[str, object]:
    """Return services, methods, messages and fields by their full names."""
    names_of: dict[str, object] = {}

    def read(message: DescriptorProto, name: str) -> None:
        for field in message.field:
            # Ours has google.rpc.Status by its fields, in the package of who sends it.
            kind = field.type_name.replace(".google.rpc.", ".org.pytorch.serve.grpc.inference.")
            oneof = field.oneof_index if field.HasField("oneof_index") else None
            names_of[f"{name}.{field.name}"] = (
                field.number,
                field.type,
                field.label,
                kind,
                oneof,
                field.proto3_optional,
            )
        for nested in message.nested_type:
            read(nested, f"{name}.{nested.name}")

    for file in descriptors.file:
        for message in file.message_type:
            read(message, f"{file.package}.{message.name}")
        for service in file.service:
            for method in service.method:
                types = (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
                names_of[f"{file.package}.{service.name}/{method.name}"] = types
    return names_of


def test_the_contract_is_the_one_in_torchserves_jar(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("ts")
    assert spec
    assert spec.origin
    names = ["inference.proto", "management.proto", "open_inference_grpc.proto"]
    with zipfile.ZipFile(Path(spec.origin).parent / "frontend" / "model-server.jar") as jar:
        for name in (*names, "google/rpc/status.proto"):
            jar.extract(name, tmp_path / "theirs")
    theirs = contract(compiled(tmp_path / "theirs", *names))
    (tmp_path / "ours").mkdir()
    files = [file for file in WIRE.glob("*.proto") if not file.name.startswith("tensorflow")]
    for file in files:
        shutil.copy(file, tmp_path / "ours")
    ours = contract(compiled(tmp_path / "ours", *(file.name for file in files)))
    status = {name: kind for name, kind in ours.items() if name.startswith("org.pytorch.serve.grpc.inference.Status.")}
    # Of the Open Inference Protocol ours has extensions of Triton's, too.
    missing = {name: kind for name, kind in theirs.items() if ours.get(name) != kind}
    assert missing == {}
    more = {name for name in ours if name not in status and name not in theirs}
    assert all(name.startswith("org.pytorch.serve.grpc.openinference.") for name in more)
    rpc_status = contract(compiled(tmp_path / "theirs", "google/rpc/status.proto"))
    assert [kind for _, kind in sorted(status.items())] == [kind for _, kind in sorted(rpc_status.items())]


@pytest.mark.parametrize("module", [inference_pb2, management_pb2, open_inference_pb2])
def test_the_generated_messages_match_their_proto_files(module: object, tmp_path: Path) -> None:
    descriptor = module.DESCRIPTOR  # type: ignore[attr-defined]
    shutil.copy(ROOT / descriptor.name, tmp_path)
    (written,) = compiled(tmp_path, Path(descriptor.name).name).file
    generated = type(written)()
    descriptor.CopyToProto(generated)
    assert contract(FileDescriptorSet(file=[generated])) == contract(FileDescriptorSet(file=[written]))


def test_handlers_of_ours_get_texts_and_files_as_they_are(open_inference: GrpcOpenInference) -> None:
    email = (ROOT / "archives" / "topics" / "samples" / "email.txt").read_bytes()
    label, probability = open_inference.infer("topics", [Tensor.of("text", [email])])
    assert (label.data, probability.data[0] > 0.9) == (["email"], True)
    (label, _) = open_inference.infer("digits", [Tensor.of("image", [SEVEN.read_bytes()])])
    assert label.data == ["7"]


def test_a_request_that_our_handler_rejects_ends_no_worker(
    server: TorchServe, open_inference: GrpcOpenInference
) -> None:
    with ManagementClient(server.server) as management:
        (before,) = management.describe("digits")
        with pytest.raises(ServerError, match="not an image of a known format") as caught:
            open_inference.infer("digits", [Tensor.of("image", [b"no image"])])
        assert caught.value.status == 400
        (after,) = management.describe("digits")
    assert [worker.pid for worker in after.workers] == [worker.pid for worker in before.workers]


def test_a_prediction_is_the_same_as_over_rest(inference: GrpcInference) -> None:
    assert next(iter(inference.predict("digits", SEVEN))) == "7"
    answer = inference.request("digits", exchange.read(SEVEN), "1.0")
    assert (answer.status, next(iter(json.loads(answer.body)))) == (200, "7")
    assert inference.ping() == "Healthy"


def test_the_handlers_row_has_the_body_and_the_fields(inference: GrpcInference) -> None:
    row = inference.predict("many_ways", {"a": 1}, fields={"target": "3"})
    assert row == {"body": '{"a": 1}', "target": "3"}


def test_explanations_are_not_supported(inference: GrpcInference) -> None:
    with pytest.raises(TorchmarError, match="explains over REST only"):
        inference.request("digits", replace(exchange.read(SEVEN), explain=True))


def test_a_response_is_streamed_in_parts(inference: GrpcInference) -> None:
    assert list(inference.stream("pieces", b"x")) == [b"a", b"b", b"c"]


def test_a_sequence_has_its_answers_one_by_one(inference: GrpcInference) -> None:
    assert list(inference.sequence("counting", "first", [b"12", b"345"])) == [b"2", b"5"]
    assert list(inference.sequence("counting", "second", [b"1"])) == [b"1"]
    with pytest.raises(ServerError, match="Model not found"):
        list(inference.sequence("nothing", "third", [b"1", b"2"]))


@pytest.mark.parametrize(
    ("name", "body", "kind", "status", "message"),
    [
        ("nothing", b"", NotFoundError, 404, "Model not found: nothing"),
        ("many_ways", b"400", ServerError, 400, "on purpose"),
        ("many_ways", b"404", NotFoundError, 404, "on purpose"),
        ("many_ways", b"413", ServerError, 413, "on purpose"),
        ("many_ways", b"507", ServerError, 500, "on purpose"),
        ("many_ways", b"fail", ServerError, 503, "Prediction failed"),
    ],
)
def test_an_error_is_the_same_as_over_rest(
    inference: GrpcInference, name: str, body: bytes, kind: type[ServerError], status: int, message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        inference.predict(name, body)
    assert caught.value.status == status


def test_an_error_of_our_handlers_is_recognised_without_a_status(inference: GrpcInference) -> None:
    with pytest.raises(ServerError, match="the body is empty") as caught:
        inference.predict("digits", b"")
    assert (caught.value.status, caught.value.type) == (400, "BadRequestException")


def test_an_address_of_another_service_is_reported(server: TorchServe) -> None:
    http = server.server.inference.replace("http", "grpc")
    with pytest.raises(ConnectError, match="does not speak gRPC") as caught:
        GrpcInference(replace(server.server, grpc_inference=http)).ping()
    assert "port of its own" in caught.value.hint
    with pytest.raises(ConnectError, match="does not speak TLS"):
        GrpcInference(replace(server.server, grpc_inference=http.replace("grpc", "grpcs"))).ping()
    with pytest.raises(ServerError) as refused:
        GrpcInference(replace(server.server, grpc_inference=server.server.grpc_management)).predict("digits", SEVEN)
    assert refused.value.hint == "is this the address of the inference API?"


def test_a_version_that_does_not_exist_is_not_found(inference: GrpcInference) -> None:
    with pytest.raises(NotFoundError, match=r"9\.9 does not exist"):
        inference.predict("digits", SEVEN, "9.9")


def test_a_request_has_its_deadline(inference: GrpcInference) -> None:
    with pytest.raises(ResponseTimeoutError) as caught:
        inference.predict("many_ways", b"slow", timeout=0.3)
    assert caught.value.sent


def test_messages_that_are_too_large_are_reported(inference: GrpcInference) -> None:
    with pytest.raises(ServerError) as caught:
        inference.predict("many_ways", b"x" * 30_000_000)
    assert "max_request_size" in caught.value.hint


def test_a_missing_server_and_a_missing_address_are_reported() -> None:
    with pytest.raises(ConnectError, match="connection refused") as caught:
        GrpcInference(f"grpc://127.0.0.1:{free_ports(1)[0]}").ping()
    assert not caught.value.sent
    with pytest.raises(ConnectError, match="cannot resolve the host name"):
        GrpcInference("grpc://nowhere.invalid:1").ping()
    for address in ("127.0.0.1:7070", "http://127.0.0.1:7070", "grpc://", "grpc://host", "grpc://host:99999"):
        with pytest.raises(TorchmarError, match="not an address"):
            GrpcManagement(address)


def test_a_token_that_is_missing_wrong_or_for_another_machine(server: TorchServe) -> None:
    for tokens in ({}, {"inference": "wrong"}):
        with pytest.raises(UnauthorizedError):
            GrpcInference(replace(server.server, key_file=None, tokens=tokens)).ping()
    with pytest.raises(TorchmarError, match="does not allow") as error:
        GrpcInference(replace(server.server, key_file=None, tokens={"inference": "grün"})).ping()
    assert "grün" not in str(error.value)
    remote = Endpoint(grpc_inference="grpc://192.0.2.1:7070", tokens={"inference": "secret"})
    with pytest.raises(InsecureError, match="plain text"):
        GrpcInference(remote).ping()


def test_a_model_is_registered_scaled_described_and_removed(
    server: TorchServe, management: GrpcManagement, make: Callable[..., Path]
) -> None:
    for version in ("1.0", "2.0"):
        path = make(name="life", version=version, store=server.model_store)
        assert "registered" in management.register(path.name, initial_workers=1, batch_size=3, startup_timeout=55)
    rest = ManagementClient(server.server)
    assert management.describe("life", "all") == rest.describe("life", "all")
    (first,) = management.describe("life")
    assert (first.version, first.batch_size, first.startup_timeout, first.ready) == ("1.0", 3, 55, 1)
    assert list(management.models()) == list(rest.models())
    assert "2" in management.scale("life", "1.0", min_worker=2)
    assert management.describe("life", "1.0")[0].ready == 2
    management.set_default("life", "2.0")
    assert management.describe("life")[0].version == "2.0"
    with pytest.raises(ServerError) as caught:
        management.register("life-1.0.mar")
    assert not isinstance(caught.value, ConflictError)  # the server's response has no such code
    assert "registered already" in caught.value.hint
    with pytest.raises(ServerError) as caught:
        management.unregister("life")
    assert "default version" in caught.value.hint
    management.unregister("life", "1.0")
    assert "unregistered" in management.unregister("life")
    with pytest.raises(NotFoundError):
        management.describe("life")
    with pytest.raises(NotFoundError, match="Model not found at"):
        management.register("none.mar")
    with pytest.raises(TorchmarError, match="a name with a slash"):
        management.register("life-1.0.mar", model_name="a/b")


def test_scaling_to_zero_workers_is_rejected(management: GrpcManagement) -> None:
    with pytest.raises(TorchmarError, match="over REST only"):
        management.scale("digits", min_worker=0)


def test_the_open_inference_protocol_reports_health_and_readiness(open_inference: GrpcOpenInference) -> None:
    assert open_inference.live()
    assert open_inference.ready()
    assert open_inference.model_ready("many_ways", "1.0")
    assert open_inference.model_metadata("many_ways").versions == ("1.0",)
    with pytest.raises(NotFoundError):
        open_inference.model_ready("nothing")


def test_tensors_are_sent_and_returned(open_inference: GrpcOpenInference) -> None:
    inputs = [Tensor.of("numbers", [[1, 2], [3, 4]]), Tensor.of("parts", [0.5, 1.5]), Tensor.of("flags", [True, False])]
    back = open_inference.infer("many_ways", inputs, id="7")
    assert back == [replace(tensor, name=f"same {tensor.name}") for tensor in inputs]
    (texts,) = open_inference.infer("many_ways", [Tensor.of("texts", ["hello"])])
    assert texts.data == ["aGVsbG8="]  # TorchServe hands base64 to the handler
    with pytest.raises(ServerError, match="FP16"):
        open_inference.infer("many_ways", [Tensor.of("half", [0.5], "FP16")])
    with pytest.raises(NotFoundError):
        open_inference.infer("nothing", inputs)
