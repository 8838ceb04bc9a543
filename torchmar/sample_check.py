"""The check of an archive's samples in a worker process: alone, in batches, and among bad requests."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from torchmar import comparison
from torchmar.archive import Archive
from torchmar.errors import ArchiveError
from torchmar.exchange import Request, Response, content_type
from torchmar.recipe import Sample
from torchmar.worker import Worker

_STEADY = 5  # measured requests of each sample after the first one
_STEADY_SECONDS = 1.0  # measured time of a sample after which no further request is sent
_SEED = 0
# Requests that a handler should reject without an effect on the other requests of the batch.
_BAD = (
    Request(b""),
    Request(b"\x00\xff\xfe not anything", "application/octet-stream"),
    Request(b'{"unexpected": [1, {"deep": null}]}', "application/json"),
    Request(b"\xf0\x28\x8c\x28", "text/plain"),
)


@dataclass(frozen=True)
class SampleResult:
    """The result of one sample.

    Attributes:
        name: name of the input file, or ``json``.
        explain: whether an explanation was requested.
        differences: differences between responses and the expected response, as text.
        first_ms: latency of the first response in milliseconds.
        steady_ms: median latency of later responses in milliseconds.
    """

    name: str
    explain: bool
    differences: tuple[str, ...]
    first_ms: float
    steady_ms: float


@dataclass(frozen=True, kw_only=True)
class SampleReport:
    """The result of all samples of an archive.

    Attributes:
        samples: the result of each sample.
        problems: all differences and wrong statuses, as text; empty if the archive is good.
        batch_size: size of the largest batch.
        explains: whether the handler supports explanations.
        load_seconds: time until the worker was ready.
        peak_memory: largest resident memory of the worker in bytes.
        bad_request_statuses: statuses of responses to bad requests.
    """

    samples: tuple[SampleResult, ...]
    problems: tuple[str, ...]
    batch_size: int
    explains: bool
    load_seconds: float
    peak_memory: int
    bad_request_statuses: tuple[int, ...] = ()


def run_samples(path: Path) -> SampleReport:
    """Start a worker with an archive, and compare its responses with the samples.

    Each sample is sent alone, then all samples in batches of the server's size, then in a random order with bad
    requests between them. A bad request should get a status 4xx, and each sample the same response as alone.

    Args:
        path: path of the archive.

    Returns:
        The results; ``problems`` is empty if every response is as expected.

    Raises:
        ArchiveError: the archive cannot be opened, or has no samples.
        LoadError: the handler does not load.
        WorkerError: the worker died, or did not respond in time.

    Examples:
        >>> from pathlib import Path
        >>> import torchmar
        >>> built = torchmar.build(Path("archives/lengths"), Path("model_store"))
        >>> [(sample.name, sample.differences) for sample in torchmar.run_samples(built.path).samples]
        [('json', ())]
    """
    with Archive(path) as archive:
        samples, requests = archive.samples, sample_requests(archive)
        batch_size = int(archive.number("batchSize", 1))
    if not samples:
        raise ArchiveError(f"{path} has no samples", hint="give the recipe some: samples: [{input: FILE, expect: ...}]")
    start = time.perf_counter()
    with Worker(path) as worker:
        load_seconds = time.perf_counter() - start
        results = [_alone(worker, sample, request) for sample, request in zip(samples, requests, strict=True)]
        problems = [f"{result.name}: {difference}" for result in results for difference in result.differences]
        # A sample whose response is wrong even alone says nothing about batches.
        right = [index for index, result in enumerate(results) if not result.differences]
        right_samples, right_requests = [samples[index] for index in right], [requests[index] for index in right]
        problems += _together(worker, right_samples, right_requests, batch_size)
        differences, bad_request_statuses = _among_bad(worker, right_samples, right_requests, batch_size)
        problems += differences
        explains = any(result.explain for result in results) or _explains(worker, requests[0])
        peak_memory = _peak(worker.pid)
    return SampleReport(
        samples=tuple(results),
        problems=tuple(problems),
        batch_size=batch_size,
        explains=explains,
        load_seconds=load_seconds,
        peak_memory=peak_memory,
        bad_request_statuses=bad_request_statuses,
    )


def _alone(worker: Worker, sample: Sample, request: Request) -> SampleResult:
    """Send a sample several times alone, at least twice."""
    milliseconds: list[float] = []
    differences: dict[str, None] = {}
    while len(milliseconds) < 2 or (len(milliseconds) <= _STEADY and sum(milliseconds[1:]) < _STEADY_SECONDS * 1000):
        start = time.perf_counter()
        (response,) = worker.predict_batch([request])
        milliseconds.append((time.perf_counter() - start) * 1000)
        differences |= dict.fromkeys(comparison.differences(sample, response))
    steady = statistics.median(milliseconds[1:])
    return SampleResult(_name(sample), sample.explain, tuple(differences), milliseconds[0], steady)


def sample_requests(archive: Archive) -> list[Request]:
    """Return the requests of an archive's samples, in their order."""
    return [_request(archive, sample) for sample in archive.samples]


def _together(worker: Worker, samples: Sequence[Sample], requests: Sequence[Request], batch_size: int) -> list[str]:
    problems = []
    # At least one full batch, even with fewer samples.
    repeated = [index % len(samples) for index in range(max(batch_size, len(samples)))] if samples else []
    for start in range(0, len(repeated), batch_size):
        part = repeated[start : start + batch_size]
        batch = worker.predict_batch([requests[index] for index in part])
        problems += _differences([samples[index] for index in part], batch, f"in a batch of {len(part)}")
    return problems


def _among_bad(
    worker: Worker, samples: Sequence[Sample], requests: Sequence[Request], batch_size: int
) -> tuple[list[str], tuple[int, ...]]:
    size = max(batch_size, 2)
    order: list[int | None] = [*range(len(samples)), *([None] * len(_BAD))]
    random.Random(_SEED).shuffle(order)
    bad_requests = iter(_BAD)
    mixed = [(index, next(bad_requests) if index is None else requests[index]) for index in order]
    problems, bad_request_statuses = [], []
    for start in range(0, len(mixed), size):
        part = mixed[start : start + size]
        batch = worker.predict_batch([request for _, request in part])
        good = [
            (samples[index], response) for (index, _), response in zip(part, batch, strict=True) if index is not None
        ]
        bad_request_statuses += [
            response.status for (index, _), response in zip(part, batch, strict=True) if index is None
        ]
        problems += _differences(
            [sample for sample, _ in good], [response for _, response in good], "beside a bad request"
        )
    problems += [
        f"a bad request gets {status}, not a 4xx" for status in sorted(set(bad_request_statuses)) if status >= 500
    ]
    return problems, tuple(bad_request_statuses)


def _differences(samples: Sequence[Sample], batch: Sequence[Response], situation: str) -> list[str]:
    return [
        f"{_name(sample)}, {situation}: {difference}"
        for sample, response in zip(samples, batch, strict=True)
        for difference in comparison.differences(sample, response)
    ]


def _explains(worker: Worker, request: Request) -> bool:
    (response,) = worker.predict_batch([Request(request.body, request.content_type, explain=True)])
    return response.status < 400


def _request(archive: Archive, sample: Sample) -> Request:
    if sample.input is None:
        return Request(json.dumps(sample.json_body).encode(), "application/json", sample.explain)
    return Request(archive.read(sample.input), content_type(sample.input), sample.explain)


def _name(sample: Sample) -> str:
    name = sample.input or "json"
    return f"{name} (explained)" if sample.explain else name


def _peak(pid: int) -> int:
    """Return the largest resident memory of a process so far; the current one if the system does not report it."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(psutil.Process(pid).memory_info().rss)
