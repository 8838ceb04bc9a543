"""A model of MLflow's pytorch flavour, with the requests and answers of ``mlflow models serve``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from torchmar_handlers.adapters import mlflow_input, mlflow_model
from torchmar_handlers.adapters.handler import Adapter, body_of, decoded_by_server, text_of
from torchmar_handlers.adapters.mlflow_input import ModelInput
from torchmar_handlers.common import faults
from torchmar_handlers.common.reply import Reply
from torchmar_handlers.request import JSON, BadRequest, Request


class MLflow(Adapter):
    """Serve an MLflow model without MLflow.

    The archive is the model's folder: ``MLmodel``, whose signature requests must match, ``data/`` and ``code/``.
    Bodies are those of ``/invocations`` of ``mlflow models serve`` (see
    `torchmar_handlers.adapters.mlflow_input`), and answers are ``{"predictions": ...}``. Errors have MLflow's
    ``error_code`` and ``message``.

    Without a signature, numbers with fractions are converted to the type of the model's weights, while MLflow passes
    float64, which most models reject.
    """

    def load_package(self, folder: Path) -> None:
        """Load the model, and read its signature."""
        self.model, self.model_signature = mlflow_model.load(folder, self.device)
        tensors = [*self.model.parameters(), *self.model.buffers()]
        self.weights_dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)

    def decode(self, request: Request) -> ModelInput:
        """Return the array of a request, and its parameters."""
        body = request.row["body"] if decoded_by_server(request) else text_of(body_of(request))
        return mlflow_input.read(body, request.media_type, self.model_signature)

    def answer(self, request: Request) -> Reply:
        """Return the model's output for one request."""
        value = self.decode(request)
        try:
            predictions = self._predict(value)
        except Exception as error:
            outcome = faults.of_step(self, self.known_inputs, self._step, request, value, error)
            if isinstance(outcome, Exception):
                raise outcome from error
            predictions = outcome
        else:
            self.known_inputs.keep(value)
        # NaN as MLflow writes it, which Python's clients read.
        return Reply(json.dumps({"predictions": predictions}), JSON)

    def preprocess(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Return the inputs unchanged: each request is a separate call."""
        return inputs

    def typical_inputs(self) -> Iterator[Any]:
        """Yield inputs that the first layer of the model suggests."""
        for tensor in super().typical_inputs():
            yield ModelInput(tensor.unsqueeze(0).numpy())

    def error_keys(self, status: int, message: str) -> Mapping[str, Any]:
        """Return the key of MLflow's errors that TorchServe's errors lack."""
        return {"error_code": "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR"}

    def _step(self, batch: Sequence[ModelInput], requests: Sequence[Request]) -> list[Any]:
        return [self._predict(value) for value in batch]

    def _predict(self, value: ModelInput) -> Any:
        tensor = torch.from_numpy(value.values).to(self.device)
        if (
            not self.model_signature.columns
            and not self.model_signature.tensors
            and tensor.is_floating_point()
            and self.weights_dtype
        ):
            tensor = tensor.to(self.weights_dtype)
        with torch.no_grad():
            output = self.model(tensor, **value.arguments)
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"the model answers with a {type(output).__name__}; one tensor is expected")
        rows = output.tolist()
        if not value.is_table:
            return rows
        if not 1 <= output.dim() <= 2:
            raise BadRequest(
                f"the output has the shape {list(output.shape)}, which is no table: send the input as inputs"
            )
        if output.dim() == 1:
            return [{"0": row} for row in rows]
        return [{str(column): cell for column, cell in enumerate(row)} for row in rows]
