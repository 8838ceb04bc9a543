"""Send one request to TorchServe over REST or gRPC, without torchmar's clients: a script to copy.

REST needs ``requests``; gRPC needs ``grpcio`` and the messages in ``torchmar/grpc/wire``. The
examples are of a server that ``torchmar serve`` runs::

    python scripts/ask.py digits archives/digits/samples/seven.png
    python scripts/ask.py digits archives/digits/samples/seven.png --target 7
    python scripts/ask.py digits --metadata --grpc
"""

from __future__ import annotations

import argparse
import json
import mimetypes
import os
import sys
from pathlib import Path

REST = {"inference": "http://127.0.0.1:8080", "management": "http://127.0.0.1:8081"}
GRPC = {"inference": "127.0.0.1:7070", "management": "127.0.0.1:7071"}


def rest(options: argparse.Namespace, api: str) -> bytes:
    """Return the body of the answer over REST."""
    import requests

    headers = {"Authorization": f"Bearer {token(options, api)}"}
    address = (options.address or REST[api]).rstrip("/")
    if options.metadata:
        response = requests.get(f"{address}/models/{options.model}", headers=headers, timeout=options.timeout)
    else:
        headers["Content-Type"] = mimetypes.guess_type(options.input)[0] or "application/octet-stream"
        kind = "predictions"
        if options.target is not None:
            kind, headers["Explain-Target"] = "explanations", options.target
        body = Path(options.input).read_bytes()
        url = f"{address}/{kind}/{options.model}"
        response = requests.post(url, data=body, headers=headers, timeout=options.timeout)
    if not response.ok:
        sys.exit(f"{response.status_code}: {response.text}")
    return response.content


def grpc(options: argparse.Namespace, api: str) -> bytes:
    """Return the body of the answer over gRPC, where there are no explanations."""
    import grpc

    from torchmar.grpc.wire import inference_pb2, management_pb2

    metadata = (("authorization", f"Bearer {token(options, api)}"),)
    with grpc.insecure_channel(options.address or GRPC[api]) as channel:
        try:
            if options.metadata:
                describe = channel.unary_unary(
                    "/org.pytorch.serve.grpc.management.ManagementAPIsService/DescribeModel",
                    management_pb2.DescribeModelRequest.SerializeToString,
                    management_pb2.ManagementResponse.FromString,
                )
                query = management_pb2.DescribeModelRequest(model_name=options.model)
                return describe(query, timeout=options.timeout, metadata=metadata).msg.encode()
            predict = channel.unary_unary(
                "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
                inference_pb2.PredictionsRequest.SerializeToString,
                inference_pb2.PredictionResponse.FromString,
            )
            row = {"data": Path(options.input).read_bytes()}
            message = inference_pb2.PredictionsRequest(model_name=options.model, input=row)
            prediction = predict(message, timeout=options.timeout, metadata=metadata).prediction
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")
    if error_text := error_in(prediction):
        sys.exit(error_text)
    return prediction


def error_in(prediction: bytes) -> str:
    """Return the error that an answer is: TorchServe has no status for what a handler refuses by itself."""
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
    """Return the token of an API: the environment's, or the one that the server wrote into its key file."""
    given = os.environ.get(f"TORCHMAR_{api.upper()}_TOKEN")
    return given or str(json.loads(options.key_file.read_text())[api]["key"])


def main() -> None:
    """Parse arguments, send the request, write the answer to stdout."""
    parser = argparse.ArgumentParser(description="Send a request to TorchServe over REST or gRPC.")
    parser.add_argument("model", help="the model's name")
    parser.add_argument("input", nargs="?", help="the file to send")
    parser.add_argument("--grpc", action="store_true", help="over gRPC; default: over REST")
    parser.add_argument("--target", help="explain this class, by label or index (REST only)")
    parser.add_argument("--metadata", action="store_true", help="describe the model instead")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds (default: %(default)s)")
    parser.add_argument("--address", help="of the inference API, for --metadata of the management API")
    parser.add_argument("--key-file", type=Path, default=Path(".torchmar/key_file.json"), help="default: %(default)s")
    options = parser.parse_args()
    if bool(options.input) is options.metadata:
        parser.error("either an input or --metadata")
    if options.grpc and options.target is not None:
        parser.error("TorchServe explains over REST only")
    try:
        answer = (grpc if options.grpc else rest)(options, "management" if options.metadata else "inference")
        sys.stdout.buffer.write(answer)
        if sys.stdout.isatty():
            print()
    except (OSError, ValueError) as error:  # no such file, no server; no JSON, no address
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
