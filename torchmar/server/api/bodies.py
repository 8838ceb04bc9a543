"""The bodies of HTTP requests as parts of the handler's row, divided as by TorchServe.

Only forms are decoded here: JSON and texts are parsed once, by the worker.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from torchmar.server.api_error import ApiError
from torchmar.server.workers.jobs import Part

_JSON = "application/json"
_PREFIX = 200  # bytes that are searched for the start of a JSON document
_URLENCODED, _MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"
_LENGTHS = frozenset(map(len, (_URLENCODED, _MULTIPART)))  # a type of any other length is no form, whatever its case
# Limits of a form: a body has room for millions of fields, and parsing these would block all other clients.
_MAX_FIELDS = 1000


def inputs(body: bytes | memoryview, content_type: str) -> list[Part]:
    """Return the parts of a request's body, in their order.

    A form (``multipart/form-data`` or ``application/x-www-form-urlencoded``) has a part for each field, any other body
    has one part, called ``body``. Files have their own content type, without parameters, and other fields have none.

    Args:
        body: body of the request.
        content_type: value of the header ``Content-Type``; empty if there is none.

    Raises:
        ApiError: 400, the form is malformed, has more than 1,000 fields, or two fields with the same name.
    """
    media_type, _, parameters = content_type.partition(";")
    media_type = media_type.rstrip()
    if len(media_type) in _LENGTHS:
        if media_type.lower() == _URLENCODED:
            return _distinct(_urlencoded(bytes(body)))
        if parameters and media_type.lower() == _MULTIPART:
            boundary = parse_options_header(content_type)[1].get(b"boundary")
            if boundary is not None:
                return _distinct(_multipart(bytes(body), boundary))
    return [Part("body", media_type, body)]


def is_json_type(content_type: str) -> bool:
    """Return whether a Content-Type header names JSON, whatever its parameters are."""
    return content_type.partition(";")[0].strip().lower() == _JSON


def begins_as_json(body: bytes | memoryview) -> bool:
    """Return whether a body starts like an object or an array of JSON."""
    return bytes(body[:_PREFIX]).lstrip(b" \t\r\n")[:1] in (b"{", b"[")


def _distinct(parts: list[Part]) -> list[Part]:
    """Return the parts of a form. Raises ApiError if two have the same name: a handler would see only one of them."""
    if len({part.name for part in parts}) < len(parts):
        names = [part.name for part in parts]
        name = next(name for name in names if names.count(name) > 1)
        message = f"The form has {names.count(name)} parts called {name[:80]!r}, of which a handler would see one."
        hint = "Send one in each request, or several inputs as a JSON array."
        raise ApiError(400, "BadRequestException", f"{message} {hint}")
    return parts


def _urlencoded(body: bytes) -> list[Part]:
    if body.count(b"&") >= _MAX_FIELDS:
        raise _too_many()
    parts = []
    for pair in body.rstrip(b"\r\n").split(b"&"):
        name, is_field, value = pair.partition(b"=")
        # Fields without a value are left out, such as the JSON that curl sends with this type by default.
        if is_field:
            parts.append(Part(_text(_decoded(name)), "", _decoded(value)))
    return parts


def _decoded(encoded: bytes) -> bytes:
    return unquote_to_bytes(encoded.replace(b"+", b" "))


def _multipart(body: bytes, boundary: bytes) -> list[Part]:
    form = _Form()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_part_data": form.data,
                "on_part_end": form.finish,
                "on_header_field": form.name,
                "on_header_value": form.value,
                "on_header_end": form.header,
                "on_end": form.end,
            },
        )
        parser.write(body)
    except FormParserError as error:
        raise _broken(str(error)) from None
    if not form.complete:
        raise _broken("it ends before its last boundary")
    return form.inputs


class _Form:
    """Callbacks for the parser of a multipart body, with the parts that they collect."""

    def __init__(self) -> None:
        self.inputs: list[Part] = []
        self.complete = False
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._pieces: list[bytes] = []

    def begin(self) -> None:
        if len(self.inputs) >= _MAX_FIELDS:
            raise _too_many()
        self._headers, self._pieces = {}, []

    def name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def finish(self) -> None:
        disposition = parse_options_header(self._headers.get(b"content-disposition"))[1]
        name = disposition.get(b"name")
        if name is None:
            raise _broken("a part has no name in its Content-Disposition")
        media_type = b""
        if b"filename" in disposition:
            content_type = self._headers.get(b"content-type", b"application/octet-stream")
            media_type = content_type.partition(b";")[0].strip()
        # Joining one piece copies nothing.
        self.inputs.append(Part(_text(name), media_type.decode("latin-1"), b"".join(self._pieces)))

    def end(self) -> None:
        self.complete = True


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _broken(reason: str) -> ApiError:
    return ApiError(400, "BadRequestException", f"The form cannot be read: {reason}.")


def _too_many() -> ApiError:
    return ApiError(400, "BadRequestException", f"The form has more than {_MAX_FIELDS} fields.")
