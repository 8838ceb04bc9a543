"""TensorFlow Serving's REST API, whose row form is also KServe's v1 protocol.

https://www.tensorflow.org/tfx/serving/api_rest and
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torchmar_handlers.common.reply import Reply
from torchmar_handlers.protocols.parsed_request import HandlerInfo, ParsedRequest, check_instance_count, instances
from torchmar_handlers.protocols.plain import bare
from torchmar_handlers.request import BadRequest, Request

_SIGNATURES = ("serving_default", "predict")


def speaks_rows(body: Mapping[str, Any]) -> bool:
    """Return whether a JSON body is of the row form: ``{"instances": [...]}``."""
    return "instances" in body


def speaks_columns(body: Mapping[str, Any]) -> bool:
    """Return whether a JSON body is of the column form: ``{"inputs": [...]}`` or ``{"inputs": {name: [...]}}``."""
    return isinstance(body.get("inputs"), list | Mapping)


def read_rows(request: Request, body: Mapping[str, Any], handler: HandlerInfo) -> ParsedRequest:
    """Return a request's ``instances``, whose answers are ``predictions`` (or ``explanations``)."""
    _check_signature(body)
    if speaks_columns(body):
        raise BadRequest("the body has both instances and inputs; send one of them")
    values = instances(body["instances"], "instances", handler.max_instances)
    key = "explanations" if request.wants_explanation else "predictions"
    parts = [request.part(instance) for instance in values]
    return ParsedRequest(parts, partial(_listed, key=key), error_key="error")


def read_columns(request: Request, body: Mapping[str, Any], handler: HandlerInfo) -> ParsedRequest:
    """Return the rows of a request's ``inputs``, whose answers are ``outputs``."""
    _check_signature(body)
    inputs = body["inputs"]
    columns = isinstance(inputs, Mapping)
    values = _rows(inputs, handler) if columns else instances(inputs, "inputs", handler.max_instances)
    parts = [request.part(instance) for instance in values]
    return ParsedRequest(parts, partial(_outputs, handler=handler), error_key="error")


def _rows(columns: Mapping[str, Any], handler: HandlerInfo) -> list[Any]:
    if not columns:
        raise BadRequest("inputs is empty")
    for name, column in columns.items():
        if not isinstance(column, list):
            raise BadRequest(f"inputs.{name} is not an array; a column has one item per instance")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        message = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise BadRequest(f"the columns of inputs are not equally long: {message}")
    (count,) = set(lengths.values())
    if not count:
        raise BadRequest("inputs has no rows")
    check_instance_count(count, handler.max_instances)
    if len(columns) == 1 and not handler.named:
        return list(next(iter(columns.values())))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _listed(answers: Sequence[Any], *, key: str) -> Reply:
    return Reply.json({key: [bare(answer) for answer in answers]})


def _outputs(answers: Sequence[Any], *, handler: HandlerInfo) -> Reply:
    """Return the answers as the handler's columns; a single column without objects has no name.

    The names of the columns depend on the handler alone, never on its predictions.
    """
    columns = handler.columns(answers)
    if columns is None or (len(columns) == 1 and not isinstance(answers[0], Mapping)):
        return Reply.json({"outputs": [bare(value) for value in next(iter((columns or {"": answers}).values()))]})
    return Reply.json({"outputs": {name: [bare(value) for value in column] for name, column in columns.items()}})


def _check_signature(body: Mapping[str, Any]) -> None:
    name = body.get("signature_name") or _SIGNATURES[0]
    if name not in _SIGNATURES:
        raise BadRequest(f"there is no signature {name!r}; the model has {_SIGNATURES[0]}")
