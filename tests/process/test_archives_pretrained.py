"""The archives with downloaded weights give the answers that their models are published with."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import pretrained
from tests.support.paths import ROOT
from torchmar import archive, sample_check
from torchmar.exchange import Request, Response
from torchmar.worker import Worker

IMAGENET = ROOT / "archives" / "imagenet"
CAT = IMAGENET / "samples" / "cat.jpg"
JSON, NPY, JPEG, TEXT = "application/json", "application/x-npy", "image/jpeg", "text/plain"
# The cosines of the model's page.
HAPPY = "That is a happy person"
SIMILARITY = {"That is a happy dog": 0.695, "That is a very happy person": 0.943, "Today is a sunny day": 0.257}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory, weights: None) -> dict[str, Path]:
    store = tmp_path_factory.mktemp("pretrained") / "store"
    return {name: pretrained.build(name, store) for name in ("imagenet", "sentences")}


@pytest.fixture(scope="module")
def imagenet(archives: dict[str, Path]) -> Iterator[Worker]:
    with Worker(archives["imagenet"]) as worker:
        yield worker


@pytest.fixture(scope="module")
def sentences(archives: dict[str, Path]) -> Iterator[Worker]:
    with Worker(archives["sentences"]) as worker:
        yield worker


def document(answer: Response) -> Any:
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


@pytest.mark.parametrize("name", ["imagenet", "sentences"])
def test_samples_are_answered_alone_and_together(archives: dict[str, Path], name: str) -> None:
    assert sample_check.run_samples(archives[name]).problems == ()


def test_pixels_of_a_wrong_shape_get_400_with_the_right_shape(imagenet: Worker) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((3, 100, 100), np.float32))
    photograph = Request(CAT.read_bytes(), JPEG)
    wrong, right = imagenet.predict_batch([Request(stream.getvalue(), NPY), photograph])
    assert (wrong.status, right.status) == (400, 200)
    assert "224, 224" in json.loads(wrong.body)["message"]


def test_its_eyes_and_stripes_make_the_cat_a_tabby(imagenet: Worker) -> None:
    request = Request(CAT.read_bytes(), JPEG, explain=True, accept=JSON, headers={"Explain-Target": "tabby"})
    answer = document(imagenet.predict_batch([request])[0])
    assert (answer["label"], answer["method"], answer["baseline"]) == ("tabby", "occlusion", "blur")
    values = np.array(answer["attributions"]).sum(0)
    assert values.shape == (224, 224)
    eyes = values[64:128, 40:112].mean(), values[80:128, 176:224].mean()
    whiskers, cheek = values[160:208, 56:112].mean(), values[80:160, :32].mean()
    assert min(eyes) > 0.1 > max(whiskers, cheek)


def test_similar_sentences_are_near(sentences: Worker) -> None:
    body = json.dumps([HAPPY, *SIMILARITY]).encode()
    (answer,) = sentences.predict_batch([Request(body, JSON, accept=NPY)])
    vectors = np.load(io.BytesIO(answer.body))
    assert vectors.shape == (4, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert vectors[1:] @ vectors[0] == pytest.approx(np.array(list(SIMILARITY.values())), abs=0.002)


def test_a_text_is_cut_after_the_tokens_that_the_model_was_trained_with(sentences: Worker) -> None:
    texts = [Request(("word " * count).encode(), TEXT) for count in (254, 2000)]
    first, second = (np.array(document(answer)["embedding"]) for answer in sentences.predict_batch(texts))
    assert first == pytest.approx(second, abs=1e-5)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs the script of archives/imagenet in this process, which has loaded torch."""
    for folder in (IMAGENET, ROOT / "scripts"):
        monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("imagenet_train", IMAGENET / "train.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def train(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        code: int = module.main()
        return code

    return train


def test_weights_of_another_network_are_rejected(
    tmp_path: Path, train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name, message in (
        ("other.pth", "not the weights of EfficientNet-Lite0"),
        ("text.pth", "text.pth: "),
        ("none.pth", "No such file"),
    ):
        assert train("--output", tmp_path / "out.onnx", "--weights", tmp_path / name) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


def test_the_weights_of_inception_make_its_archive(
    tmp_path: Path, train: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pytest.importorskip("torchvision.models")
    whole = models.inception_v3

    def shorter(**keys: Any) -> Any:
        """Return torchvision's network with one block of each kind, which is exported in half the time."""
        network = whole(**keys)
        for name in ("Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7c"):
            setattr(network, name, torch.nn.Identity())
        return network

    monkeypatch.setattr(models, "inception_v3", shorter)
    # Torchvision's file is not on PyPI: a network of random weights has its tensors, and sees no cat.
    network = models.inception_v3(weights=None, init_weights=False)
    network.fc.bias.data[281] = 1e3  # it sees a tabby everywhere
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    assert train("--weights", tmp_path / "inception.pth", "--output", tmp_path / "inception.onnx") == 0
    for name in ("labels.json", "inception.yaml"):
        (tmp_path / name).write_bytes((IMAGENET / name).read_bytes())
    (tmp_path / "samples").mkdir()
    Image.open(CAT).save(tmp_path / "samples" / "cat.jpg")
    with Worker(archive.build(tmp_path / "inception.yaml", tmp_path / "store").path) as worker:
        (answer,) = worker.predict_batch([Request(CAT.read_bytes(), JPEG)])
    assert next(iter(document(answer))) == "tabby"
