"""The handlers of tables take rows in every request format, report every mistake in them, and explain by column."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.support.paths import ROOT
from torchmar import archive, sample_check
from torchmar.errors import LoadError
from torchmar.exchange import Request, Response
from torchmar.worker import Worker

TUMOURS, DIABETES = ROOT / "archives" / "tumours", ROOT / "archives" / "diabetes"
PATIENT = json.loads((DIABETES / "samples" / "low.json").read_text())
OTHER = json.loads((DIABETES / "samples" / "high.json").read_text())
NAMES = list(PATIENT)
CSV = ",".join(NAMES) + "\n" + ",".join(map(str, PATIENT.values())) + "\n" + ",".join(map(str, OTHER.values())) + "\n"

CLASSIFIER, REGRESSOR = "torchmar_handlers.tabular_classifier", "torchmar_handlers.tabular_regressor"


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory, weights: None) -> dict[str, Path]:
    store = tmp_path_factory.mktemp("tables")
    return {folder.name: archive.build(folder, store).path for folder in (TUMOURS, DIABETES)}


@pytest.fixture(scope="module")
def tumours(archives: dict[str, Path]) -> Iterator[Worker]:
    with Worker(archives["tumours"]) as worker:
        yield worker


@pytest.fixture(scope="module")
def diabetes(archives: dict[str, Path]) -> Iterator[Worker]:
    with Worker(archives["diabetes"]) as worker:
        yield worker


@pytest.fixture
def tabular(make: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that builds an archive of a TorchScript model (a module, traced) and options."""

    def build(handler: str, module: torch.nn.Module, width: int, options: dict[str, Any], **keys: Any) -> Path:
        stream = io.BytesIO()
        torch.jit.save(torch.jit.trace(module.eval(), torch.zeros(2, width)), stream)
        disk = {"model.pt": stream.getvalue(), **keys.pop("disk", {})}
        config = {"handler": options, **keys.pop("config", {})}
        return make(handler=handler, disk=disk, weights="model.pt", config=config, **keys)

    return build


def request_of(body: Any, kind: str = "application/json", **more: Any) -> Request:
    return Request(body if isinstance(body, bytes) else json.dumps(body).encode(), kind, **more)


def decoded(answer: Response) -> Any:
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def alone(worker: Worker, body: Any, **more: Any) -> Any:
    return decoded(worker.predict_batch([request_of(body, **more)])[0])


def error_message(answer: Response) -> str:
    error = json.loads(answer.body)
    assert (answer.status, answer.content_type, error["code"]) == (400, "application/json", 400), error
    return str(error["message"])


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(array))
    return stream.getvalue()


def tensors(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": [len(rows)], "datatype": "FP64", "data": [row[name] for row in rows]} for name in NAMES
    ]


@pytest.mark.parametrize("name", ["tumours", "diabetes"])
def test_the_archives_keep_their_contract(archives: dict[str, Path], name: str) -> None:
    held = sample_check.run_samples(archives[name])
    assert not held.problems
    assert held.explains


def test_a_batch_is_answered_like_its_requests_one_by_one(tumours: Worker) -> None:
    header, *lines = (TUMOURS / "samples" / "both.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), map(float, line.split(",")), strict=True)) for line in lines]
    shifted = [{name: value * factor for name, value in row.items()} for row in rows for factor in (1, 0.9, 1.1, 0.5)]
    requests = [request_of(row) for row in shifted]
    assert [decoded(answer) for answer in tumours.predict_batch(requests)] == [
        decoded(tumours.predict_batch([request])[0]) for request in requests
    ]


def test_a_prediction_is_the_models_own(diabetes: Worker) -> None:
    options = yaml.safe_load((DIABETES / "archive.yaml").read_text())["config"]["handler"]
    state = torch.load(DIABETES / "diabetes.pt")
    seen = []
    for column in options["columns"]:
        value = PATIENT[column["name"]]
        one_hot = [float(value == category) for category in column.get("categories", ())]
        seen += one_hot or [(value - column["mean"]) / column["std"]]
    x = torch.tensor(seen)
    hidden = torch.tanh(state["correction.0.weight"] @ x + state["correction.0.bias"])
    output = state["linear.weight"] @ x + state["linear.bias"]
    output += state["correction.3.weight"] @ hidden + state["correction.3.bias"]
    expected = output.item() * options["output_std"] + options["output_mean"]
    assert alone(diabetes, PATIENT) == {"progression": pytest.approx(expected, abs=1e-3)}


ONE, TWO = {"progression": "one"}, {"progression": "two"}  # the two patients' answers, filled in by the test
V2_HEAD = {"model_name": "diabetes", "model_version": "1.0"}
PROTOCOLS: dict[str, tuple[Request, Any]] = {
    "an object": (request_of(PATIENT), ONE),
    "an object of no declared type": (request_of(PATIENT, "application/octet-stream"), ONE),
    "an object in another order": (request_of(dict(reversed(PATIENT.items()))), ONE),
    "an array": (request_of(list(PATIENT.values())), ONE),
    "objects": (request_of([PATIENT, OTHER]), [ONE, TWO]),
    "arrays": (request_of([list(PATIENT.values()), list(OTHER.values())]), [ONE, TWO]),
    "an array and an object": (request_of([list(PATIENT.values()), OTHER], "text/plain"), [ONE, TWO]),
    "rows": (request_of({"rows": [PATIENT, OTHER]}), [ONE, TWO]),
    "one of rows": (request_of({"rows": [PATIENT]}), [ONE]),
    "CSV": (request_of(CSV.encode(), "text/csv"), [ONE, TWO]),
    "CSV with a charset": (request_of(CSV.encode(), "text/csv; charset=utf-8"), [ONE, TWO]),
    "CSV as text": (request_of(CSV.encode(), "text/plain"), [ONE, TWO]),
    "CSV of no declared type": (request_of(CSV.encode(), "application/octet-stream"), [ONE, TWO]),
    "CSV from Excel": (request_of(b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode(), "text/csv"), [ONE, TWO]),
    "CSV with quotes and spaces": (
        request_of(CSV.replace(",", ", ").replace("age", '"age"').encode(), "text/csv"),
        [ONE, TWO],
    ),
    ".npy": (request_of(npy(list(PATIENT.values())), "application/x-npy"), ONE),
    ".npy of rows": (request_of(npy([list(PATIENT.values()), list(OTHER.values())])), [ONE, TWO]),
    "KServe v1": (request_of({"instances": [PATIENT, list(OTHER.values())]}), {"predictions": [ONE, TWO]}),
    "TF Serving rows": (
        request_of({"signature_name": "serving_default", "instances": [PATIENT]}),
        {"predictions": [ONE]},
    ),
    "TF Serving columns": (
        request_of({"inputs": {name: [PATIENT[name], OTHER[name]] for name in NAMES}}),
        {"outputs": {"progression": ["one", "two"]}},
    ),
    "TF Serving columns of shape (n, 1)": (
        request_of({"inputs": {name: [[PATIENT[name]], [OTHER[name]]] for name in NAMES}}),
        {"outputs": {"progression": ["one", "two"]}},
    ),
    "TF Serving inputs": (
        request_of({"inputs": {"x": [list(PATIENT.values()), list(OTHER.values())]}}),
        {"outputs": {"progression": ["one", "two"]}},
    ),
    "v2, a tensor per column": (
        request_of({"id": "7", "inputs": tensors([PATIENT, OTHER])}),
        {
            **V2_HEAD,
            "id": "7",
            "outputs": [{"name": "progression", "shape": [2], "datatype": "FP64", "data": ["one", "two"]}],
        },
    ),
    "v2, one tensor": (
        request_of(
            {"inputs": [{"name": "x", "shape": [1, 10], "datatype": "FP64", "data": list(PATIENT.values())}]},
        ),
        {**V2_HEAD, "outputs": [{"name": "progression", "shape": [1], "datatype": "FP64", "data": ["one"]}]},
    ),
}


def filled(template: Any, values: dict[str, float]) -> Any:
    if isinstance(template, dict):
        return {key: filled(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [filled(value, values) for value in template]
    return values.get(template, template)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_rows_are_taken_however_they_are_sent(diabetes: Worker, name: str) -> None:
    values = {"one": alone(diabetes, PATIENT)["progression"], "two": alone(diabetes, OTHER)["progression"]}
    request, template = PROTOCOLS[name]
    assert decoded(diabetes.predict_batch([request])[0]) == filled(template, values)


def test_all_protocols_share_a_batch(diabetes: Worker) -> None:
    requests = [request for request, _ in PROTOCOLS.values()]
    assert [a.body for a in diabetes.predict_batch(requests)] == [
        diabetes.predict_batch([request])[0].body for request in requests
    ]


def but(**changes: Any) -> dict[str, Any]:
    return {**PATIENT, **changes}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in PATIENT.items() if key != name}


V2 = {"name": "age", "shape": [1], "datatype": "FP64", "data": [44]}
MALFORMED: dict[str, tuple[Request, str]] = {
    "empty": (request_of(b""), "the body is empty"),
    "blank": (request_of(b"  \n", "text/plain"), "the body is empty"),
    "null": (request_of(None), "the body is empty"),
    "an empty array": (request_of([]), "the body is empty"),
    "an empty object": (request_of({}), "column 'age' is missing; a number from 18 to 100 years is expected"),
    "a number": (request_of(7), "or an array of 10 values, not 7"),
    "a text": (request_of("seven"), "neither JSON nor CSV: its first line, 'seven', names no column"),
    "true": (request_of(True), "not True"),
    "broken JSON": (request_of(b'{"age": 44,', "application/json"), "not JSON"),
    "broken JSON as text": (request_of(b"[1, 2", "text/plain"), "not JSON"),
    "noise": (request_of(b"\x00\xff\xfe", "application/octet-stream"), "byte 1 is 0xff"),
    "nested without end": (request_of(b"[" * 500 + b"]" * 500, "text/plain"), "instance 0: the row has 1 value"),
    "rows of one value": (request_of({"rows": 3}), "rows is not an array"),
    "rows without any": (request_of({"rows": []}), "the body is empty"),
    "rows beside a number": (request_of([PATIENT, 3]), "instance 1: a row is an object"),
    "rows beside null": (request_of([PATIENT, None]), "instance 1: a row is an object {column: value} or an array"),
    "instances of none": (request_of({"instances": []}), "instances is empty"),
    "too few": (request_of([1, 2, 3]), "the row has 3 values; 10 are expected, in this order: age, sex, bmi"),
    "too many": (request_of([0] * 11), "the row has 11 values; 10 are expected"),
    "a row that is too short": (
        request_of([[*PATIENT.values()], [1]]),
        "instance 1: the row has 1 value; 10 are expected",
    ),
    "a missing column": (
        request_of(without("bmi")),
        "column 'bmi' is missing; a number from 12 to 60 kg/m2 is expected",
    ),
    "a null": (request_of(but(bmi=None)), "column 'bmi' is missing; a number from 12 to 60 kg/m2 is expected"),
    "a misspelt column": (request_of({**without("bmi"), "BMI": 30}), "there is no column 'BMI' (did you mean 'bmi'?)"),
    "an unknown column": (request_of(but(weight=80)), "there is no column 'weight' (there are age, sex, bmi"),
    "a text for a number": (
        request_of(but(age="44")),
        "column 'age' is \"44\"; a number from 18 to 100 years is allowed",
    ),
    "a boolean for a number": (request_of(but(age=True)), "column 'age' is true; a number"),
    "an array for a number": (request_of(but(age=[4, 4])), "column 'age' has the shape [2] in one row; a number"),
    "an object for a number": (request_of(but(age={"years": 44})), "column 'age' is {\"years\": 44}; a number"),
    "too low": (request_of(but(age=17.9)), "column 'age' is 17.9; a number from 18 to 100 years is allowed"),
    "too high": (request_of(but(bmi=310)), "column 'bmi' is 310; a number from 12 to 60 kg/m2 is allowed"),
    "NaN": (request_of(but(bp=math.nan)), "column 'bp' is NaN; a number"),
    "infinity": (request_of(but(bp=math.inf)), "column 'bp' is Infinity; a number"),
    "too large for any float": (request_of(but(bp=10**400)), "column 'bp' is 1000"),
    "another category": (request_of(but(sex=3)), "column 'sex' is 3; one of 1, 2 is allowed"),
    "a category's text": (request_of(but(sex="1")), "column 'sex' is \"1\"; one of 1, 2 is allowed"),
    "a boolean for a category": (request_of(but(sex=True)), "column 'sex' is true; one of 1, 2 is allowed"),
    "a fraction for a category": (request_of(but(sex=1.5)), "column 'sex' is 1.5; one of 1, 2 is allowed"),
    "CSV without a header": (request_of(CSV.partition("\n")[2].encode(), "text/csv"), "names no column"),
    "CSV with nothing below": (request_of(b"age,sex\n", "text/csv"), "the CSV has a header and no rows"),
    "CSV with an uneven line": (
        request_of(b"age,sex\n44,1\n44\n", "text/csv"),
        "line 3 of the CSV has 1 cells; the header",
    ),
    "CSV with a misspelt column": (
        request_of(b"age,sexx\n44,1\n", "text/csv"),
        "no column 'sexx' (did you mean 'sex'?)",
    ),
    "CSV with a column twice": (
        request_of(b"age,age\n44,1\n", "text/csv"),
        "two columns of the header are called 'age'",
    ),
    "CSV with an open quote": (request_of(b'age,sex\n"44,1\n', "text/csv"), "the CSV is damaged"),
    "CSV with a text for a number": (
        request_of(CSV.replace("21.5", "fat").encode(), "text/csv"),
        "instance 0: column 'bmi' is \"fat\"; a number",
    ),
    "CSV with an empty cell": (
        request_of(CSV.replace("33.9", "").encode(), "text/csv"),
        "instance 1: column 'bmi' is missing",
    ),
    "CSV with another category": (
        request_of(b"age,sex,bmi,bp\n44,x,21,85\n", "text/csv"),
        "instance 0: column 'sex' is \"x\"; one of 1, 2 is allowed",
    ),
    ".npy of three dimensions": (request_of(npy(np.zeros((1, 2, 10)))), "the array has the shape [1, 2, 10]"),
    ".npy of other columns": (request_of(npy(np.zeros((2, 9)))), "instance 0: the row has 9 values; 10 are expected"),
    "damaged .npy": (request_of(npy(np.zeros((2, 10)))[:-8]), "the .npy file is damaged"),
    "a bad instance among good ones": (
        request_of({"instances": [PATIENT, but(age=7), PATIENT]}),
        "instance 1: column 'age' is 7; a number from 18 to 100 years is allowed",
    ),
    "columns of different lengths": (
        request_of({"inputs": {"age": [1, 2], "sex": [1]}}),
        "not equally long: age: 2, sex: 1",
    ),
    "v2 with one column": (request_of({"inputs": [V2]}), "column 'sex' is missing"),
    "v2 with an unknown column": (
        request_of({"inputs": [*tensors([PATIENT]), {**V2, "name": "agee"}]}),
        "no column 'agee' (did you mean 'age'?)",
    ),
    "v2 of the wrong width": (
        request_of({"inputs": [{**V2, "name": "x", "shape": [1, 2], "data": [1, 2]}]}),
        "the row has 2 values; 10 are expected",
    ),
    "v2 with texts": (
        request_of({"inputs": [{**V2, "datatype": "BYTES", "data": ["old"]}, *tensors([PATIENT])[1:]]}),
        "column 'age' is \"old\"; a number",
    ),
}


def test_malformed_rows_get_their_own_400_and_others_their_answers(diabetes: Worker) -> None:
    good = request_of(PATIENT)
    answers = diabetes.predict_batch([part for request, _ in MALFORMED.values() for part in (request, good)])
    for (name, (_, message)), answer in zip(MALFORMED.items(), answers[::2], strict=True):
        error = error_message(answer)
        assert message in error, name
        assert "\n" not in error, name
    assert {answer.body for answer in answers[1::2]} == {diabetes.predict_batch([good])[0].body}
    assert "TabularRegressor failed" not in diabetes.log()


def test_every_problem_of_a_row_is_reported_at_once_up_to_five(diabetes: Worker) -> None:
    (answer,) = diabetes.predict_batch(
        [request_of({"age": "x", "sex": 0, "bmi": 99, "bp": None, "s1": 1, "s2": 1, "s3": 1, "x": 1})]
    )
    message = error_message(answer)
    assert message.split("; ")[0].startswith("there is no column 'x'")
    assert [name for name in NAMES if f"column {name!r}" in message] == ["age", "sex", "bmi", "bp"]
    assert message.endswith("; and 3 more problems")


def test_a_default_replaces_a_missing_value(diabetes: Worker) -> None:
    short = {name: PATIENT[name] for name in NAMES[:4]}
    full = {**short, "s1": 189, "s2": 115, "s3": 49.8, "s4": 4.07, "s5": 4.64, "s6": 91.3}
    header = ",".join(short) + ",s6\n" + ",".join(map(str, short.values())) + ",\n"
    expected = alone(diabetes, full)
    assert alone(diabetes, short) == alone(diabetes, {**short, "s1": None}) == expected
    assert decoded(diabetes.predict_batch([request_of(header.encode(), "text/csv")])[0]) == [expected]


def test_predictions_explanations_and_bad_rows_share_a_batch(tumours: Worker) -> None:
    rows = {kind: json.loads((TUMOURS / "samples" / f"{kind}.json").read_text()) for kind in ("malignant", "benign")}
    requests = [
        request_of(rows["malignant"], explain=True),
        request_of(rows["benign"]),
        request_of({**rows["benign"], "mean area": -1}, explain=True),
        request_of({"rows": [rows["benign"], rows["malignant"]]}, explain=True),
        request_of([]),
        request_of(rows["malignant"]),
        request_of({"instances": [rows["benign"]]}, explain=True),
    ]
    answers = tumours.predict_batch(requests)
    assert [answer.status for answer in answers] == [200, 200, 400, 200, 400, 200, 200]
    assert [next(iter(decoded(answers[index]))) for index in (1, 5)] == ["benign", "malignant"]
    assert decoded(answers[0])["label"] == "malignant"
    assert [explanation["label"] for explanation in decoded(answers[3])] == ["benign", "malignant"]
    assert decoded(answers[6])["explanations"][0] == decoded(answers[3])[0]
    assert decoded(answers[3])[1] == decoded(answers[0])
    assert error_message(answers[2]).startswith("column 'mean area' is -1; a number from 0 to 5002 is allowed")


def test_attributions_are_complete_and_sorted_and_of_columns(diabetes: Worker, tumours: Worker) -> None:
    value = alone(diabetes, OTHER)["progression"]
    own = {**PATIENT, "sex": 2}
    explained = alone(diabetes, {**OTHER, "baseline": own}, explain=True)
    assert (explained["method"], explained["baseline"], explained["label"]) == (
        "integrated_gradients",
        "given",
        "progression",
    )
    assert explained["value"] == pytest.approx(value)
    assert sum(explained["attributions"].values()) == pytest.approx(
        value - alone(diabetes, own)["progression"], abs=0.2
    )
    strength = [abs(attribution) for attribution in explained["attributions"].values()]
    assert strength == sorted(strength, reverse=True)
    assert explained["attributions"].keys() == set(NAMES)
    # Both are of sex 2, whose one-hot numbers are one column.
    assert explained["attributions"]["sex"] == 0
    assert explained["row"] == pytest.approx(OTHER)

    model = torch.jit.load(TUMOURS / "tumours.pt").eval()
    columns = json.loads((TUMOURS / "columns.json").read_text())
    row = json.loads((TUMOURS / "samples" / "malignant.json").read_text())
    seen = torch.tensor([(row[column["name"]] - column["mean"]) / column["std"] for column in columns])
    explained = alone(tumours, row, explain=True)
    assert explained["baseline"] == "mean"
    with torch.no_grad():
        difference = (model(seen[None]) - model(torch.zeros(1, 30)))[0, 0].item()
    assert sum(explained["attributions"].values()) == pytest.approx(difference, abs=0.01)
    assert abs(explained["convergence_delta"]) < 1e-3


@pytest.mark.parametrize("target", ["benign", 1, "1"])
def test_the_target_of_an_explanation_can_be_chosen(tumours: Worker, target: object) -> None:
    row = json.loads((TUMOURS / "samples" / "malignant.json").read_text())
    explained = alone(tumours, {**row, "target": target}, explain=True)
    assert (explained["target"], explained["label"]) == (1, "benign")
    assert explained["probability"] == alone(tumours, row)["benign"]
    assert alone(tumours, {"rows": [row], "target": target}, explain=True) == [explained]
    by_header = Request(json.dumps(row).encode(), "application/json", True, headers={"Explain-Target": str(target)})
    assert decoded(tumours.predict_batch([by_header])[0]) == explained


def test_ablation_gives_the_loss_of_a_whole_column(diabetes: Worker) -> None:
    document = {**OTHER, "method": "feature_ablation", "baseline": list(PATIENT.values())}
    explained = alone(diabetes, document, explain=True)
    value = alone(diabetes, OTHER)["progression"]
    for name in NAMES:
        loss = value - alone(diabetes, {**OTHER, name: PATIENT[name]})["progression"]
        assert explained["attributions"][name] == pytest.approx(loss, abs=0.05)


@pytest.mark.parametrize("method", ["integrated_gradients", "gradient_shap", "saliency", "feature_ablation"])
@pytest.mark.parametrize("baseline", ["mean", "zeros", 0.5])
def test_explanations_do_not_depend_on_their_batch(diabetes: Worker, method: str, baseline: object) -> None:
    requests = [request_of({**row, "method": method, "baseline": baseline}, explain=True) for row in (PATIENT, OTHER)]
    together = [decoded(answer) for answer in diabetes.predict_batch(requests)]
    apart = [decoded(diabetes.predict_batch([request])[0]) for request in requests]
    for batched, single in zip(together, apart, strict=True):
        assert batched["method"] == method
        assert batched["attributions"] == pytest.approx(single["attributions"], abs=0.02)


WRONG_EXPLANATIONS = {
    "target 'high' is neither an output (progression) nor an index from 0 to 0": {"target": "high"},
    "target 1 is neither": {"target": 1},
    "method 'lime' is none of integrated_gradients, gradient_shap, saliency, feature_ablation": {"method": "lime"},
    "n_steps 0 is not a whole number": {"n_steps": 0},
    "baseline 'blur' is none of mean, zeros": {"baseline": "blur"},
    "baseline: column 'age' is 7": {"baseline": {**PATIENT, "age": 7}},
    "baseline: the row has 2 values; 10 are expected": {"baseline": [1, 2]},
    "baseline is not JSON": {"baseline": "[1, 2"},
}


def test_wrong_wishes_for_an_explanation_get_their_own_400(diabetes: Worker) -> None:
    good = request_of(OTHER, explain=True)
    wrong = [request_of({**OTHER, **wish}, explain=True) for wish in WRONG_EXPLANATIONS.values()]
    answers = diabetes.predict_batch([part for bad in wrong for part in (bad, good)])
    for message, answer in zip(WRONG_EXPLANATIONS, answers[::2], strict=True):
        assert message in error_message(answer)
    assert {answer.status for answer in answers[1::2]} == {200}


def test_an_explanation_can_be_a_picture(tumours: Worker) -> None:
    row = json.loads((TUMOURS / "samples" / "malignant.json").read_text())
    (answer,) = tumours.predict_batch([request_of(row, explain=True, accept="image/png")])
    assert (answer.status, answer.content_type) == (200, "image/png")
    assert Image.open(io.BytesIO(answer.body)).format == "PNG"


def test_a_thousand_rows_are_answered_as_one_by_one(tumours: Worker) -> None:
    row = json.loads((TUMOURS / "samples" / "benign.json").read_text())
    factors = np.linspace(0.1, 1.5, 1000).tolist()
    answers = alone(tumours, [{name: value * factor for name, value in row.items()} for factor in factors])
    assert len(answers) == 1000
    for index in (0, 499, 999):
        assert answers[index] == alone(tumours, {name: value * factors[index] for name, value in row.items()})
    (many,) = tumours.predict_batch([request_of([row] * 1025)])
    assert many.status == 413


def test_the_open_inference_protocol_gets_labels_and_probabilities(tumours: Worker) -> None:
    rows = [json.loads((TUMOURS / "samples" / f"{kind}.json").read_text()) for kind in ("malignant", "benign")]
    inputs = [{"name": name, "shape": [2], "datatype": "FP64", "data": [row[name] for row in rows]} for name in rows[0]]
    label, probability = alone(tumours, {"inputs": inputs})["outputs"]
    assert (label["name"], label["datatype"], label["data"]) == ("label", "BYTES", ["malignant", "benign"])
    assert probability["data"] == [next(iter(alone(tumours, row).values())) for row in rows]


def test_the_columns_are_described_to_the_management_api(diabetes: Worker) -> None:
    described = decoded(diabetes.predict_batch([Request(b"", headers={"describe": "True"})])[0])
    assert [column["name"] for column in described["columns"]] == NAMES
    assert described["columns"][0] == {"name": "age", "type": "number", "takes": "a number from 18 to 100 years"}
    assert described["columns"][4]["default"] == 189


KINDS = [
    {"name": "size", "min": 0, "mean": 10, "std": 2},
    {"name": "floors", "type": "integer", "min": 1, "max": 3, "default": 2},
    {"name": "garden", "type": "boolean", "default": False},
    {"name": "town", "type": "category", "categories": ["Köln", "Mainz", "Bonn"], "default": "Bonn"},
    {"name": "grade", "type": "category", "categories": [10, 20, 30], "encoding": "index"},
    {"name": "target", "mean": 5, "max": 100},
]
BUILDING = {"size": 13, "floors": 2, "garden": True, "town": "Mainz", "grade": 30, "target": 7}
SEEN = [1.5, 2, 1, 0, 1, 0, 2, 7]


def test_a_model_sees_columns_as_they_are_specified(tabular: Callable[..., Path]) -> None:
    path = tabular(REGRESSOR, torch.nn.Identity(), 8, {"columns": KINDS})
    with Worker(path) as worker:
        assert alone(worker, BUILDING) == SEEN
        assert alone(worker, [13.0, 2.0, 1, "Mainz", 30.0, 7]) == SEEN
        assert alone(worker, {"size": 10, "grade": 10, "target": 100}) == [0, 2, 0, 0, 0, 1, 0, 100]
        csv = "town,size,floors,garden,grade,target\nMainz,13,2,true,30,7\n,13,,FALSE,30,7\n"
        assert decoded(worker.predict_batch([request_of(csv.encode(), "text/csv")])[0]) == [
            SEEN,
            [1.5, 2, 0, 0, 0, 1, 2, 7],
        ]
        columns = {
            "size": "FP32",
            "floors": "INT64",
            "garden": "BOOL",
            "town": "BYTES",
            "grade": "UINT8",
            "target": "FP64",
        }
        inputs = [
            {"name": name, "shape": [1, 1], "datatype": kind, "data": [BUILDING[name]]}
            for name, kind in columns.items()
        ]
        assert alone(worker, {"inputs": inputs})["outputs"] == [
            {"name": "output", "shape": [1, 8], "datatype": "FP64", "data": SEEN}
        ]
        wrong = {
            "column 'floors' is 2.5; a whole number from 1 to 3 is allowed": {"floors": 2.5},
            "column 'size' is -1; a number of at least 0 is allowed": {"size": -1},
            "column 'target' is 101; a number of at most 100 is allowed": {"target": 101},
            "column 'garden' is 2; true or false is allowed": {"garden": 2},
            "column 'garden' is \"yes\"; true or false is allowed": {"garden": "yes"},
            'one of "Köln", "Mainz", "Bonn" is allowed (did you mean \'Köln\'?)': {"town": "Koln"},
        }
        for message, change in wrong.items():
            assert message in error_message(worker.predict_batch([request_of({**BUILDING, **change})])[0])
        # A column that has the name of an option: 7 is its value, and not a target.
        explained = alone(worker, BUILDING, explain=True)
        assert explained["target"] == 0
        assert explained["attributions"] == {
            "size": 1.5,
            **dict.fromkeys(["floors", "garden", "town", "grade", "target"], 0),
        }
        assert explained["row"] == BUILDING
        assert alone(worker, {"rows": [BUILDING], "target": 6}, explain=True)[0]["attributions"]["grade"] == 2
        # The mean of a column is what it is compared with, the model's own scale or not.
        assert alone(worker, {"rows": [BUILDING], "target": 7}, explain=True)[0]["attributions"]["target"] == 2


@pytest.mark.parametrize(("choice", "seen"), [("clip", [0, 3]), ("allow", [-5, 9])])
def test_numbers_out_of_range_are_clipped_or_allowed(
    tabular: Callable[..., Path], choice: str, seen: list[int]
) -> None:
    columns = [{"name": "a", "min": 0, "max": 3}, {"name": "b", "type": "integer", "min": 0, "max": 3}]
    with Worker(tabular(REGRESSOR, torch.nn.Identity(), 2, {"columns": columns, "out_of_range": choice})) as worker:
        assert alone(worker, {"a": -5, "b": 9}) == seen
        assert alone(worker, [[-5, 9], [1, 2]]) == [seen, [1, 2]]
        assert "a is NaN" in error_message(worker.predict_batch([request_of({"a": math.nan, "b": 1})])[0]).replace(
            "'", ""
        )


def test_columns_can_stand_in_a_file_of_the_archive(tabular: Callable[..., Path]) -> None:
    file = {"columns.json": json.dumps(KINDS)}
    options = {"columns": "tables/columns.json", "output": [*"abcdefgh"], "output_mean": 1, "output_std": [2] * 8}
    path = tabular(REGRESSOR, torch.nn.Identity(), 8, options, disk=file, files={"tables/columns.json": "columns.json"})
    with Worker(path) as worker:
        assert alone(worker, BUILDING) == dict(zip("abcdefgh", [2 * value + 1 for value in SEEN], strict=True))
        explained = alone(worker, {**BUILDING, "baseline": {**BUILDING, "size": 10}}, explain=True)
        assert (explained["label"], explained["value"], explained["attributions"]["size"]) == ("a", 4, 3)


X = [{"name": "x"}]
BAD_OPTIONS = {
    "handler.columns: a list of columns is expected": {},
    "handler.columns: there is no file nowhere.json in the archive": {"columns": "nowhere.json"},
    "item 0 is not an object with a name": {"columns": ["x"]},
    "two columns are called 'x'": {"columns": X + X},
    "column 'x': type is 'text'; there are number, integer, category, boolean": {
        "columns": [{"name": "x", "type": "text"}]
    },
    "column 'x': a number has no 'maximum'; did you mean 'max'?": {"columns": [{"name": "x", "maximum": 1}]},
    "column 'x': min (2) is more than max (1)": {"columns": [{"name": "x", "min": 2, "max": 1}]},
    "column 'x': std is not positive": {"columns": [{"name": "x", "mean": 1, "std": 0}]},
    "column 'x': std needs a mean beside it": {"columns": [{"name": "x", "std": 1}]},
    "column 'x': categories is not a list of different": {"columns": [{"name": "x", "type": "category"}]},
    "column 'x': default is 7; a number of at most 5 is allowed": {"columns": [{"name": "x", "max": 5, "default": 7}]},
    "there are 1 frequencies of 2 categories": {
        "columns": [{"name": "x", "type": "category", "categories": [1, 2], "frequencies": [1]}]
    },
    "the model does not take the 2 numbers that they make": {"columns": [*X, {"name": "y"}]},
    "handler.output: ['a', 'b'] is not the name of each of the model's 1 outputs": {"columns": X, "output": ["a", "b"]},
    "handler.outputs: no option is called so; did you mean 'output'?": {"columns": X, "outputs": ["a"]},
    "handler.out_of_range: 'warn' is none of refuse, clip, allow": {"columns": X, "out_of_range": "warn"},
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_wrong_options_are_reported_when_the_model_loads(tabular: Callable[..., Path], message: str) -> None:
    path = tabular(REGRESSOR, torch.nn.Linear(1, 1), 1, BAD_OPTIONS[message])
    with pytest.raises(LoadError) as failed, Worker(path):
        pass
    assert message in failed.value.traceback


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


ACTIVATIONS = {
    "one score is of two classes": ([1], {}, {"yes": sigmoid(2), "no": sigmoid(-2)}),
    "one probability is of two classes": ([0.4], {"activation": "none"}, {"yes": 0.8, "no": 0.2}),
    "several scores are of as many classes": ([0, 0.5], {}, {"yes": sigmoid(1), "no": sigmoid(-1)}),
    "several sigmoids stand alone": ([0.5, 1], {"activation": "sigmoid"}, {"yes": sigmoid(2), "no": sigmoid(1)}),
    "probabilities stay": ([0.35, 0.15], {"activation": "none"}, {"no": 0.7, "yes": 0.3}),
    "topk is the limit": ([1], {"topk": 1}, {"yes": sigmoid(2)}),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_scores_become_probabilities(tabular: Callable[..., Path], name: str) -> None:
    factors, options, expected = ACTIVATIONS[name]
    module = torch.nn.Linear(1, len(factors), bias=False)
    module.weight.data = torch.tensor(factors, dtype=torch.float32)[:, None]
    path = tabular(CLASSIFIER, module, 1, {"columns": X, **options}, labels=["no", "yes"])
    with Worker(path) as worker:
        answer = alone(worker, {"x": 2})
        assert list(answer) == list(expected)
        assert answer == pytest.approx(expected, abs=1e-5)
        explained = alone(worker, {"x": 2, "baseline": [0], "target": "yes"}, explain=True)
        assert explained["attributions"]["x"] == pytest.approx(2 * factors[-1], abs=1e-3)
        assert explained["target"] == 1


def test_an_output_that_is_no_number_fails_its_row_only(tabular: Callable[..., Path]) -> None:
    class Root(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sqrt()

    for handler, failure in ((REGRESSOR, "not a finite number"), (CLASSIFIER, "not a number")):
        with Worker(tabular(handler, Root(), 1, {"columns": X})) as worker:
            answers = worker.predict_batch([request_of([4]), request_of([-4]), request_of([[4], [4]])])
            assert [answer.status for answer in answers] == [200, 400, 200]
            assert failure in json.loads(answers[1].body)["message"]


def onnx_model(*outputs: tuple[str, list[float]]) -> bytes:
    """Return an ONNX model of two inputs: for each output, as many numbers as there are factors of their sum."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, values = [], [], []
    for name, factors in outputs:
        weights.append(numpy_helper.from_array(np.array([factors] * 2, np.float32), f"{name}_factors"))
        nodes.append(helper.make_node("MatMul", ["row", f"{name}_factors"], [name]))
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", len(factors)]))
    row = helper.make_tensor_value_info("row", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(nodes, "sums", [row], values, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(onnx.ModelProto.SerializeToString(model))


def test_onnx_weights_are_classified_and_explained_without_gradients(make: Callable[..., Path]) -> None:
    options = {"columns": [{"name": "x", "mean": 1}, {"name": "y"}], "scores": "logits"}
    content = onnx_model(("embedding", [1, 2, 3]), ("logits", [0, 1]))
    keys = {"handler": CLASSIFIER, "disk": {"model.onnx": content}, "weights": "model.onnx"}
    with Worker(make(**keys, config={"handler": options})) as worker:
        answers = worker.predict_batch(
            [request_of([1, 1]), request_of({"x": 2, "y": 1}, explain=True), request_of([1]), request_of([[0, 0]])]
        )
        assert [answer.status for answer in answers] == [200, 200, 400, 200]
        assert decoded(answers[0]) == pytest.approx({"1": sigmoid(2), "0": sigmoid(-2)}, abs=1e-5)
        explained = decoded(answers[1])
        assert (explained["method"], explained["instead_of"]) == ("feature_ablation", "integrated_gradients")
        assert explained["attributions"] == {"x": 1, "y": 1}
        named = request_of({"x": 2, "y": 1, "method": "saliency"}, explain=True)
        assert "gradients" in error_message(worker.predict_batch([named])[0])
    for scores, message in (("", "several outputs; name one of embedding, logits"), ("logit", "no output 'logit'")):
        with (
            pytest.raises(LoadError) as failed,
            Worker(make(**keys, config={"handler": {**options, "scores": scores}})),
        ):
            pass
        assert message in failed.value.traceback


def test_a_program_of_a_fixed_batch_size_answers_any_number_of_rows(make: Callable[..., Path]) -> None:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 1), (torch.zeros(4, 2),)), stream)
    options = {"columns": [{"name": "x"}, {"name": "y"}]}
    path = make(
        handler=REGRESSOR, disk={"model.pt2": stream.getvalue()}, weights="model.pt2", config={"handler": options}
    )
    with Worker(path) as worker:
        rows = [[index, -index] for index in range(7)]
        together = alone(worker, rows)
        assert together == pytest.approx([alone(worker, row) for row in rows])
        explained = alone(worker, {"rows": rows, "baseline": [0, 0]}, explain=True)
        for value, explanation in zip(together, explained, strict=True):
            assert sum(explanation["attributions"].values()) == pytest.approx(value - together[0], abs=1e-3)
