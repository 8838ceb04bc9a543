"""torchmar.worker.process.messages are the same after their way over the wire, and need nothing heavy."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from torchmar.worker.process import messages
from torchmar.worker.process.control_channel import ControlWriter, MessageParser
from torchmar.worker.process.messages import (
    Described,
    Exited,
    Fork,
    Forked,
    ImportModules,
    Kill,
    Loaded,
    LoadFailed,
    LogEntry,
    Message,
    ModelSpec,
    Ready,
    RunCommand,
    RunForkServer,
    RunModelProcess,
    RunWorker,
    Serve,
    Spawn,
    StartFailed,
    StartWorker,
    Supervised,
    WorkerReady,
    from_wire,
    to_wire,
)

MODEL = ModelSpec(name="m", model_dir="/m", handler="h.py", gpu=1, memory_limit=1 << 40, poll_seconds=1e-4)
MESSAGES: list[Message] = [
    MODEL,
    RunForkServer(3),
    RunModelProcess(3, MODEL, None),
    RunWorker(3, MODEL),
    RunCommand(3, ["echo", "a"]),
    Spawn(1, MODEL),
    ImportModules(["numpy"]),
    Serve(""),
    Fork(2, "preprocess"),
    Kill(2),
    Ready(5, ["torch"]),
    Forked(2, 7),
    Exited(2, -9),
    Loaded("", 0, {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}], "max_instances": 0}),
    LoadFailed("Traceback\n"),
    StartWorker(3, "preprocess"),
    StartFailed(3, "model", "Traceback\n"),
    Described({"inputs": [], "outputs": [], "max_instances": 0}),
    LogEntry(0, 30, "a warning"),
    Supervised(7),
    WorkerReady(7),
]


def test_there_is_an_example_of_every_message() -> None:
    assert {type(message) for message in MESSAGES} == set(Message.__subclasses__())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_the_same_after_its_way_over_the_wire(message: Message) -> None:
    document = json.loads(json.dumps(to_wire(message)))
    assert from_wire(document) == message
    assert set(document) == {"kind", *(field.name for field in fields(message))}


def test_messages_and_their_files_arrive_together_in_pieces_of_any_size() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = ControlWriter(theirs)
        for message in MESSAGES:
            writer.send(message)
        data = ours.recv(1 << 20)
    for size in (1, 7, len(data)):
        parser = MessageParser()
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert [message for piece in pieces for message, _ in parser.feed(piece)] == MESSAGES


def test_they_import_only_the_standard_library() -> None:
    folder = Path(messages.__file__).parent
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import messages; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ran.stdout.split()} - {"__main__", "messages"}
    assert loaded <= set(sys.stdlib_module_names)
