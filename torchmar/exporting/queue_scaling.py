"""Replicas by the time that requests wait for a worker, as queries of Prometheus.

The time is the mean wait of the last two minutes. Without requests it is 0, because an autoscaler removes no replica
while a metric is missing. Waits are short until a server is busy: they show when to add replicas, but not how many
can be removed. Autoscalers therefore get them together with CPU use, and take the larger number of replicas.
"""

from __future__ import annotations

from typing import Any

WINDOW = "2m"
#: The share of the requested CPU above which replicas are added.
CPU_PERCENT = 75
#: The name of the metric in Prometheus Adapter.
METRIC = "torchmar_queue_wait_seconds"

# Fewer requests per second than this count as this many: a division by zero would give NaN.
_LEAST_RATE = 0.01
_SUM, _COUNT = "torchmar_queue_seconds_sum", "torchmar_queue_seconds_count"


def mean_wait(selector: str, by: str = "") -> str:
    """Return the query of the mean wait in seconds.

    Args:
        selector: selector of the series, without braces.
        by: labels to group the result by, such as ``" by (pod)"``.
    """
    waited, requests = (f"sum{by} (rate({metric}{{{selector}}}[{WINDOW}]))" for metric in (_SUM, _COUNT))
    return f"{waited} / clamp_min({requests}, {_LEAST_RATE:g})"


def replicas_times_wait(selector: str) -> str:
    """Return the query of the mean wait in milliseconds, times the number of pods.

    KEDA divides by the number of replicas (the metric type AverageValue), so that it compares the mean wait itself.
    """
    pods = f"count(count by (pod) ({_COUNT}{{{selector}}}))"
    return f"(1000 * {pods} * {mean_wait(selector)}) or vector(0)"


def adapter_rule() -> str:
    """Return the rule with which Prometheus Adapter serves `METRIC` for each pod.

    https://github.com/kubernetes-sigs/prometheus-adapter/blob/master/docs/config.md
    """
    return f"""\
- seriesQuery: '{_COUNT}{{namespace!="",pod!=""}}'
  resources: {{overrides: {{namespace: {{resource: namespace}}, pod: {{resource: pod}}}}}}
  name: {{as: {METRIC}}}
  metricsQuery: {mean_wait("<<.LabelMatchers>>", " by (<<.GroupBy>>)")}
"""


def cpu_metric() -> dict[str, Any]:
    """Return the metric of an autoscaler that adds replicas by CPU use."""
    target = {"type": "Utilization", "averageUtilization": CPU_PERCENT}
    return {"type": "Resource", "resource": {"name": "cpu", "target": target}}


def behavior() -> dict[str, Any]:
    """Return the speed of changes: twice the replicas in half a minute; after five calm minutes, one less a minute."""
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 30}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": 300,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
        },
    }
