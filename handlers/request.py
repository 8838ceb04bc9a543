"""One request of a batch: its row, its headers and what it asks for."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ts.utils.util import PredictionException

JSON = "application/json"


class BadRequest(PredictionException):
    """Refuse one request: it gets ``code`` (400 unless another is given) and ``message``, its neighbours do not."""

    def __init__(self, message: str, code: int = 400) -> None:
        super().__init__(message, code)


@dataclass(slots=True)  # frozen it would take three times as long to make, and there are five such records a request
class Request:
    """What TorchServe hands over for one client: ``row`` maps ``body``, ``data`` or form fields to values."""

    index: int
    row: Mapping[str, Any]
    headers: Mapping[str, Any]
    whole: Request | None = None  # the request that this one is an instance of
    as_bytes: bool = False  # whether the client takes arrays as bytes, which hold NaN and infinity, too

    @classmethod
    def of(cls, index: int, row: Any, context: Any) -> Request:
        """Return request ``index`` of the batch that ``context`` describes."""
        headers = {str(key).lower(): value for key, value in context.get_all_request_header(index).items()}
        return cls(index, row if isinstance(row, Mapping) else {"body": row}, headers)

    def part(self, instance: Any) -> Request:
        """Return one instance of a request that holds several, as a request of its own."""
        return Request(self.index, {"body": instance}, self.headers, self, self.as_bytes)

    @property
    def wants_explanation(self) -> bool:
        """Whether it came by ``/explanations``."""
        return self.headers.get("explain") == "True"

    @property
    def wants_description(self) -> bool:
        """Whether it is a customized describe of the management API."""
        return self.headers.get("describe") == "True"

    def accepts(self, content_type: str) -> bool:
        """Tell whether the request's ``Accept`` names ``content_type`` itself (a wildcard does not count)."""
        accepted = str(self.headers.get("accept", "")).lower().split(",")
        return content_type in [choice.partition(";")[0].strip() for choice in accepted]

    def sends(self, content_type: str) -> bool:
        """Tell whether the request's body is of ``content_type``, whatever its parameters are."""
        return str(self.headers.get("content-type", "")).partition(";")[0].strip().lower() == content_type

    @property
    def payload(self) -> Any:
        """The ``data`` field or the body: bytes, text or parsed JSON; None when there is neither."""
        for name in ("data", "body"):
            value = self.row.get(name)
            if value is not None:
                return value
        return None

    def option(self, name: str) -> Any:
        """Return what a client asks for beside the input, as text or JSON value; None when it says nothing.

        Looked for as a form field, as a key of a JSON body or of its ``parameters``, and as the
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
        """Return the body as JSON. Raises BadRequest when it is none."""
        payload = self.payload
        if not isinstance(payload, bytes | bytearray | str):
            return payload
        try:
            return json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the body is not JSON: {error}") from None

    def text(self) -> str:
        """Return the text that was sent raw, as a form field or in JSON (``"..."``, ``{"text": "..."}``).

        Raises:
            BadRequest: there is none, or it is not UTF-8.
        """
        payload = self._file(("text", "data"))
        if isinstance(payload, str):
            return payload
        if not isinstance(payload, bytes | bytearray):
            raise BadRequest(f"a text is expected, not {_json_type(payload)}")
        try:
            return bytes(payload).decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"the text is not UTF-8: byte {error.start} is {payload[error.start]:#04x}") from None

    def content(self) -> bytes:
        """Return the bytes of a file that was sent raw, as a form field or in base64.

        Base64 is taken as text or in JSON (``"..."``, ``{"data": "..."}``, ``{"b64": "..."}``),
        with or without a ``data:`` URL before it.

        Raises:
            BadRequest: there is nothing, or it is none of these.
        """
        payload = self._file(("data", "b64"))
        if isinstance(payload, bytes | bytearray):
            return bytes(payload)
        if not isinstance(payload, str):
            raise BadRequest(f"a file is sent as bytes or as text in base64, not as {_json_type(payload)}")
        text = payload.partition(",")[2] if payload.startswith("data:") else payload
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise BadRequest("the text is not base64") from None

    def _file(self, keys: tuple[str, ...]) -> Any:
        """Return the payload, out of one of ``keys`` (or ``body``) where it is an object."""
        payload = self.payload
        if isinstance(payload, Mapping):
            payload = next((payload[key] for key in (*keys, "body") if payload.get(key) is not None), None)
            if payload is None:
                raise BadRequest(f"the JSON body has no {keys[0]!r}")
        if payload is None or (isinstance(payload, bytes | bytearray | str) and not payload):
            raise BadRequest("the body is empty")
        if isinstance(payload, bytes | bytearray) and "body" in self.row and self.sends(JSON) and not self.whole:
            # TorchServe hands over as bytes what it could not parse.
            raise BadRequest("the body is not JSON")
        return payload


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "a boolean"
    names = {list: "an array", Mapping: "an object", int: "a number", float: "a number", str: "a text"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), "null" if value is None else "data")
