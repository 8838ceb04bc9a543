"""The functions of SageMaker's PyTorch toolkit for packages that do not define their own.

They do the same as those of sagemaker-pytorch-inference 2.0.25 over sagemaker-inference 1.10.1, with these differences:
a content type may have parameters, ``Accept`` a wildcard; an unsupported one gets 415 or 406, not 500; ``.npy`` files
with pickled objects, whose loading would run a client's code, are rejected, and so is CSV with cells that are no
numbers.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmar_handlers.adapters import csv_numbers
from torchmar_handlers.common import npy
from torchmar_handlers.request import JSON, BadRequest, loads
from torchmar_handlers.weights import torchscript
from torchmar_handlers.weights.formats import Format, identify
from torchmar_handlers.weights.load_error import LoadError

CSV = "text/csv"
ANY = "*/*"
#: The content types whose bodies the functions get as text.
TEXTS = (JSON, CSV)
_WEIGHTS = "model.pt"
_SUFFIXES = (".pt", ".pth")


def model_fn(folder: Path, device: torch.device) -> torch.jit.ScriptModule:
    """Return the TorchScript module of ``model.pt``, or else of the only ``.pt`` or ``.pth`` file at the top level.

    Raises:
        LoadError: there is no such file, there are several, or the file is no TorchScript.
    """
    file = folder / _WEIGHTS
    if not file.is_file():
        files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())
        if len(files) != 1:
            names = f" ({', '.join(path.name for path in files)})" if files else ""
            raise LoadError(
                f"without a model_fn, one {_WEIGHTS}, or one .pt or .pth file is needed; there are {len(files)}{names}"
            )
        file = files[0]
    if identify(file) is not Format.TORCHSCRIPT:
        raise LoadError(f"{file.name} is not TorchScript, which alone is loaded without a model_fn: define model_fn")
    return torchscript.load(file, device)


def input_fn(body: Any, content_type: str | None, device: torch.device) -> torch.Tensor:
    """Return the tensor of a JSON, CSV or ``.npy`` body: float32 for JSON and CSV, the type of the file for ``.npy``.

    JSON may be a text, or already decoded by the server.

    Raises:
        BadRequest: the body is damaged, or of another content type (415).
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type == JSON:
        array = _json_array(body)
    elif media_type == CSV:
        array = csv_numbers.read(body).astype(np.float32)
    elif media_type == npy.CONTENT_TYPE:
        # A tensor shares the memory of the body, and a model may write to it.
        array = npy.read(body if isinstance(body, bytearray) else bytearray(body))
        if array.dtype.kind in "US":
            raise BadRequest("the .npy file has texts; send numbers")
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    else:
        kind = f"Content-Type {content_type}" if content_type else "a body without a Content-Type"
        raise BadRequest(f"{kind} is not supported: send {JSON}, {CSV} or {npy.CONTENT_TYPE}, or define input_fn", 415)
    return torch.from_numpy(array).to(device)


def predict_fn(data: Any, model: Any, device: torch.device) -> Any:
    """Return the model's output for the data, without gradients."""
    with torch.no_grad():
        model = model.to(device)
        model.eval()
        return model(data.to(device))


def output_fn(prediction: Any, accept: str, default: str) -> tuple[Any, str]:
    """Return a prediction as JSON, CSV or ``.npy``, by the first of these in ``accept``, and its content type.

    Args:
        prediction: a tensor, or a value that NumPy converts to an array.
        accept: header of the request.
        default: content type for a wildcard.

    Raises:
        BadRequest: ``accept`` contains none of them (406).
    """
    value = prediction.detach().tolist() if isinstance(prediction, torch.Tensor) else prediction
    for choice in accept.split(","):
        name = choice.partition(";")[0].strip().lower()
        media_type = default if name in (ANY, "application/*") else name
        if media_type == JSON:
            return json.dumps(value, default=_plain), JSON
        if media_type == CSV:
            text = io.StringIO()
            np.savetxt(text, value, delimiter=",", fmt="%s")
            return text.getvalue().encode(), CSV
        if media_type == npy.CONTENT_TYPE:
            file = io.BytesIO()
            np.save(file, value, allow_pickle=False)
            return file.getvalue(), npy.CONTENT_TYPE
    raise BadRequest(
        f"Accept {accept} is not supported: ask for {JSON}, {CSV} or {npy.CONTENT_TYPE}, or define output_fn",
        406,
    )


def _json_array(body: Any) -> np.ndarray:
    value = loads(body) if isinstance(body, str | bytes | bytearray) else body
    try:
        array = np.array(value)
    except ValueError as error:
        raise BadRequest(f"the JSON is no array of one shape: {error}") from None
    if array.dtype.kind not in "biuf":
        raise BadRequest("the JSON is no array of numbers")
    return array.astype(np.float32)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
