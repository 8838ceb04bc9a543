"""Descriptions of models as in TensorFlow Serving, and the conversion of its classifications and regressions.

https://github.com/tensorflow/serving/blob/master/tensorflow_serving/g3doc/api_rest.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torchmar.server.api.open_inference import not_found
from torchmar.server.api_error import ApiError
from torchmar.server.models.registry import Registry, Version
from torchmar.server.models.startup import StillLoading
from torchmar.tensor_elements import BF16, BYTES

SIGNATURE = "serving_default"
PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{verb}" for verb in ("predict", "classify", "regress"))
#: The TensorFlow type of each datatype in the Open Inference Protocol.
DTYPES = {
    "BOOL": "DT_BOOL",
    **{f"INT{bits}": f"DT_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"DT_UINT{bits}" for bits in (8, 16, 32, 64)},
    "FP16": "DT_HALF",
    BF16: "DT_BFLOAT16",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    BYTES: "DT_STRING",
}

_WHOLE = re.compile(r"(\d{1,18})(?:\.0+)*")
_SIGNATURES = ("", SIGNATURE, "predict")


class Status(NamedTuple):
    """The state of one version.

    Attributes:
        version: TorchServe's version.
        state: ``LOADING``, ``AVAILABLE`` or ``END``.
        error: reason why it is not available; empty if there is no error.
    """

    version: str
    state: str
    error: str = ""


def number(version: str) -> int | None:
    """Return TensorFlow Serving's number of a version: 2 for ``2``, ``2.0`` and ``2.0.0``; None for other versions."""
    match = _WHOLE.fullmatch(version)
    return int(match[1]) if match else None


def find(registry: Registry, name: str, version: str | None = None, label: str = "") -> Version:
    """Return a version by its name, its number in TensorFlow Serving or a label; without these, the default version.

    The name of a version also works as a label, so that clients with labels reach versions without a number (``1.5``).

    Raises:
        ApiError: 404, the model, version or label does not exist.
        StillLoading: 503, the server is still loading the models of its configuration.
    """
    model = registry.models.get(name)
    if model is not None and label:
        version = model.labels.get(label, label)
    elif model is not None and version is not None and version.isascii() and version.isdigit():
        numbered = (version_number for version_number in model.versions if number(version_number) == int(version))
        version = version if version in model.versions else next(numbered, version)
    return registry.find(name, version or label or None)


def statuses(registry: Registry, name: str, version: str | None = None, label: str = "") -> list[Status]:
    """Return the states of a model's versions, or of one; the arguments are those of `find`.

    Raises:
        ApiError: 404, the model, version or label does not exist.
    """
    try:
        selected = find(registry, name, version, label)
    except StillLoading:
        pending = [model for model in registry.startup.pending if model.title == name]
        if not pending:
            raise
        return [Status(model.version, "LOADING") for model in pending]
    if version is None and not label:
        return [_status(registered) for registered in registry.models[name].versions.values()]
    return [_status(selected)]


def document(registry: Registry, name: str, segments: Sequence[str]) -> dict[str, Any]:
    """Return the document at a path below ``/v1/models/NAME/``: states of a version, or the metadata of a model.

    Raises:
        ApiError: 404, the path, model, version or label does not exist.
    """
    match segments:
        case ["metadata"]:
            return metadata_document(find(registry, name))
        case ["versions", version]:
            return status_document(statuses(registry, name, version))
        case ["labels", label]:
            return status_document(statuses(registry, name, label=label))
        case ["versions", version, "metadata"]:
            return metadata_document(find(registry, name, version))
        case ["labels", label, "metadata"]:
            return metadata_document(find(registry, name, label=label))
    raise not_found()


def status_document(statuses: Iterable[Status]) -> dict[str, Any]:
    """Return states in the format of TensorFlow Serving's REST API; a version without a number keeps its name."""
    return {
        "model_version_status": [
            {
                "version": _version_name(status.version),
                "state": status.state,
                "status": {"error_code": "UNKNOWN" if status.error else "OK", "error_message": status.error},
            }
            for status in statuses
        ]
    }


def metadata_document(version: Version) -> dict[str, Any]:
    """Return a version's signature in the format of TensorFlow Serving's REST API."""
    described = version.pool.description
    signature = {
        "inputs": {tensor["name"]: _tensor_info(tensor) for tensor in described.get("inputs", ())},
        "outputs": {output["name"]: _tensor_info(output) for output in described.get("outputs", ())},
    }
    model_spec = {"name": version.name, "signature_name": "", "version": _version_name(version.version)}
    definitions = {SIGNATURE: {**signature, "method_name": PREDICT}}
    return {"model_spec": model_spec, "metadata": {"signature_def": {"signature_def": definitions}}}


def check_signature(name: str) -> None:
    """Check the name of a signature.

    Raises:
        ApiError: 400, it is not the name of the model's only signature.
    """
    if name not in _SIGNATURES:
        message = f'Serving signature name: "{name}" not found in signature def; the model has {SIGNATURE}'
        raise ApiError(400, "BadRequestException", message)


def instances(examples: Sequence[Mapping[str, Any]], context: Mapping[str, Any], inputs: Sequence[Any]) -> list[Any]:
    """Return the instances of examples, in the form for ``predict``.

    Args:
        examples: features of each example, by name; a feature is a value or a list of values.
        context: features for every example that does not have its own.
        inputs: the model's description of its inputs; a list with one value stands for this value unless the input is a
            list.
    """
    ranks = {tensor["name"]: len(tensor["shape"]) - 1 for tensor in inputs}
    return [
        {name: _feature(value, ranks.get(name)) for name, value in {**context, **example}.items()}
        for example in examples
    ]


def examples_of(body: bytes, inputs: Sequence[Any]) -> bytes:
    """Return the body of a ``predict`` request from that of a ``classify`` or ``regress`` request.

    Raises:
        ApiError: 400, the body is not such a request.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _bad(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(examples := document.get("examples"), list):
        raise _bad('the body has no list "examples"')
    if not examples:
        raise _bad("examples is empty")
    context = document.get("context") or {}
    for position, example in enumerate([context, *examples]):
        if not isinstance(example, dict):
            raise _bad("context is not an object" if not position else f"example {position - 1} is not an object")
    check_signature(str(document.get("signature_name") or ""))
    return json.dumps({"instances": instances(examples, context, inputs)}, ensure_ascii=False).encode()


def predictions(body: bytes) -> list[Any]:
    """Return the predictions in a reply to ``predict``.

    Raises:
        ValueError: the reply contains none.
    """
    document = json.loads(body)
    values = document.get("predictions") if isinstance(document, dict) else document
    if not isinstance(values, list):
        raise ValueError("the handler's answer has no list of predictions")
    return values


def classes(prediction: Any) -> list[tuple[str, float]]:
    """Return the labels and scores of a prediction.

    It is ``{label: score}``, the format of torchmar's classifiers, ``{"classes": [...], "scores": [...]}``,
    ``{"label": ..., "probability": ...}``, or a list of scores, whose labels are their indices.

    Raises:
        ValueError: the prediction has none of these forms.
    """
    if isinstance(prediction, Mapping):
        labels, scores = prediction.get("classes"), prediction.get("scores")
        if isinstance(labels, list) and isinstance(scores, list) and len(labels) == len(scores):
            return [(_label(label), _score(score)) for label, score in zip(labels, scores, strict=True)]
        if "label" in prediction and (score := prediction.get("probability", prediction.get("score"))) is not None:
            return [(_label(prediction["label"]), _score(score))]
        if prediction and all(map(is_number, prediction.values())):
            return [(str(label), _score(score)) for label, score in prediction.items()]
    if isinstance(prediction, list) and prediction and all(map(is_number, prediction)):
        return [(str(position), _score(score)) for position, score in enumerate(prediction)]
    raise ValueError("the model's answer has no labels with scores; call predict for it")


def regression(prediction: Any) -> float:
    """Return the value of a prediction: a number, a list with one number, or an object with one number.

    Raises:
        ValueError: the prediction has none of these forms.
    """
    if isinstance(prediction, Mapping):
        numbers = [value for value in prediction.values() if is_number(value)]
        if len(numbers) == 1:
            return _score(numbers[0])
    if isinstance(prediction, list) and len(prediction) == 1:
        return regression(prediction[0])
    if is_number(prediction):
        return _score(prediction)
    raise ValueError("the model's answer is not a number; call predict for it")


def results_document(verb: str, body: bytes) -> bytes:
    """Return the body of a reply to ``classify`` or ``regress`` from that of a reply to ``predict``.

    Raises:
        ValueError: the predictions are not classifications, or not numbers.
    """
    convert = classes if verb == "classify" else regression
    return json.dumps(
        {"results": [convert(prediction) for prediction in predictions(body)]}, ensure_ascii=False
    ).encode()


def _status(version: Version) -> Status:
    pool = version.pool
    if pool.ready:
        return Status(version.version, "AVAILABLE")
    if pool.failure:
        return Status(version.version, "END", pool.failure.splitlines()[-1].strip())
    return Status(version.version, "LOADING" if pool.min_workers else "END", "" if pool.min_workers else "no workers")


def _tensor_info(tensor: Mapping[str, Any]) -> dict[str, Any]:
    sizes = [{"size": str(size), "name": ""} for size in tensor["shape"]]
    return {
        "dtype": DTYPES.get(tensor["datatype"], "DT_INVALID"),
        "tensor_shape": {"dim": sizes, "unknown_rank": False},
        "name": f"{tensor['name']}:0",
    }


def _version_name(version: str) -> str:
    parsed = number(version)
    return version if parsed is None else str(parsed)


def _feature(value: Any, rank: int | None) -> Any:
    """Return the value of a feature for an input of a rank, without the batch dimension; None: the rank is unknown."""
    if rank:
        return value if isinstance(value, list) else [value]
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _score(value: Any) -> float:
    if not is_number(value):
        raise ValueError(f"the score {value!r} is not a number")
    return float(value)


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bad(message: str) -> ApiError:
    return ApiError(400, "BadRequestException", message)
