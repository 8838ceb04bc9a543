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

if TYPE_CHECKING:  # environments of archives, in which optimisations run, do not have it
    from pydantic import ConfigDict, TypeAdapter

SCHEMA: Literal["torchmar-bench/1"] = "torchmar-bench/1"
#: The ends of an interval with 95 % confidence.
Bounds = tuple[float, float]

_CONFIG: ConfigDict = {"use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine that the load came from; the server's, too, if that is local."""

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
    """The address of the API that the requests were sent to."""
    protocol: Protocol
    """torchserve: TorchServe's inference API over HTTP; grpc: the same over gRPC; the others are KServe's."""
    engine: str
    """The server: builtin, torchserve, ray; empty if it is not known."""
    model: str
    """The name of the model."""
    model_version: str
    """Its version; empty for the default version of a server that does not report it."""
    local: bool
    """Whether the server runs on the machine that the load came from."""
    archive_digest: str = ""
    """The SHA-256 of the archive; empty if it is not known."""


@dataclass(frozen=True, kw_only=True)
class RequestsInfo:
    """The requests of a measurement, which are sent in turn."""

    __pydantic_config__ = _CONFIG

    source: str
    """The file or folder that they are from."""
    count: int
    """The number of different requests."""
    bytes: int
    """The mean size of a body."""
    compared: int
    """How many of them have an expected answer, which the answers under load are compared with."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The latency of the answered requests, in milliseconds.

    In an open loop and in a replay it counts from the moment when the request was to be sent, in a closed loop from
    the moment when it was sent. Intervals have 95 % confidence; null where there are too few windows.
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
    """The percentiles with fewer than ten answers beyond them, such as p99 and p999: chance decides these."""


@dataclass(frozen=True, kw_only=True)
class HistogramCounts:
    """A log-linear histogram of latencies (HdrHistogram): `torchmar.load.histogram` reads it."""

    __pydantic_config__ = _CONFIG

    unit: str
    """The unit of the values: us."""
    significant_digits: int
    """The digits that a value keeps."""
    count: int
    """The number of values."""
    sum: int
    """The sum of the values."""
    max: int
    """The largest value."""
    buckets: tuple[tuple[int, int], ...]
    """Index and count of each bucket that has values, in ascending order."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a step, by the time when requests were to be sent."""

    __pydantic_config__ = _CONFIG

    start_s: float
    """Its begin, in seconds since the end of the warm-up."""
    duration_s: float
    """Its length in seconds."""
    sent: int
    """The requests that were to be sent in it."""
    completed: int
    """The requests that were answered in it, whenever they were sent."""
    errors: int
    """The requests of ``sent`` that failed."""
    in_flight: int
    """The requests without an answer at its end."""
    p50_ms: float | None
    """The median latency of the requests of ``sent``; null without answers."""
    p99_ms: float | None
    """The 99th percentile of the same."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A kind of error, with one example."""

    __pydantic_config__ = _CONFIG

    kind: str
    """Such as ``status 503``, ``timeout``, ``connection refused`` or ``connection closed``."""
    count: int
    """How many requests failed so."""
    example: str
    """The first of them: the request and the server's message."""


@dataclass(frozen=True, kw_only=True)
class ServerSplit:
    """The time of a request in the server, from the server's metrics; null for parts that it does not measure."""

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
    """Batches by the largest size of their bucket (1, 2, 3 to 4, 5 to 8 and so on); 0 is larger than all of them."""


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
    """Replicas of a cluster on other machines, which the server's metrics count in cores and memory: without Ray's own
    processes there."""


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """The state of the client and of the machine while it measured."""

    __pydantic_config__ = _CONFIG

    send_delay_p99_ms: float
    """The 99th percentile of the time between the moment when a request was to be sent, and that when it was sent."""
    busy_fraction: float
    """The share of the time that the client's core was computing for the client."""
    other_load_cores: float | None
    """The cores that neither the client nor the server used on average; null if that is unknown."""


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
    """Of a closed loop: its connections. Otherwise the connections that were opened."""
    warmup_s: float
    """Seconds of load before the measurement, which are not counted."""
    duration_s: float
    """Measured seconds."""
    complete: bool
    """Whether the measurement lasted as long as intended; it did not if it was interrupted, or the server saturated."""
    sent: int
    """The requests that were to be sent in the measured time."""
    completed: int
    """Those that got an answer, errors of the server included."""
    throughput: float
    """Right answers a second."""
    throughput_interval: Bounds | None
    """Its interval; null where there are too few windows."""
    latency_ms: Latency | None
    """The latency of answers without error; null if there is none."""
    histogram: HistogramCounts
    """The same latencies."""
    windows: tuple[Window, ...]
    """The measured time in parts."""
    errors: tuple[Failure, ...]
    """The requests that failed, by kind, the commonest first."""
    wrong_answers: int
    """The answers that differ from the expected ones, although their status was as expected."""
    wrong_answer: str
    """An example of them; empty if there is none."""
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
    """Whether the figures are the server's: the client was not late and not saturated, and the machine not used by
    others."""
    invalid_reasons: tuple[str, ...]
    """Why not."""

    @property
    def failed(self) -> int:
        """The number of requests that failed."""
        return sum(failure.count for failure in self.errors)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The highest rate that holds."""

    __pydantic_config__ = _CONFIG

    rate: float | None
    """The highest rate without saturation, in requests a second; null if there was none."""
    interval: Bounds | None
    """That rate, and the lowest that saturated the server."""
    reason: str
    """The sign of saturation beyond it, or why no limit was found."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A measurement: what was measured where, and its steps."""

    __pydantic_config__ = _CONFIG

    created: str
    """The time of the end of the measurement, UTC, as of ISO 8601."""
    torchmar: str
    """The version of torchmar."""
    machine: Machine
    """The machine that the load came from."""
    target: TargetInfo
    """The server and model."""
    requests: RequestsInfo
    """The requests."""
    steps: tuple[Step, ...]
    """The measurements, in their order."""
    limit: Limit | None = None
    """The highest rate that holds, if it was looked for."""
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
    """Return a report as values of JSON, the schema first."""
    values: dict[str, Any] = _adapter().dump_python(report, mode="json")
    return {"schema": values.pop("schema"), **values}


def text(report: Report) -> str:
    """Return a report as JSON text, with each pair of numbers (an interval, a bucket) on one line."""
    indented = json.dumps(document(report), indent=1, ensure_ascii=False)
    # Texts have no line breaks in JSON, so that only arrays match.
    return re.sub(r"\[\n\s+([-+.\deE]+),\n\s+([-+.\deE]+)\n\s+\]", r"[\1, \2]", indented) + "\n"


def parse(values: Any) -> Report:
    """Return the report that `document` returned the values of; keys that are not known are ignored.

    Raises:
        ValueError: the values are not those of a report; the message has the place and the reason.
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
