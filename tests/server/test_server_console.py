"""The console's API: sessions, rights, cross-site requests, documents, events, and requests that try a model."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
from typer.testing import CliRunner

from tests.support import consoles, event_stream
from tests.support.console_site import Site
from tests.support.consoles import CHANGE, ROOT
from tests.support.packing import pack_handler
from tests.support.servers import ECHO, write_config
from tests.support.waiting import until
from torchmar.cli.app import app
from torchmar.engines.builtin import Builtin
from torchmar.engines.server_records import ServerRecord
from torchmar.server.telemetry.events import KINDS

HOSTILE = "<img src=x onerror=alert(1)>"
READER = "the-token-of-a-reader"
FAILS = "def handle(rows, context):\n    if rows is None:\n        raise ValueError('weights are missing')\n"
SEES = """
import json, sys, time

def handle(rows, context):
    if rows is None:
        return None
    headers = [context.get_all_request_header(index) for index in range(len(rows))]
    body = rows[0].get("body")
    body = body.encode() if isinstance(body, str) else body
    if body == b"log":
        print("<script>alert(1)</script> said", flush=True)
    if body == b"slow":
        time.sleep(0.2)
    if body == b"raise":
        raise ValueError("on request")
    return [json.dumps(one) for one in headers]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("console")
    codes = {"echo": ECHO, "sees": SEES, "fails": FAILS}
    for name, code in codes.items():
        samples = [{"input": "sample.txt"}, {"json": {"a": 1}}] if name == "echo" else []
        disk = {"sample.txt": "hello"}
        pack_handler(folder / "store", code, name=name, disk=disk, description=HOSTILE, samples=samples)
    (folder / "reader").write_text(READER)
    config = write_config(
        folder,
        torchmar_read_token_file=str(folder / "reader"),
        torchmar_access_log="true",
        default_startup_timeout="20",
    )
    with Builtin(config, folder / "store", folder / "run") as running:
        for name in ("echo", "sees"):
            running.load(folder / "store" / f"{name}-1.0.mar")
        yield Site(running)


# Who may do what.


def test_the_page_needs_no_session_and_binds_the_browser_to_this_server(site: Site) -> None:
    page = requests.get(f"{site.address}/console", timeout=60)
    assert page.status_code == 200 and page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff" and page.headers["Referrer-Policy"] == "no-referrer"
    assert not re.findall(r"https?://", page.text)
    for path in set(re.findall(r'"(/console/[^"]+)"', page.text)):
        answer = requests.get(site.address + path, timeout=60)
        assert answer.status_code == 200 and answer.headers["Content-Encoding"] == "gzip", path


def test_files_are_compressed_and_revalidated(site: Site) -> None:
    url = f"{site.address}/console/style.css"
    plain = requests.get(url, headers={"Accept-Encoding": "identity"}, timeout=60)
    with requests.get(url, headers={"Accept-Encoding": "gzip"}, stream=True, timeout=60) as packed:
        assert gzip.decompress(packed.raw.read()) == plain.content
    assert plain.headers["Cache-Control"] == "no-cache"
    again = requests.get(url, headers={"If-None-Match": plain.headers["ETag"]}, timeout=60)
    assert (again.status_code, again.content) == (304, b"")
    for path in ("nothing.js", "../api/console/files.py", "%2e%2e/app.py", "js"):
        assert requests.get(f"{site.address}/console/{path}", timeout=60).status_code in (
            400,
            404,
        )  # some leave /console


def test_the_api_needs_a_token_or_a_session(site: Site) -> None:
    for path in (
        "/server",
        "/models",
        "/history",
        "/events",
        "/logs",
        "/stream",
        "/models/echo/1.0/form",
        "/management/models",
    ):
        assert requests.get(f"{site.address}{ROOT}{path}", timeout=60).status_code == 401
    inference = {"Authorization": f"Bearer {site.inference_token}"}
    assert requests.get(f"{site.address}{ROOT}/models", headers=inference, timeout=60).status_code == 400
    assert site.get("/server").json()["right"] == "management"
    assert site.get("/server", site.session(READER)).json()["right"] == "read"
    stale = {"Cookie": f"torchmar_console_{site.address.rpartition(':')[2]}=x"}
    answer = requests.get(f"{site.address}{ROOT}/models", headers=stale, timeout=60)
    assert answer.status_code == 401 and "Sign in again" in answer.json()["message"]


def test_a_code_signs_in_once_and_its_cookie_is_hidden_from_scripts_and_other_sites(site: Site) -> None:
    code = site.engine.management.console_code()
    session = requests.Session()
    answer = session.post(f"{site.address}{ROOT}/sign-in", json={"code": code}, headers=CHANGE, timeout=60)
    cookie = answer.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/console"} <= set(cookie.split("; "))
    assert site.token not in cookie and code not in cookie
    assert site.get("/models", session).status_code == 200
    again = requests.post(f"{site.address}{ROOT}/sign-in", json={"code": code}, headers=CHANGE, timeout=60)
    assert again.status_code == 401 and "Set-Cookie" not in again.headers
    # The management API itself knows no cookie, so that no page can make a browser send it a change.
    assert session.put(f"{site.address}/models/echo?min_worker=1", timeout=60).status_code == 400
    assert session.post(f"{site.address}{ROOT}/code", headers=CHANGE, timeout=60).status_code == 400
    session.post(f"{site.address}{ROOT}/sign-out", headers=CHANGE, timeout=60)
    assert site.get("/models", session).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        (CHANGE, 200),
        ({**CHANGE, "Origin": "http://evil.example"}, 403),
        ({**CHANGE, "Sec-Fetch-Site": "cross-site"}, 403),
        ({**CHANGE, "Sec-Fetch-Site": "same-site"}, 403),  # another port of this host
        ({**CHANGE, "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_a_change_must_come_from_a_page_of_this_server(site: Site, headers: Mapping[str, str], status: int) -> None:
    session = site.session()
    path = f"{site.address}{ROOT}/management/models/echo/1.0?min_worker=1&synchronous=true"
    assert session.put(path, headers=headers, timeout=60).status_code == status
    own = {**headers, "Origin": site.address} if status == 200 else headers
    assert session.put(path, headers=own, timeout=60).status_code == status
    answer = requests.post(f"{site.address}{ROOT}/sign-in", json={"token": site.token}, headers=headers, timeout=60)
    assert answer.status_code == status


def test_a_reader_sees_everything_and_changes_nothing(site: Site) -> None:
    session = site.session(READER)
    for path in ("/server", "/models", "/history", "/events", "/logs", "/models/echo/1.0/form", "/management/models"):
        assert site.get(path, session).status_code == 200, path
    for method, path in (
        ("PUT", "/management/models/echo/1.0?min_worker=0"),
        ("DELETE", "/management/models/echo/1.0"),
        ("POST", "/management/models?url=echo-1.0.mar"),
        ("POST", "/models/echo/1.0/predict"),
    ):
        answer = session.request(method, f"{site.address}{ROOT}{path}", headers=CHANGE, timeout=60)
        assert answer.status_code == 403 and "reader" in answer.json()["message"]
    assert not site.get("/server", session).json()["may_register"]


def test_no_log_has_a_code_a_token_or_a_session(site: Site) -> None:
    code = site.engine.management.console_code()
    requests.get(f"{site.address}/console?code={code}", timeout=60)
    session = site.session()
    secrets = [code, site.token, *session.cookies.values()]
    log = site.engine.folder / "logs"
    until(lambda: "/console" in (log / "access.log").read_text())
    texts = [file.read_text() for file in log.iterdir()] + [site.get("/logs").text]
    assert not [secret for secret in secrets for text in texts if secret in text]


def test_a_server_without_tokens_needs_no_session_but_protects_changes(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    path = make()
    config = write_config(tmp_path, disable_token_authorization="true")
    with Builtin(config, path.parent, tmp_path / "run") as running:
        address = f"{running.server.management}{ROOT}"
        running.load(path)
        assert running.management.console_code() == ""
        assert requests.get(f"{address}/server", timeout=60).json()["right"] == "management"
        url = f"{address}/models/made/1.0/predict"
        assert (
            requests.post(url, b"x", headers={"Origin": "http://evil.example", **CHANGE}, timeout=60).status_code == 403
        )
        assert requests.post(url, b"x", timeout=60).status_code == 403
        assert requests.post(url, json={"a": 1}, headers=CHANGE, timeout=60).status_code == 200


# What it knows.


def test_the_description_is_that_of_the_answers(site: Site) -> None:
    description = site.get("").json()
    names = {"model_name": "echo", "model_version": "1.0", "file": "echo-1.0.mar"}
    for path, schema in consoles.documents(description, **names):
        consoles.check(site.get(path).json(), schema, description["components"]["schemas"], path)


def test_requests_of_the_last_seconds_are_in_the_history(site: Site) -> None:
    began = time.time()
    for body in (b"slow", b"x", b"raise"):
        requests.post(
            f"{site.engine.server.inference}/predictions/sees",
            body,
            headers={"Authorization": f"Bearer {site.inference_token}"},
            timeout=60,
        )

    def columns() -> dict[str, list[Any]]:
        return dict(site.get(f"/history?model=sees&since={began}").json()["columns"])

    until(lambda: sum(columns()["requests"]) >= 2.5)
    known = columns()
    assert sum(count for failed in known["failures"] if failed for count in failed.values()) == 1
    assert max(value for value in known["p99_ms"] if value) > 100
    assert sum(sum(sizes) for sizes in known["batches"] if sizes) == 3
    assert known["ready"][-1] == known["wanted"][-1] == 1
    assert not any(site.get(f"/history?model=echo&since={began}").json()["columns"]["failed"])
    assert site.get("/history?since=yesterday").status_code == 400


def test_the_status_of_the_command_line_has_the_load_and_the_events(site: Site) -> None:
    def shown() -> dict[str, Any]:
        result = CliRunner().invoke(app, ["status", "--json", "--run-folder", str(site.engine.folder)])
        (document,) = json.loads(result.output)
        return dict(document)

    requests.post(
        f"{site.engine.server.inference}/predictions/sees",
        b"x",
        headers={"Authorization": f"Bearer {site.inference_token}"},
        timeout=60,
    )
    until(lambda: any(model["load"] for model in shown()["models"] if model["name"] == "sees"))
    document = shown()
    (load,) = (model["load"] for model in document["models"] if model["name"] == "sees")
    assert load["request_count"] >= 1 and load["p99_ms"] > 0
    assert document["events"][0]["kind"] == "server_started"


def test_changes_are_events_and_stream_to_every_page(site: Site) -> None:
    with site.stream() as events, site.stream("/stream?model=echo&logs=true") as others:
        kind, snapshot = next(events)
        assert kind == "snapshot" and {model["name"] for model in snapshot["models"]} >= {"echo", "sees"}
        assert snapshot["models"][0]["versions"][0]["workers"][0]["memory"] > 1e6
        assert "logs" not in snapshot and "logs" in next(others)[1]
        site.engine.management.scale("echo", min_worker=2)
        changed = _until(events, lambda tick: any(model["name"] == "echo" for model in tick["models"]))
        (model,) = (model for model in changed["models"] if model["name"] == "echo")
        assert model["versions"][0]["min_workers"] == 2
        site.engine.management.scale("echo", min_worker=1)
        pid = site.engine.management.describe("echo")[0].workers[0].pid
        os.kill(pid, signal.SIGKILL)
        died = _until(events, lambda tick: any(event["kind"] == "worker_died" for event in tick["events"]))
        assert {event["model"] for event in died["events"]} == {"echo"}
        assert _until(others, lambda tick: tick["logs"])["row"]["wanted"] >= 1
    until(lambda: site.engine.management.describe("echo")[0].ready == 1)
    kinds = [event["kind"] for event in site.get("/events").json()["events"]]
    assert kinds[0] == "server_started" and {"registered", "scaled", "worker_died", "worker_started"} <= set(kinds)
    assert set(kinds) <= set(KINDS)


def _until(events: Iterator[tuple[str, Any]], true: Callable[[Any], Any]) -> Any:
    ticks = (document for kind, document in itertools.islice(events, 60) if kind == "tick")
    return next(document for document in ticks if true(document))


def test_a_model_that_does_not_load_is_an_event_with_its_traceback_in_the_log(site: Site) -> None:
    management = site.engine.management
    management.register("fails-1.0.mar", initial_workers=1, synchronous=False)
    try:
        until(lambda: any(event["kind"] == "load_failed" for event in site.get("/events").json()["events"]))
        (event, *_) = [event for event in site.get("/events").json()["events"] if event["kind"] == "load_failed"]
        assert (event["model"], event["text"]) == ("fails", "ValueError: weights are missing")
        version = site.get("/models/fails").json()["versions"][0]
        assert version["state"] == "crash_looping" and "weights are missing" in version["failure"]
        assert version["description"] == HOSTILE
        entries = site.get("/logs?model=fails").json()["entries"]
        assert [entry for entry in entries if entry["text"].startswith("Traceback") and "missing" in entry["text"]]
    finally:
        management.unregister("fails")


def test_a_switch_of_the_default_and_its_reverse_are_told_apart(site: Site, make: Callable[..., Path]) -> None:
    store = Path(site.get("/server").json()["model_store"])
    make(store=store, name="echo", version="2.0")
    management = site.engine.management
    management.register("echo-2.0.mar", initial_workers=1)
    try:
        for version in ("2.0", "1.0", "2.0", "1.0"):
            management.set_default("echo", version)
    finally:
        management.unregister("echo", "2.0")
    kinds = [event["kind"] for event in site.get("/events").json()["events"] if event["kind"].startswith("default")]
    assert kinds == ["default_switched", "default_switched_back"] * 2


def test_the_stream_ends_with_the_session(site: Site) -> None:
    session = site.session()
    with session.get(f"{site.address}{ROOT}/stream", stream=True, timeout=60) as response:
        events = event_stream.parse(response.iter_content(None))
        assert next(events).type == "snapshot"
        session.post(f"{site.address}{ROOT}/sign-out", headers=CHANGE, timeout=60)
        assert [event.type for event in events][-1] == "signed-out"


# Trying a model.


def test_a_request_is_run_with_its_times_and_without_what_concerns_the_console(site: Site) -> None:
    session = site.session()
    answer = session.post(
        f"{site.address}{ROOT}/models/sees/1.0/predict",
        b"slow",
        headers={**CHANGE, "Content-Type": "text/plain", "Accept": "application/json"},
        timeout=60,
    )
    assert answer.status_code == 200
    seen = {name.lower() for name in answer.json()}
    assert not seen & {"cookie", "authorization", "x-torchmar-console", "origin"}
    assert {"content-type", "accept"} <= seen
    timing = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
    assert float(timing["total"]) >= float(timing["handle"]) >= 200 and float(timing["queue"]) >= 0
    assert answer.headers["x-request-id"] and "sandbox" in answer.headers["Content-Security-Policy"]
    failed = session.post(f"{site.address}{ROOT}/models/sees/1.0/predict", b"raise", headers=CHANGE, timeout=60)
    assert failed.status_code >= 500
    for path in ("/models/nobody/1.0/predict", "/models/sees/9.9/predict"):
        assert session.post(f"{site.address}{ROOT}{path}", b"x", headers=CHANGE, timeout=60).status_code == 404


def test_the_form_has_the_samples_of_the_archive(site: Site) -> None:
    form = site.get("/models/echo/1.0/form").json()
    assert form["kind"] == "text"
    assert [(sample["name"], sample["type"]) for sample in form["samples"]] == [
        ("sample.txt", "text/plain"),
        ("JSON", "application/json"),
    ]
    first, second = (site.get(f"/models/echo/1.0/samples/{number}") for number in (0, 1))
    assert (first.content, first.headers["Content-Type"]) == (b"hello", "text/plain")
    assert second.json() == {"a": 1} and first.headers["X-Content-Type-Options"] == "nosniff"
    for number, status in (("2", 404), ("x", 400), ("-1", 400)):
        assert site.get(f"/models/echo/1.0/samples/{number}").status_code == status


# Archives.


def test_archives_are_listed_inspected_and_checked(site: Site) -> None:
    listed = {one["file"]: one for one in site.get("/archives").json()["archives"]}
    assert (
        listed["echo-1.0.mar"]["registered"] == [{"model": "echo", "version": "1.0"}]
        and listed["fails-1.0.mar"]["registered"] == []
    )
    assert listed["echo-1.0.mar"]["description"] == HOSTILE
    described = site.get("/archives/echo-1.0.mar").json()
    assert [one["name"] for one in described["samples"]] == ["sample.txt", "JSON"] and described[
        "handler"
    ] == "handler.py"
    assert {"handler.py", "sample.txt"} <= {member["name"] for member in described["members"]}
    assert not [finding for finding in described["findings"] if finding["severity"] == "error"]
    for file in ("nothing.mar", "%2e%2e%2freader", ".hidden", "..%2fstore%2fecho-1.0.mar"):
        assert site.get(f"/archives/{file}").status_code == 404, file


def test_an_archive_that_is_sent_is_checked_and_not_kept(site: Site) -> None:
    store = Path(site.get("/server").json()["model_store"])
    body = (store / "echo-1.0.mar").read_bytes()
    before = sorted(store.iterdir())
    for sent, codes in (
        (body, set()),
        (body.replace(b"hello", b"jello"), {"MAR107", "MAR108"}),
        (b"no zip", {"MAR101"}),
    ):
        answer = requests.post(
            f"{site.address}{ROOT}/archives/check?file=sent.mar",
            sent,
            headers={"Authorization": f"Bearer {site.token}"},
            timeout=60,
        )
        document = answer.json()
        errors = {finding["code"] for finding in document["findings"] if finding["severity"] == "error"}
        assert document["file"] == "sent.mar" and (errors & codes or errors == codes)
    assert sorted(store.iterdir()) == before


def test_an_archive_that_is_sent_is_put_into_the_store_but_replaces_nothing(site: Site) -> None:
    store = Path(site.get("/server").json()["model_store"])
    body = (store / "echo-1.0.mar").read_bytes()

    def send(content: bytes, file: str, session: requests.Session) -> requests.Response:
        return session.post(f"{site.address}{ROOT}/archives?file={file}", content, headers=CHANGE, timeout=60)

    session = site.session()
    try:
        assert send(body, "../sent 1.mar", session).json() == {"file": "_sent 1.mar"}
        assert (store / "_sent 1.mar").read_bytes() == body
        assert send(body, "../sent 1.mar", session).status_code == 200
        other = send((store / "sees-1.0.mar").read_bytes(), "echo-1.0.mar", session)
        assert other.status_code == 409 and "another version" in other.json()["message"]
        damaged = send(body.replace(b"hello", b"jello"), "damaged.mar", session)
        assert damaged.status_code == 400 and "damaged.mar" in damaged.json()["message"]
        assert send(body, "reader.mar", site.session(READER)).status_code == 403
    finally:
        (store / "_sent 1.mar").unlink(missing_ok=True)
    assert {path.name for path in store.iterdir()} <= {
        f"{name}.mar" for name in ("echo-1.0", "echo-2.0", "fails-1.0", "sees-1.0")
    }


def test_samples_are_sent_and_their_last_answers_compared(site: Site) -> None:
    session = site.session()
    assert site.get("/models/echo/1.0/samples").json() == {"answers": []}
    for number in (1, 0):
        path = f"{site.address}{ROOT}/models/echo/1.0/samples/{number}/run"
        answer = session.post(path, headers=CHANGE, timeout=60).json()
        assert (answer["number"], answer["status"], answer["differences"]) == (number, 200, [])
    answers = site.get("/models/echo/1.0/samples").json()["answers"]
    assert [answer["number"] for answer in answers] == [0, 1] and "hello" in answers[0]["text"]
    assert (
        session.post(f"{site.address}{ROOT}/models/echo/1.0/samples/9/run", headers=CHANGE, timeout=60).status_code
        == 404
    )
    assert session.post(f"{site.address}{ROOT}/models/echo/1.0/samples/0/run", timeout=60).status_code == 403


def test_a_report_beside_an_archive_is_a_page_without_scripts(site: Site) -> None:
    store = Path(site.get("/server").json()["model_store"])
    page = store / "echo-1.0.load.html"
    page.write_text("<h1>Load</h1><script>alert(1)</script>")
    try:
        (report,) = site.get("/archives/echo-1.0.mar").json()["reports"]
        assert report["page"] == page.name
        answer = site.get(f"/archives/echo-1.0.mar/reports/{page.name}")
        assert answer.headers["Content-Type"].startswith("text/html") and answer.text == page.read_text()
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "sandbox" in policy and "script-src" not in policy
        for other in ("nothing.html", "%2e%2e%2freader", "echo-1.0.mar"):
            assert site.get(f"/archives/echo-1.0.mar/reports/{other}").status_code == 404, other
    finally:
        page.unlink()


def test_a_stop_ends_open_streams_at_once(tmp_path: Path, make: Callable[..., Path]) -> None:
    path = make()
    with Builtin(write_config(tmp_path), path.parent, tmp_path / "run") as running:
        site = Site(running)
        with site.stream() as events:
            next(events)
            record = ServerRecord.find(running.folder)
            assert record
            stopping = threading.Thread(target=record.stop)
            stopping.start()
            assert [kind for kind, _ in events][-1] == "stopping"
            stopping.join()
