"""The metrics that a server exposes: TorchServe's, or those of a file like its ``metrics.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import yaml

from torchmar.errors import PropertiesError
from torchmar.server.telemetry.prometheus import Kind, MetricSpec

_HOST = ("Level", "Hostname")
_VERSION = ("model_name", "model_version", "hostname")
_GPU = ("Level", "DeviceId", "Hostname")


@dataclass(frozen=True)
class MetricsConfig:
    """The metrics that are shown.

    Attributes:
        server: metrics of the server; ``ts_metrics`` in the file.
        models: metrics of handlers that are always shown; ``model_metrics`` in the file.
    """

    server: Sequence[MetricSpec]
    models: Sequence[MetricSpec]


def read(file: Path) -> MetricsConfig:
    """Read a file for ``metrics_config``.

    Raises:
        PropertiesError: the file cannot be read, or does not have the layout of TorchServe's
            ``ts/configs/metrics.yaml``.
    """
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PropertiesError(f"metrics_config: {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PropertiesError(f"metrics_config: {file} is not YAML: {error}") from None
    if not isinstance(document, Mapping):
        raise _wrong(file, "the file", "ts_metrics: and model_metrics:")
    # Metrics of handlers have the dimension "Hostname" automatically; those of the server name it.
    models = [_with_hostname(spec) for spec in _specs(file, document, "model_metrics")]
    return MetricsConfig(list(_specs(file, document, "ts_metrics")), models)


def described(kind: str, unit: str) -> str:
    """Return TorchServe's help text for a metric."""
    return f"Torchserve prometheus {kind} metric with unit: {unit}"


def _specs(file: Path, document: Mapping[str, Any], section: str) -> list[MetricSpec]:
    kinds = document.get(section) or {}
    if not isinstance(kinds, Mapping) or not set(kinds) <= set(get_args(Kind)):
        raise _wrong(file, section, "counter:, gauge: and histogram:")
    specs = []
    for kind, entries in kinds.items():
        for entry in entries or ():
            match entry:
                case {"name": str(name), "unit": str(unit), "dimensions": list(labels)}:
                    spec = MetricSpec(name, cast(Kind, kind), described(kind, unit), tuple(map(str, labels)))
                case _:
                    raise _wrong(file, f"{section}: {kind}: {entry!r}", "name:, unit: and a list of dimensions:")
            if not spec.sound:
                raise _wrong(file, f"{section}: {name}", "letters, digits and _ in the names of it and its dimensions")
            specs.append(spec)
    return specs


def _wrong(file: Path, place: str, expected: str) -> PropertiesError:
    return PropertiesError(f"metrics_config: {file}: {place} is not {expected}", hint="see ts/configs/metrics.yaml")


def _with_hostname(spec: MetricSpec) -> MetricSpec:
    return MetricSpec(spec.name, spec.kind, spec.help, (*spec.labels, "Hostname"))


def _default(kind: Kind, unit: str, labels: tuple[str, ...], *names: str) -> list[MetricSpec]:
    return [MetricSpec(name, kind, described(kind, unit), labels) for name in names]


# TorchServe's own metrics.yaml.
DEFAULT = MetricsConfig(
    server=[
        *_default("counter", "Count", _HOST, "Requests2XX", "Requests4XX", "Requests5XX"),
        *_default("counter", "Count", _VERSION, "ts_inference_requests_total"),
        *_default(
            "counter", "Microseconds", _VERSION, "ts_inference_latency_microseconds", "ts_queue_latency_microseconds"
        ),
        *_default("gauge", "Milliseconds", _HOST, "QueueTime", "WorkerThreadTime"),
        *_default("gauge", "Milliseconds", ("WorkerName", *_HOST), "WorkerLoadTime"),
        *_default("gauge", "Percent", _HOST, "CPUUtilization", "MemoryUtilization", "DiskUtilization"),
        *_default("gauge", "Megabytes", _HOST, "MemoryUsed", "MemoryAvailable"),
        *_default("gauge", "Gigabytes", _HOST, "DiskUsage", "DiskAvailable"),
        *_default("gauge", "Percent", _GPU, "GPUMemoryUtilization", "GPUUtilization"),
        *_default("gauge", "Megabytes", _GPU, "GPUMemoryUsed"),
    ],
    models=_default("gauge", "ms", ("ModelName", *_HOST), "HandlerTime", "PredictionTime"),
)
