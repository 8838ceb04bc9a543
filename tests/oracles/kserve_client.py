"""Send requests like programs that use KServe's SDK, over REST and gRPC; the last line is the result."""

import asyncio
import os
from pathlib import Path

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

ARCHIVES = Path(os.environ["ARCHIVES"])
EMAIL = (ARCHIVES / "topics" / "samples" / "email.txt").read_bytes()
PNG = (ARCHIVES / "digits" / "samples" / "seven.png").read_bytes()
ROWS = np.array([[5.0, 3.4, 1.5, 0.2], [6.6, 3.0, 5.6, 2.1]], np.float32)
TOKEN = f"Bearer {os.environ['TOKEN']}"


def request_of(model, name, array, datatype, *, binary=True, **more):
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[tensor], **more)


def iris(rows=ROWS, **more):
    return request_of("iris", "measurements", rows, "FP32", **more)


def label(answer):
    (text,) = answer.get_output_by_name("label").as_numpy().tolist()
    return text.decode() if isinstance(text, bytes) else text


def texts(*items):
    return np.array(items, dtype=object)


async def check_rest():
    address, headers = os.environ["REST"], {"Authorization": TOKEN}
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        assert await client.is_server_live(address, headers=headers)
        assert await client.is_server_ready(address, headers=headers)
        assert await client.is_model_ready(address, "iris", headers=headers)
        assert not await client.is_model_ready(address, "nothing", headers=headers)
        for binary in (True, False):
            for wanted in (True, False):
                request = iris(binary=binary, parameters={"binary_data_output": wanted})
                answer = await client.infer(address, request, model_name="iris", headers=dict(headers))
                assert answer.outputs[0].as_numpy().argmax(1).tolist() == [0, 2]
        request = request_of("topics", "text", texts(EMAIL), "BYTES")
        answer = await client.infer(address, request, model_name="topics", headers=dict(headers))
        assert label(answer) == "email"
        request = iris(request_outputs=[RequestedOutput("probabilities", {"binary_data": True})])
        answer = await client.infer(address, request, model_name="iris", headers=dict(headers))
        assert [output.name for output in answer.outputs] == ["probabilities"]
        for wrong, words in ((iris(ROWS[:, :2]), "of the shape [4] is expected"), (iris(), "Model not found")):
            name = "nothing" if words == "Model not found" else "iris"
            try:
                await client.infer(address, wrong, model_name=name, headers=dict(headers))
            except httpx.HTTPStatusError as error:
                assert words in str(error), error
            else:
                raise AssertionError("it was not refused")
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        assert await client.is_model_ready(address, "iris", headers=headers)
        answer = await client.infer(address, {"instances": ROWS.tolist()}, model_name="iris", headers=dict(headers))
        assert np.argmax(answer["predictions"], 1).tolist() == [0, 2]


async def check_grpc():
    headers = (("authorization", TOKEN),)
    async with InferenceGRPCClient(os.environ["GRPC"]) as client:
        assert await client.is_server_live(headers=headers)
        assert await client.is_server_ready(headers=headers)
        assert await client.is_model_ready("iris", headers=headers)
        answer = await client.infer(iris(), headers=headers)
        assert answer.outputs[0].as_numpy().argmax(1).tolist() == [0, 2]
        answer = await client.infer(request_of("topics", "text", texts(EMAIL), "BYTES"), headers=headers)
        assert label(answer) == "email"
        answer = await client.infer(request_of("digits", "image", texts(PNG), "BYTES"), headers=headers)
        assert label(answer) == "7"
        try:
            await client.infer(iris(ROWS[:, :2]), headers=headers)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "of the shape [4] is expected" in error.details()
        else:
            raise AssertionError("it was not refused")


asyncio.run(check_rest())
asyncio.run(check_grpc())
print("all is well")
