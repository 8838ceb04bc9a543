"""The results of a load measurement: values, and their JSON."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torchmar.atomic import write_text
from torchmar.errors import TorchmarError
from torchmar.load.kinds import Arrivals, Kind, Protocol

if TYPE_CHECKING:  # environments of archives, in which optimisations run, do not have this module
    from pydantic import ConfigDict, TypeAdapter

SCHEMA: Literal["torchmar-bench/1"] = "torchmar-bench/1"
#: The ends of an interval with 95 % confidence.
Bounds = tuple[float, float]

_CONFIG: ConfigDict = {"use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine that sent the load; also the server's, if that is local."""

    __pydantic_config__ = _CONFIG

    processor: str
    """The name of the processor."""
    cores: int
    """The cores that this process may use."""
    flags: tuple[str, ...]
    """The features of the processor that matter for models: avx2, avx512f, avx512_vnni, amx_tile and the like."""
    system: str
    """The operating system and its version."""
    python: str
    """The version of Python."""


@dataclass(frozen=True, kw_only=True)
class TargetInfo:
    """The measured server and model."""

    __pydantic_config__ = _CONFIG

    url: str
    """The address of the API that received the requests."""
    protocol: Protocol
    """torchserve: TorchServe's inference API over HTTP; grpc: the same over gRPC; the others are KServe's."""
    engine: str
    """The server: builtin, torchserve, ray; empty if unknown."""
    model: str
    """The name of the model."""
    model_version: str
    """Its version; empty for the default version of a server that does not report it."""
    local: bool
    """Whether the server runs on the machine that sent the load."""
    archive_digest: str = ""
    """The SHA-256 of the archive; empty if unknown."""


@dataclass(frozen=True, kw_only=True)
class RequestsInfo:
    """The requests of a measurement, which are sent in turn."""

    __pydantic_config__ = _CONFIG

    source: str
    """The file or folder that contains them."""
    count: int
    """The number of different requests."""
    bytes: int
    """The mean size of a body."""
    compared: int
    """The number of requests with an expected answer, which is compared with the answers under load."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The latency of the answered requests, in milliseconds.

    In an open loop and in a replay it counts from the time when the request was due, in a closed loop from the time
    when it was sent. Intervals have 95 % confidence; null if there are too few windows.
    """

    __pydantic_config__ = _CONFIG

    mean: float
    """The mean."""
    p50: float
    """The median."""
    p90: float
    """The 90th percentile."""
    p95: float
    """The 95th percentile."""
    p99: float
    """The 99th percentile."""
    p999: float
    """The 99.9th percentile."""
    max: float
    """The largest."""
    p50_interval: Bounds | None
    """The interval of the median."""
    p95_interval: Bounds | None
    """The interval of the 95th percentile."""
    p99_interval: Bounds | None
    """The interval of the 99th percentile."""
    uncertain: tuple[str, ...] = ()
    """The percentiles with fewer than ten answers beyond them, such as p99 and p999: they are random."""


@dataclass(frozen=True, kw_only=True)
class HistogramCounts:
    """A log-linear histogram of latencies (HdrHistogram), which `torchmar.load.histogram` reads."""

    __pydantic_config__ = _CONFIG

    unit: str
    """The unit of the values: us."""
    significant_digits: int
    """The number of significant digits."""
    count: int
    """The number of values."""
    sum: int
    """The sum of the values."""
    max: int
    """The largest value."""
    buckets: tuple[tuple[int, int], ...]
    """Index and count of each bucket with values, in ascending order."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a step, by the time when requests were due."""

    __pydantic_config__ = _CONFIG

    start_s: float
    """Its start, in seconds since the end of the warm-up."""
    duration_s: float
    """Its length in seconds."""
    sent: int
    """The requests that were due in it."""
    completed: int
    """The requests that were answered in it, whenever they were sent."""
    errors: int
    """The requests of ``sent`` that failed."""
    in_flight: int
    """The requests without an answer at its end."""
    p50_ms: float | None
    """The median latency of the requests of ``sent``; null without answers."""
    p99_ms: float | None
    """The 99th percentile of the latency of the requests of ``sent``; null without answers."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A kind of error, with one example."""

    __pydantic_config__ = _CONFIG

    kind: str
    """Such as ``status 503``, ``timeout``, ``connection refused`` or ``connection closed``."""
    count: int
    """The number of requests that failed in this way."""
    example: str
    """The first example: the request and the server's message."""


@dataclass(frozen=True, kw_only=True)
class ServerSplit:
    """The time of a request in the server, from the server's metrics; null for parts without a metric."""

    __pydantic_config__ = _CONFIG

    total_ms: float | None = None
    """The mean from its arrival to its answer."""
    queue_ms: float | None = None
    """The mean wait for a worker."""
    preprocess_ms: float | None = None
    """The mean time of the steps before the model."""
    inference_ms: float | None = None
    """The mean time of the model."""
    postprocess_ms: float | None = None
    """The mean time of the steps after the model."""
    batch_sizes: dict[int, int] | None = None
    """Batches by the largest size of their bucket (1, 2, 3 to 4, 5 to 8 and so on); 0 stands for larger sizes."""


@dataclass(frozen=True, kw_only=True)
class ServerProcesses:
    """The processes of a local server; on a cluster also Ray's on this machine, and replicas on all machines."""

    __pydantic_config__ = _CONFIG

    count: int
    """Their number on this machine at the end."""
    cpu_cores: float
    """The cores that they used on average."""
    memory_bytes: int
    """Their memory at the end; pages that several of them share count once."""
    replicas_elsewhere: int = 0
    """The number of replicas of a cluster on other machines, whose cores and memory are from the server's metrics;
    Ray's own processes there do not count."""


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """The state of the client and of the machine during the measurement."""

    __pydantic_config__ = _CONFIG

    send_delay_p99_ms: float
    """The 99th percentile of the lateness of sends."""
    busy_fraction: float
    """The share of the time in which the client's core computed for the client."""
    other_load_cores: float | None
    """The average number of cores that neither the client nor the server used; null if unknown."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One measurement at one rate or number of connections."""

    __pydantic_config__ = _CONFIG

    kind: Kind
    """open: requests at a rate, however fast the answers are; closed: each connection sends its next request after the
    answer to the last; replay: at the times of an access log."""
    arrivals: Arrivals | None
    """The times between requests of an open loop."""
    rate: float | None
    """The intended requests a second; null in a closed loop."""
    connections: int
    """The connections of a closed loop; otherwise the number of connections that were opened."""
    warmup_s: float
    """The seconds of load before the measurement, which do not count."""
    duration_s: float
    """Measured seconds."""
    complete: bool
    """Whether the measurement lasted as long as intended; not if it was interrupted, or the server was saturated."""
    sent: int
    """The requests that were due in the measured time."""
    completed: int
    """The requests with an answer, including errors from the server."""
    throughput: float
    """The correct answers per second."""
    throughput_interval: Bounds | None
    """The interval of the throughput; null if there are too few windows."""
    latency_ms: Latency | None
    """The latency of the answers without errors; null if there are none."""
    histogram: HistogramCounts
    """The same latencies."""
    windows: tuple[Window, ...]
    """The measured time in parts."""
    errors: tuple[Failure, ...]
    """The failed requests by kind, the most frequent first."""
    wrong_answers: int
    """The number of answers with the expected status, but another content."""
    wrong_answer: str
    """An example of a wrong answer; empty if there is none."""
    server: ServerSplit | None
    """The time in the server; null without its metrics."""
    processes: ServerProcesses | None
    """The server's processes; null if it is not local."""
    client: SelfCheck
    """The state of the client."""
    stable: bool
    """Whether the windows are of one steady state."""
    unstable_reason: str
    """Why not."""
    valid: bool
    """Whether the figures are those of the server: the client was neither late nor saturated, and other programs did
    not use the machine."""
    invalid_reasons: tuple[str, ...]
    """Why not."""

    @property
    def failed(self) -> int:
        """The number of requests that failed."""
        return sum(failure.count for failure in self.errors)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The highest rate that the server holds."""

    __pydantic_config__ = _CONFIG

    rate: float | None
    """The highest rate without saturation, in requests per second; null if there is none."""
    interval: Bounds | None
    """This rate, and the lowest rate that saturated the server."""
    reason: str
    """The sign of saturation beyond it, or the reason why no limit was found."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A measurement: machine, server, requests and steps."""

    __pydantic_config__ = _CONFIG

    created: str
    """The time when the measurement ended, in UTC as in ISO 8601."""
    torchmar: str
    """The version of torchmar."""
    machine: Machine
    """The machine that sent the load."""
    target: TargetInfo
    """The server and model."""
    requests: RequestsInfo
    """The requests."""
    steps: tuple[Step, ...]
    """The measurements, in their order."""
    limit: Limit | None = None
    """The highest rate that the server holds; null if it was not searched."""
    complete: bool = True
    """Whether all steps were measured; false after an interruption."""
    schema: Literal["torchmar-bench/1"] = SCHEMA
    """The version of this format."""

    def saturated(self, step: Step) -> bool:
        """Whether a step was at a rate that the search for the limit found to be too high."""
        bounds = self.limit.interval if self.limit else None
        return bounds is not None and step.kind == "open" and step.rate is not None and step.rate >= bounds[1]


@functools.cache
def _adapter() -> TypeAdapter[Report]:
    from pydantic import TypeAdapter

    return TypeAdapter(Report)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a report."""
    return _adapter().json_schema(mode="serialization")


def document(report: Report) -> dict[str, Any]:
    """Return a report as JSON values, the schema first."""
    values: dict[str, Any] = _adapter().dump_python(report, mode="json")
    return {"schema": values.pop("schema"), **values}


def text(report: Report) -> str:
    """Return a report as JSON text, with each pair of numbers (an interval, a bucket) on one line."""
    indented = json.dumps(document(report), indent=1, ensure_ascii=False)
    # Strings in JSON have no line breaks, so that this only matches arrays.
    return re.sub(r"\[\n\s+([-+.\deE]+),\n\s+([-+.\deE]+)\n\s+\]", r"[\1, \2]", indented) + "\n"


def parse(values: Any) -> Report:
    """Return the report from the values of `document`; unknown keys are ignored.

    Raises:
        ValueError: the values are not those of a report; the message contains the location and the reason.
    """
    from pydantic import ValidationError

    try:
        return _adapter().validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ValueError(f"{place}: {first['msg']}") from None


def write(report: Report, path: Path) -> None:
    """Write a report as JSON.

    Raises:
        TorchmarError: the file cannot be written.
    """
    write_text(text(report), path)


def read(path: Path) -> Report:
    """Return the report in a file.

    Raises:
        TorchmarError: the file cannot be read, or is not a report of this version.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise TorchmarError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        values = None
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise TorchmarError(
            f"{path} is not a report of torchmar bench ({SCHEMA})", hint="torchmar bench NAME ... --json > FILE"
        )
    try:
        return parse(values)
    except ValueError as error:
        raise TorchmarError(f"{path} is not a valid report: {error}") from None
