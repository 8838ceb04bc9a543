"""torchmar predict and explain send many inputs, and continue where they were stopped."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.environments import environment_without
from tests.support.packing import pack_handler
from tests.support.paths import ROOT, SAMPLES
from tests.support.peers import Peer
from torchmar.cli.results_file import ResultsFile
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import TorchmarError
from torchmar.exchange import Response

Make = Callable[..., Path]
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PICTURES = [SAMPLES / f"{name}.png" for name in NAMES]
# Answers with the body; what is called slow takes its time, and what is called broken breaks while a file is there.
MOODY = """
import os, time
def handle(rows, context):
    return None if rows is None else [answer(bytes(row["body"]).decode()) for row in rows]
def answer(text):
    if text.startswith("slow"):
        time.sleep(0.2)
    if text.startswith("broken") and os.path.exists(text.partition(" ")[2]):
        raise ValueError("broken")
    if text.startswith("body "):
        return ANSWERS[text.partition(" ")[2]]
    return {"value": text}
ANSWERS = {"bytes": b"\\x89PNG\\xff", "nan": b'{"a": NaN}', "surrogate": b'{"a": "\\\\ud800"}'}
"""


def torchmar(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torchmar", *map(str, arguments)]
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def moody(server: TorchServe) -> str:
    server.load(pack_handler(server.model_store, MOODY, name="moody"))
    return "moody"


def texts(folder: Path, *contents: str) -> list[Path]:
    files = []
    for number, content in enumerate(contents):
        files.append(folder / f"{number}.bin")
        files[-1].write_text(content)
    return files


def test_answers_are_lines_of_a_file_and_each_request_is_sent_once(server: TorchServe, tmp_path: Path) -> None:
    command: Sequence[object] = ("predict", "digits", *PICTURES, "-o", "a.jsonl", "--run-folder", server.folder)
    ran = torchmar(*command, "--jobs", 3, cwd=tmp_path)
    assert "10 of 10 answered" in ran.stderr
    assert not ran.stdout
    answers = {Path(line["input"]).stem: next(iter(line["answer"])) for line in lines(tmp_path / "a.jsonl")}
    assert answers == {name: str(number) for number, name in enumerate(NAMES)}
    assert {(line["request"], line["status"]) for line in lines(tmp_path / "a.jsonl")} == {("predictions/digits", 200)}
    before = (tmp_path / "a.jsonl").read_bytes()
    ran = torchmar(*command, cwd=tmp_path)
    assert "10 of 10 answered (10 of them before)" in ran.stderr
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_missing_answers_are_requested_after_a_torn_line_is_repaired(server: TorchServe, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    command: Sequence[object] = ("predict", "digits", *PICTURES, "-o", file, "--run-folder", server.folder)
    torchmar(*command, "--in-order", cwd=tmp_path)
    whole = file.read_bytes()
    assert [Path(line["input"]).stem for line in lines(file)] == list(NAMES)
    kept = whole.splitlines(keepends=True)
    file.write_bytes(b"".join([kept[9], kept[3], kept[5][:40]]))
    ran = torchmar(*command, "--in-order", cwd=tmp_path)
    assert "(2 of them before)" in ran.stderr
    assert file.read_bytes() == whole


def test_permanent_errors_stay_and_failed_requests_are_sent_again(
    server: TorchServe, moody: str, tmp_path: Path
) -> None:
    (tmp_path / "flag").touch()
    inputs = texts(tmp_path, "fine", f"broken {tmp_path / 'flag'}")
    command = ("predict", moody, *inputs, "gone.bin", "-o", "a.jsonl", "--run-folder", server.folder)
    ran = torchmar(*command, cwd=tmp_path, code=1)
    assert "1 of 3 answered, 2 without an answer; the same command sends them again" in ran.stderr
    assert "1.bin: " in ran.stderr
    assert "error: gone.bin cannot be read" in ran.stderr
    assert [line["answer"] for line in lines(tmp_path / "a.jsonl")] == [{"value": "fine"}]
    (tmp_path / "flag").unlink()
    (tmp_path / "gone.bin").write_text("back")
    assert "3 of 3 answered (1 of them before)" in torchmar(*command, cwd=tmp_path).stderr
    (tmp_path / "empty.png").touch()
    command = ("predict", "digits", "empty.png", PICTURES[0], "-o", "b.jsonl", "--run-folder", server.folder)
    for _ in range(2):
        assert "1 refused" in torchmar(*command, cwd=tmp_path, code=1).stderr
    rejected = [line for line in lines(tmp_path / "b.jsonl") if line["status"] == 400]
    assert [(line["input"], line["error"]) for line in rejected] == [("empty.png", "the body is empty")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_answers_are_in_the_file_however_the_run_is_stopped(
    server: TorchServe, moody: str, tmp_path: Path, number: signal.Signals
) -> None:
    inputs = texts(tmp_path, *(f"slow {index}" for index in range(8)))
    file = tmp_path / "a.jsonl"
    command = ("predict", moody, *inputs, "-o", file, "--jobs", 2, "--run-folder", server.folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "torchmar", *map(str, command)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while not file.exists() or file.read_bytes().count(b"\n") < 2:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.stderr
    messages = process.stderr.read()
    assert process.wait() == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    assert ("the same command sends them again" in messages) is (number != signal.SIGKILL)
    line_count = len(lines(file))
    assert 2 <= line_count < 8
    assert f"8 of 8 answered ({line_count} of them before)" in torchmar(*command, cwd=tmp_path).stderr
    assert sorted(line["answer"]["value"] for line in lines(file)) == [f"slow {index}" for index in range(8)]


def test_an_error_of_every_request_ends_the_run(server: TorchServe, tmp_path: Path) -> None:
    key_file = server.folder / "key_file.json"
    for name, where, message in (
        ("nothing", ("--run-folder", server.folder), "Model not found: nothing"),
        ("digits", ("--address", "http://127.0.0.1:9"), "connection refused"),
        ("digits", ("--address", "http://192.0.2.1", "--key-file", key_file), "in plain text"),
        ("digits", ("--address", server.server.inference), "Token"),
    ):
        ran = torchmar("predict", name, *PICTURES, "-o", "a.jsonl", *where, cwd=tmp_path, code=1)
        assert ran.stderr.count("error:") == 1
        assert message in ran.stderr
        assert "0 of 10 answered" in ran.stderr


def test_edited_inputs_are_sent_again(server: TorchServe, moody: str, tmp_path: Path) -> None:
    one, two, three = inputs = texts(tmp_path, "one", "two", "three")
    file = tmp_path / "a.jsonl"
    command = ("predict", moody, *inputs, "-o", file, "--run-folder", server.folder)
    torchmar(*command, cwd=tmp_path)
    two.write_text("2")
    three.unlink()
    assert "3 of 3 answered (2 of them before)" in torchmar(*command, cwd=tmp_path).stderr
    assert {line["input"]: line["answer"]["value"] for line in lines(file)} == {
        str(one): "one", str(two): "2", str(three): "three",
    }  # fmt: skip
    assert len(lines(file)) == 3
    broken = tmp_path / "flag"
    broken.touch()
    two.write_text(f"broken {broken}")
    ran = torchmar(*command, cwd=tmp_path, code=1)
    assert "2 of 3 answered (2 of them before), 1 without an answer" in ran.stderr


def test_a_rejected_input_is_sent_again_once_it_has_changed(server: TorchServe, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.touch()
    command = ("predict", "digits", picture, "-o", "a.jsonl", "--run-folder", server.folder)
    assert "1 refused" in torchmar(*command, cwd=tmp_path, code=1).stderr
    picture.write_bytes(PICTURES[4].read_bytes())
    assert "1 of 1 answered" in torchmar(*command, cwd=tmp_path).stderr
    assert [next(iter(line["answer"])) for line in lines(tmp_path / "a.jsonl")] == ["4"]


def test_answers_and_names_of_every_kind_are_lines_of_json(server: TorchServe, moody: str, tmp_path: Path) -> None:
    def no_json(constant: str) -> None:
        raise AssertionError(constant)

    odd = tmp_path / os.fsdecode(b"\xff \n\xc3\xbc.bin")
    odd.write_text("odd")
    inputs = [*texts(tmp_path, "body bytes", "body nan", "body surrogate"), odd]
    command = ("predict", moody, *inputs, "--run-folder", server.folder)
    output = torchmar(*command, cwd=tmp_path).stdout
    for _ in range(2):
        torchmar(*command, "-o", "a.jsonl", "--in-order", cwd=tmp_path)
    for text in (output, (tmp_path / "a.jsonl").read_text()):
        documents = [json.loads(line, parse_constant=no_json) for line in text.splitlines()]
        assert [line["input"] for line in documents] == list(map(str, inputs))
        assert [line.get("answer", line.get("base64")) for line in documents] == [
            "iVBOR/8=", '{"a": NaN}', {"a": "\ud800"}, {"value": "odd"},
        ]  # fmt: skip


def test_an_address_of_another_service_records_no_permanent_errors(server: TorchServe, tmp_path: Path) -> None:
    below = ("--address", f"{server.server.inference}/below", "--run-folder", server.folder)
    ran = torchmar("predict", "digits", *PICTURES, "-o", "a.jsonl", *below, cwd=tmp_path, code=1)
    assert "is this the address of the inference API?" in ran.stderr
    assert ran.stderr.count("error:") == 1
    where = ("--run-folder", server.folder)
    assert "10 of 10 answered" in torchmar("predict", "digits", *PICTURES, "-o", "a.jsonl", *where, cwd=tmp_path).stderr


def test_a_connection_that_breaks_costs_one_answer_only(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    inputs = texts(tmp_path, *"abc")
    with Peer([answer, b"", answer]).listening() as peer:
        where = ("--address", peer.address, "--jobs", 1, "--timeout", 10, "--run-folder", tmp_path / "none")
        ran = torchmar("predict", "any", *inputs, "-o", "a.jsonl", *where, cwd=tmp_path, code=1)
    assert "2 of 3 answered, 1 without an answer" in ran.stderr
    assert [Path(line["input"]).name for line in lines(tmp_path / "a.jsonl")] == ["0.bin", "2.bin"]


def test_a_full_disk_ends_the_run_and_written_answers_count(server: TorchServe, moody: str, tmp_path: Path) -> None:
    inputs = texts(tmp_path, *map(str, range(10)))
    command = ("predict", moody, *inputs, "-o", "a.jsonl", "--run-folder", server.folder)
    limit = f"ulimit -f 1; exec {sys.executable} -m torchmar {shlex.join(map(str, command))}"
    ran = subprocess.run(["bash", "-c", limit], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert "a.jsonl cannot be written: File too large" in ran.stderr
    whole = (tmp_path / "a.jsonl").read_bytes().count(b"\n")
    assert 0 < whole < 10
    assert f"{whole} of 10 answered" in ran.stderr
    assert f"10 of 10 answered ({whole} of them before)" in torchmar(*command, cwd=tmp_path).stderr


def test_stdin_is_an_input(server: TorchServe, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torchmar", "predict", "digits", "-", "--run-folder", str(server.folder)]
    with PICTURES[5].open("rb") as stdin:
        ran = subprocess.run(command, cwd=tmp_path, stdin=stdin, capture_output=True, check=True, timeout=120)
    assert next(iter(json.loads(ran.stdout))) == "5"


def test_explanations_have_a_file_of_their_own(server: TorchServe, tmp_path: Path) -> None:
    where = ("--run-folder", server.folder)
    torchmar("explain", "digits", *PICTURES[:2], "--n-steps", 5, "-o", "a.jsonl", *where, cwd=tmp_path)
    (first, second) = lines(tmp_path / "a.jsonl")
    assert {first["answer"]["label"], second["answer"]["label"]} == {"0", "1"}
    assert first["request"] == "explanations/digits?Explain-N-Steps=5"
    ran = torchmar("explain", "digits", *PICTURES[:2], "-o", "a.jsonl", *where, cwd=tmp_path, code=1)
    assert "has answers to explanations/digits?Explain-N-Steps=5, not to explanations/digits" in ran.stderr


def test_grpc_answers_the_same(server: TorchServe, tmp_path: Path) -> None:
    where = ("--run-folder", server.folder)
    over_rest, over_grpc = (
        torchmar("predict", "digits", *PICTURES[:3], *more, *where, cwd=tmp_path).stdout for more in ((), ("--grpc",))
    )
    assert over_rest == over_grpc
    assert over_rest.count("\n") == 3


def test_missing_grpc_packages_are_reported(tmp_path: Path) -> None:
    python = environment_without(tmp_path / "venv", ("grpc",))
    command = [python, "-m", "torchmar", "predict", "digits", PICTURES[0], "--grpc"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert ran.returncode == 1
    assert "grpc is not installed" in ran.stderr
    assert "pip install 'torchmar[grpc]'" in ran.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [(["-o", "out.png", PICTURES[1]], "a .jsonl file"), (["--in-order"], "is for --output FILE.jsonl")],
)
def test_wrong_usage_is_reported(options: list[object], message: str, tmp_path: Path) -> None:
    assert message in torchmar("predict", "digits", PICTURES[0], *options, cwd=tmp_path, code=2).stderr


@pytest.mark.parametrize(
    "content",
    [
        *("not json", '{"other": 1}\n', '{"input": 1', '[]\n{"input": "a', '{"input": "a"}\n'),
        '{"input": "a", "request": "x", "status": "fine"}\n',
    ],
)
def test_a_file_with_other_content_is_not_changed(content: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    torn = content == '{"input": 1'  # what torchmar may have begun to write
    if torn:
        with ResultsFile(file, "predictions/x"):
            assert not file.read_text()
        return
    with pytest.raises(TorchmarError, match=r"a\.jsonl:1: not a line that torchmar wrote"), ResultsFile(file, "x"):
        pass
    assert file.read_text() == content


def test_a_file_that_another_process_writes_is_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    with ResultsFile(file, "x"), pytest.raises(TorchmarError, match="another torchmar"), ResultsFile(file, "x"):
        pass
    with ResultsFile(file, "x") as free, file.open("rb") as other, pytest.raises(BlockingIOError):
        free.add_permanent_error("a", "sha256:0", 400, "no")
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_answers_of_every_kind_are_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    with ResultsFile(file, "x") as answers:
        answers.add_answer("json", "sha256:0", Response(200, b'{"a": [1]}'))
        answers.add_answer("text", "sha256:1", Response(200, "grün\n".encode()))
        answers.add_answer("bytes", "sha256:2", Response(200, b"\x89PNG\xff", {"content-type": "image/png"}))
    assert [{name: line[name] for name in line if name in ("answer", "base64")} for line in lines(file)] == [
        {"answer": {"a": [1]}},
        {"answer": "grün\n"},
        {"base64": "iVBOR/8="},
    ]
    os.truncate(file, file.stat().st_size - 1)  # only its end is missing
    with ResultsFile(file, "x") as answers:
        assert answers.answered == {"json": True, "text": True, "bytes": True}
    assert len(lines(file)) == 3


def test_an_error_of_the_server_in_a_file_is_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"input": "a", "request": "x", "status": 503, "error": "busy"}) + "\n")
    with ResultsFile(file, "x") as answers:
        assert not answers.answered


def test_the_script_to_copy_sends_requests_over_rest_and_grpc(server: TorchServe, tmp_path: Path) -> None:
    def ask(*arguments: object, api: str = "inference") -> Any:
        grpc = getattr(server.server, f"grpc_{api}").removeprefix("grpc://")
        address = grpc if "--grpc" in arguments else getattr(server.server, api)
        where = ["--address", address, "--key-file", server.folder / "key_file.json"]
        command = [sys.executable, ROOT / "scripts" / "ask.py", "digits", *arguments, *where]
        ran = subprocess.run([*map(str, command)], capture_output=True, check=True, timeout=60)
        return json.loads(ran.stdout)

    over_rest = ask(PICTURES[7])
    assert next(iter(over_rest)) == "7"
    assert ask(PICTURES[7], "--grpc", "--timeout", 30) == over_rest
    assert ask(PICTURES[7], "--target", 3)["label"] == "3"
    metadata = ask("--metadata", api="management")
    assert metadata[0]["modelVersion"] == "1.0"
    assert ask("--metadata", "--grpc", api="management") == metadata


def test_the_script_to_copy_reports_unsupported_options_in_a_line(server: TorchServe, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("none")
    key_file = server.folder / "key_file.json"
    address = server.server.grpc_inference.removeprefix("grpc://")
    for arguments, message in (
        ((PICTURES[0],), ".torchmar/key_file.json"),
        ((PICTURES[0], "--key-file", "no.json"), "JSONDecodeError"),
        (("gone.png", "--key-file", key_file), "gone.png"),
        ((PICTURES[0], "--key-file", key_file, "--address", "http://127.0.0.1:9"), "refused"),
        # Which TorchServe answers with OK over gRPC.
        (("no.json", "--grpc", "--key-file", key_file, "--address", address), "400: the body is not an image"),
    ):
        command = [sys.executable, ROOT / "scripts" / "ask.py", "digits", *arguments]
        ran = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 1
        assert message in ran.stderr
        assert ran.stderr.count("\n") == 1
