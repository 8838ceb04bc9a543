"""Send one request to a server over REST or gRPC, without torchmar's clients: a script to copy.

REST needs ``requests``; gRPC needs ``grpcio`` and the messages in ``torchmar/grpc/wire``. The
examples are of a server that ``torchmar serve`` runs::

    python scripts/ask.py digits archives/digits/samples/seven.png
    python scripts/ask.py digits archives/digits/samples/seven.png --target 7
    python scripts/ask.py digits --metadata --format GRPC --timeout 10
    python scripts/ask.py imagenet archives/imagenet/samples/cat.jpg --protocol tensorflow
"""

from __future__ import annotations

import argparse
import base64
import json
import mimetypes
import os
import sys
from pathlib import Path
from typing import Any

REST = {"inference": "http://127.0.0.1:8080", "management": "http://127.0.0.1:8081"}
GRPC = {"inference": "127.0.0.1:7070", "management": "127.0.0.1:7071"}
# Paths of a model's metadata and predictions for each protocol, over REST.
PATHS = {
    "torchserve": ("/models/{}", "/predictions/{}"),
    "kserve-v1": ("/v1/models/{}", "/v1/models/{}:predict"),
    "kserve-v2": ("/v2/models/{}", "/v2/models/{}/infer"),
    "tensorflow": ("/v1/models/{}/metadata", "/v1/models/{}:predict"),
}
TORCHSERVE = "/org.pytorch.serve.grpc"


def rest(options: argparse.Namespace, api: str) -> bytes:
    """Return the body of the answer over REST."""
    import requests

    headers = {"Authorization": f"Bearer {token(options, api)}"}
    metadata, predictions = (path.format(options.model) for path in PATHS[options.protocol])
    address = (options.address or REST[api]).rstrip("/")
    if options.metadata:
        response = requests.get(f"{address}{metadata}", headers=headers, timeout=options.timeout)
    else:
        if options.target is not None:
            predictions, headers["Explain-Target"] = f"/explanations/{options.model}", options.target
        headers["Content-Type"], body = rest_body(options)
        response = requests.post(f"{address}{predictions}", data=body, headers=headers, timeout=options.timeout)
    if not response.ok:
        sys.exit(f"{response.status_code}: {response.text}")
    return response.content


def rest_body(options: argparse.Namespace) -> tuple[str, bytes]:
    """Return the content type and the body of a request: the file itself, or JSON with one instance."""
    content = Path(options.input).read_bytes()
    if options.protocol == "torchserve":
        return mimetypes.guess_type(options.input)[0] or "application/octet-stream", content
    document: dict[str, Any]
    if options.protocol == "kserve-v2":
        try:
            value = content.decode()
        except UnicodeDecodeError:
            value = base64.b64encode(content).decode()
        document = {"inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "data": [value]}]}
    else:
        is_json = Path(options.input).suffix == ".json"
        document = {"instances": [json.loads(content) if is_json else {"b64": base64.b64encode(content).decode()}]}
        if options.protocol == "tensorflow":
            document["signature_name"] = "serving_default"
    return "application/json", json.dumps(document).encode()


def grpc(options: argparse.Namespace, api: str) -> bytes:
    """Return the body of the answer over gRPC, which has no explanations."""
    import grpc

    metadata = (("authorization", f"Bearer {token(options, api)}"),)
    with grpc.insecure_channel(options.address or GRPC[api]) as channel:

        def send(method: str, request: Any, response: Any) -> Any:
            call = channel.unary_unary(method, type(request).SerializeToString, response.FromString)
            return call(request, timeout=options.timeout, metadata=metadata)

        try:
            return {"torchserve": torchserve_grpc, "kserve-v2": kserve_grpc, "tensorflow": tensorflow_grpc}[
                options.protocol
            ](options, send)
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")


def torchserve_grpc(options: argparse.Namespace, send: Any) -> bytes:
    """Return the answer of TorchServe's services."""
    from torchmar.grpc.wire import inference_pb2, management_pb2

    if options.metadata:
        query = management_pb2.DescribeModelRequest(model_name=options.model)
        method = f"{TORCHSERVE}.management.ManagementAPIsService/DescribeModel"
        return bytes(send(method, query, management_pb2.ManagementResponse).msg.encode())
    row = {"data": Path(options.input).read_bytes()}
    message = inference_pb2.PredictionsRequest(model_name=options.model, input=row)
    method = f"{TORCHSERVE}.inference.InferenceAPIsService/Predictions"
    prediction = bytes(send(method, message, inference_pb2.PredictionResponse).prediction)
    if error_text := error_in(prediction):
        sys.exit(error_text)
    return prediction


def kserve_grpc(options: argparse.Namespace, send: Any) -> bytes:
    """Return the answer of KServe v2 (the Open Inference Protocol) as JSON: metadata, or the outputs by name."""
    from google.protobuf.json_format import MessageToJson

    from torchmar.grpc.wire import open_inference_pb2 as wire

    service = "/inference.GRPCInferenceService"
    if options.metadata:
        query = wire.ModelMetadataRequest(name=options.model)
        response = send(f"{service}/ModelMetadata", query, wire.ModelMetadataResponse)
        return MessageToJson(response, preserving_proto_field_name=True).encode()
    contents = wire.InferTensorContents(bytes_contents=[Path(options.input).read_bytes()])
    tensor = wire.ModelInferRequest.InferInputTensor(name="input", datatype="BYTES", shape=[1], contents=contents)
    request = wire.ModelInferRequest(model_name=options.model, inputs=[tensor])
    response = send(f"{service}/ModelInfer", request, wire.ModelInferResponse)
    return as_json({output.name: elements(output.contents) for output in response.outputs})


def tensorflow_grpc(options: argparse.Namespace, send: Any) -> bytes:
    """Return the answer of TensorFlow Serving's service as JSON: the signatures, or the outputs by name."""
    from google.protobuf.json_format import MessageToJson

    from torchmar.grpc.wire import tensorflow_pb2
    from torchmar.grpc.wire import tensorflow_serving_pb2 as wire

    service = "/tensorflow.serving.PredictionService"
    spec = wire.ModelSpec(name=options.model)
    if options.metadata:
        query = wire.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        response = send(f"{service}/GetModelMetadata", query, wire.GetModelMetadataResponse)
        signatures = wire.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        return MessageToJson(signatures, preserving_proto_field_name=True).encode()
    one = tensorflow_pb2.TensorShapeProto(dim=[tensorflow_pb2.TensorShapeProto.Dim(size=1)])
    content = [Path(options.input).read_bytes()]
    tensor = tensorflow_pb2.TensorProto(dtype=tensorflow_pb2.DT_STRING, tensor_shape=one, string_val=content)
    request = wire.PredictRequest(model_spec=spec, inputs={"input": tensor})
    response = send(f"{service}/Predict", request, wire.PredictResponse)
    return as_json({name: elements(output) for name, output in response.outputs.items()})


def elements(message: Any) -> list[Any]:
    """Return the elements of a tensor, which are in its only repeated field."""
    filled = [value for field, value in message.ListFields() if field.name.endswith(("_contents", "_val"))]
    return [value.decode() if isinstance(value, bytes) else value for value in (filled[0] if filled else ())]


def as_json(document: Any) -> bytes:
    """Return a value as JSON."""
    return json.dumps(document).encode()


def error_in(prediction: bytes) -> str:
    """Return the error in an answer: TorchServe has no status for requests that a handler refuses itself."""
    if not prediction.lstrip().startswith(b"{"):
        return ""
    try:
        document = json.loads(prediction)
    except ValueError:
        return ""
    code, message = document.get("code"), document.get("message")
    is_error = isinstance(code, int) and code >= 400 and isinstance(message, str)
    return f"{code}: {message}" if is_error else ""


def token(options: argparse.Namespace, api: str) -> str:
    """Return the token of an API: the environment's, or that of the server's key file."""
    variable = os.environ.get(f"TORCHMAR_{api.upper()}_TOKEN")
    return variable or str(json.loads(options.key_file.read_text())[api]["key"])


def main() -> None:
    """Parse arguments, send the request, write the answer to stdout."""
    parser = argparse.ArgumentParser(description="Send a request to a server over REST or gRPC.")
    parser.add_argument("model", help="the model's name")
    parser.add_argument("input", nargs="?", help="the file to send")
    parser.add_argument(
        "--format", type=str.upper, choices=("REST", "GRPC"), default="REST", help="default: %(default)s"
    )
    parser.add_argument("--grpc", dest="format", action="store_const", const="GRPC", help="the same as --format GRPC")
    parser.add_argument("--protocol", choices=tuple(PATHS), default="torchserve", help="default: %(default)s")
    parser.add_argument("--target", help="explain this class, by label or index (REST of torchserve only)")
    parser.add_argument("--metadata", action="store_true", help="describe the model instead")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds (default: %(default)s)")
    parser.add_argument(
        "--address", help="the address of the inference API; for --metadata of torchserve, of the management API"
    )
    parser.add_argument("--key-file", type=Path, default=Path(".torchmar/key_file.json"), help="default: %(default)s")
    options = parser.parse_args()
    if bool(options.input) is options.metadata:
        parser.error("either an input or --metadata")
    over_grpc = options.format == "GRPC"
    if options.target is not None and (over_grpc or options.protocol != "torchserve"):
        parser.error("explanations are sent over TorchServe's REST API only")
    if over_grpc and options.protocol == "kserve-v1":
        parser.error("KServe v1 has no gRPC: --protocol kserve-v2")
    managed = options.metadata and options.protocol == "torchserve"
    try:
        answer = (grpc if over_grpc else rest)(options, "management" if managed else "inference")
        sys.stdout.buffer.write(answer)
        if sys.stdout.isatty():
            print()
    except (OSError, ValueError) as error:  # no such file, no server; no JSON, no address
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
