"""What ``run``, ``predict`` and ``explain`` share: build a request from an input, show or save the response."""

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
    """Return the request to send; an output called ``.png`` asks for a picture, ``.npy`` for an array."""
    accept = _BY_SUFFIX.get(output.suffix.lower(), exchange.ANY) if output else exchange.ANY
    file = Path("/dev/stdin") if source == STDIN else source
    return exchange.read(file, explain=explain, accept=accept, headers=headers)


def show(answer: exchange.Response, output: Path | None) -> None:
    """Print an answer, or write it to ``output``.

    Raises:
        ServerError: the answer is an error.
        TorchmarError: it cannot be written, or is no text for a terminal.
    """
    if answer.status >= 400:
        raise refusal(answer)
    if output:
        _save(answer, output)
        err.print(f"wrote {output} ({answer.content_type or 'unknown type'})")
        return
    binary = answer.content_type.startswith("image/") or answer.content_type in _BY_SUFFIX.values()
    if sys.stdout.isatty() and binary:
        raise TorchmarError(f"the answer is {answer.content_type}", hint="write it to a file with --output")
    sys.stdout.buffer.write(answer.body)
    if not answer.body.endswith(b"\n") and not binary:
        sys.stdout.buffer.write(b"\n")
    sys.stdout.flush()


def _save(answer: exchange.Response, output: Path) -> None:
    suffix, kind = output.suffix.lower(), answer.content_type or "text"
    if suffix in _BY_SUFFIX and kind != _BY_SUFFIX[suffix]:
        what = "draws no picture" if suffix == ".png" else "gives no array"
        raise TorchmarError(f"the handler {what}; it answered with {kind}", hint="give the file a .json name")
    place = output.resolve()
    part = temporary_path(place)
    try:
        if place.exists() and not place.is_file():  # a device or a pipe, whose place no file may take
            place.write_bytes(answer.body)
        else:
            part.write_bytes(answer.body)
            part.replace(place)
    except OSError as error:
        raise TorchmarError(f"{output} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def refusal(answer: exchange.Response) -> ServerError:
    """Return what an answer with an error status says, as an exception."""
    try:
        message = str(json.loads(answer.body)["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.body.decode("utf-8", "replace")[:500]
    return ServerError(f"{answer.status}: {message}", status=answer.status)


def line(source: str, content: Mapping[str, Any]) -> bytes:
    """Return one line of JSON about one of many inputs."""
    text = json.dumps({"input": source, **content}, ensure_ascii=False)
    # What is no UTF-8 in a file's name, and half of a surrogate pair in an answer, JSON escapes in just this way.
    return f"{text}\n".encode("utf-8", "backslashreplace")


def content(answer: exchange.Response) -> dict[str, Any]:
    """Return what a line says of an answer: it, as JSON or as a text, or else its bytes in base64."""
    with contextlib.suppress(ValueError, RecursionError):
        return {"status": answer.status, "answer": json.loads(answer.body, parse_constant=_no_json)}
    with contextlib.suppress(UnicodeDecodeError):
        return {"status": answer.status, "answer": answer.body.decode()}
    encoded = base64.b64encode(answer.body).decode()
    return {"status": answer.status, "content_type": answer.content_type, "base64": encoded}


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON, although Python reads it")
