"""torchmar-serve takes torchserve's flags, and starts torchmar's own server."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from requests.adapters import HTTPAdapter
from ts.arg_parser import ArgParser
from urllib3 import Retry

from tests.support.command import run_module
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar import properties
from torchmar.cli import torchserve_flags
from torchmar.engines.server_records import ServerRecord

MODULE = "torchmar.cli.torchserve_flags"
COMMAND = [sys.executable, "-m", MODULE]


class Shell:
    """A folder where commands are run, with a folder for temporary files of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "store"
        self.store.mkdir(exist_ok=True)
        temporary = folder / "t"
        temporary.mkdir()
        self.environment = {**os.environ, "TMPDIR": str(temporary)}
        self.environment.pop("TS_CONFIG_FILE", None)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_module(MODULE, *arguments, cwd=self.folder, environment={**self.environment, **environment})

    def start(self, *arguments: str, **environment: str) -> str:
        """Start a server in the background; return what the command prints."""
        ran = self.run(*arguments, **environment)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    @property
    def effective(self) -> dict[str, str]:
        return dict(properties.read(self.folder / ".torchmar" / "config.properties").values)

    def get(self, key: str, path: str) -> requests.Response:
        api = "management" if path.startswith("/models") else "inference"
        headers = {}
        if (file := self.folder / "key_file.json").exists():
            headers["Authorization"] = f"Bearer {json.loads(file.read_text())[api]['key']}"
        # A server may not listen yet, nor have loaded what it is to load.
        retries = Retry(60, backoff_factor=0.1, backoff_max=0.5, status_forcelist=[404])
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=retries))
            return session.get(self.effective[key] + path, headers=headers)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    new_shell = Shell(tmp_path)
    yield new_shell
    for folder in (".torchmar", "run/one", "run/two"):
        if running := ServerRecord.find(tmp_path / folder):
            running.stop()


def flags(parser: argparse.ArgumentParser) -> dict[tuple[str, ...], tuple[object, ...]]:
    return {
        tuple(sorted(action.option_strings)): (action.dest, action.nargs, action.const, action.default)
        for action in parser._actions
    }


def test_the_flags_are_torchserves() -> None:
    ours = flags(torchserve_flags.argument_parser())
    assert ours.pop(("--run-folder",))  # where it writes, for containers that cannot be written to elsewhere
    assert ours == flags(ArgParser.ts_parser())


def test_the_version_is_printed_as_by_torchserve(shell: Shell) -> None:
    assert shell.run("--version").stdout.startswith("TorchServe Version is 0.12.0")


@pytest.mark.parametrize("how", ["--start", "--foreground"])
def test_an_impossible_run_folder_is_reported_in_one_line(shell: Shell, how: str) -> None:
    write_config(shell.folder)
    (shell.folder / ".torchmar").touch()
    ran = shell.run(how, "--model-store", "store")
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: ")
    assert f"{shell.folder}/.torchmar: File exists" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_server_starts_in_the_background_and_is_stopped(shell: Shell, make: Callable[..., Path]) -> None:
    archive = make(store=shell.store, config={"minWorkers": 1, "maxWorkers": 1})
    write_config(shell.folder, model_store="elsewhere")
    output = shell.start("--start", "--model-store", "store", "--models", f"mine={archive.name}", "--ncs")
    assert "key_file.json" in output
    assert shell.get("inference_address", "/ping").status_code == 200
    assert shell.get("management_address", "/models/mine").json()[0]["modelUrl"] == archive.name
    again = shell.run("--start", "--model-store", "store")
    assert again.returncode == 1
    assert "a server is running already" in again.stderr
    assert "torchmar-serve --stop" in again.stderr
    elsewhere = shell.folder / "elsewhere"
    elsewhere.mkdir()
    stopped = run_module(MODULE, "--stop", cwd=elsewhere, environment=shell.environment)
    assert (stopped.returncode, stopped.stdout) == (0, "TorchServe has stopped.\n")
    assert ServerRecord.find(shell.folder / ".torchmar") is None
    assert not list(shell.folder.glob("key_file.json"))
    assert not list((shell.folder / "t").glob(".model_server.pid"))
    assert shell.run("--stop").stdout == "TorchServe is not currently running.\n"


@pytest.mark.parametrize("how", ["--start", "--foreground"])
def test_a_closed_pipe_does_not_end_the_server(shell: Shell, how: str) -> None:
    write_config(shell.folder)
    command = " ".join([*COMMAND, how, "--model-store", "store"])
    # The first of these lines is written before the server answers, the others afterwards.
    with subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", f"{command} 2>&1 | head -n 1"],
        cwd=shell.folder,
        env=shell.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("torchmar")
        until(lambda: ServerRecord.find(shell.folder / ".torchmar") is not None)
        assert shell.get("inference_address", "/ping").status_code == 200
        if how == "--start":
            assert process.wait(60) == 0
        assert shell.get("inference_address", "/ping").status_code == 200
        assert shell.run("--stop").stdout == "TorchServe has stopped.\n"


def test_where_the_server_writes_can_be_chosen(shell: Shell) -> None:
    write_config(shell.folder)
    (shell.folder / "run").mkdir()
    variables = {"LOG_LOCATION": str(shell.folder / "of-logs"), "METRICS_LOCATION": "elsewhere"}
    ran = shell.run("--start", "--model-store", "store", "--run-folder", "run/one", **variables)
    assert ran.returncode == 0 and f"{shell.folder}/run/one/logs" in ran.stdout, ran.stderr
    assert "METRICS_LOCATION has no meaning here" in ran.stderr
    assert not (shell.folder / ".torchmar").exists()
    assert (shell.folder / "of-logs" / "server.log").is_file()
    assert ServerRecord.find(shell.folder / "run" / "one")
    assert shell.run("--stop", "--run-folder", "run/other").stdout == "TorchServe is not currently running.\n"
    assert shell.run("--stop", "--run-folder", "run/one").stdout == "TorchServe has stopped.\n"
    shell.start("--start", "--model-store", "store", TORCHMAR_RUN_FOLDER="run/two")
    assert ServerRecord.find(shell.folder / "run" / "two")
    assert shell.run("--stop").stdout == "TorchServe has stopped.\n"


def test_every_address_is_printed_in_lines_of_eighty_columns(shell: Shell) -> None:
    write_config(shell.folder)
    output = shell.start("--start", "--model-store", "store")
    effective = shell.effective
    for key in ("inference_address", "management_address", "metrics_address"):
        assert effective[key] in output
    for key in ("grpc_inference_port", "grpc_management_port"):
        assert f"grpc://127.0.0.1:{effective[key]}" in output
    assert not [line for line in output.splitlines() if len(line) > 80 and str(shell.folder) not in line]


def test_flags_override_the_file_and_variables_override_both(shell: Shell) -> None:
    write_config(shell.folder, enable_model_api="false", enable_envvars_config="true", metrics_config="m.yaml")
    (shell.folder / "m.yaml").write_text("ts_metrics: {}\n")
    (shell.folder / "key_file.json").write_text("another server's")
    variables = {"TS_JOB_QUEUE_SIZE": "7", "TS_MODEL_STORE": "store"}
    shell.start("--model-store", "other", "--disable-token-auth", "--enable-model-api", **variables)
    effective = shell.effective
    assert effective["model_store"] == str(shell.store)
    assert (effective["job_queue_size"], effective["enable_model_api"]) == ("7", "true")
    assert effective["disable_token_authorization"] == "true"
    assert effective["metrics_config"] == str(shell.folder / "m.yaml")
    assert requests.get(f"{effective['inference_address']}/ping").status_code == 200
    assert (shell.folder / "key_file.json").read_text() == "another server's"


def test_in_the_foreground_the_command_is_the_server(shell: Shell) -> None:
    write_config(shell.folder)
    process = subprocess.Popen(
        [*COMMAND, "--foreground", "--model-store", "store"],
        cwd=shell.folder,
        env=shell.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(6)][4].split() == ["tokens", "key_file.json"]
        assert shell.run("--start", "--model-store", "store").returncode == 1
        running = ServerRecord.find(shell.folder / ".torchmar")
        assert running
        assert running.pid == process.pid
        shell.get("inference_address", "/ping")
        assert shell.run("--stop").stdout == "TorchServe has stopped.\n"
        assert process.wait(30) == 0


def test_a_signal_ends_a_server_in_the_foreground(shell: Shell) -> None:
    write_config(shell.folder)
    with subprocess.Popen(
        [*COMMAND, "--foreground", "--model-store", "store"],
        cwd=shell.folder,
        env=shell.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (shell.folder / ".torchmar" / "config.properties").exists():
            assert process.poll() is None
        assert process.stderr
        assert any("main torchmar.server - ready" in line for line in process.stderr)  # what a container's logs are
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert shell.run("--stop").stdout == "TorchServe is not currently running.\n"
    log = shell.folder / ".torchmar" / "logs" / "server.log"
    assert "received SIGTERM: the server ends" in log.read_text(encoding="utf-8")


def test_the_configuration_is_searched_in_torchserves_places(shell: Shell) -> None:
    for name in ("config.properties", "flag.properties", "variable.properties"):
        (shell.folder / name).write_text("job_queue_size=none\n")
    assert "error: config.properties: job_queue_size" in shell.run("--model-store", "store").stderr
    assert "error: flag.properties: job" in shell.run("--ts-config", "flag.properties", "--model-store", "store").stderr
    variable = {"TS_CONFIG_FILE": "variable.properties"}
    messages = shell.run("--ts-config", "flag.properties", "--model-store", "store", **variable).stderr
    assert "error: variable.properties: job" in messages
    missing = shell.run("--ts-config", "none.properties", "--model-store", "store")
    assert (missing.returncode, "--ts-config file not found: none.properties" in missing.stderr) == (1, True)


def test_a_failed_start_has_no_traceback(shell: Shell) -> None:
    ran = shell.run("--start")
    assert ran.returncode == 1
    hint = "hint: write it like model_store=/srv/model_store, or name it with --model-store"
    assert ran.stderr == f"error: model_store is missing\n{hint}\n"
    assert "not a folder" in shell.run("--start", "--model-store", "none").stderr
    assert shell.run("--start", "--stop").returncode == 2


def test_options_of_java_are_named_once(shell: Shell) -> None:
    (shell.folder / "config.properties").write_text("vmargs=-Xmx1g\njob_queue_size=3\nmetrics_mode=prometheus\n")
    ran = shell.run("--ppath", "p", "--log-config", "l", "--cpp-log-config", "c", "--workflow-store", "w", "--stop")
    assert ran.stderr == ""
    (shell.folder / "config.properties").write_text("vmargs=-Xmx1g\ninference_address=unix:/nowhere/else\n")
    ran = shell.run("--ppath", "p", "--log-config", "l", "--workflow-store", "w", "--model-store", "store", "--ncs")
    assert ran.stderr.splitlines()[:2] == [
        "warning: without meaning here: --log-config, --plugins-path, --workflow-store",
        "warning: without meaning here: vmargs",
    ]
    assert "error: cannot listen on unix:/nowhere/else: cannot create the socket" in ran.stderr


def test_a_server_that_has_the_number_of_an_earlier_one_is_not_stopped(shell: Shell, make: Callable[..., Path]) -> None:
    make(store=shell.store)
    write_config(shell.folder)
    shell.start("--start", "--model-store", "store", "--ncs")
    file = shell.folder / "t" / ".model_server.pid"
    os.utime(file, (0, 0))
    elsewhere = shell.folder / "elsewhere"
    elsewhere.mkdir()
    stopped = run_module(MODULE, "--stop", cwd=elsewhere, environment=shell.environment)
    assert stopped.stdout == "TorchServe is not currently running.\n"
    assert ServerRecord.find(shell.folder / ".torchmar")
    assert shell.run("--stop").stdout == "TorchServe has stopped.\n"


def test_a_pid_file_without_a_process_is_no_server(shell: Shell) -> None:
    file = shell.folder / "t" / ".model_server.pid"
    for text in ("", "x", "99999999", str(os.getpid())):
        file.write_text(text)
        assert shell.run("--stop").stdout == "TorchServe is not currently running.\n"


def test_a_restart_restores_the_registered_models(shell: Shell, make: Callable[..., Path]) -> None:
    archive = make(store=shell.store)
    make(store=shell.store, name="second")
    write_config(shell.folder, disable_token_authorization="true", default_workers_per_model="1")
    written = shell.folder / "logs" / "config"
    shell.start("--start", "--model-store", "store", "--models", archive.name, "--ncs")
    assert shell.run("--stop").returncode == 0
    assert not written.exists()
    shell.start("--start", "--model-store", "store", "--models", archive.name)
    management = shell.effective["management_address"]
    registered = requests.post(f"{management}/models?url=second-1.0.mar&initial_workers=1&batch_size=5", timeout=120)
    assert registered.status_code == 200
    assert shell.run("--stop").returncode == 0
    ran = shell.run("--start", "--model-store", "store", "--models", archive.name)
    assert (ran.returncode, str(written) in ran.stdout) == (0, True)
    assert f"warning: --models {archive.name} is not used: the snapshot in " in ran.stderr
    assert shell.get("management_address", "/models/second").json()[0]["batchSize"] == 5
    assert shell.get("inference_address", "/ping").json() == {"status": "Healthy"}
    assert shell.run("--stop").returncode == 0
    shell.start("--start", "--model-store", "store", "--ncs")
    assert shell.get("management_address", "/models").json() == {"models": []}


def test_models_that_are_not_loaded_are_named(shell: Shell, make: Callable[..., Path]) -> None:
    archive = make(store=shell.store)
    models = {"made": {"9.9": {"minWorkers": 1}}}
    write_config(shell.folder, disable_token_authorization="true", models=json.dumps(models))
    ran = shell.run("--start", "--model-store", "store", "--models", archive.name, "a.mar b.mar", "--ncs")
    assert ran.returncode == 0  # as TorchServe's script; the server runs
    assert ran.stderr.splitlines() == [
        "warning: models: made 9.9 matches no model that was loaded at the start; of made, 1.0 is loaded",
        "error: load_models: a.mar b.mar is not loaded: Model not found at: a.mar b.mar; a comma separates models: "
        "load_models=a.mar,b.mar",
        "the server runs, and /ping is Unhealthy; torchmar logs has more",
    ]
    assert shell.get("inference_address", "/ping").status_code == 500
