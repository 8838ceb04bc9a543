"""torchmar.exporting.ray: a configuration that Ray Serve does not misread, and archives that it can serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.command import torchmar_here
from torchmar.archive import Archive
from torchmar.errors import RecipeError, TorchmarError
from torchmar.exporting import ray, ray_config

TEXT = ray.config([ray.RayModel(name="made", version="1.0", file="made-1.0.mar", batch_size=8)])
STREAMS = "from ts.handler_utils.utils import send_intermediate_predict_response\n\ndef handle(rows, context):\n"


def model_of(path: Path, **more: Any) -> ray.RayModel:
    with Archive(path) as archive:
        return ray.model(archive, **more)


def test_workers_batches_and_queue_become_replicas_and_their_requests(make: Callable[..., Path]) -> None:
    path = make(config={"minWorkers": 2, "maxWorkers": 2, "batchSize": 8, "maxBatchDelay": 20, "jobQueueSize": 50})
    application = yaml.safe_load(ray.config([model_of(path)]))["applications"][0]
    assert (application["import_path"], application["route_prefix"]) == ("deployment:app", "/")
    (deployment,) = application["deployments"]
    assert (deployment["num_replicas"], deployment["max_ongoing_requests"]) == (2, 16)
    assert deployment["max_queued_requests"] == 50
    assert deployment["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 0.0}
    (arguments,) = application["args"]["models"]
    assert (arguments["batch_size"], arguments["batch_delay_s"]) == (8, 0.02)


def test_more_workers_at_most_than_at_least_are_an_autoscaling(make: Callable[..., Path]) -> None:
    path = make(config={"minWorkers": 1, "maxWorkers": 3, "batchSize": 4, "deviceType": "gpu"})
    (deployment,) = yaml.safe_load(ray.config([model_of(path)]))["applications"][0]["deployments"]
    assert "num_replicas" not in deployment
    assert deployment["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 4}
    assert deployment["ray_actor_options"]["num_gpus"] == 1.0
    assert model_of(path, gpus=0.25).gpus == 0.25


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"config": {"sequenceBatching": True}}, "sequenceBatching"),
        ({"code": STREAMS + "    send_intermediate_predict_response([], {}, '', 200, context)\n"}, "in parts"),
    ],
)
def test_an_archive_that_ray_would_serve_otherwise_is_an_error(
    make: Callable[..., Path], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(TorchmarError, match=message):
        model_of(make(**keys))


@pytest.mark.parametrize(
    ("written", "edited", "message"),
    [
        ("max_ongoing_requests: 16", "max_ongoing_request: 16", "did you mean 'max_ongoing_requests'"),
        ("max_ongoing_requests: 16", "max_ongoing_requests: 9", "batches of 8 are not filled"),
        ("    max_ongoing_requests: 16\n", "", "with 5 requests at once"),
        ("num_cpus", "num_cpu", "did you mean 'num_cpus'"),
        ("- name: made-1.0\n    num", "- name: made\n    num", "no model called 'made'"),
        ("route_prefix", "route-prefix", "did you mean 'route_prefix'"),
    ],
)
def test_what_ray_lets_pass_is_found_with_its_line(written: str, edited: str, message: str) -> None:
    assert written in TEXT
    with pytest.raises(RecipeError, match=message) as caught:
        ray_config.parse(TEXT.replace(written, edited))
    assert all(problem.line > 3 for problem in caught.value.problems)


def test_the_command_writes_a_folder_and_checks_what_was_edited(tmp_path: Path, make: Callable[..., Path]) -> None:
    first, second = (
        make(name="first"),
        make(name="second", disk={"requirements.txt": "einops\n"}, requirements="requirements.txt"),
    )
    ran = torchmar_here("export", "ray", first, second, "-o", tmp_path / "folder", cwd=tmp_path)
    assert "wrote" in ran.stderr
    names = {str(path.relative_to(tmp_path / "folder")) for path in (tmp_path / "folder").rglob("*") if path.is_file()}
    expected = {"config.yaml", "deployment.py", "code/requirements.txt"}
    assert names == expected | {"models/first-1.0.mar", "models/second-1.0.mar"}
    requirements = (tmp_path / "folder" / "code" / "requirements.txt").read_text().splitlines()
    assert {"einops", "torchserve==0.12.0", "python-multipart"} <= set(requirements)
    config = tmp_path / "folder" / "config.yaml"
    torchmar_here("export", "ray", "--check", config, cwd=tmp_path)
    config.write_text(config.read_text().replace("num_replicas", "replicas"))
    ran = torchmar_here("export", "ray", "--check", config, cwd=tmp_path, code=1)
    assert "no key is called 'replicas'" in ran.stderr.replace("\n", " ")
