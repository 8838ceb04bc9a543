"""Streams of the speech archive work with a server, over HTTP and gRPC, and the program of its page does."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import wave
from collections.abc import Iterator

import pytest

from tests.support import documents, pretrained
from tests.support.paths import ROOT
from tests.support.servers import write_config
from torchmar.engines.builtin import Builtin
from torchmar.grpc import GrpcOpenInference
from torchmar.inference import InferenceClient, Tensor

SAMPLE = ROOT / "archives" / "speech" / "samples" / "speech.wav"
PAGE = ROOT / "docs" / "models" / "speech.md"


@pytest.fixture(scope="module")
def server(weights: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builtin]:
    """Run a server with two workers that have the archive, in a folder that has archives/."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "archives").symlink_to(ROOT / "archives")
    built = pretrained.build("speech", folder / "model_store")
    with Builtin(write_config(folder), folder / "model_store", folder / ".torchmar") as running:
        running.load(built)
        running.management.scale("speech", min_worker=2)
        yield running


def chunks(seconds: float) -> list[bytes]:
    """Return the recording in WAV files of a length."""
    parts = []
    with wave.open(str(SAMPLE)) as recording:
        while frames := recording.readframes(round(recording.getframerate() * seconds)):
            stream = io.BytesIO()
            with wave.open(stream, "wb") as file:
                file.setparams(recording.getparams())
                file.writeframes(frames)
            parts.append(stream.getvalue())
    return parts


def test_the_program_of_the_page_prints_what_is_shown(server: Builtin) -> None:
    blocks = list(documents.blocks(PAGE))
    (place,) = (index for index, block in enumerate(blocks) if block.title == "stream.py")
    command = [sys.executable, "-c", blocks[place].code]
    process = subprocess.run(command, cwd=server.folder.parent, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, blocks[place + 1].code), process.stderr


def test_a_stream_over_grpc_has_the_segments_of_the_whole(server: Builtin) -> None:
    whole = InferenceClient(server.server).predict("speech", SAMPLE)
    segments, state = [], ""
    parts = chunks(0.7)
    with GrpcOpenInference(server.server) as client:
        for number, part in enumerate(parts, 1):
            inputs = [
                Tensor("audio", "BYTES", (1,), [part]),
                Tensor("state", "BYTES", (1,), [state]),
                Tensor("final", "BOOL", (1,), [number == len(parts)]),
            ]
            outputs = {tensor.name: tensor.data[0] for tensor in client.infer("speech", inputs)}
            segments += json.loads(outputs["segments"])
            state = outputs["state"]
    assert (segments, outputs["duration"]) == (whole["segments"], whole["duration"])
