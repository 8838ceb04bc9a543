"""One request of a batch: its row, its headers and its options."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ts.utils.util import PredictionException

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
#: Content types of JSON lines: one document on each line.
JSON_LINES = ("application/jsonlines", "application/jsonl", "application/x-ndjson", "application/x-jsonlines")

# Form fields and JSON keys in addition to the input; they are never the input itself.
_BESIDE = frozenset({"method", "target", "n_steps", "baseline", "parameters", "model_name"})
_URL_SAFE = str.maketrans("-_", "+/")
_FIELD = re.compile(r"[A-Za-z_][\w.\-\[\]]*")  # a name of a form field, which JSON or a text is not
_B64 = "b64"
#: Types for `isinstance`. A union would be made again in each call, and the check of a dict against Mapping
#: alone is slow, because Mapping is an abstract class.
TEXTS = (bytes, bytearray, str)
MAPPINGS = (dict, Mapping)
#: Keys of an object that may contain a file.
FILE_KEYS = ("data", "image", "image_bytes")


class BadRequest(PredictionException):  # type: ignore[misc]
    """One request is rejected: it gets ``code`` (400 by default) and ``message``; other requests are not affected."""

    def __init__(self, message: str, code: int = 400) -> None:
        super().__init__(message, code)


class NotFinite(PredictionException):  # type: ignore[misc]
    """The model answers one request with NaN or infinity: 503, or 400 if the input is the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 503)


@dataclass(slots=True)  # frozen, it would take three times as long to create, and a request has five such records
class Request:
    """The row that TorchServe passes for one client: ``row`` maps ``body``, ``data`` or form fields to values."""

    index: int
    row: Mapping[str, Any]
    headers: Mapping[str, Any]
    whole: Request | None = None  # the request that contains this instance
    as_bytes: bool = False  # whether the client accepts arrays as bytes, which may contain NaN and infinity, too

    @classmethod
    def of(cls, index: int, row: Any, context: Any) -> Request:
        """Return request ``index`` of the batch that ``context`` describes."""
        headers = {str(key).lower(): value for key, value in context.get_all_request_header(index).items()}
        return cls(index, row if isinstance(row, MAPPINGS) else {"body": row}, headers)

    def part(self, instance: Any) -> Request:
        """Return one instance of a request with several, as a separate request."""
        return Request(self.index, {"body": instance}, self.headers, self, self.as_bytes)

    @property
    def wants_explanation(self) -> bool:
        """Whether the path of the request was ``/explanations``."""
        return self.headers.get("explain") == "True"

    @property
    def wants_description(self) -> bool:
        """Whether the request is a customized describe of the management API."""
        return self.headers.get("describe") == "True"

    def accepts(self, content_type: str) -> bool:
        """Return whether the request's ``Accept`` names ``content_type`` itself (a wildcard does not count)."""
        accepted = str(self.headers.get("accept", "")).lower()
        if content_type not in accepted:
            return False
        return content_type in [choice.partition(";")[0].strip() for choice in accepted.split(",")]

    @property
    def media_type(self) -> str:
        """The content type of the request's body in lower case, without parameters; empty: it has none."""
        return str(self.headers.get("content-type", "")).partition(";")[0].strip().lower()

    def sends(self, content_type: str) -> bool:
        """Return whether the request's body is of ``content_type``, with any parameters."""
        return self.media_type == content_type

    @property
    def payload(self) -> Any:
        """The ``data`` field or the body: bytes, text or parsed JSON; None: there is neither.

        For a form (and for TorchServe's gRPC, whose inputs have names), it is the only field, of any name.
        """
        row = self.row
        if (value := row.get("data")) is not None or (value := row.get("body")) is not None:
            return value
        inputs = self.fields()
        return row[inputs[0]] if len(inputs) == 1 else None

    def fields(self) -> list[str]:
        """Return the names of a form's fields that may be the input: the only field, or all except known options."""
        names = list(self.row)
        return names if len(names) == 1 else [name for name in names if name not in _BESIDE]

    def check_form(self) -> None:
        """Check that a form has one input, and that the body is a form.

        Raises:
            BadRequest: it has no field or several that may be the input, or another body was sent as a form.
        """
        if "body" in self.row or self.whole is not None:
            return
        names = self.fields()
        if self.sends(FORM) and not (names and all(map(_FIELD.fullmatch, self.row))):
            # curl -d and --data-binary send any body as a form by default.
            raise BadRequest(
                f"the body was sent as a form ({FORM}) and is none: send JSON with -H 'Content-Type: {JSON}', "
                "a file with -H 'Content-Type: application/octet-stream', a text with -H 'Content-Type: text/plain'"
            )
        if "data" in self.row or len(names) == 1:
            return
        if not names:
            raise BadRequest("the form has no input; send it as the only field, or as one called 'data'")
        message = ", ".join(name[:40] for name in names[:5]) + (", ..." if len(names) > 5 else "")
        raise BadRequest(f"the form has the fields {message}; send the input as the only one, or call it 'data'")

    def option(self, name: str) -> Any:
        """Return an option of a request, as text or JSON value; None: it is not set.

        The option is searched as a form field, as a key of a JSON body or of its ``parameters``, and as the
        header ``Explain-NAME``, with dashes for underscores.
        """
        value = self.row.get(name)
        body = self.row.get("body")
        if value is None and isinstance(body, Mapping):
            parameters = body.get("parameters")
            value = body.get(name, parameters.get(name) if isinstance(parameters, Mapping) else None)
        if value is None:
            if self.whole is not None:
                return self.whole.option(name)
            value = self.headers.get(f"explain-{name.replace('_', '-')}")
        return bytes(value).decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else value

    def json(self) -> Any:
        """Return the body as JSON. Raises BadRequest if it is not JSON."""
        payload = self.payload
        if not isinstance(payload, bytes | bytearray | str):
            return payload
        return loads(payload)

    def text(self) -> str:
        """Return the text in a request: the raw body, a form field, or JSON.

        In JSON it is ``"..."``, ``{"text": "..."}`` or ``{"data": "..."}``, or UTF-8 in base64, ``{"b64": "..."}``.

        Raises:
            BadRequest: there is no text, or it is not UTF-8.
        """
        payload = self._file(("text", "data"))
        if isinstance(payload, str):
            return payload
        if not isinstance(payload, bytes | bytearray):
            of_tensor = ": a text for each instance, BYTES (DT_STRING of TensorFlow)" if _is_tensor(payload) else ""
            raise BadRequest(f"a text is expected, not {_json_type(payload)}{of_tensor}")
        try:
            return bytes(payload).decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"the text is not UTF-8: byte {error.start} is {payload[error.start]:#04x}") from None

    def content(self) -> bytes:
        """Return the bytes of a file in a request: the raw body, a form field, or base64.

        Base64 is accepted as text or in JSON: ``"..."``, ``{"b64": "..."}``, and either of these as ``data``, ``image``
        or ``image_bytes``. It may be URL-safe, without its padding, and have a ``data:`` URL before it.

        Raises:
            BadRequest: there is no file, or it has none of these forms.
        """
        payload = self._file(FILE_KEYS)
        if isinstance(payload, bytes | bytearray):
            return bytes(payload)
        if not isinstance(payload, str):
            raise BadRequest(f"a file is sent as bytes or as text in base64, not as {_json_type(payload)}")
        return from_base64(payload)

    def value(self, keys: tuple[str, ...]) -> Any:
        """Return the payload; for a JSON object, the value of the first of ``keys`` in it, or the object itself.

        ``{"b64": "..."}`` is decoded, as the payload and as the value of a key.

        Raises:
            BadRequest: ``b64`` is not base64.
        """
        payload = self.payload
        for _ in range(2):
            if not isinstance(payload, Mapping):
                break
            if isinstance(text := payload.get(_B64), str):
                return from_base64(text)
            payload = next((payload[key] for key in keys if payload.get(key) is not None), payload)
        return payload

    def _file(self, keys: tuple[str, ...]) -> Any:
        """Return the payload; for an object, the value of one of ``keys`` (or of ``body``)."""
        payload = self.value((*keys, "body"))
        if isinstance(payload, Mapping):
            raise BadRequest(f"the JSON body has no {keys[0]!r}")
        if payload is None or (isinstance(payload, bytes | bytearray | str) and not payload):
            raise BadRequest("the body is empty")
        body = self.row.get("body")
        if isinstance(body, bytes | bytearray) and payload is body and self.sends(JSON) and not self.whole:
            # TorchServe passes bodies that it could not parse as bytes.
            loads(body)
            raise BadRequest("the body is not JSON")
        return payload


def loads(text: bytes | bytearray | str) -> Any:
    """Return a JSON document. Raises BadRequest if the text is not JSON, or several documents."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            hint = f"send an array of them, or one on each line as Content-Type: {JSON_LINES[0]}"
            raise BadRequest(f"the body is not JSON: data follow the first document; {hint}") from None
        raise BadRequest(f"the body is not JSON: {error}") from None


def from_base64(text: str) -> bytes:
    """Return the decoded base64: of both alphabets, with or without padding, white space and a ``data:`` URL.

    Raises:
        BadRequest: the text is not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    text = "".join(text.split()).translate(_URL_SAFE)
    if text.endswith("=") and len(text) % 4 == 0:
        padded = text
    else:
        text = text.rstrip("=")
        padded = text + "=" * (-len(text) % 4)
    try:
        return base64.b64decode(padded, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("the text is not base64; send a file as it is, or in base64") from None


def _is_tensor(value: object) -> bool:
    return bool(getattr(value, "shape", ()))


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if _is_tensor(value):
        return f"an array of the shape {list(value.shape)}"
    names = {list: "an array", Mapping: "an object", int: "a number", float: "a number", str: "a text"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), "null" if value is None else "data")
