"""Rollouts by the console: plan, apply, promote and roll back, as all pages see them; rights; stops in the middle."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.support.console_site import Site
from tests.support.consoles import CHANGE, ROOT
from tests.support.packing import pack_handler
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar.engines.builtin import Builtin
from torchmar.engines.server_records import ServerRecord

READER = "the-token-of-a-reader"
ANSWERS = """
import time

def handle(rows, context):
    if rows is None:
        time.sleep({load_s})
        return None
    return [{answer!r}] * len(rows)
"""


def pack(store: Path, name: str, version: str, *, answer: str = "yes", load_s: float = 0, expect: str = "yes") -> None:
    pack_handler(
        store,
        ANSWERS.format(load_s=load_s, answer=answer),
        name=name,
        version=version,
        disk={"sample.txt": "?"},
        samples=[{"input": "sample.txt", "expect": expect}],
    )


class Rollouts(Site):
    def post(self, path: str, session: requests.Session | None = None, **document: Any) -> requests.Response:
        headers = CHANGE if session else {"Authorization": f"Bearer {self.token}"}
        url = f"{self.address}{ROOT}/rollout/{path}"
        return (session or requests).post(url, json=document, headers=headers, timeout=60)

    def plan(self, deployment: object) -> tuple[str, dict[str, Any]]:
        text = deployment if isinstance(deployment, str) else yaml.safe_dump(deployment)
        document = self.post("plan", deployment=text).json()
        assert document["problems"] == []
        return text, document["plan"]

    def apply(self, deployment: object) -> dict[str, Any]:
        text, plan = self.plan(deployment)
        assert self.post("apply", deployment=text, plan=plan["digest"]).status_code == 200
        return self.ended()

    def operation(self) -> dict[str, Any]:
        return dict(self.get("/rollout").json()["operation"])

    def ended(self) -> dict[str, Any]:
        until(lambda: self.operation()["state"] != "running")
        return self.operation()


def versions(default: str, *names: str, model: str = "m", **keys: Any) -> dict[str, Any]:
    state = {name: {"min_workers": 1} for name in names}
    return {"models": {model: {"default": default, "versions": state, "drain_seconds": 0, **keys}}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollouts]:
    folder = tmp_path_factory.mktemp("rollout")
    for version in ("1.0", "2.0"):
        pack(folder / "store", "m", version)
    pack(folder / "store", "m", "3.0", answer="no")
    pack(folder / "store", "m", "4.0", answer="no", expect="no")
    pack(folder / "store", "slow", "1.0", load_s=8)
    (folder / "reader").write_text(READER)
    config = write_config(folder, torchmar_read_token_file=str(folder / "reader"))
    with Builtin(config, folder / "store", folder / "run") as running:
        running.load(folder / "store" / "m-1.0.mar")
        yield Rollouts(running)


def test_a_deployment_is_applied_step_by_step_as_every_page_sees(site: Rollouts) -> None:
    state = site.get("/rollout/state").json()
    _, plan = site.plan(state["deployment"])
    assert plan["steps"] == [] and state["rollbacks"]["m"]["version"] == ""
    with site.stream() as events, site.stream() as others:
        assert next(events)[1]["rollout"]["operation"] is None
        next(others)
        operation = site.apply(versions("2.0", "2.0"))
        assert operation["state"] == "done" and not operation["outcome"]["rest"]
        verbs = ["verify", "register", "check", "switch"]
        assert [step["verb"] for step in operation["steps"]] == verbs and all(
            step["seconds"] is not None for step in operation["steps"]
        )
        assert [step["verb"] for step in operation["planned"]] == verbs[1:]
        for stream in (events, others):
            sent = [document["operation"] for kind, document in _until_done(stream) if kind == "rollout"]
            assert {one["id"] for one in sent} == {operation["id"]}
            assert [len(one["steps"]) for one in sent] == sorted(len(one["steps"]) for one in sent)
    assert site.engine.management.describe("m")[0].version == "2.0"
    known = site.get("/rollout").json()
    assert yaml.safe_load(known["deployment"]) == versions("2.0", "2.0") and known["applied"] > time.time() - 60
    assert site.get("/rollout/state").json()["rollbacks"]["m"]["version"] == "1.0"


def _until_done(stream: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for kind, document in stream:
        yield kind, document
        if kind == "rollout" and document["operation"]["state"] != "running":
            return


def test_a_rollback_and_a_promotion_with_evidence(site: Rollouts) -> None:
    site.apply(versions("2.0", "1.0", "2.0"))
    assert site.post("rollback", model="m", version="1.0").status_code == 200
    back = site.ended()
    assert (back["state"], back["outcome"]["before"]) == ("done", "2.0")
    assert site.engine.management.describe("m")[0].version == "1.0"
    bounds = {"max_regression": 10, "max_differences": 0, "tolerance": 0}
    assert site.post("promote", model="m", version="2.0", compare=True, **bounds).status_code == 200
    promoted = site.ended()
    assert promoted["state"] == "done" and [step["verb"] for step in promoted["steps"]] == [
        "check",
        "compare",
        "switch",
    ]
    evidence = promoted["outcome"]["evidence"]
    assert evidence["verdict"] == "pass" and [one["version"] for one in evidence["latency"]] == ["1.0", "2.0"]
    assert all(one["answers"] == 200 and 0 < one["p50_ms"] <= one["p99_ms"] for one in evidence["latency"])
    site.engine.management.register("m-4.0.mar", initial_workers=1)
    try:
        site.post("promote", model="m", version="4.0", compare=True, **bounds)
        rejected = site.ended()
        assert rejected["state"] == "rejected" and rejected["outcome"]["evidence"]["verdict"] == "answers differ"
    finally:
        site.engine.management.unregister("m", "4.0")
    assert site.engine.management.describe("m")[0].version == "2.0"


def test_a_version_with_wrong_answers_is_undone(site: Rollouts) -> None:
    operation = site.apply(versions("3.0", "1.0", "2.0", "3.0"))
    assert operation["state"] == "failed" and operation["outcome"]["undone"]
    assert "does not answer as it should" in operation["outcome"]["message"]
    assert [step["verb"] for step in operation["steps"]][-2:] == ["check", "undo"]
    assert {version.version for version in site.engine.management.describe("m", "all")} <= {"1.0", "2.0"}


def test_a_plan_that_is_no_longer_right_is_not_carried_out(site: Rollouts) -> None:
    deployment = versions("1.0", "1.0", "2.0")
    site.apply(deployment)
    text, plan = site.plan(versions("2.0", "1.0", "2.0"))
    site.engine.management.set_default("m", "2.0")  # as another page does
    site.post("apply", deployment=text, plan=plan["digest"])
    operation = site.ended()
    assert operation["state"] == "failed" and operation["steps"] == []
    assert "no longer as it was" in operation["outcome"]["message"]


def test_one_change_is_made_at_a_time_and_can_be_stopped(site: Rollouts) -> None:
    assert site.post("stop").status_code == 409
    text, plan = site.plan(versions("1.0", "1.0", model="slow"))
    site.post("apply", deployment=text, plan=plan["digest"])
    second = site.post("rollback", model="m", version="1.0")
    assert second.status_code == 409 and "Another change" in second.json()["message"]
    until(lambda: any(step["verb"] == "register" for step in site.operation()["steps"]))
    assert site.post("stop").status_code == 200
    operation = site.ended()
    assert operation["state"] == "stopped" and operation["outcome"]["undone"]
    assert site.get("/models/slow").status_code == 404


def test_problems_have_their_lines_and_nothing_outside_of_the_store_is_read(site: Rollouts) -> None:
    for text, place in (
        ("models:\n  m:\n    versoins: {}\n", "models.m"),
        ('models:\n  m:\n    versions:\n      "1.0": {archive: ../reader}\n', "models.m.versions.1.0.archive"),
        ('models:\n  m:\n    versions:\n      "1.0": {archive: /etc/passwd}\n', "models.m.versions.1.0.archive"),
        ('models:\n  m:\n    checks: {requests: /etc}\n    versions:\n      "1.0":\n', "models.m.checks.requests"),
        ("models: [", ""),
        ('models:\n  m:\n    versions:\n      "9.9": {archive: none.mar}\n', ""),
    ):
        document = site.post("plan", deployment=text).json()
        assert document["plan"] is None and document["problems"][0]["place"].startswith(place), text
    site.post("apply", deployment='models:\n  m:\n    versions:\n      "1.0": {archive: ../reader}\n', plan="0")
    assert site.ended()["state"] == "failed"
    (noted,) = site.plan('server: {management: "http://127.0.0.1:1", key_file: x}\nmodels: {}')[1]["notes"][:1]
    assert "server.key_file has no effect" in noted


def test_a_reader_sees_plans_and_changes_nothing(site: Rollouts) -> None:
    reader = site.session(READER)
    assert site.get("/rollout", reader).json()["deployment"] == ""
    assert "models:" in site.get("/rollout/state", reader).json()["deployment"]
    assert site.post("plan", reader, deployment="models: {}").status_code == 200
    for path in ("apply", "promote", "rollback", "stop"):
        assert site.post(path, reader).status_code == 403, path
    url = f"{site.address}{ROOT}/rollout/rollback"
    body = {"model": "m", "version": "1.0"}
    foreign = {**CHANGE, "Origin": "http://evil.example"}
    for headers in ({}, foreign):
        assert site.session().post(url, json=body, headers=headers, timeout=60).status_code == 403
    for wrong in ({}, {"model": "m"}, {**body, "more": 1}, {"model": 1, "version": "1.0"}):
        assert site.post("rollback", **wrong).status_code == 400, wrong


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_ends_in_the_middle_says_so_when_it_is_started_again(tmp_path: Path, number: int) -> None:
    pack(tmp_path / "store", "slow", "1.0", load_s=20)
    config = write_config(tmp_path, disable_token_authorization="true")

    def start() -> Builtin:
        return Builtin(config, tmp_path / "store", tmp_path / "run")

    with start() as running:
        address = str(running.server.management)
        url = f"{address}{ROOT}/rollout"
        text = yaml.safe_dump(versions("1.0", "1.0", model="slow"))
        plan = requests.post(f"{url}/plan", json={"deployment": text}, headers=CHANGE, timeout=60).json()["plan"]
        requests.post(f"{url}/apply", json={"deployment": text, "plan": plan["digest"]}, headers=CHANGE, timeout=60)
        until(lambda: len(requests.get(url, timeout=60).json()["operation"]["steps"]) == 2)
        record = ServerRecord.find(running.folder)
        assert record
        os.kill(record.pid, number)
        until(lambda: not _answers(address))
    with start() as running:
        operation = requests.get(f"{running.server.management}{ROOT}/rollout", timeout=60).json()["operation"]
        state = "stopped" if number == signal.SIGTERM else "interrupted"
        assert operation["state"] == state and operation["outcome"]["undone"] == (state == "stopped")
        assert json.loads((tmp_path / "run" / "rollout.json").read_text())["applied"] is None


def _answers(address: str) -> bool:
    try:
        requests.get(f"{address}{ROOT}", timeout=5)
    except requests.RequestException:
        return False
    return True
