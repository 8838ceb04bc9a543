"""Run a version's samples on the server before it gets traffic."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torchmar import comparison, exchange
from torchmar.archive import Archive
from torchmar.connection import Endpoint
from torchmar.errors import ServerError, TorchmarError
from torchmar.exchange import Request, Response, content_type
from torchmar.inference import InferenceClient
from torchmar.recipe import Sample

_TIMED = 5  # answers to each request that its median is of


@dataclass(frozen=True)
class SmokeTest:
    """What a version did: how many requests it answered rightly, and the median milliseconds of the slowest."""

    asked: int
    slowest: float | None

    def show(self) -> str:
        """Return it in words."""
        if not self.asked:
            return "it has no samples; only its workers are up"
        slowest = "" if self.slowest is None else f", at the most {self.slowest:.1f} ms"
        return f"{self.asked} sample{'' if self.asked == 1 else 's'} right{slowest}"


@dataclass(frozen=True)
class Question:
    """A request and what is expected of its answer; without a sample only that it is not refused."""

    name: str
    request: Request
    sample: Sample | None = None

    def problems(self, answer: Response) -> list[str]:
        """Return what is wrong with an answer, in words."""
        if self.sample:
            return comparison.differences(self.sample, answer)
        document = answer.body.decode("utf-8", "replace")[:200]
        return [f"status {answer.status}: {document}"] if answer.status >= 400 else []


def questions(archive: Path | None, requests: Path | None) -> list[Question]:
    """Return the samples of an archive and the files of a folder, as they are asked.

    Raises:
        TorchmarError: the archive or the folder cannot be read.
    """
    return [*(_of_archive(archive) if archive else ()), *(_of_folder(requests) if requests else ())]


def ask(client: InferenceClient, name: str, request: Request, version: str | None) -> tuple[Response, float]:
    """Return the answer of a version and the milliseconds that it took; a refusal is an answer, too."""
    before = time.perf_counter()
    try:
        answer = client.request(name, request, version)
    except ServerError as refusal:
        body = json.dumps({"code": refusal.status, "type": refusal.type, "message": refusal.message}).encode()
        answer = Response(refusal.status, body)
    return answer, (time.perf_counter() - before) * 1000


def hold(
    server: Endpoint,
    name: str,
    version: str,
    asked: Sequence[Question],
    *,
    warmup_requests: int,
    at_once: int,
    max_latency: int | None,
    timeout: float = 120.0,
) -> SmokeTest:
    """Ask a version each question, warm it up, and time it.

    Args:
        server: where it is.
        name: the model.
        version: the version.
        asked: what to ask; nothing asked is nothing wrong.
        warmup_requests: requests before any is timed.
        at_once: how many of these are sent together, so that every worker gets some.
        max_latency: milliseconds that the median answer to each question may take.
        timeout: seconds to wait for one answer.

    Raises:
        TorchmarError: an answer is wrong, or too slow; the message has all that are.
        ConnectError: no answer came in ``timeout`` seconds.
    """
    if not asked:
        return SmokeTest(0, None)
    client = InferenceClient(server, timeout=timeout)
    wrong = []
    for one in asked:
        answer, _ = ask(client, name, one.request, version)
        wrong += [f"{one.name}: {problem}" for problem in one.problems(answer)]
    if wrong:
        raise _failed(f"{name} {version} does not answer as it should", wrong)
    _warm(server, name, version, [one.request for one in asked], warmup_requests, at_once, timeout)
    medians = {}
    for one in asked:
        medians[one.name] = statistics.median(ask(client, name, one.request, version)[1] for _ in range(_TIMED))
    slow = {key: took for key, took in medians.items() if max_latency is not None and took > max_latency}
    if slow:
        lines = [f"{key}: {took:.1f} ms" for key, took in slow.items()]
        raise _failed(f"{name} {version} takes longer than {max_latency} ms", lines)
    return SmokeTest(len(asked), max(medians.values()))


def _warm(
    server: Endpoint, name: str, version: str, requests: Sequence[Request], count: int, at_once: int, timeout: float
) -> None:
    def some(share: Sequence[Request]) -> None:
        client = InferenceClient(server, timeout=timeout)
        for request in share:
            ask(client, name, request, version)

    every = list(itertools.islice(itertools.cycle(requests), count))
    with ThreadPoolExecutor(max(1, at_once)) as pool:
        list(pool.map(some, [every[start::at_once] for start in range(at_once)]))


def _failed(what: str, lines: Sequence[str]) -> TorchmarError:
    shown = [*lines[:8], *([f"and {len(lines) - 8} more"] if len(lines) > 8 else [])]
    return TorchmarError("\n  ".join([f"{what}:", *shown]))


def _of_archive(path: Path) -> Iterator[Question]:
    with Archive(path) as archive:
        for sample in archive.samples:
            name = f"{sample.input or 'json'}{' (explained)' if sample.explain else ''}"
            if sample.input is None:
                body, kind = json.dumps(sample.json_body).encode(), "application/json"
            else:
                body, kind = archive.read(sample.input), content_type(sample.input)
            yield Question(name, Request(body, kind, sample.explain), sample)


def _of_folder(folder: Path) -> Iterator[Question]:
    if not folder.is_dir():
        raise TorchmarError(f"{folder} is not a folder", hint="put one request in each file of it")
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            yield Question(file.name, exchange.read(file))
