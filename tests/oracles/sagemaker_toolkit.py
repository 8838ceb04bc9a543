"""Answer requests with SageMaker's own PyTorch toolkit, for tests that compare the answers.

    python tests/oracles/sagemaker_toolkit.py MODEL_DIR < requests.json

Each request of the JSON array has ``body`` in base64, ``content_type`` and ``accept``; each answer has ``status``,
``content_type`` and ``body``. TORCH is the folder of packages that has torch, which this environment lacks.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import sys
import types

sys.path.append(os.environ["TORCH"])
sys.path.insert(0, f"{sys.argv[1]}/code")

default = importlib.import_module("sagemaker_pytorch_serving_container.default_pytorch_inference_handler")
transformers = importlib.import_module("sagemaker_inference.transformer")


class Context:
    """The part of a server's context that the toolkit uses."""

    def __init__(self, headers):
        self.status, self.content_type, self.model_name = 200, None, "model"
        self.system_properties = {"model_dir": sys.argv[1], "gpu_id": None}
        self.request_processor = [types.SimpleNamespace(get_request_properties=lambda: headers)]

    def set_response_content_type(self, index, content_type):
        self.content_type = content_type

    def set_response_status(self, code, phrase="", idx=0):
        self.status = code


service = transformers.Transformer(default_inference_handler=default.DefaultPytorchInferenceHandler())
answers = []
for request in json.load(sys.stdin):
    headers = {"Content-Type": request["content_type"], "Accept": request["accept"]}
    context = Context({key: value for key, value in headers.items() if value})
    (body,) = service.transform([{"body": bytearray(base64.b64decode(request["body"]))}], context)
    encoded = body.encode() if isinstance(body, str) else bytes(body)
    answers.append(
        {
            "status": context.status,
            "content_type": context.content_type,
            "body": base64.b64encode(encoded).decode(),
        }
    )
print("answers:" + json.dumps(answers))
