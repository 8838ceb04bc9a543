"""Answer requests with SageMaker's own PyTorch toolkit, for tests that compare the answers.

    python tests/oracles/sagemaker_toolkit.py MODEL_DIR ... < requests.json

Each request of the JSON array has ``body`` in base64, ``content_type`` and ``accept``; each answer has ``status``,
``content_type`` and ``body``. TORCH is the folder of packages that has torch, which this environment lacks. A fork of
the process, which has loaded torch once, answers the requests for each model, and writes a line of its answers.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import sys
import types

sys.path.append(os.environ["TORCH"])

default = importlib.import_module("sagemaker_pytorch_serving_container.default_pytorch_inference_handler")
transformers = importlib.import_module("sagemaker_inference.transformer")


class Context:
    """The part of a server's context that the toolkit uses."""

    def __init__(self, folder, headers):
        self.status, self.content_type, self.model_name = 200, None, "model"
        self.system_properties = {"model_dir": folder, "gpu_id": None}
        self.request_processor = [types.SimpleNamespace(get_request_properties=lambda: headers)]

    def set_response_content_type(self, index, content_type):
        self.content_type = content_type

    def set_response_status(self, code, phrase="", idx=0):
        self.status = code


def answer_all(folder, requests):
    """Return the answers of the model in a folder."""
    sys.path.insert(0, f"{folder}/code")
    service = transformers.Transformer(default_inference_handler=default.DefaultPytorchInferenceHandler())
    answers = []
    for request in requests:
        headers = {"Content-Type": request["content_type"], "Accept": request["accept"]}
        context = Context(folder, {key: value for key, value in headers.items() if value})
        (body,) = service.transform([{"body": bytearray(base64.b64decode(request["body"]))}], context)
        encoded = body.encode() if isinstance(body, str) else bytes(body)
        answers.append(
            {
                "status": context.status,
                "content_type": context.content_type,
                "body": base64.b64encode(encoded).decode(),
            }
        )
    return answers


requests = json.load(sys.stdin)
for folder in sys.argv[1:]:
    if not os.fork():
        print("answers:" + json.dumps(answer_all(folder, requests)), flush=True)
        os._exit(0)
    _, status = os.wait()
    if status:
        sys.exit(f"the toolkit has not answered for {folder}")
