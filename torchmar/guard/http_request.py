"""An HTTP request as the text that the model classifies, without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

#: Headers that hold credentials. They are never sent.
SECRET_HEADERS = frozenset(
    {"authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key", "x-auth-token", "x-csrf-token"}
)
#: Parts of the names of fields whose values are replaced by ``***``.
SECRET_FIELDS = ("password", "passwd", "passphrase", "secret", "token", "api_key", "apikey", "credential")
MAX_TARGET = 2048  # characters of path and query; servers limit the line of a request to 4 or 8 KiB

_TEXT_TYPES = re.compile(
    r"text/|application/(?:[\w.+-]*json|[\w.+-]*xml|x-www-form-urlencoded|graphql|javascript)|multipart/form-data", re.I
)


def as_text(
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    secret_fields: Sequence[str] = SECRET_FIELDS,
) -> str:
    """Return a request as the text that the model classifies: a line with method and target, headers, the body.

    Args:
        method: method, such as ``GET``.
        target: path and query as the client sent them, percent-encoded; cut after 2048 characters.
        headers: the headers to include, by name.
        body: the first bytes of the body. They are included if the content type is a text, a form, JSON or XML, or is
            missing.
        secret_fields: parts of names; the value of a field of the query or body with such a name becomes ``***``.

    Examples:
        >>> print(as_text("POST", "/login?next=/", {"Content-Type": "text/plain"}, b"user=ada&password=x"))
        POST /login?next=/
        Content-Type: text/plain
        <BLANKLINE>
        user=ada&password=***
    """
    headers = headers or {}
    lines = [f"{method} {target[:MAX_TARGET]}"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() not in SECRET_HEADERS]
    content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    if body and (not content_type or _TEXT_TYPES.match(content_type.strip())):
        lines += ["", body.decode("utf-8", errors="replace")]
    return redacted("\n".join(lines), secret_fields)


def redacted(text: str, fields: Iterable[str]) -> str:
    """Return a text with ``***`` for the values of fields in a query, a form, JSON or a multipart form.

    Examples:
        >>> redacted('GET /?access_token=1&page=2', ["token"])
        'GET /?access_token=***&page=2'
        >>> redacted('{"user": {"password": "a b"}, "age": 3}', ["password"])
        '{"user": {"password": "***"}, "age": 3}'
    """
    names = "|".join(re.escape(field) for field in fields)
    if not names:
        return text
    # In a query, names of nested fields are such as user[password] or user%5Bpassword%5D.
    text = re.sub(rf"(?i)((?:^|[?&\n])[^?&=\n]*(?:{names})[^?&=\n]*=)[^&\s]*", r"\1***", text)
    # The last string of a truncated body may have no end.
    text = re.sub(rf'(?i)("[^"\n]*(?:{names})[^"\n]*"\s*:\s*")(?:[^"\\]|\\.)*("|\\?$)', r"\1***\2", text)
    text = re.sub(rf'(?i)("[^"\n]*(?:{names})[^"\n]*"\s*:\s*)[-\d.eE+]+', r"\1***", text)
    part = rf'(?i)(name="[^"\n]*(?:{names})[^"\n]*"[^\n]*\n(?:[^\r\n]+\r?\n)*\r?\n)(?:(?!\r?\n--).)*'
    return re.sub(part, r"\1***", text, flags=re.S)
