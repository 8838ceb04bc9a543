"""`torchmar console` serves the console of a TorchServe, whose token stays in its process."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from tests.support.browser import Browser
from tests.support.consoles import ROOT, Page, check, documents, served
from tests.support.packing import pack_handler
from tests.support.processes import kill_worker
from tests.support.servers import KilledTorchServe, write_config
from tests.support.waiting import until
from torchmar.engines.torchserve import TorchServe

HOSTILE = "<img src=x onerror=alert(1)>"
SAYS = """
import os

def handle(rows, context):
    if rows is None:
        return None
    body = rows[0].get("body") or b""
    body = body.encode() if isinstance(body, str) else bytes(body)
    if body == b"log":
        print("<script>alert(2)</script> in a log line", flush=True)
    if body == b"raise":
        raise ValueError("on request")
    return ["<script>alert(3)</script>"] * len(rows)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    folder = tmp_path_factory.mktemp("remote")
    for version in ("1.0", "2.0"):
        pack_handler(
            folder / "store",
            SAYS,
            name="says",
            version=version,
            disk={"sample.txt": "hello"},
            description=HOSTILE,
            samples=[{"input": "sample.txt"}],
        )
    with KilledTorchServe(write_config(folder), folder / "store", folder / "run") as running:
        running.load(folder / "store" / "says-1.0.mar")
        running.management.register("says-2.0.mar", model_name=HOSTILE, initial_workers=1)
        yield running


@pytest.fixture(scope="module")
def link(server: TorchServe) -> Iterator[str]:
    with served("--run-folder", server.folder, cwd=server.folder) as shown:
        yield shown


@pytest.fixture(scope="module")
def page(link: str, server: TorchServe) -> Iterator[Page]:
    opened = Page(link)
    yield opened
    tokens = [key["key"] for key in json.loads((server.folder / "key_file.json").read_text()).values()]
    assert not [token for token in tokens for text in opened.received if token in text]


def test_the_link_works_once_and_only_with_its_session(page: Page, link: str) -> None:
    code = link.partition("=")[2]
    again = requests.post(
        f"{page.address}{ROOT}/sign-in", json={"code": code}, headers={"X-Torchmar-Console": "1"}, timeout=60
    )
    assert again.status_code == 401
    assert requests.get(f"{page.address}{ROOT}/models", timeout=60).status_code == 401
    assert (
        requests.get(f"{page.address}/console", timeout=60).headers["Content-Security-Policy"].startswith("default-src")
    )
    assert page.address.startswith("http://127.0.0.1:")
    forged = page.send("PUT", "/management/models/says/1.0?min_worker=1", headers={"Origin": "http://evil.example"})
    assert forged.status_code == 403
    for path in ("/management/token?type=management", "/management/../token", "/nothing"):
        assert page.send("GET", path).status_code == 404


def test_its_documents_are_those_of_the_built_in_console(page: Page) -> None:
    description = page.get("")
    names = {"model_name": "says", "model_version": "1.0", "file": "says-1.0.mar"}
    paths = []
    for path, schema in documents(description, **names):
        if path.startswith("/rollout") or path.endswith("/samples"):  # not_reported: rollout, answers
            continue
        check(page.get(path), schema, description["components"]["schemas"], path)
        paths.append(path)
    assert {"/server", "/models", "/load", "/history", "/events", "/logs", "/archives"} <= set(paths)
    server = page.get("/server")
    assert server["engine"] == "TorchServe" and {"p99_ms", "batches", "steps", "rollout", "answers"} <= set(
        server["not_reported"]
    )
    (version,) = page.get("/models/says")["versions"]
    assert version["handler"] == "handler.py" and version["description"] == HOSTILE and version["digest"]
    assert page.get("/archives/says-1.0.mar")["registered"]


def test_a_request_is_run_and_counted_and_its_sample_is_there(page: Page) -> None:
    assert page.get("/models/says/1.0/form")["samples"][0]["name"] == "sample.txt"
    assert page.send("GET", "/models/says/1.0/samples/0").text == "hello"
    for body, status in ((b"hello", 200), (b"log", 200), (b"raise", 503)):
        answer = page.send("POST", "/models/says/1.0/predict", data=body)
        assert answer.status_code == status, answer.text
    assert page.send("POST", "/models/says/9.9/predict", data=b"x").status_code == 404
    until(lambda: sum(page.get("/history?model=says")["columns"]["requests"]) > 2)
    columns = page.get("/history")["columns"]
    assert max(value for value in columns["mean_ms"] if value) > 0 and not any(columns["p99_ms"])
    assert {"5XX": 1} in columns["failures"]
    (load,) = page.get("/load?model=says")["versions"]
    assert load["request_count"] == 3 and load["failed_count"] is None
    until(lambda: any("in a log line" in entry["text"] for entry in page.get("/logs?model=says")["entries"]))
    until(lambda: any(entry["text"].startswith("Traceback") for entry in page.get("/logs?model=says")["entries"]))


def test_changes_are_made_and_become_events(page: Page, server: TorchServe) -> None:
    with page.stream("?model=says") as events:
        kind, snapshot = next(events)
        assert kind == "snapshot" and {model["name"] for model in snapshot["models"]} == {"says", HOSTILE}
        answer = page.send("PUT", "/management/models/says/1.0", params={"min_worker": 2, "max_worker": 2})
        assert answer.status_code == 202
        seen: list[dict[str, Any]] = []
        for _, tick in events:
            seen += tick["events"]
            if {"scaled", "worker_started"} <= {event["kind"] for event in seen}:
                break
        assert kill_worker(server.management.describe("says")[0].workers[0].pid)
        for _, tick in events:
            if any(event["kind"] == "worker_died" for event in tick["events"]):
                break
    answer = page.send("DELETE", "/management/models/nobody")
    assert answer.status_code == 404 and "nobody" in answer.json()["message"]
    assert page.send("PUT", "/management/models/says/1.0", params={"min_worker": 1, "max_worker": 1}).ok
    until(lambda: server.management.describe("says")[0].ready == 1)


def test_a_server_elsewhere_shows_what_it_reports(server: TorchServe, tmp_path: Path) -> None:
    token = json.loads((server.folder / "key_file.json").read_text())
    (tmp_path / "keys.json").write_text(json.dumps(token))
    arguments = ("--management", server.server.management, "--inference", server.server.inference)
    with served(*arguments, "--key-file", "keys.json", "--metrics", "http://127.0.0.1:9", cwd=tmp_path) as shown:
        page = Page(shown)
        known = page.get("/server")
        assert {"requests", "logs", "digest", "archives"} <= set(known["not_reported"])
        assert "http://127.0.0.1:9" in known["warnings"][0]
        assert page.send("GET", "/archives").status_code == 404
        assert page.send("POST", "/models/says/1.0/predict", data=b"x").status_code == 200
        assert page.get("/models/says/1.0/form")["samples"] == []


def test_a_server_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    from tests.support.command import torchmar

    ran = torchmar("console", "--management", "http://127.0.0.1:9", cwd=tmp_path, code=1)
    assert "connection refused" in ran.stderr and "Traceback" not in ran.stderr


def test_a_server_that_is_stopped_is_lost_until_it_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    config = write_config(tmp_path)
    with TorchServe(config, tmp_path / "store", tmp_path / "run") as first:
        console = served("--run-folder", first.folder, cwd=tmp_path)
        page = Page(console.__enter__())
        stream = page.stream()
        events = stream.__enter__()
        assert next(events)[0] == "snapshot"
    try:
        assert next(kind for kind, _ in events if kind != "tick") == "lost"
        answer = page.send("GET", "/server")
        assert answer.status_code == 503
        with KilledTorchServe(config, tmp_path / "store", tmp_path / "run"):  # with other tokens
            assert next(kind for kind, _ in events if kind != "lost") == "snapshot"
            assert page.get("/events")["events"][-1]["kind"] == "server_started"
    finally:
        stream.__exit__(None, None, None)
        console.__exit__(None, None, None)


@pytest.mark.oracle
def test_the_pages_in_a_browser(server: TorchServe, link: str) -> None:
    with served("--run-folder", server.folder, cwd=server.folder) as shown, Browser() as browser:
        browser.goto(shown)
        browser.wait("table.models tbody tr:nth-child(2)")
        address = browser.url()
        assert "code=" not in address
        assert "Mean latency" in browser.text("table.models thead")
        name = quote(HOSTILE, safe="")
        views = itertools.product(("light", "dark"), (1400, 400))
        for (path, selector), (theme, width) in zip(
            (
                ("models", "table.models tbody tr"),
                ("models/says", ".version-card"),
                (f"models/{name}", ".version-card"),
                ("live", ".u-over"),
                ("live/says", ".not-reported"),
                (f"try/{name}", ".bench-form"),
                ("archives", "table.archives tbody tr"),
                ("logs", ".entry"),
            ),
            itertools.cycle(views),
            strict=False,
        ):
            browser.goto(f"{address}#/{path}")
            browser.wait(selector)
            browser.theme(theme)
            browser.size(width, 900)
            assert browser.violations() == [], (path, theme, width)
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, width)
        browser.size(1400, 900)
        browser.goto(f"{address}#/live/says")
        browser.wait("text=TorchServe does not report the sizes of its batches")
        browser.goto(f"{address}#/try/says")
        browser.click(".segments >> text=Text")
        browser.fill("textarea", "log")
        browser.click("button:has-text('Run')")
        browser.wait(".answer .code:has-text('<script>alert(3)</script>')")
        browser.wait("text=TorchServe does not report the time of each step")
        browser.goto(f"{address}#/logs")
        browser.wait(".entry:has-text('<script>alert(2)</script>')")
        assert browser.count("#app script, #app img[src='x']") == 0
        assert [url for url in browser.requests() if not url.startswith((address[: -len("/console")], "blob:"))] == []
        assert browser.problems() == []
        browser.clear_cookies()
        browser.reload()
        browser.wait("text=that torchmar console printed")
        assert browser.count("input") == 0 and browser.violations() == []
