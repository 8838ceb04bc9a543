"""Requests and responses of ``run``, ``predict`` and ``explain``: read an input, show or save the response."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmar import exchange
from torchmar.atomic import temporary_path
from torchmar.cli.terminal import err
from torchmar.errors import ServerError, TorchmarError

STDIN = Path("-")
_BY_SUFFIX = {".png": "image/png", ".npy": "application/x-npy"}


def request(
    source: Path, explain: bool, output: Path | None, headers: Mapping[str, str] | None = None
) -> exchange.Request:
    """Return a request with the content of a file; an ``output`` of ``.png`` requests a picture, ``.npy`` an array.

    Raises:
        TorchmarError: the file cannot be read.
    """
    accept = _BY_SUFFIX.get(output.suffix.lower(), exchange.ANY) if output else exchange.ANY
    file = Path("/dev/stdin") if source == STDIN else source
    try:
        return exchange.read(file, explain=explain, accept=accept, headers=headers)
    except TorchmarError as error:
        raise TorchmarError(error.message, hint="an input is a file, or - for standard input") from None


def show(response: exchange.Response, output: Path | None) -> None:
    """Print a response, or write it to ``output``.

    Raises:
        ServerError: the response is an error.
        TorchmarError: the response cannot be written, or is binary and stdout is a terminal.
    """
    if response.status >= 400:
        raise error_of(response)
    if output:
        _save(response, output)
        err.print(f"wrote {output} ({response.content_type or 'unknown type'})")
        return
    binary = response.content_type.startswith("image/") or response.content_type in _BY_SUFFIX.values()
    if sys.stdout.isatty() and binary:
        raise TorchmarError(f"the answer is {response.content_type}", hint="write it to a file with --output")
    sys.stdout.buffer.write(response.body)
    if not response.body.endswith(b"\n") and not binary:
        sys.stdout.buffer.write(b"\n")
    sys.stdout.flush()


def _save(response: exchange.Response, output: Path) -> None:
    suffix, kind = output.suffix.lower(), response.content_type or "text"
    if suffix in _BY_SUFFIX and kind != _BY_SUFFIX[suffix]:
        cause = "draws no picture" if suffix == ".png" else "gives no array"
        raise TorchmarError(f"the handler {cause}; it answered with {kind}", hint="give the file a .json name")
    path = output.resolve()
    part = temporary_path(path)
    try:
        if path.exists() and not path.is_file():  # a device or a pipe must not be replaced by a file
            path.write_bytes(response.body)
        else:
            part.write_bytes(response.body)
            part.replace(path)
    except OSError as error:
        raise TorchmarError(f"{output} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def error_of(response: exchange.Response) -> ServerError:
    """Return the exception for a response with an error status."""
    try:
        message = str(json.loads(response.body)["message"])
    except (ValueError, KeyError, TypeError):
        message = response.body.decode("utf-8", "replace")[:500]
    return ServerError(f"{response.status}: {message}", status=response.status)


def line(source: str, content: Mapping[str, Any]) -> bytes:
    """Return the line of JSON for one of many inputs."""
    text = json.dumps({"input": source, **content}, ensure_ascii=False)
    # File names that are no UTF-8, and single surrogates in answers: the escapes of this error handler are valid JSON.
    return f"{text}\n".encode("utf-8", "backslashreplace")


def content(response: exchange.Response) -> dict[str, Any]:
    """Return the fields of a response in a line: its body as JSON, as text, or as base64."""
    with contextlib.suppress(ValueError, RecursionError):
        return {"status": response.status, "answer": json.loads(response.body, parse_constant=_not_json)}
    with contextlib.suppress(UnicodeDecodeError):
        return {"status": response.status, "answer": response.body.decode()}
    encoded = base64.b64encode(response.body).decode()
    return {"status": response.status, "content_type": response.content_type, "base64": encoded}


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON, although Python reads it")
