"""Save models with MLflow, and answer requests as ``mlflow models serve`` does, for tests that compare the answers.

    python tests/oracles/mlflow_models.py FOLDER < requests.json

Models are saved to folders in FOLDER, which is new. Each request of the JSON array has ``model``, ``content_type`` and
``body``; each answer has ``status`` and ``body``. TORCH is the folder of packages that has torch, which this
environment lacks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "true"
sys.path.append(os.environ["TORCH"])

import mlflow.pytorch
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.pyfunc import scoring_server
from mlflow.types import ParamSchema, ParamSpec

FOLDER = Path(sys.argv[1])
REQUIREMENTS = [f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.partition('+')[0]}", "cloudpickle"]


class Scaled(torch.nn.Module):
    """A layer and a parameter of the request, in the main module, so that cloudpickle saves its code."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, values, factor: float = 1.0):
        return self.layer(values) * factor


class Plain(torch.nn.Module):
    """A layer."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, values):
        return self.layer(values)


torch.manual_seed(7)
array = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]], dtype=np.float32)
table = pd.DataFrame({"a": [1, 4], "b": [2.0, 5.0], "c": [3.0, 6.5]})
output = np.zeros((2, 2), dtype=np.float32)
params = ParamSchema([ParamSpec("factor", "double", 2.0)])
tensor = infer_signature(array, output)
columns = infer_signature(table, output)


def save(name, model, kind="pickle", **keys):
    keys |= {"pip_requirements": REQUIREMENTS, "serialization_format": kind}
    mlflow.pytorch.save_model(model.eval(), FOLDER / name, **keys)


save("columns", Plain(), signature=columns, input_example=table)
save("params", Scaled(), signature=ModelSignature(tensor.inputs, tensor.outputs, params))
save("bare", Plain())
save("program", Plain(), signature=tensor, input_example=array, kind="pt2")

models = {path.name: mlflow.pyfunc.load_model(str(path)) for path in FOLDER.iterdir()}
answers = []
for request in json.load(sys.stdin):
    model = models[request["model"]]
    try:
        answer = scoring_server.invocations(
            request["body"], request["content_type"], model, model.metadata.get_input_schema()
        )
        answers.append({"status": answer.status, "body": answer.response})
    except MlflowException as error:
        answers.append({"status": error.get_http_status_code(), "body": error.serialize_as_json()})
print("answers:" + json.dumps(answers))
