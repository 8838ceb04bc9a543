"""The clinic archive keeps the contract of its clients: over HTTP, and behind a Django project."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests

from tests.support import slow_archives
from tests.support.command import torchmar
from tests.support.paths import ROOT
from tests.support.servers import write_config
from torchmar import archive
from torchmar.engines.builtin import Builtin

CLINIC = ROOT / "archives" / "clinic"
PROJECT = ROOT / "docs" / "examples" / "clinic_django"
BODY = json.loads((CLINIC / "samples" / "malignant.json").read_text())
TOKEN = "token-of-the-tests-0123"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Iterator[Builtin]:
    """Run the built-in server with the clinic model and one that takes a second."""
    folder = tmp_path_factory.mktemp("clinic")
    built = archive.build(CLINIC, folder / "store")
    slow_archives.pack(folder / "store", "slow", slow_archives.SLOW)
    token = folder / "token"
    token.write_text(TOKEN)
    config = write_config(
        folder,
        torchmar_inference_token_file=str(token),
        max_request_size="100000",
        torchmar_routes='{"/inference": "clinic"}',
    )
    with Builtin(config, folder / "store", folder / "run") as running:
        running.load(built.path)
        running.load(folder / "store" / "slow-1.0.mar")
        yield running


def post(server: Builtin, body: Any, path: str = "/inference", token: str = TOKEN) -> requests.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    return requests.post(f"{server.server.inference}{path}", data=content, headers=headers, timeout=120)


def test_an_answer_has_the_keys_of_the_contract(server: Builtin) -> None:
    before = datetime.now(timezone.utc)
    response = post(server, BODY)
    document = response.json()
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
    assert document.keys() == {"success", "data"}
    assert document["success"] is True
    data = document["data"]
    keys = {"prediction", "confidence", "probabilities", "patient_id", "timestamp", "model_version"}
    assert data.keys() == keys
    assert (data["prediction"], data["patient_id"], data["model_version"]) == ("malignant", BODY["patient_id"], "1.0")
    assert data["confidence"] == data["probabilities"]["malignant"]
    assert sum(data["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert abs((datetime.fromisoformat(data["timestamp"]) - before).total_seconds()) < 60


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({**BODY, "image_data": BODY["image_data"][:3]}, "an array of 12 numbers, shape [12], and 3 were sent"),
        ({"text_data": "x", "patient_id": "1"}, "the body has no 'image_data'; send {"),
        ({"image_data": []}, "the body has no 'text_data'; send {"),
        (b'{"image_data": [1', "the body is not JSON"),
    ],
)
def test_a_request_at_fault_gets_400_in_the_envelope_with_what_is_expected(
    server: Builtin, body: Any, expected: str
) -> None:
    response = post(server, body)
    document = response.json()
    assert response.status_code == 400
    assert document["success"] is False
    assert expected in document["error"]
    assert document["message"] == document["error"]


def test_errors_of_the_server_itself_have_torchserves_keys(server: Builtin) -> None:
    large = post(server, {**BODY, "text_data": "x" * 200_000})
    refused = post(server, BODY, token="another-token-0123456")
    missing = post(server, BODY, path="/predictions/clinics")
    assert [one.status_code for one in (large, refused, missing)] == [413, 400, 404]
    for response in (large, refused, missing):
        assert "success" not in response.json()
        assert response.json()["message"]


def test_the_number_of_workers_with_the_model_can_be_changed(server: Builtin) -> None:
    for count in (2, 1):
        server.management.scale("clinic", min_worker=count, max_worker=count)
        (version,) = server.management.describe("clinic")
        assert len(version.workers) == count
        assert post(server, BODY).json()["data"]["prediction"] == "malignant"


@pytest.fixture
def site(server: Builtin, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Set up the Django project for the server of the tests; return its settings."""
    pytest.importorskip("django")
    import django
    from django.conf import settings
    from django.test.utils import override_settings, setup_test_environment, teardown_test_environment

    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "clinic_site.settings")
    monkeypatch.syspath_prepend(str(PROJECT))
    django.setup()
    setup_test_environment()
    url = f"{server.server.inference}/inference"
    with override_settings(CLINIC_URL=url, CLINIC_TOKEN=TOKEN):
        yield settings
    teardown_test_environment()


def assess(body: Any) -> Any:
    from django.test import Client

    return Client().post("/assess/", body, content_type="application/json")


@pytest.mark.usefixtures("site")
def test_the_django_project_returns_the_answer_of_the_model() -> None:
    response = assess(BODY)
    assert response.status_code == 200
    assert response.json()["data"]["prediction"] == "malignant"
    assert response.json()["data"]["patient_id"] == BODY["patient_id"]


@pytest.mark.usefixtures("site")
def test_the_django_project_returns_the_refusal_of_the_model() -> None:
    response = assess({**BODY, "image_data": "none"})
    assert response.status_code == 400
    assert response.json()["success"] is False
    assert "an array of 12 numbers" in response.json()["error"]


def test_the_django_project_gives_up_on_a_model_that_is_slow(site: Any, server: Builtin) -> None:
    from django.test.utils import override_settings

    with override_settings(CLINIC_URL=f"{server.server.inference}/predictions/slow", CLINIC_TIMEOUT=0.2):
        response = assess(BODY)
    assert response.status_code == 504
    assert response.json() == {"success": False, "error": "the model did not answer within 0.2 s"}


def test_the_django_project_reports_a_server_that_is_down(site: Any) -> None:
    from django.test.utils import override_settings

    from torchmar.engines.addresses import free_addresses

    (address, *_) = free_addresses().values()
    with override_settings(CLINIC_URL=f"{address}/predictions/clinic"):
        response = assess(BODY)
    assert response.status_code == 503
    assert response.json() == {"success": False, "error": "the server of the model cannot be reached"}


@pytest.mark.parametrize(
    ("changed", "body", "status", "error"),
    [
        ({"CLINIC_TOKEN": "another-token-0123456"}, BODY, 502, "oken"),
        ({}, {**BODY, "text_data": "x" * 200_000}, 413, "larger than 100000 bytes"),
        ({"DATA_UPLOAD_MAX_MEMORY_SIZE": 100}, BODY, 413, "the request is too large"),
    ],
)
def test_errors_of_the_server_itself_are_in_the_envelope_of_the_django_project(
    site: Any, changed: dict[str, Any], body: Any, status: int, error: str
) -> None:
    from django.test.utils import override_settings

    with override_settings(**changed):
        response = assess(body)
    assert response.status_code == status
    assert response.json()["success"] is False
    assert error in response.json()["error"]


@pytest.mark.usefixtures("site")
def test_the_django_project_passes_djangos_own_checks() -> None:
    from django.core.management import call_command

    call_command("check", "--fail-level", "WARNING")
    wsgi = importlib.import_module("clinic_site.wsgi")
    assert callable(wsgi.application)
    assert Path(sys.modules["clinic_site"].__file__ or "").is_relative_to(PROJECT)


def test_the_page_about_the_clinic_shows_the_client_of_the_django_project_and_the_unit(
    tmp_path: Path,
) -> None:
    page = (ROOT / "docs" / "models" / "clinic.md").read_text()
    (client,) = re.findall(r'title="clinic_site/inference.py"\n(.*?)```', page, re.DOTALL)
    assert client in (PROJECT / "clinic_site" / "inference.py").read_text()
    write_config(tmp_path)
    ran = torchmar("export", "systemd", "--port", "5000", cwd=tmp_path)
    written = ran.stdout.replace(str(tmp_path), "/srv/clinic").replace(sys.executable, "/srv/clinic/.venv/bin/python")
    (unit,) = re.findall(r'title="clinic.service"\n(.*?)```', page, re.DOTALL)
    assert [line for line in unit.splitlines() if line != "..." and line not in written.splitlines()] == []


def test_every_stage_has_a_process_of_its_own(server: Builtin) -> None:
    (version,) = server.management.describe("clinic")
    assert {stage: len(workers) for stage, workers in version.stages.items()} == {"preprocess": 1, "postprocess": 1}
    assert len(version.workers) == 1
    pids = [worker.pid for workers in (version.workers, *version.stages.values()) for worker in workers]
    assert len(set(pids)) == 3
    assert post(server, BODY, path="/predictions/clinic").json()["data"]["prediction"] == "malignant"
