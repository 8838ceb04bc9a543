"""torchmar.exporting.monitoring: rules that Prometheus takes and that fire, a dashboard over metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.command import torchmar_here
from torchmar.exporting.monitoring import Limits, alerts, dashboard
from torchmar.server.telemetry.metrics import Metrics

PROMTOOL = shutil.which("promtool")
_promtool = pytest.mark.skipif(not PROMTOOL, reason="no promtool: it comes with Prometheus")
LIMITS = Limits(job="models", request_seconds=0.2)


def expressions() -> list[str]:
    rules = yaml.safe_load(alerts(LIMITS))["groups"][0]["rules"]
    panels = json.loads(dashboard(LIMITS))["panels"]
    return [rule["expr"] for rule in rules] + [query["expr"] for panel in panels for query in panel["targets"]]


def test_every_metric_in_rules_and_dashboard_is_one_of_the_server() -> None:
    known = {name for metric in Metrics()._metrics.values() for name in metric.spec.names} | {"up"}
    used = {name for text in expressions() for name in re.findall(r"(\w+)\{", text)}
    assert used <= known
    assert {"torchmar_queue_seconds_bucket", "torchmar_batch_size_sum", "Requests5XX"} <= used


def test_panels_lie_beside_each_other_and_the_job_is_the_users() -> None:
    document = json.loads(dashboard(LIMITS))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in document["panels"]]
    assert len(set(places)) == len(places)
    assert all(x + panel["gridPos"]["w"] <= 24 for (x, _), panel in zip(places, document["panels"], strict=True))
    assert 'job="models"' in document["templating"]["list"][2]["query"]


def fired(folder: Path, series: dict[str, str], name: str, at: str) -> bool:
    """Return whether an alert fires for series, as ``promtool test rules`` computes it."""
    (folder / "alerts.yaml").write_text(alerts(LIMITS))
    one: dict[str, Any] = {
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"alertname": name, "eval_time": at, "exp_alerts": []}],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["alerts.yaml"], "tests": [one]}))
    ran = subprocess.run([str(PROMTOOL), "test", "rules", "test.yaml"], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0 or "got:[" in ran.stderr, ran.stderr
    return ran.returncode != 0


UP = 'up{job="models",instance="a"}'


@_promtool
@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("TorchmarDown", {UP: "0x60"}),
        ("TorchmarErrors", {UP: "1x60", 'Requests5XX{job="models",instance="a"}': "0+3x60"}),  # and no other response
        (
            "TorchmarSlow",
            {
                'torchmar_request_seconds_bucket{job="models",model_name="m",le="0.25"}': "0+0x60",
                'torchmar_request_seconds_bucket{job="models",model_name="m",le="0.5"}': "0+9x60",
                'torchmar_request_seconds_bucket{job="models",model_name="m",le="+Inf"}': "0+9x60",
            },
        ),
        ("TorchmarMemory", {'MemoryUtilization{job="models",instance="a"}': "95x60"}),
    ],
)
def test_an_alert_fires_for_its_fault_and_not_for_a_healthy_server(
    tmp_path: Path, name: str, series: dict[str, str]
) -> None:
    assert fired(tmp_path, series, name, "25m")
    healthy = {
        UP: "1x60",
        'Requests2XX{job="models",instance="a"}': "0+500x60",
        'Requests5XX{job="models",instance="a"}': "0+1x60",
        'torchmar_request_seconds_bucket{job="models",model_name="m",le="0.1"}': "0+9x60",
        'torchmar_request_seconds_bucket{job="models",model_name="m",le="+Inf"}': "0+9x60",
        'MemoryUtilization{job="models",instance="a"}': "40x60",
    }
    assert not fired(tmp_path, healthy, name, "25m")


def test_both_files_are_written(tmp_path: Path) -> None:
    torchmar_here("export", "monitoring", "--latency", "200ms", "--job", "models", cwd=tmp_path)
    assert (tmp_path / "alerts.yaml").read_text() == alerts(LIMITS)
    assert (tmp_path / "dashboard.json").read_text() == dashboard(LIMITS)
    torchmar_here("export", "monitoring", "--output", "new/folder", cwd=tmp_path)
    assert (tmp_path / "new" / "folder" / "alerts.yaml").exists()
    ran = torchmar_here("export", "monitoring", "--output", "alerts.yaml", cwd=tmp_path, code=1)
    assert "alerts.yaml is not a folder" in ran.stderr
