"""Prometheus' rules for alerts and a dashboard for Grafana, for the metrics of the built-in server.

Rules: https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/. The dashboard is Grafana's JSON
model, which `Import` of its web page and its provisioning read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_SCHEMA = 39  # version of dashboards in Grafana 11; later releases read it too
_QUANTILES = (0.5, 0.95, 0.99)
_WIDTH, _HEIGHT = 12, 8  # size of a panel; the dashboard has a width of 24
_HEAD = """\
# Alerts for torchmar servers; promtool check rules alerts.yaml checks the file.
# prometheus.yml needs
#   rule_files: [alerts.yaml]
#   scrape_configs: [{{job_name: {job}, static_configs: [{{targets: ["127.0.0.1:8082"]}}]}}]
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits beyond which alerts are raised.

    Attributes:
        job: the name of the job with which Prometheus scrapes the servers.
        request_seconds: the 99th percentile of the time of a request.
        queue_seconds: the 95th percentile of the time that a request waits for a worker.
        errors: the share of responses with a status of 500 or more.
    """

    job: str = "torchmar"
    request_seconds: float = 1.0
    queue_seconds: float = 0.5
    errors: float = 0.01


def alerts(limits: Limits) -> str:
    """Return the text of a file of rules."""
    of_job = f'job="{limits.job}"'
    # A server that has sent no response of a kind has no series for it, and a sum with a missing series is missing.
    zero = f"0 * sum by (instance) (up{{{of_job}}})"
    responses = " + ".join(
        f"(sum by (instance) (rate(Requests{kind}XX{{{of_job}}}[5m])) or {zero})" for kind in ("2", "4", "5")
    )
    rules = [
        _alert("TorchmarDown", f"up{{{of_job}}} == 0", "2m", "critical", "{{ $labels.instance }} does not answer"),
        _alert(
            "TorchmarErrors",
            f"sum by (instance) (rate(Requests5XX{{{of_job}}}[5m])) / ({responses}) > {limits.errors:g}",
            "5m",
            "critical",
            "{{ $value | humanizePercentage }} of the responses of {{ $labels.instance }} are errors of the server; "
            "torchmar logs has their tracebacks",
        ),
        _alert(
            "TorchmarSlow",
            f"{_quantile(0.99, 'torchmar_request_seconds', of_job)} > {limits.request_seconds:g}",
            "10m",
            "warning",
            "1 % of the requests to {{ $labels.model_name }} take more than {{ $value | humanizeDuration }}",
        ),
        _alert(
            "TorchmarQueue",
            f"{_quantile(0.95, 'torchmar_queue_seconds', of_job)} > {limits.queue_seconds:g}",
            "5m",
            "warning",
            "5 % of the requests to {{ $labels.model_name }} wait more than {{ $value | humanizeDuration }} for a "
            "worker: it needs more workers, or fewer requests",
        ),
        _alert(
            "TorchmarMemory",
            f"MemoryUtilization{{{of_job}}} > 90",
            "10m",
            "warning",
            "{{ $value }} % of the memory of {{ $labels.instance }} is used",
        ),
    ]
    text = yaml.safe_dump({"groups": [{"name": "torchmar", "rules": rules}]}, sort_keys=False, width=1000)
    return _HEAD.format(job=limits.job) + text


def dashboard(limits: Limits) -> str:
    """Return the text of a dashboard: rates, times, queue, batches and errors by model, and the machine."""
    selector = 'job="$job", model_name=~"$model"'
    machine = 'job="$job"'
    by_version = "sum by (model_name, model_version)"
    panels = [
        _panel(
            "Requests",
            "reqps",
            [(f"{by_version} (rate(ts_inference_requests_total{{{selector}}}[$__rate_interval]))", _VERSION)],
        ),
        _panel(
            "Responses by status",
            "reqps",
            [(f"sum (rate(Requests{kind}XX{{{machine}}}[$__rate_interval]))", f"{kind}xx") for kind in ("2", "4", "5")],
        ),
        _panel("Time of a request", "s", _quantiles("torchmar_request_seconds", selector)),
        _panel("Wait for a worker", "s", _quantiles("torchmar_queue_seconds", selector)),
        _panel(
            "Requests in a batch, on average",
            "short",
            [
                (
                    f"{by_version} (rate(torchmar_batch_size_sum{{{selector}}}[$__rate_interval])) / "
                    f"{by_version} (rate(torchmar_batch_size_count{{{selector}}}[$__rate_interval]))",
                    _VERSION,
                )
            ],
        ),
        _panel(
            "Machine",
            "percent",
            [
                (f"CPUUtilization{{{machine}}}", "CPU of {{instance}}"),
                (f"MemoryUtilization{{{machine}}}", "memory of {{instance}}"),
                (f"GPUUtilization{{{machine}}}", "GPU {{DeviceId}} of {{instance}}"),
                (f"GPUMemoryUtilization{{{machine}}}", "memory of GPU {{DeviceId}} of {{instance}}"),
            ],
        ),
    ]
    for number, panel in enumerate(panels):
        panel["id"] = number + 1
        panel["gridPos"] = {"x": number % 2 * _WIDTH, "y": number // 2 * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
    document = {
        "title": "torchmar",
        "uid": "torchmar",
        "schemaVersion": _SCHEMA,
        "tags": ["torchmar"],
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {
            "list": [
                {"name": "source", "label": "Source", "type": "datasource", "query": "prometheus"},
                {"name": "job", "label": "Job", "type": "constant", "query": limits.job, "hide": 2},
                {
                    "name": "model",
                    "label": "Model",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": f'label_values(ts_inference_requests_total{{job="{limits.job}"}}, model_name)',
                    "refresh": 2,
                    "includeAll": True,
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }
    return json.dumps(document, indent=2) + "\n"


_VERSION = "{{model_name}} {{model_version}}"
_SOURCE = {"type": "prometheus", "uid": "${source}"}


def _alert(name: str, expression: str, duration: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": duration,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }


def _quantile(share: float, metric: str, selector: str, window: str = "5m") -> str:
    return f"histogram_quantile({share:g}, sum by (le, model_name) (rate({metric}_bucket{{{selector}}}[{window}])))"


def _quantiles(metric: str, selector: str) -> list[tuple[str, str]]:
    return [
        (_quantile(share, metric, selector, "$__rate_interval"), f"p{share * 100:g} of {{{{model_name}}}}")
        for share in _QUANTILES
    ]


def _panel(title: str, unit: str, queries: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "title": title,
        "type": "timeseries",
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"lineWidth": 2}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for place, (expression, legend) in enumerate(queries)
        ],
    }
