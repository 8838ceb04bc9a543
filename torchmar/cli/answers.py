"""What ``run``, ``predict`` and ``explain`` share: an input to ask with, an answer to show or save."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from torchmar import exchange
from torchmar.cli.terminal import err
from torchmar.errors import Refused, TorchmarError
from torchmar.replacing import beside

_BY_SUFFIX = {".png": "image/png", ".npy": "application/x-npy"}


def request(
    source: Path, explain: bool, output: Path | None, headers: Mapping[str, str] | None = None
) -> exchange.Request:
    """Return the request to send; an output called ``.png`` asks for a picture, ``.npy`` for an array."""
    accept = _BY_SUFFIX.get(output.suffix.lower(), exchange.ANY) if output else exchange.ANY
    return exchange.read(source, explain=explain, accept=accept, headers=headers)


def show(answer: exchange.Answer, output: Path | None) -> None:
    """Print an answer, or write it to ``output``.

    Raises:
        Refused: the answer is an error.
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


def _save(answer: exchange.Answer, output: Path) -> None:
    suffix, kind = output.suffix.lower(), answer.content_type or "text"
    if suffix in _BY_SUFFIX and kind != _BY_SUFFIX[suffix]:
        what = "draws no picture" if suffix == ".png" else "gives no array"
        raise TorchmarError(f"the handler {what}; it answered with {kind}", hint="give the file a .json name")
    part = beside(output)
    try:
        part.write_bytes(answer.body)
        part.replace(output)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise TorchmarError(f"{output} cannot be written: {error.strerror}") from None


def refusal(answer: exchange.Answer) -> Refused:
    """Return what an answer with an error status says, as an exception."""
    try:
        message = str(json.loads(answer.body)["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.body.decode("utf-8", "replace")[:500]
    return Refused(f"{answer.status}: {message}", status=answer.status)


def line(source: Path, status: int, body: bytes) -> str:
    """Return one line of JSON for one of many inputs."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = body.decode("utf-8", "replace")
    return json.dumps({"input": str(source), "status": status, "answer": answer}, ensure_ascii=False)
