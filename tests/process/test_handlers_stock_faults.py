"""The wrong answers of TorchServe's own handlers, each as a test that torchmar's handlers pass."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import DIGITS, ROOT, SAMPLES
from torchmar import archive
from torchmar.exchange import Request
from torchmar.worker import Worker

SEVEN, THREE = ((SAMPLES / f"{name}.png").read_bytes() for name in ("seven", "three"))
JSON = "application/json"


@pytest.fixture(scope="module")
def worker(digits: Path) -> Iterator[Worker]:
    with Worker(digits) as loaded:
        yield loaded


def label(body: bytes) -> str:
    return next(iter(json.loads(body)))


def test_a_mixed_batch_is_not_decided_by_its_first_request(worker: Worker) -> None:
    # TorchServe's handlers read the header of request 0: all are explained, or none.
    for first in (True, False):
        seven, three = worker.predict_batch([Request(SEVEN, explain=first), Request(THREE, explain=not first)])
        explained, predicted = (seven, three) if first else (three, seven)
        assert json.loads(explained.body)["label"] == ("7" if first else "3")
        assert label(predicted.body) == ("3" if first else "7")


def test_a_corrupt_image_does_not_fail_other_requests(worker: Worker) -> None:
    # TorchServe's handlers answer 503 to every request of the batch.
    answers = worker.predict_batch([Request(SEVEN), Request(SEVEN[:200], "image/png"), Request(THREE)])
    assert [answer.status for answer in answers] == [200, 400, 200]
    assert [label(answers[index].body) for index in (0, 2)] == ["7", "3"]


def test_every_request_of_a_batch_has_its_own_answer_in_every_protocol(worker: Worker) -> None:
    # TorchServe's KServe envelopes answer from request 0 alone.
    def v1(*images: bytes) -> Request:
        return Request(
            json.dumps({"instances": [{"b64": base64.b64encode(image).decode()} for image in images]}).encode(), JSON
        )

    def v2(image: bytes) -> Request:
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(image).decode()]}
        return Request(json.dumps({"inputs": [tensor]}).encode(), JSON)

    rows, other_rows, tensors, plain = worker.predict_batch([v1(SEVEN, THREE), v1(THREE), v2(SEVEN), Request(THREE)])
    assert [next(iter(prediction)) for prediction in json.loads(rows.body)["predictions"]] == ["7", "3"]
    assert [next(iter(prediction)) for prediction in json.loads(other_rows.body)["predictions"]] == ["3"]
    document = json.loads(tensors.body)
    assert document["model_name"] == "digits"
    assert "7" in json.dumps(document["outputs"])
    assert label(plain.body) == "3"


def test_every_text_of_a_batch_is_classified_and_explained_for_itself(tmp_path: Path) -> None:
    # TorchServe's text classifier answers from request 0 alone.
    texts = sorted((ROOT / "archives" / "topics" / "samples").glob("*.txt"))[:2]
    with Worker(archive.build(ROOT / "archives" / "topics", tmp_path).path) as loaded:
        bodies = [file.read_bytes() for file in texts]
        alone = [loaded.predict_batch([Request(body, "text/plain")])[0].body for body in bodies]
        assert label(alone[0]) != label(alone[1])
        answers = loaded.predict_batch(
            [Request(body, "text/plain", explain) for body in bodies for explain in (False, True)]
        )
    assert [label(answer.body) for answer in answers[::2]] == [*map(label, alone)]
    assert [json.loads(answer.body)["label"] for answer in answers[1::2]] == [*map(label, alone)]


def test_onnx_weights_are_called_as_onnx_runtime_requires(tmp_path: Path) -> None:
    # TorchServe's base handler loads them, and then calls the session as if it were a module.
    import torch

    model = torch.jit.load(DIGITS / "digits.pt").eval()
    weights = tmp_path / "digits.onnx"

    class Digits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(1, 16, 5, stride=2, padding=2),
                torch.nn.ReLU(),
                torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
                torch.nn.ReLU(),
                torch.nn.MaxPool2d(2),
                torch.nn.Flatten(),
                torch.nn.Dropout(0.3),
                torch.nn.Linear(512, 10),
            )

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layers(images)

    eager = Digits().eval()
    eager.load_state_dict(model.state_dict())
    rows = torch.export.Dim("rows", min=1, max=64)
    torch.onnx.export(eager, (torch.zeros(2, 1, 32, 32),), weights, dynamic_shapes=({0: rows},), external_data=False)
    folder = tmp_path / "recipe"
    folder.mkdir()
    weights.rename(folder / "digits.onnx")
    text = (DIGITS / "archive.yaml").read_text().replace("weights: digits.pt", "weights: digits.onnx")
    (folder / "archive.yaml").write_text(text.replace("generated_by: train.py\n", ""))
    (folder / "samples").symlink_to(SAMPLES)
    with Worker(archive.build(folder, tmp_path / "store").path) as loaded:
        answers = loaded.predict_batch([Request(SEVEN), Request(THREE), Request(SEVEN, explain=True)])
    assert [label(answer.body) for answer in answers[:2]] == ["7", "3"]
    explanation = json.loads(answers[2].body)
    assert (explanation["label"], explanation["method"]) == ("7", "occlusion")
    assert "integrated_gradients" in json.dumps(explanation)
