"""Run an archive's samples in a worker process: alone, together and among bad requests."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from torchmar import comparison
from torchmar.archive import Archive
from torchmar.errors import ArchiveError
from torchmar.exchange import Request, Response, content_type
from torchmar.recipe import Sample
from torchmar.worker import Worker

_STEADY = 5  # more askings of each sample, after the first
_SEED = 0
# Requests that no handler should take, and none should let its neighbours pay for.
_BAD = (
    Request(b""),
    Request(b"\x00\xff\xfe not anything", "application/octet-stream"),
    Request(b'{"unexpected": [1, {"deep": null}]}', "application/json"),
    Request(b"\xf0\x28\x8c\x28", "text/plain"),
)


@dataclass(frozen=True)
class SampleResult:
    """One sample: what differed from its expectation, and milliseconds of the first and of a steady answer."""

    name: str
    explain: bool
    differences: tuple[str, ...]
    first: float
    steady: float


@dataclass(frozen=True)
class SampleReport:
    """What an archive did: ``problems`` is empty when it kept its contract.

    ``load`` is in seconds until the worker was ready, ``peak`` in bytes of its resident memory.
    """

    samples: tuple[SampleResult, ...]
    problems: tuple[str, ...]
    batch_size: int
    explains: bool
    load: float
    peak: int
    refused: tuple[int, ...] = field(default=())  # the statuses that bad requests got


def run_samples(path: Path) -> SampleReport:
    """Start a worker with the archive at ``path`` and hold it to its samples.

    Each is asked alone, then all in batches as large as the server's, then shuffled among bad
    requests: these should get a 4xx of their own, and the samples the answers that they got alone.

    Raises:
        ArchiveError: the archive cannot be opened, or has no samples.
        LoadError: the handler does not load.
        WorkerError: the worker died or did not answer in time.

    Examples:
        >>> from pathlib import Path
        >>> import torchmar
        >>> built = torchmar.build(Path("archives/lengths"), Path("model_store"))
        >>> [(sample.name, sample.differences) for sample in torchmar.run_samples(built.path).samples]
        [('json', ())]
    """
    with Archive(path) as archive:
        samples = archive.samples
        requests = [_request(archive, sample) for sample in samples]
        batch_size = int(archive.number("batchSize", 1))
    if not samples:
        raise ArchiveError(f"{path} has no samples", hint="give the recipe some: samples: [{input: FILE, expect: ...}]")
    started = time.perf_counter()
    with Worker(path) as worker:
        load = time.perf_counter() - started
        asked, problems = [], []
        for sample, request in zip(samples, requests, strict=True):
            took, found = [], []
            for _ in range(1 + _STEADY):
                before = time.perf_counter()
                (answer,) = worker.predict_batch([request])
                took.append((time.perf_counter() - before) * 1000)
                found += [one for one in comparison.differences(sample, answer) if one not in found]
            asked.append(
                SampleResult(_name(sample), sample.explain, tuple(found), took[0], statistics.median(took[1:]))
            )
            problems += [f"{_name(sample)}: {one}" for one in found]
        held = [sample for sample, one in zip(samples, asked, strict=True) if not one.differences]
        sound = [request for request, one in zip(requests, asked, strict=True) if not one.differences]
        problems += _together(worker, held, sound, batch_size)
        found, refused = _among_bad(worker, held, sound, batch_size)
        problems += found
        explains = any(one.explain for one in asked) or _explains(worker, requests[0])
        peak = _peak(worker.pid)
    return SampleReport(tuple(asked), tuple(problems), batch_size, explains, load, peak, refused)


def _together(worker: Worker, samples: Sequence[Sample], requests: Sequence[Request], batch_size: int) -> list[str]:
    problems = []
    # A batch as full as the server's, even if there are fewer samples than that.
    repeated = [index % len(samples) for index in range(max(batch_size, len(samples)))] if samples else []
    for start in range(0, len(repeated), batch_size):
        part = repeated[start : start + batch_size]
        answers = worker.predict_batch([requests[index] for index in part])
        problems += _compared([samples[index] for index in part], answers, f"in a batch of {len(part)}")
    return problems


def _among_bad(
    worker: Worker, samples: Sequence[Sample], requests: Sequence[Request], batch_size: int
) -> tuple[list[str], tuple[int, ...]]:
    size = max(batch_size, 2)
    order: list[int | None] = [*range(len(samples)), *([None] * len(_BAD))]
    random.Random(_SEED).shuffle(order)
    bad = iter(_BAD)
    mixed = [(index, next(bad) if index is None else requests[index]) for index in order]
    problems, refused = [], []
    for start in range(0, len(mixed), size):
        part = mixed[start : start + size]
        answers = worker.predict_batch([request for _, request in part])
        kept = [(samples[index], answer) for (index, _), answer in zip(part, answers, strict=True) if index is not None]
        refused += [answer.status for (index, _), answer in zip(part, answers, strict=True) if index is None]
        problems += _compared([sample for sample, _ in kept], [answer for _, answer in kept], "beside a bad request")
    problems += [f"a bad request gets {status}, not a 4xx" for status in sorted(set(refused)) if status >= 500]
    return problems, tuple(refused)


def _compared(samples: Sequence[Sample], answers: Sequence[Response], where: str) -> list[str]:
    return [
        f"{_name(sample)}, {where}: {one}"
        for sample, answer in zip(samples, answers, strict=True)
        for one in comparison.differences(sample, answer)
    ]


def _explains(worker: Worker, request: Request) -> bool:
    (answer,) = worker.predict_batch([Request(request.body, request.content_type, explain=True)])
    return answer.status < 400


def _request(archive: Archive, sample: Sample) -> Request:
    if sample.input is None:
        return Request(json.dumps(sample.json_body).encode(), "application/json", sample.explain)
    return Request(archive.read(sample.input), content_type(sample.input), sample.explain)


def _name(sample: Sample) -> str:
    name = sample.input or "json"
    return f"{name} (explained)" if sample.explain else name


def _peak(pid: int) -> int:
    """Return the most memory that a process has had resident, or has now where the system does not tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(psutil.Process(pid).memory_info().rss)
