"""One request of a batch: its row, its headers and what it asks for."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ts.utils.util import PredictionException


class BadRequest(PredictionException):
    """Refuse one request: it gets ``code`` (400 unless another is given) and ``message``, its neighbours do not."""

    def __init__(self, message: str, code: int = 400) -> None:
        super().__init__(message, code)


@dataclass(frozen=True)
class Request:
    """What TorchServe hands over for one client: ``row`` maps ``body``, ``data`` or form fields to values."""

    index: int
    row: Mapping[str, Any]
    headers: Mapping[str, Any]

    @classmethod
    def of(cls, index: int, row: Any, context: Any) -> Request:
        """Return request ``index`` of the batch that ``context`` describes."""
        headers = {str(key).lower(): value for key, value in context.get_all_request_header(index).items()}
        return cls(index, row if isinstance(row, Mapping) else {"body": row}, headers)

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

    @property
    def payload(self) -> Any:
        """The ``data`` field or the body: bytes, text or parsed JSON; None when there is neither."""
        for name in ("data", "body"):
            value = self.row.get(name)
            if value is not None:
                return value
        return None

    def option(self, name: str) -> Any:
        """Return a form field or a key of a JSON body, as text or JSON value; None when it is not there."""
        value = self.row.get(name)
        body = self.row.get("body")
        if value is None and isinstance(body, Mapping):
            value = body.get(name)
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

    def content(self) -> bytes:
        """Return the bytes of a file that was sent raw, as a form field or in base64.

        Base64 is taken as text or in JSON (``"..."``, ``{"data": "..."}``, ``{"b64": "..."}``),
        with or without a ``data:`` URL before it.

        Raises:
            BadRequest: there is nothing, or it is none of these.
        """
        payload = self.payload
        if isinstance(payload, Mapping):
            payload = next((payload[key] for key in ("data", "b64", "body") if key in payload), None)
            if payload is None:
                raise BadRequest("the JSON body has no 'data' with a file in base64")
        if payload is None or payload in (b"", ""):
            raise BadRequest("the body is empty")
        if isinstance(payload, bytes | bytearray):
            if "body" in self.row and self.headers.get("content-type") == "application/json":
                # TorchServe hands over as bytes what it could not parse.
                raise BadRequest("the body is not JSON")
            return bytes(payload)
        if not isinstance(payload, str):
            raise BadRequest(f"a file is sent as bytes or as text in base64, not as {_json_type(payload)}")
        text = payload.partition(",")[2] if payload.startswith("data:") else payload
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise BadRequest("the text is not base64") from None


def _json_type(value: object) -> str:
    return {list: "an array", bool: "a boolean", int: "a number", float: "a number"}.get(type(value), "null")
