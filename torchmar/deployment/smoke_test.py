"""The test of a version before it gets traffic: its samples are compared, workers warmed up, and latency measured."""

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

_TIMED = 5  # number of responses to each request, whose median counts


@dataclass(frozen=True)
class SmokeTest:
    """A passed test: the number of requests, and the largest median latency of one of them in milliseconds."""

    requests: int
    slowest_ms: float | None

    def show(self) -> str:
        """Return the result as text."""
        if not self.requests:
            return "it has no samples; only its workers are up"
        slowest = "" if self.slowest_ms is None else f", at most {self.slowest_ms:.1f} ms"
        return f"{self.requests} sample{'' if self.requests == 1 else 's'} right{slowest}"


@dataclass(frozen=True)
class Probe:
    """A request with the sample of its expected response; without a sample, any status below 400 is good."""

    name: str
    request: Request
    sample: Sample | None = None

    def problems(self, response: Response) -> list[str]:
        """Return the differences between a response and the expected one, as text."""
        if self.sample:
            return comparison.differences(self.sample, response)
        excerpt = response.body.decode("utf-8", "replace")[:200]
        return [f"status {response.status}: {excerpt}"] if response.status >= 400 else []


def probes(archive: Path | None, requests: Path | None) -> list[Probe]:
    """Return the samples of an archive and the files of a folder as requests.

    Raises:
        TorchmarError: the archive or the folder cannot be read.
    """
    return [*(_of_archive(archive) if archive else ()), *(_of_folder(requests) if requests else ())]


def send(client: InferenceClient, name: str, request: Request, version: str | None) -> tuple[Response, float]:
    """Return the response of a version and its latency in milliseconds; an error status is no exception."""
    start = time.perf_counter()
    try:
        response = client.request(name, request, version)
    except ServerError as error:
        body = json.dumps({"code": error.status, "type": error.type, "message": error.message}).encode()
        response = Response(error.status, body)
    return response, (time.perf_counter() - start) * 1000


def run(
    server: Endpoint,
    name: str,
    version: str,
    probes: Sequence[Probe],
    *,
    warmup_requests: int,
    at_once: int,
    max_latency: int | None,
    timeout: float = 120.0,
) -> SmokeTest:
    """Send each request once and compare the response; warm the version up; measure its latency.

    Args:
        server: the server.
        name: the model.
        version: the version.
        probes: the requests; without any the test passes.
        warmup_requests: number of requests before the measurement.
        at_once: number of concurrent warm-up requests, so that every worker gets some.
        max_latency: the largest allowed median latency of one request, in milliseconds; None: no limit.
        timeout: seconds to wait for one response.

    Raises:
        TorchmarError: a response is wrong or too slow; the message lists all such responses.
        ConnectError: there was no response in ``timeout`` seconds.
    """
    if not probes:
        return SmokeTest(0, None)
    client = InferenceClient(server, timeout=timeout)
    problems = []
    for probe in probes:
        response, _ = send(client, name, probe.request, version)
        problems += [f"{probe.name}: {problem}" for problem in probe.problems(response)]
    if problems:
        raise _failed(f"{name} {version} does not answer as it should", problems)
    _warm_up(server, name, version, [probe.request for probe in probes], warmup_requests, at_once, timeout)
    medians = {}
    for probe in probes:
        medians[probe.name] = statistics.median(send(client, name, probe.request, version)[1] for _ in range(_TIMED))
    slow = {key: median for key, median in medians.items() if max_latency is not None and median > max_latency}
    if slow:
        lines = [f"{key}: {median:.1f} ms" for key, median in slow.items()]
        raise _failed(f"{name} {version} takes longer than {max_latency} ms", lines)
    return SmokeTest(len(probes), max(medians.values()))


def _warm_up(
    server: Endpoint, name: str, version: str, requests: Sequence[Request], count: int, at_once: int, timeout: float
) -> None:
    def send_all(share: Sequence[Request]) -> None:
        client = InferenceClient(server, timeout=timeout)
        for request in share:
            send(client, name, request, version)

    repeated = list(itertools.islice(itertools.cycle(requests), count))
    with ThreadPoolExecutor(max(1, at_once)) as pool:
        list(pool.map(send_all, [repeated[start::at_once] for start in range(at_once)]))


def _failed(summary: str, lines: Sequence[str]) -> TorchmarError:
    listed = [*lines[:8], *([f"and {len(lines) - 8} more"] if len(lines) > 8 else [])]
    return TorchmarError("\n  ".join([f"{summary}:", *listed]))


def _of_archive(path: Path) -> Iterator[Probe]:
    with Archive(path) as archive:
        for sample in archive.samples:
            name = f"{sample.input or 'json'}{' (explained)' if sample.explain else ''}"
            if sample.input is None:
                body, kind = json.dumps(sample.json_body).encode(), "application/json"
            else:
                body, kind = archive.read(sample.input), content_type(sample.input)
            yield Probe(name, Request(body, kind, sample.explain), sample)


def _of_folder(folder: Path) -> Iterator[Probe]:
    if not folder.is_dir():
        raise TorchmarError(f"{folder} is not a folder", hint="write each request to a file of its own in a folder")
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            yield Probe(file.name, exchange.read(file))
