"""The requests that every variant answers: the archive's samples, and files of the user's folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchmar import exchange
from torchmar.archive import Archive
from torchmar.errors import TorchmarError
from torchmar.exchange import Request
from torchmar.sample_check import sample_requests
from torchmar.worker import request_headers

MOST = 2000
"""Largest number of requests from a folder: more would hardly change the verdict, and take longer."""


@dataclass(frozen=True)
class Input:
    """A request with the name that reports show."""

    name: str
    request: Request


def read(archive: Archive, data: Path | None) -> tuple[Input, ...]:
    """Return the requests for predictions: the samples that are expected to succeed, then the files of a folder.

    Args:
        archive: archive with the samples.
        data: a folder, which is read with its subfolders, or a file. Files are sent as samples are, with the content
            type of their suffix. Of more than `MOST` files, `MOST` are used, evenly distributed.

    Raises:
        TorchmarError: there are no requests, or a file cannot be read.
    """
    inputs = [
        Input(f"sample {number}" if sample.input is None else Path(sample.input).name, request)
        for number, (sample, request) in enumerate(zip(archive.samples, sample_requests(archive), strict=True), 1)
        if not sample.explain and sample.status < 300
    ]
    if data is not None:
        files = _files(data)
        count = min(len(files), MOST)
        chosen = [files[len(files) * place // count] for place in range(count)]
        root = data if data.is_dir() else data.parent
        inputs += [Input(file.relative_to(root).as_posix(), exchange.read(file)) for file in chosen]
    if not inputs:
        raise TorchmarError(
            f"{archive.path.name} has no samples, so that there is nothing to compare answers on",
            hint="give --data FOLDER with inputs, or the recipe some: samples: [{input: FILE}]",
        )
    return tuple(_distinct(inputs))


def _distinct(inputs: Sequence[Input]) -> Iterator[Input]:
    """Yield inputs with unique names: a file of a folder may have the name of a sample."""
    counts: Counter[str] = Counter()
    for item in inputs:
        counts[item.name] += 1
        number = counts[item.name]
        yield replace(item, name=f"{item.name} ({number})") if number > 1 else item


def write(inputs: Sequence[Input], folder: Path) -> Iterator[dict[str, Any]]:
    """Write the bodies of requests to a folder, and yield the entry of each in the job of the step ``capture``."""
    bodies = folder / "requests"
    bodies.mkdir()
    for number, item in enumerate(inputs):
        file = bodies / str(number)
        file.write_bytes(item.request.body)
        yield {"name": item.name, "body": str(file), "headers": request_headers(item.request)}


def _files(data: Path) -> list[Path]:
    if data.is_file():
        return [data]
    if not data.is_dir():
        raise TorchmarError(f"{data} does not exist", hint="--data names a folder of inputs, such as images")
    files = [
        file
        for file in sorted(data.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(data).parts)
    ]
    if not files:
        raise TorchmarError(f"{data} has no files", hint="--data names a folder of inputs, such as images")
    return files
