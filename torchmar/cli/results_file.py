"""Results of many inputs as JSON lines, in a file that a later run resumes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from torchmar.atomic import temporary_path
from torchmar.cli import responses
from torchmar.errors import TorchmarError
from torchmar.exchange import Response

SUFFIXES = (".jsonl", ".ndjson")
_BEGINNING = b'{"input": '
_OTHER_FILE = "write to another file"


class ResultsFile:
    """A file of results, one line for each input; a context manager.

    Every line is written completely, as soon as there is a result. An incomplete last line (the disk was
    full, the machine went down) is removed when the file is opened again. A line has a digest of the
    input's content, so that an input that has been edited since is sent again.

    Attributes:
        answered: inputs with a line; True: the input was answered, False: it got a permanent error.
        digests: digests of the sent contents by input; None: the line has none.
        superseded: whether an input has two lines; the later line counts.

    Args:
        path: path of the file, which is created if it does not exist.
        request: kind of the requests, ``predictions/NAME``; a file contains the results of one kind only.

    Raises:
        TorchmarError: the file has other content, another process writes to it, or it cannot be opened.
    """

    def __init__(self, path: Path, request: str) -> None:
        self._path = path
        self._request = request
        self.answered: dict[str, bool] = {}
        self.digests: dict[str, str | None] = {}
        self.superseded = False

    def __enter__(self) -> ResultsFile:
        try:
            self._stream: BinaryIO = open(self._path, "a+b", buffering=0)
        except OSError as error:
            raise TorchmarError(f"{self._path} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._stream.close()
            raise TorchmarError(f"{self._path}: another torchmar writes to it") from None
        except OSError as error:
            self._stream.close()
            raise TorchmarError(f"{self._path} cannot be written: {error.strerror}") from None
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def add_answer(self, source: str, digest: str, response: Response) -> None:
        """Write the response to an input.

        Raises:
            TorchmarError: the file cannot be written.
        """
        self._write(source, digest, responses.content(response))
        self._record(source, digest, True)

    def add_permanent_error(self, source: str, digest: str, status: int, message: str) -> None:
        """Write that an input got a permanent error."""
        self._write(source, digest, {"status": status, "error": message})
        self._record(source, digest, False)

    def sort(self, order: Iterable[str]) -> None:
        """Sort the lines by input, one line for each; lines of other inputs follow in their current order."""
        slices: dict[str, tuple[int, int]] = {}
        start = 0
        for raw in self._lines():
            slices[json.loads(raw)["input"]] = (start, len(raw))
            start += len(raw)
        file = self._path.resolve()
        part = temporary_path(file)
        try:
            with part.open("wb") as target:
                for source in dict.fromkeys([*(source for source in order if source in slices), *slices]):
                    offset, size = slices[source]
                    self._stream.seek(offset)
                    target.write(self._stream.read(size))
            part.replace(file)
        except OSError as error:
            raise TorchmarError(f"{self._path} cannot be written: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink()

    def _record(self, source: str, digest: str | None, answered: bool) -> None:
        self.superseded |= source in self.digests
        self.answered[source] = answered
        self.digests[source] = digest

    def _write(self, source: str, digest: str, content: Mapping[str, Any]) -> None:
        unwritten = memoryview(responses.line(source, {"request": self._request, "digest": digest, **content}))
        try:
            while unwritten:  # a signal or a full disk may end a write early
                unwritten = unwritten[os.write(self._stream.fileno(), unwritten) :]
        except OSError as error:
            raise TorchmarError(f"{self._path} cannot be written: {error.strerror}") from None

    def _read(self) -> None:
        complete, raw = 0, b"\n"
        for number, raw in enumerate(self._lines(), 1):
            try:
                line = json.loads(raw)
                source, request, digest = str(line["input"]), line["request"], line.get("digest")
                status = int(line["status"])
            except (ValueError, KeyError, TypeError):
                if not raw.endswith(b"\n") and (raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw)):
                    self._stream.truncate(complete)
                    return
                place = f"{self._path}:{number}"
                raise TorchmarError(f"{place}: not a line that torchmar wrote", hint=_OTHER_FILE) from None
            if request != self._request:
                raise TorchmarError(f"{self._path} has answers to {request}, not to {self._request}", hint=_OTHER_FILE)
            complete += len(raw)
            self._record(source, digest, status < 400)
            if status >= 500:  # an error of the server may be temporary
                del self.answered[source]
        if not raw.endswith(b"\n"):
            os.write(self._stream.fileno(), b"\n")

    def _lines(self) -> Iterable[bytes]:
        with open(self._path, "rb") as stream:  # the stream for writing has no buffer
            yield from stream
