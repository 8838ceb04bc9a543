"""Routes: paths of the user's choice lead to the predictions of models, as /predictions does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.command import torchmar
from tests.support.packing import pack_handler
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar import metrics, properties
from torchmar.deployment import actions
from torchmar.deployment.action_runner import ActionRunner
from torchmar.engines.addresses import free_addresses
from torchmar.engines.builtin import Builtin
from torchmar.errors import EngineError, NotFoundError, ServerError
from torchmar.server.models import snapshots

# Returns what it gets, and its version.
HANDLER = """
def handle(rows, context):
    if rows is None:
        return None
    version = context.manifest["model"]["modelVersion"]
    answers = []
    for index, row in enumerate(rows):
        values = {name: bytes(value).decode() if isinstance(value, bytearray) else value for name, value in row.items()}
        headers = context.get_all_request_header(index)
        seen = {"secret": headers.get("Authorization"), "explain": headers["explain"]}
        answers.append({"version": version, "row": values, **seen})
    return answers
"""
SLOW = "import time\ntime.sleep(3)\n" + HANDLER
ORIGIN = {"Origin": "https://clinic.example"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for name, version, code in (("clinic", "1.0", HANDLER), ("clinic", "2.0", HANDLER), ("slow", "1.0", SLOW)):
        pack_handler(folder, code, name=name, version=version)
    return folder


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builtin]:
    folder = tmp_path_factory.mktemp("server")
    routes = {
        "/inference": "clinic",
        "/v2x/score": {"model": "clinic", "version": "2.0"},
        "/api/predict": "clinic",
        "/gone": "nobody",
        "/gone/version": {"model": "clinic", "version": "9.0"},
    }
    config = write_config(
        folder,
        torchmar_routes=json.dumps(routes),
        torchmar_snapshots=str(folder / "snapshots"),
        torchmar_access_log="true",
        max_request_size="1000",
        cors_allowed_origin="https://clinic.example",
        cors_allowed_methods="POST",
    )
    with Builtin(config, store, folder / "run") as running:
        running.load(store / "clinic-1.0.mar")
        running.load(store / "clinic-2.0.mar")
        running.management.set_default("clinic", "1.0")
        yield running


def token(server: Builtin) -> dict[str, str]:
    key = json.loads((server.folder / "key_file.json").read_text())["inference"]["key"]
    return {"Authorization": f"Bearer {key}"}


def send(server: Builtin, path: str, method: str = "POST", **options: Any) -> requests.Response:
    headers = {**token(server), **options.pop("headers", {})}
    return requests.request(method, f"{server.server.inference}{path}", headers=headers, timeout=60, **options)


@pytest.mark.parametrize(
    ("path", "version"),
    [("/inference", "1.0"), ("/v2x/score", "2.0"), ("/api/predict", "1.0"), ("/inference/?q=1", "1.0")],
)
def test_a_route_leads_to_the_default_version_or_to_the_one_it_names(server: Builtin, path: str, version: str) -> None:
    answer = send(server, path, json={"patient_id": "p1"})
    assert answer.status_code == 200
    document = answer.json()
    assert (document["version"], document["row"]) == (version, {"body": {"patient_id": "p1"}})
    assert document["explain"] == "False"
    assert document["secret"] is None


def test_bodies_of_every_kind_reach_the_handler_as_over_predictions(server: Builtin) -> None:
    for options in (
        {"data": b"raw"},
        {"data": {"a": "1", "b": "x y"}},
        {"files": {"data": ("a.txt", b"text", "text/plain")}},
        {"json": [1, 2]},
        {"data": b"{broken", "headers": {"Content-Type": "application/json"}},
    ):
        routed = send(server, "/inference", **options)
        direct = send(server, "/predictions/clinic", **options)
        assert (routed.status_code, routed.json()) == (direct.status_code, direct.json())
    assert send(server, "/inference", "PUT", data=b"x").json()["row"] == {"body": "x"}


def test_tokens_limits_cors_ids_and_the_access_log_are_those_of_every_path(server: Builtin) -> None:
    url = f"{server.server.inference}/inference"
    assert requests.post(url, data=b"x", timeout=60).status_code == 400
    assert send(server, "/inference", data=b"x" * 1001).status_code == 413
    answer = send(server, "/inference", data=b"x", headers=ORIGIN)
    assert answer.headers["access-control-allow-origin"] == "https://clinic.example"
    preflight = requests.options(url, headers={**ORIGIN, "Access-Control-Request-Method": "POST"}, timeout=60)
    assert (preflight.status_code, preflight.headers["access-control-allow-methods"]) == (200, "POST")
    log = server.folder / "logs" / "access.log"
    until(lambda: answer.headers["x-request-id"] in log.read_text())


def test_a_route_without_a_model_names_the_model(server: Builtin) -> None:
    gone = send(server, "/gone", data=b"x")
    assert (gone.status_code, gone.json()["message"]) == (404, "Model not found: nobody")
    version = send(server, "/gone/version", data=b"x")
    assert (version.status_code, version.json()["type"]) == (404, "ModelVersionNotFoundException")
    assert "9.0 does not exist for model: clinic" in version.json()["message"]
    assert send(server, "/nowhere", data=b"x").status_code == 404


def test_requests_over_a_route_are_counted_for_its_model(server: Builtin) -> None:
    def count() -> float:
        address = properties.read(server.folder / "config.properties").get("metrics_address")
        text = requests.get(f"{address}/metrics", timeout=60).text
        return metrics.Reading(0, metrics.parse(text)).total("ts_inference_requests_total", model_name="clinic")

    before = count()
    send(server, "/inference", data=b"x")
    assert count() == before + 1


def test_the_openapi_documents_describe_routes(server: Builtin) -> None:
    document = requests.options(f"{server.server.inference}/", timeout=60).json()
    operation = document["paths"]["/inference"]["post"]
    assert "the model clinic." in operation["description"]
    assert "the model clinic, version 2.0." in document["paths"]["/v2x/score"]["post"]["description"]
    ids = [call["operationId"] for calls in document["paths"].values() for call in calls.values()]
    assert len(ids) == len(set(ids))
    of_model = send(server, "/inference", "OPTIONS").json()
    assert "/inference" in of_model["paths"]
    assert "/gone" not in of_model["paths"]


def test_routes_are_set_changed_and_removed_while_the_server_runs(server: Builtin) -> None:
    management = server.management
    management.set_route("/d\u00e9part/now", "clinic")
    assert send(server, "/d\u00e9part/now", data=b"x").json()["version"] == "1.0"
    management.set_route("/d\u00e9part/now", "clinic", "2.0")
    assert send(server, "/d\u00e9part/now", data=b"x").json()["version"] == "2.0"
    assert management.routes()["/d\u00e9part/now"] == ("clinic", "2.0")
    assert management.routes()["/inference"] == ("clinic", None)
    newest = snapshots.latest(server.folder.parent / "snapshots")
    assert newest and "part/now" in newest.read_text()
    management.remove_route("/d\u00e9part/now")
    assert send(server, "/d\u00e9part/now", data=b"x").status_code == 404
    with pytest.raises(NotFoundError, match="There is no route"):
        management.remove_route("/d\u00e9part/now")


def test_the_default_version_of_a_route_is_that_of_the_moment(server: Builtin) -> None:
    server.management.set_default("clinic", "2.0")
    try:
        assert send(server, "/inference", data=b"x").json()["version"] == "2.0"
    finally:
        server.management.set_default("clinic", "1.0")


def test_a_wrong_route_is_rejected_while_the_server_runs(server: Builtin) -> None:
    management = server.management
    with pytest.raises(ServerError, match="would hide paths of the server's APIs below /ping"):
        management.set_route("/ping", "clinic")
    with pytest.raises(NotFoundError, match="Model not found: nobody"):
        management.set_route("/a", "nobody")
    with pytest.raises(NotFoundError, match=r"3\.0 does not exist"):
        management.set_route("/a", "clinic", "3.0")
    url = f"{server.server.management}/routes/a"
    key = json.loads((server.folder / "key_file.json").read_text())["management"]["key"]
    headers = {"Authorization": f"Bearer {key}"}
    for query, message in (
        ("", "Parameter model is required."),
        ("?model=clinic&model_version=2.0", "Unknown parameter model_version; there are model and version."),
    ):
        answer = requests.put(f"{url}{query}", headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["message"]) == (400, message)
    assert requests.get(url, headers=headers, timeout=60).status_code == 404
    assert requests.post(url, headers=headers, timeout=60).status_code == 405
    assert requests.get(f"{server.server.management}/routes", timeout=60).status_code == 400
    route = requests.get(f"{server.server.management}/routes/v2x/score", headers=headers, timeout=60)
    assert route.json() == {"model": "clinic", "version": "2.0"}


def test_a_server_with_a_route_over_an_api_does_not_start(store: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, torchmar_routes='{"/predictions/mine": "clinic"}')
    with pytest.raises(EngineError) as raised, Builtin(config, store, tmp_path / "run"):
        pass
    shown = raised.value.log
    assert "torchmar_routes" in shown
    assert "would hide paths of the server's APIs below /predictions" in shown


def test_a_request_waits_for_the_model_of_its_route_while_the_server_loads_it(store: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, torchmar_routes='{"/s": "slow"}', load_models="slow=slow-1.0.mar")
    with Builtin(config, store, tmp_path / "run") as server:
        assert send(server, "/s", data=b"x").status_code == 200


def test_the_apis_may_share_an_address_with_routes(store: Path, tmp_path: Path) -> None:
    address = free_addresses()["inference_address"]
    shared = {"inference_address": address, "management_address": address}
    config = write_config(tmp_path, **shared, torchmar_routes='{"/a": "clinic"}')
    with Builtin(config, store, tmp_path / "run") as server:
        server.load(store / "clinic-1.0.mar")
        assert send(server, "/a", data=b"x").status_code == 200
        assert server.management.routes() == {"/a": ("clinic", None)}


def test_changes_of_routes_can_be_undone(server: Builtin) -> None:
    before = server.management.routes()
    runner = ActionRunner(server.server, server.management, ())
    for action in (
        actions.SetRoute("/undone", "clinic", "2.0"),
        actions.SetRoute("/inference", "clinic", "2.0"),
        actions.RemoveRoute("/v2x/score"),
    ):
        runner.run(action)
    assert server.management.routes() != before
    done = [undo() for undo in reversed(runner.undos)]
    assert done == ["/v2x/score leads to clinic again", "/inference leads to clinic again", "removed the route /undone"]
    assert server.management.routes() == before


def test_apply_sets_and_removes_routes_and_then_has_nothing_to_do(server: Builtin, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text(
        f"server: {{run_folder: {server.folder}, model_store: {store}}}\n"
        'routes: {/inference: clinic, /applied: {model: clinic, version: "2.0"}}\n'
        'models: {clinic: {default: "1.0", versions: {"1.0": {}, "2.0": {}}}}\n'
    )
    before = server.management.routes()
    try:
        planned = torchmar("plan", file, cwd=tmp_path, code=2).stdout
        assert "+ route /applied" in planned
        assert "- route /v2x/score" in planned
        torchmar("apply", file, cwd=tmp_path)
        assert send(server, "/applied", data=b"x").json()["version"] == "2.0"
        assert server.management.routes() == {"/inference": ("clinic", None), "/applied": ("clinic", "2.0")}
        assert "nothing to do" in torchmar("plan", file, cwd=tmp_path).stdout
        captured = torchmar("capture", "--run-folder", server.folder, "--model-store", store, cwd=tmp_path).stdout
        assert "/inference: clinic" in captured
    finally:
        for path in server.management.routes():
            server.management.remove_route(path)
        for path, route in before.items():
            if route[0] == "clinic" and route[1] != "9.0":
                server.management.set_route(path, *route)
