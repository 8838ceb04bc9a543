"""torchmar_handlers answers every request of a batch for itself, in the worker as on the server."""

from __future__ import annotations

import base64
import io
import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.paths import DIGITS, SAMPLES
from torchmar.exchange import Request, Response
from torchmar.worker import Worker

PNG = (SAMPLES / "seven.png").read_bytes()
BASE64 = base64.b64encode(PNG).decode()


@pytest.fixture(scope="module")
def worker(digits: Path) -> Iterator[Worker]:
    with Worker(digits) as loaded:
        yield loaded


def label(answer: Response) -> str:
    assert answer.status == 200, answer.body
    return next(iter(json.loads(answer.body)))


def test_a_batch_is_answered_like_its_requests_one_by_one(worker: Worker) -> None:
    requests = [Request(file.read_bytes(), "image/png") for file in sorted(SAMPLES.glob("*.png"))]
    alone = [json.loads(worker.predict_batch([request])[0].body) for request in requests]
    together = [json.loads(answer.body) for answer in worker.predict_batch(requests)]
    for single, batched in zip(alone, together, strict=True):
        assert single == pytest.approx(batched, abs=1e-5)


GOOD = {
    "raw": Request(PNG, "image/png"),
    "of any type": Request(PNG),
    "JSON data": Request(json.dumps({"data": BASE64}).encode(), "application/json"),
    "JSON b64": Request(json.dumps({"b64": BASE64}).encode(), "application/json"),
    "JSON string": Request(json.dumps(BASE64).encode(), "application/json"),
    "data URL": Request(json.dumps({"data": f"data:image/png;base64,{BASE64}"}).encode(), "application/json"),
    "text": Request(BASE64.encode(), "text/plain"),
    "text in lines": Request("\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)).encode(), "text/plain"),
}
BAD = {
    "empty": (Request(b""), 400, "the body is empty"),
    "truncated": (Request(PNG[:300], "image/png"), 400, "the image is damaged"),
    "header only": (Request(PNG[:20], "image/png"), 400, "image"),
    "noise": (Request(b"\x00\xff" * 500), 400, "not an image"),
    "text": (Request(b"a seven, please", "text/plain"), 400, "not base64"),
    "base64 of text": (Request(base64.b64encode(b"hello"), "text/plain"), 400, "not an image"),
    "JSON without data": (Request(b'{"picture": 1}', "application/json"), 400, "no 'data'"),
    "JSON image of a number": (Request(b'{"image": 1}', "application/json"), 400, "not as a number"),
    "JSON null": (Request(b"null", "application/json"), 400, "empty"),
    "JSON number": (Request(b"7", "application/json"), 400, "a number"),
    "JSON data null": (Request(b'{"data": null}', "application/json"), 400, "no 'data'"),
    "JSON list": (Request(b"[1, 2]", "application/json"), 400, "an array"),
    "broken JSON": (Request(b'{"data": ', "application/json"), 400, "not JSON"),
}


@pytest.mark.parametrize("request_", GOOD.values(), ids=GOOD)
def test_an_image_is_taken_however_it_is_sent(worker: Worker, request_: Request) -> None:
    assert label(worker.predict_batch([request_])[0]) == "7"


def test_bad_requests_get_their_own_400_and_others_their_answers(worker: Worker) -> None:
    good = GOOD["raw"]
    requests = [part for request, _, _ in BAD.values() for part in (request, good)]
    answers = worker.predict_batch(requests)
    for (_, status, message), answer in zip(BAD.values(), answers[::2], strict=True):
        error = json.loads(answer.body)
        assert (answer.status, answer.content_type) == (status, "application/json")
        assert error["code"] == status
        assert message in error["message"]
        assert "\n" not in answer.body.decode()
    assert {label(answer) for answer in answers[1::2]} == {"7"}
    # TorchServe's decoder logs the JSON that it cannot parse; nothing else has anything to log.
    assert worker.log().count("Traceback") == 1
    assert "ImageClassifier failed" not in worker.log()


def test_an_image_of_too_many_pixels_gets_413(worker: Worker) -> None:
    stream = io.BytesIO()
    Image.new("1", (12_000, 9_000)).save(stream, "PNG")
    (answer,) = worker.predict_batch([Request(stream.getvalue(), "image/png")])
    assert answer.status == 413
    assert "12000x9000" in json.loads(answer.body)["message"]


def test_predictions_and_explanations_share_a_batch(worker: Worker) -> None:
    image = (SAMPLES / "three.png").read_bytes()
    answers = worker.predict_batch(
        [
            Request(PNG, explain=True),
            Request(image),
            Request(b"", explain=True),
            Request(image, explain=True, accept="image/png, */*"),
            Request(PNG),
            Request(image, explain=True),
        ]
    )
    assert [answer.status for answer in answers] == [200, 200, 400, 200, 200, 200]
    assert [label(answers[index]) for index in (1, 4)] == ["3", "7"]
    explained = [json.loads(answers[index].body) for index in (0, 5)]
    assert [explanation["label"] for explanation in explained] == ["7", "3"]
    assert answers[3].content_type == "image/png"
    assert Image.open(io.BytesIO(answers[3].body)).format == "PNG"


def test_attributions_are_complete_and_equal_to_captums(worker: Worker) -> None:
    explanation = json.loads(worker.predict_batch([Request(PNG, explain=True)])[0].body)
    import torch
    from captum.attr import IntegratedGradients

    model = torch.jit.load(DIGITS / "digits.pt").eval()
    image = torch.from_numpy(np.asarray(Image.open(io.BytesIO(PNG)), np.float32) / 255)[None, None]
    expected = IntegratedGradients(model).attribute(image, target=7, n_steps=50)
    values = np.array(explanation["attributions"])
    assert list(values.shape) == explanation["shape"] == [1, 32, 32]
    assert np.abs(values - expected[0].detach().numpy()).max() < 1e-3 * np.abs(values).max()
    # Completeness: the attributions sum to the difference of scores between the input and the baseline.
    with torch.no_grad():
        difference = (model(image) - model(torch.zeros_like(image)))[0, 7].item()
    assert values.sum() == pytest.approx(difference, abs=0.05 * abs(difference))


def test_attributions_may_be_an_array(worker: Worker) -> None:
    as_json, as_npy = worker.predict_batch(
        [Request(PNG, explain=True), Request(PNG, explain=True, accept="application/x-npy")]
    )
    array = np.load(io.BytesIO(as_npy.body))
    assert as_npy.content_type == "application/x-npy"
    assert array.shape == (1, 32, 32)
    assert np.allclose(array, json.loads(as_json.body)["attributions"], atol=1e-3 * np.abs(array).max())


def test_headers_set_the_options_of_an_explanation(worker: Worker) -> None:
    headers = {"Explain-Method": "integrated_gradients", "Explain-N-Steps": "9", "Explain-Target": "3"}
    (answer,) = worker.predict_batch([Request(PNG, explain=True, headers={**headers, "Explain-Baseline": "0.5"})])
    explanation = json.loads(answer.body)
    assert [explanation[key] for key in ("method", "n_steps", "label", "baseline")] == [
        "integrated_gradients",
        9,
        "3",
        0.5,
    ]


@pytest.mark.parametrize("target", [3, "3"])
def test_the_target_of_an_explanation_can_be_chosen(worker: Worker, target: object) -> None:
    body = json.dumps({"data": BASE64, "target": target}).encode()
    explanation = json.loads(worker.predict_batch([Request(body, "application/json", explain=True)])[0].body)
    assert (explanation["target"], explanation["label"]) == (3, "3")


def test_a_wrong_target_is_a_400_of_its_own(worker: Worker) -> None:
    bad = Request(json.dumps({"data": BASE64, "target": 10}).encode(), "application/json", explain=True)
    first, second = worker.predict_batch([bad, Request(PNG, explain=True)])
    assert (first.status, second.status) == (400, 200)
    assert "target 10" in json.loads(first.body)["message"]


@pytest.fixture
def scripted(make: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that builds an archive of a handler of ours with a tiny TorchScript model."""
    import torch

    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1)), stream)

    def build(code: str, **keys: object) -> Path:
        head = "import torch\nfrom torchmar_handlers.base import BaseHandler\n"
        return make(head + textwrap.dedent(code), disk={"model.pt": stream.getvalue()}, weights="model.pt", **keys)

    return build


def test_a_step_that_fails_for_one_request_fails_only_that_one(scripted: Callable[[str], Path]) -> None:
    code = """
    class Mine(BaseHandler):
        def preprocess(self, rows):
            return super().preprocess([torch.tensor([float(row["body"])]) for row in rows])
        def postprocess(self, output):
            return [{"half": 1 / value} if value else 1 / 0 for value in output.flatten().tolist()]
    """
    with Worker(scripted(code)) as worker:
        answers = worker.predict_batch([Request(text, "text/plain") for text in (b"2", b"x", b"0", b"4", b"nan")])
        assert worker.log().count("ZeroDivisionError") == 1
    assert [answer.status for answer in answers] == [200, 503, 503, 200, 503]
    assert answers[3].body == b'{"half":0.25}'
    assert json.loads(answers[1].body) == {
        "code": 503,
        "type": "InternalServerException",
        "message": "Prediction failed",
    }


def test_a_handler_without_explanations_answers_501(scripted: Callable[[str], Path]) -> None:
    code = """
    class Mine(BaseHandler):
        def decode(self, request):
            return torch.tensor(request.json())
    """
    with Worker(scripted(code)) as worker:
        explained, predicted, broken = worker.predict_batch(
            [Request(b"[1.5]", explain=True), Request(b"[1.5, 2]"), Request(b"[1.5,")]
        )
    assert (explained.status, broken.status) == (501, 400)
    assert (predicted.body, predicted.content_type) == (b"[1.5,2.0]", "application/json")


COUNTING = """
class Mine(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.seen = []
        self.warm_up(context)
    def decode(self, request):
        if request.payload == "bad": raise ValueError("a sample to be refused")
        return torch.tensor([float(request.payload)])
    def inference(self, batch):
        self.seen.append(len(batch))
        return batch
    def postprocess(self, output):
        return [{"seen": self.seen, "threads": torch.get_num_threads()}] * len(output)
"""


@pytest.mark.parametrize(
    ("samples", "config", "seen"),
    [
        ([{"json": 1}, {"json": 2}, {"json": 3, "explain": True}], {"batchSize": 4}, [1, 1, 1, 4, 4, 4, 1]),
        ([{"json": 1}], {}, [1, 1, 1, 1]),
        ([{"json": 1}], {"batchSize": 4, "handler": {"warm_up": False}}, [1]),
        ([{"json": "bad"}], {"batchSize": 2}, [1]),
        ([], {"batchSize": 4}, [1]),
    ],
)
def test_a_worker_answers_its_samples_before_any_client(
    scripted: Callable[..., Path], samples: list[object], config: dict[str, object], seen: list[int]
) -> None:
    with Worker(scripted(COUNTING, samples=samples, config=config)) as worker:
        assert json.loads(worker.predict_batch([Request(b"1", "application/json")])[0].body)["seen"] == seen


@pytest.mark.parametrize(
    ("config", "threads"),
    [
        ({}, lambda cores: cores),
        ({"minWorkers": 1, "maxWorkers": 2}, lambda cores: max(1, cores // 2)),
        ({"minWorkers": 1, "maxWorkers": 1000}, lambda cores: 1),
        ({"handler": {"threads": 3}}, lambda cores: 3),
    ],
)
def test_workers_share_the_cores(
    scripted: Callable[..., Path], config: dict[str, object], threads: Callable[[int], int]
) -> None:
    import psutil

    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    with Worker(scripted(COUNTING, config=config)) as worker:
        assert json.loads(worker.predict_batch([Request(b"1", "application/json")])[0].body)["threads"] == threads(
            cores
        )
