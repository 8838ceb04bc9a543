"""torchmar plan, apply, rollback, promote, capture and startup, as they are typed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.support import command
from tests.support.deployments import SAMPLES, code
from tests.support.servers import KilledTorchServe, write_config
from tests.support.waiting import until
from torchmar.deployment import actual
from torchmar.engines.torchserve import TorchServe

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """Run a real TorchServe in a user's folder, without models."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "model_store").mkdir()
    with KilledTorchServe(write_config(folder), folder / "model_store", folder / ".torchmar") as server:
        yield server


@pytest.fixture
def server(running: TorchServe) -> Iterator[TorchServe]:
    """Return the server as it was: without models and archives."""
    yield running
    for model in actual.read(running.server).values():
        for version in sorted(model.versions, key=lambda one: one == model.default):
            running.management.unregister(model.name, version)
    for file in running.model_store.iterdir():
        file.unlink()


def torchmar(server: TorchServe, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    ran = command.torchmar(*arguments, cwd=server.folder.parent, code=code)
    assert "Traceback" not in ran.stderr or "model is broken" in ran.stderr
    return ran


def write(server: TorchServe, text: str) -> None:
    (server.folder.parent / "deployment.yaml").write_text(text)


DESIRED = 'models: {m: {default: "V", drain_seconds: 1, versions: {"V": {min_workers: 1, batch_size: 2}}}}\n'


def test_a_plan_is_shown_applied_and_then_empty(server: TorchServe, make: Make) -> None:
    make(code(), name="m", config={"batchSize": 4}, samples=SAMPLES, store=server.model_store)
    write(server, DESIRED.replace("V", "1.0"))
    assert torchmar(server, "plan", code=2).stdout.splitlines() == [
        "+ m 1.0+b1",
        "    1 worker, the default",
        "    batch_size 2",
        "    1.0+b1 is 1.0 with this configuration, which overrides the values of a registration",
        "torchmar apply would derive 1, register 1, check 1",
    ]
    document = json.loads(torchmar(server, "plan", "--json", code=2).stdout)
    assert [step["step"] for step in document["steps"]] == ["derive", "register", "check"]
    output = torchmar(server, "apply").stdout.splitlines()
    assert output[-1] == "the server is as deployment.yaml says"
    assert [line.split()[0] for line in output if line.endswith(" s")] == ["verify", "derive", "register", "check"]
    assert any("1 sample right" in line for line in output)
    assert torchmar(server, "plan").stdout == "nothing to do: the server is as deployment.yaml says\n"
    assert torchmar(server, "apply").stdout == "nothing to do: the server is as deployment.yaml says\n"
    assert json.loads(torchmar(server, "apply", "--json").stdout)["steps"] == []


def test_a_plan_for_torchserve_says_that_it_has_no_routes(server: TorchServe, make: Make) -> None:
    make(code(), name="m", samples=SAMPLES, store=server.model_store)
    write(server, "routes: {/inference: m}\n" + DESIRED.replace("V", "1.0"))
    assert "\n! the routes\n    this server has no routes, as TorchServe" in torchmar(server, "plan", code=2).stdout
    torchmar(server, "apply")
    assert torchmar(server, "plan").stdout.endswith(
        "nothing else to do: but for its routes, the server is as deployment.yaml says\n"
    )
    assert "routes" not in torchmar(server, "capture").stdout


def test_a_failure_is_reported_with_the_workers_traceback_and_the_undone_steps(server: TorchServe, make: Make) -> None:
    make(code(fails=True), name="m", samples=SAMPLES, store=server.model_store)
    make(code(right=False), name="m", version="2.0", samples=SAMPLES, store=server.model_store)
    write(server, DESIRED.replace("V", "1.0"))
    ran = torchmar(server, "apply", code=1)
    assert "ValueError: this model is broken" in ran.stderr
    assert "error: m 1.0: Failed to start workers" in ran.stderr
    assert ran.stderr.endswith("everything is as it was before\n")
    write(server, DESIRED.replace("V", "2.0"))
    ran = torchmar(server, "apply", code=1)
    assert "failed" in ran.stdout
    assert "undo       removed m 2.0" in ran.stdout
    assert "json: right is false, not true" in ran.stderr
    document = json.loads(torchmar(server, "apply", "--json", code=1).stdout)
    assert document["undone"]
    assert "does not answer as it should" in document["failure"]
    assert list(actual.read(server.server)) == []


@pytest.mark.parametrize(
    ("versions", "wanted"),
    [
        (["1.0"], 'drain_seconds: 1, versions: {"2.0": {min_workers: 1, batch_size: 4}}'),
        # Not the default one: that keeps new workers which are at work already.
        (["1.0", "2.0"], 'default: "1.0", versions: {"1.0": {min_workers: 1}, "2.0": {min_workers: 3}}'),
    ],
    ids=["registers", "grows"],
)
def test_ctrl_c_leaves_nothing_half_done_while_the_server_starts_workers(
    server: TorchServe, make: Make, versions: list[str], wanted: str
) -> None:
    slow = code().replace("pass", "time.sleep(2)")
    for version in ("1.0", "2.0"):
        make(slow, name="m", version=version, samples=SAMPLES, store=server.model_store)
    for version in versions:
        server.management.register(f"m-{version}.mar", initial_workers=1)
    before, files = actual.read(server.server), sorted(server.model_store.iterdir())
    write(server, f"models: {{m: {{{wanted}}}}}")
    applying = subprocess.Popen(
        [sys.executable, "-m", "torchmar", "apply"],
        cwd=server.folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def workers() -> int:
        return sum(len(registered.workers) for registered in actual.read(server.server)["m"].versions.values())

    try:
        until(lambda: workers() > len(versions) or applying.poll() is not None, seconds=60)
        applying.send_signal(signal.SIGINT)
        output, messages = applying.communicate(timeout=60)
    finally:
        applying.kill()
    assert applying.returncode == 130
    assert "undo " in output
    assert "Traceback" not in messages
    assert messages.endswith("interrupted; torchmar plan deployment.yaml shows how the server differs now\n")
    assert sorted(server.model_store.iterdir()) == files
    now = actual.read(server.server)["m"]
    assert now.default == before["m"].default
    assert {registered.version: len(registered.workers) for registered in now.versions.values()} == dict.fromkeys(
        versions, 1
    ), output


def test_an_archive_with_other_bytes_than_it_lists_never_reaches_the_server(server: TorchServe, make: Make) -> None:
    path = make(name="m", disk={"w.txt": "a word"}, files={"w.txt": "w.txt"}, store=server.model_store)
    path.write_bytes(path.read_bytes().replace(b"a word", b"b word"))
    write(server, 'models: {m: {versions: {"1.0": }}}')
    ran = torchmar(server, "apply", code=1)
    assert "w.txt" in ran.stderr
    assert "--no-check loads it all the same" in ran.stderr
    assert "w.txt" in torchmar(server, "register", f"model_store/{path.name}", code=1).stderr
    assert "error: m 1.0:" in torchmar(server, "apply", "--no-check", code=1).stderr  # this is the server's own
    assert actual.read(server.server) == {}


def test_rollback_is_one_command(server: TorchServe, make: Make) -> None:
    for version in ("1.0", "2.0"):
        make(code(), name="m", version=version, samples=SAMPLES, store=server.model_store)
        write(server, DESIRED.replace("V", version))
        torchmar(server, "apply")
    ran = torchmar(server, "rollback", "m")
    assert ran.stdout == "m is back at 1.0 (it was 2.0)\n"
    assert "change its default before the next apply" in ran.stderr
    assert actual.read(server.server)["m"].default == "1.0"
    assert "no version before 1.0" in torchmar(server, "rollback", "m", code=1).stderr
    assert torchmar(server, "rollback", "m", "--to", "2.0").stdout == "m is back at 2.0 (it was 1.0)\n"
    assert "no version 9" in torchmar(server, "rollback", "m", "--to", "9", code=1).stderr
    assert "Model not found" in torchmar(server, "rollback", "x", code=1).stderr


def test_promote_makes_a_version_the_default_only_with_evidence(server: TorchServe, make: Make) -> None:
    for version, seconds in (("1.0", 0.02), ("2.0", 0.02), ("3.0", 0.1)):
        make(code(seconds), name="m", version=version, samples=SAMPLES, store=server.model_store)
        server.management.register(f"m-{version}.mar", initial_workers=1)
    inputs = server.folder.parent / "inputs"
    inputs.mkdir()
    for number in range(4):
        (inputs / f"{number}.json").write_text(str(number))
    judge = server.folder.parent / "judge.py"
    judge.write_text(
        "import json\n\ndef right(old, new):\n"
        "    return json.loads(old.body)['right'] == json.loads(new.body)['right']\n"
    )
    how: tuple[object, ...] = ("--against-current", "--requests", "inputs", "--repeat", 5)
    # Far from what is measured: on a busy machine, the rest of a request takes as long as the model.
    strict, lenient = ("--max-regression", "10%"), ("--max-regression", "1000%")
    ran = torchmar(server, "promote", "m", "2.0", *how, *lenient, code=1)
    assert "0 of 4 requests agree" in ran.stdout
    assert "version is " in ran.stdout
    assert "verdict    answers differ" in ran.stdout
    assert actual.read(server.server)["m"].default == "1.0"
    how += ("--answers", "judge.py:right")
    ran = torchmar(server, "promote", "m", "3.0", *how, *strict, code=1)
    assert "4 of 4 requests agree" in ran.stdout
    assert "verdict    slower" in ran.stdout
    document = json.loads(torchmar(server, "promote", "m", "2.0", *how, *lenient, "--json").stdout)
    assert (document["verdict"], document["promoted"], document["before"]) == ("pass", True, "1.0")
    assert actual.read(server.server)["m"].default == "2.0"
    assert "is the default already" in torchmar(server, "promote", "m", "2.0", code=1).stderr
    assert "is not registered" in torchmar(server, "promote", "m", "9.0", code=1).stderr
    assert "3.0 is the default now" in torchmar(server, "promote", "m", "3.0").stdout
    assert "is no share" in torchmar(server, "promote", "m", "1.0", "--max-regression", "x", code=2).stderr


def test_a_server_is_captured_and_its_configuration_printed(server: TorchServe, make: Make) -> None:
    assert "the server has no models" in torchmar(server, "capture", code=1).stderr
    make(code(), name="m", samples=SAMPLES, store=server.model_store)
    server.management.register("m-1.0.mar", initial_workers=1, batch_size=3)
    text = torchmar(server, "capture").stdout
    assert yaml.safe_load(text)["models"]["m"]["versions"]["1.0"]["batch_size"] == 3
    write(server, f"server: {{config: config.properties}}\n{text}")
    assert "nothing to do" in torchmar(server, "plan").stdout
    printed = torchmar(server, "startup").stdout
    assert "load_models=m-1.0.mar\n" in printed
    assert "job_queue_size=100\n" in printed


def test_simulated_gpus_that_are_too_small_are_reported_with_the_numbers(server: TorchServe, make: Make) -> None:
    make(code(), name="m", samples=SAMPLES, store=server.model_store)
    write(server, 'models: {m: {versions: {"1.0": {min_workers: 3, worker_memory: 30GiB}}}}')
    output = torchmar(server, "plan", "--gpus", "2x80GiB", code=2).stdout
    assert "GPU of each worker: 0, 1, 0" in output
    assert "GPU 0  60.0 GiB of 80.0 GiB  m 1.0 x2" in output
    ran = torchmar(server, "plan", "--gpus", "2x40GiB", code=1)
    assert "GPU 1: 10.0 GiB of 40.0 GiB free; m 1.0 1 x 30.0 GiB" in ran.stderr
    assert "not placed: m 1.0 1 x 30.0 GiB" in ran.stderr


def test_every_problem_of_a_file_has_its_line(server: TorchServe) -> None:
    write(server, "models:\n  m:\n    versoins: {}\nprun: true\n")
    messages = torchmar(server, "plan", code=1).stderr
    assert "deployment.yaml:3: models.m: no key is called 'versoins'; did you mean 'versions'?" in messages
    assert "deployment.yaml:4: no key is called 'prun'; did you mean 'prune'?" in messages
    (server.folder.parent / "deployment.yaml").unlink()
    assert "does not exist" in torchmar(server, "apply", code=1).stderr


def test_the_schema_is_printed(server: TorchServe) -> None:
    assert json.loads(torchmar(server, "deployment-schema").stdout)["title"] == "Deployment"


def test_a_plan_over_many_versions(server: TorchServe, make: Make) -> None:
    text = "models:\n"
    for number in range(30):
        for version in ("1.0", "2.0"):
            make(name=f"n{number}", version=version, store=server.model_store)
        versions = '{"1.0": {min_workers: 0}, "2.0": {min_workers: 1}}'
        text += f'  n{number}: {{default: "1.0", versions: {versions}}}\n'
    write(server, text)
    # A default version without workers would refuse every request, which is a mistake in a file.
    assert torchmar(server, "plan", code=1).stderr.count("would be refused") == 30
    for number in range(30):
        for version in ("1.0", "2.0"):
            server.management.register(f"n{number}-{version}.mar", initial_workers=0)
    write(server, "models: {}\n")
    assert torchmar(server, "plan").stdout.count("not listed; it stays") == 30
    captured = torchmar(server, "capture").stdout
    assert captured.count("min_workers: 0") == 60
    write(server, captured)
    assert "nothing to do" in torchmar(server, "plan").stdout
    write(server, "prune: true\nmodels: {}\n")
    assert "remove 60" in torchmar(server, "plan", code=2).stdout
    torchmar(server, "apply")
    assert actual.read(server.server) == {}
