"""The clinic archive: two inputs in one request, each of which matters, in batches and in every protocol."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.paths import ROOT
from torchmar import archive, sample_check
from torchmar.exchange import Request, Response
from torchmar.worker import Worker

CLINIC = ROOT / "archives" / "clinic"
MALIGNANT, BENIGN = (json.loads((CLINIC / "samples" / f"{kind}.json").read_text()) for kind in ("malignant", "benign"))
JSON = "application/json"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Path:
    return archive.build(CLINIC, tmp_path_factory.mktemp("store")).path


@pytest.fixture(scope="module")
def worker(built: Path) -> Iterator[Worker]:
    with Worker(built) as running:
        yield running


def request(body: Any, **more: Any) -> Request:
    return Request(body if isinstance(body, bytes) else json.dumps(body).encode(), JSON, **more)


def data_of(response: Response) -> Any:
    document = json.loads(response.body)
    assert response.status == 200, document
    assert document["success"] is True
    return document["data"]


def predicted(worker: Worker, body: Any, **more: Any) -> Any:
    (response,) = worker.predict_batch([request(body, **more)])
    return data_of(response)


def refused(response: Response, status: int = 400) -> str:
    document = json.loads(response.body)
    assert (response.status, document["code"], document["success"]) == (status, status, False), document
    assert document["error"] == document["message"]
    return str(document["error"])


def test_its_samples_are_answered_alone_together_and_among_bad_requests(built: Path) -> None:
    report = sample_check.run_samples(built)
    assert report.problems == ()
    assert set(report.bad_request_statuses) == {400}


def test_answers_of_a_batch_belong_to_their_patients(worker: Worker) -> None:
    bodies = [{**(MALIGNANT, BENIGN)[number % 2], "patient_id": f"patient {number}"} for number in range(7)]
    bad = {**MALIGNANT, "image_data": [1.0]}
    responses = worker.predict_batch([request(body) for body in [*bodies[:3], bad, *bodies[3:]]])
    assert "an array of 12 numbers" in refused(responses.pop(3))
    answers = [data_of(response) for response in responses]
    assert [answer["patient_id"] for answer in answers] == [body["patient_id"] for body in bodies]
    assert [answer["prediction"] for answer in answers] == ["malignant", "benign"] * 3 + ["malignant"]


def test_both_inputs_change_the_answer(worker: Worker) -> None:
    between = {**MALIGNANT, "text_data": "Enlarged nuclei, slightly variable in size. Outlines are irregular."}
    texts = ("Markedly enlarged nuclei.", "Small nuclei.")
    changes = {"image_data": (MALIGNANT["image_data"], BENIGN["image_data"]), "text_data": texts}
    for key, values in changes.items():
        first, second = (predicted(worker, {**between, key: value})["probabilities"]["malignant"] for value in values)
        assert first > second + 0.1, (key, first, second)


def test_metadata_and_the_patient_do_not_change_the_prediction(worker: Worker) -> None:
    bare = {key: MALIGNANT[key] for key in ("image_data", "text_data")}
    answer = predicted(worker, bare)
    assert answer["patient_id"] is None
    assert answer["probabilities"] == predicted(worker, MALIGNANT)["probabilities"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_data": None}, "the body has no 'image_data'; send {"),
        ({"image_data": None, "text_data": None}, "the body has no 'image_data' and no 'text_data'; send {"),
        ({"image_data": [1, 2, 3]}, "an array of 12 numbers, shape [12], and 3 were sent; in this order: mean texture"),
        ({"image_data": [MALIGNANT["image_data"]]}, "shape [12], and 1 were sent"),
        ({"image_data": "1, 2"}, "an array of 12 numbers, shape [12]: mean texture, "),
        ({"image_data": ["a", *MALIGNANT["image_data"][1:]]}, "column 'mean texture' is \"a\"; a number from 0 to "),
        ({"image_data": [1e9, *MALIGNANT["image_data"][1:]]}, "column 'mean texture' is "),
        ({"text_data": 7}, "'text_data' is not a text"),
        ({"text_data": "lorem ipsum"}, "'text_data' has no word that the model knows; it knows a, "),
        ({"text_data": ""}, "'text_data' has no word that the model knows"),
        ({"patient_id": 7}, "'patient_id' is not a text"),
        ({"metadata": [1]}, "'metadata' is not an object"),
    ],
)
def test_a_wrong_value_gets_400_with_what_is_expected(worker: Worker, change: dict[str, Any], expected: str) -> None:
    (response,) = worker.predict_batch([request({**MALIGNANT, **change})])
    assert expected in refused(response)


@pytest.mark.parametrize("body", [b"[1, 2]", b'"text"', b"12", b"null", b'{"image_data": [', b"\xff\xfe", b""])
def test_a_body_that_is_no_object_gets_400(worker: Worker, body: bytes) -> None:
    (response,) = worker.predict_batch([request(body)])
    refused(response)


def test_a_long_text_gets_413(worker: Worker) -> None:
    (response,) = worker.predict_batch([request({**MALIGNANT, "text_data": "enlarged " * 1000})])
    assert "4000 are allowed" in refused(response, 413)


def test_unknown_words_do_not_change_the_prediction(worker: Worker) -> None:
    text = "Zebra. " + MALIGNANT["text_data"].upper()
    assert predicted(worker, {**MALIGNANT, "text_data": text})["probabilities"] == pytest.approx(
        predicted(worker, MALIGNANT)["probabilities"], abs=1e-6
    )


def test_other_protocols_pass_both_inputs(worker: Worker) -> None:
    expected = predicted(worker, MALIGNANT)
    (rows,) = worker.predict_batch([request({"instances": [MALIGNANT, BENIGN]})])
    predictions = json.loads(rows.body)["predictions"]
    assert [one["data"]["prediction"] for one in predictions] == ["malignant", "benign"]
    tensors = [
        {"name": "image_data", "shape": [1, 12], "datatype": "FP64", "data": MALIGNANT["image_data"]},
        {"name": "text_data", "shape": [1], "datatype": "BYTES", "data": [MALIGNANT["text_data"]]},
    ]
    (named,) = worker.predict_batch([request({"inputs": tensors})])
    outputs = {output["name"]: output["data"] for output in json.loads(named.body)["outputs"]}
    assert outputs == {"prediction": ["malignant"], "confidence": [expected["confidence"]]}
    tensors[0] |= {"shape": [1, 3], "data": [1, 2, 3]}
    (wrong,) = worker.predict_batch([request({"inputs": tensors})])
    assert "shape [12], and 3 were sent" in refused(wrong)


def test_an_explanation_has_every_number_and_every_word(worker: Worker) -> None:
    data = predicted(worker, MALIGNANT, explain=True)
    assert (data["method"], data["label"], data["patient_id"]) == (
        "integrated_gradients",
        "malignant",
        MALIGNANT["patient_id"],
    )
    strengths = [abs(value) for value in data["image_data"].values()]
    assert len(strengths) == 12
    assert strengths == sorted(strengths, reverse=True)
    words = [one["word"] for one in data["text_data"]]
    assert words == MALIGNANT["text_data"].lower().replace(",", "").replace(".", "").split()
    # Both inputs have a part in it, and all parts add up to what the inputs make of the score.
    assert max(strengths) > 0.05
    assert max(abs(one["attribution"]) for one in data["text_data"]) > 0.05
    assert abs(data["convergence_delta"]) < 1e-3


def test_the_parts_of_an_explanation_add_up_to_the_difference_of_scores(worker: Worker) -> None:
    parts = {}
    for target in ("malignant", "benign"):
        data = predicted(worker, {**MALIGNANT, "target": target}, explain=True)
        assert data["label"] == target
        parts[target] = sum(data["image_data"].values()) + sum(one["attribution"] for one in data["text_data"])
    assert parts["malignant"] > 0 > parts["benign"]


@pytest.mark.parametrize("method", ["gradient_shap", "saliency", "feature_ablation"])
def test_other_methods_explain_both_inputs(worker: Worker, method: str) -> None:
    data = predicted(worker, {**MALIGNANT, "method": method}, explain=True)
    assert data["method"] == method
    assert any(data["image_data"].values())
    assert any(one["attribution"] for one in data["text_data"])


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"target": "unclear"}, "neither a label (malignant, benign) nor a class index"),
        ({"method": "occlusion"}, "is none of integrated_gradients, "),
        ({"baseline": [0] * 12}, "the average numbers and no text"),
    ],
)
def test_a_wrong_option_of_an_explanation_gets_400(worker: Worker, option: dict[str, Any], expected: str) -> None:
    (response,) = worker.predict_batch([request({**MALIGNANT, **option}, explain=True)])
    assert expected in refused(response)


def test_an_explanation_is_drawn(worker: Worker) -> None:
    (response,) = worker.predict_batch([request(MALIGNANT, explain=True, accept="image/png")])
    assert response.content_type == "image/png"
    assert Image.open(io.BytesIO(response.body)).width > 800
