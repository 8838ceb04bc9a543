"""Bodies as clients send them are answered on both engines, or rejected with the cause and the remedy."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.support.paths import ROOT
from tests.support.servers import ENGINES, on_both_engines, write_config
from torchmar import archive
from torchmar.engines.engine import Engine

SEVEN = (ROOT / "archives" / "digits" / "samples" / "seven.png").read_bytes()
SEVEN_B64 = base64.b64encode(SEVEN).decode()
EMAIL = (ROOT / "archives" / "topics" / "samples" / "email.txt").read_text()
SETOSA = [5.0, 3.4, 1.5, 0.2]
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
PARTS = {"Content-Type": "multipart/form-data; boundary=x"}
LINES = {"Content-Type": "application/jsonlines"}


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.document["message"])


Post = Callable[..., Answer]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, engine: str, weights: None) -> Iterator[Engine]:
    """Run a server with three archives of ours."""
    folder = tmp_path_factory.mktemp("bodies")
    store = folder / "store"
    paths = [archive.build(ROOT / "archives" / name, store).path for name in ("digits", "iris", "topics")]
    config = write_config(folder, disable_token_authorization="true")
    with ENGINES[engine](config, store, folder / "run") as started:  # type: ignore[index]
        for path in paths:
            started.load(path)
        yield started


@pytest.fixture
def post(running: Engine) -> Post:
    address = urlsplit(str(running.server.inference))

    def send(path: str, body: bytes | Any, headers: Mapping[str, str] = JSON) -> Answer:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        with closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)) as connection:
            connection.request("POST", path, payload, dict(headers))
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())

    return send


def part(name: str, content: bytes, *, file: str = "") -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
    return head.encode() + b"\r\n\r\n" + content + b"\r\n"


END = b"--x--\r\n"


@on_both_engines
@pytest.mark.parametrize("name", ["image", "data", "file", "target"])
def test_a_form_with_one_field_is_the_input_whatever_its_name(post: Post, name: str) -> None:
    answer = post("/predictions/digits", part(name, SEVEN, file="seven.png") + END, PARTS)
    assert (answer.status, next(iter(answer.document))) == (200, "7")


@on_both_engines
def test_options_of_an_explanation_stand_beside_the_one_field(post: Post) -> None:
    body = part("picture", SEVEN, file="seven.png") + part("target", b"3") + part("method", b"saliency") + END
    answer = post("/explanations/digits", body, PARTS)
    assert (answer.document["label"], answer.document["method"]) == ("3", "saliency")


@on_both_engines
def test_a_form_whose_input_is_not_certain_is_rejected(post: Post) -> None:
    answer = post("/predictions/digits", part("a", SEVEN, file="a") + part("b", SEVEN, file="b") + END, PARTS)
    assert (answer.status, answer.message) == (
        400,
        "the form has the fields a, b; send the input as the only one, or call it 'data'",
    )
    answer = post("/predictions/topics", b"text=the+loop&lang=en", FORM)
    assert (answer.status, "the fields text, lang" in answer.message) == (400, True)
    assert post("/predictions/topics", b"text=the+loop", FORM).status == 200


@on_both_engines
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("iris", json.dumps({"instances": [SETOSA]}).encode()),
        ("iris", json.dumps(SETOSA).encode()),
        ("digits", json.dumps({"data": SEVEN_B64 + "="}).encode()),
        ("digits", SEVEN),
        ("topics", b"The coroutine runs, and x = 1 & y = 2."),
        ("topics", b""),
    ],
    ids=["instances", "an array", "base64 with =", "an image", "a text", "nothing"],
)
def test_curls_default_form_type_is_rejected_with_the_header_to_add(post: Post, name: str, body: bytes) -> None:
    answer = post(f"/predictions/{name}", body, FORM)
    if body == SEVEN and answer.status == 500:  # TorchServe cannot read this as a form
        return
    assert answer.status == 400
    assert "-H 'Content-Type: application/json'" in answer.message
    assert "application/x-www-form-urlencoded" in answer.message


@on_both_engines
@pytest.mark.parametrize(
    "body",
    [
        {"data": SEVEN_B64},
        {"b64": SEVEN_B64},
        {"data": {"b64": SEVEN_B64}},
        {"image": SEVEN_B64},
        {"image": {"b64": SEVEN_B64}},
        {"image_bytes": {"b64": SEVEN_B64}},
        {"data": base64.urlsafe_b64encode(SEVEN).decode()},
        {"data": SEVEN_B64.rstrip("=")},
        {"b64": base64.urlsafe_b64encode(SEVEN).decode().rstrip("=")},
        {"data": f"data:image/png;base64,{SEVEN_B64}"},
        SEVEN_B64,
    ],
    ids=lambda body: str(body)[:24],
)
def test_an_image_in_base64_is_read_in_every_envelope(post: Post, body: Any) -> None:
    assert next(iter(post("/predictions/digits", body).document)) == "7"
    for key, answer_key in (("instances", "predictions"), ("inputs", "outputs")):
        answer = post("/predictions/digits", {key: [body, body]})
        assert answer.status == 200, answer.body
        assert answer_key in answer.document


@on_both_engines
@pytest.mark.parametrize("body", [{"b64": "%%%"}, {"data": {"b64": "a"}}, {"data": {}}, {"data": {"b64": 1}}])
def test_invalid_base64_is_rejected(post: Post, body: Any) -> None:
    answer = post("/predictions/digits", body)
    assert answer.status == 400, answer.body


@on_both_engines
def test_a_text_may_be_in_base64_where_it_is_marked(post: Post) -> None:
    text = base64.b64encode(EMAIL.encode()).decode()
    plain = post("/predictions/topics", {"text": EMAIL}).document
    assert post("/predictions/topics", {"b64": text}).document == plain
    assert post("/predictions/topics", {"instances": [{"data": {"b64": text}}]}).document["predictions"] == [plain]


@on_both_engines
def test_json_lines_are_several_inputs(post: Post) -> None:
    body = b"".join(json.dumps(row).encode() + b"\n" for row in (SETOSA, [7.0, 3.2, 4.7, 1.4]))
    answer = post("/predictions/iris", body, LINES)
    assert (answer.status, len(answer.document)) == (200, 2)
    lines = post("/predictions/iris", body, {**LINES, "Accept": "application/jsonlines"})
    assert lines.headers["content-type"] == "application/jsonlines"
    assert [json.loads(line) for line in lines.body.splitlines()] == answer.document
    broken = post("/predictions/iris", body + b"{\n", LINES)
    assert (broken.status, "line 3 of the body is not JSON" in broken.message) == (400, True)


@on_both_engines
@pytest.mark.parametrize("name", ["digits", "iris", "topics"])
def test_several_documents_as_one_are_rejected(post: Post, name: str) -> None:
    answer = post(f"/predictions/{name}", b'{"instances": [[1, 2, 3, 4]]}\n{"instances": [[1, 2, 3, 4]]}')
    assert (answer.status, "data follow the first document" in answer.message) == (400, True)


@on_both_engines
def test_columns_of_a_classifier_do_not_depend_on_the_prediction(post: Post) -> None:
    for name, inputs in (
        ("digits", [{"b64": SEVEN_B64}]),
        ("digits", [{"b64": SEVEN_B64}, [[0.5] * 32] * 32, [[[9]] * 32] * 32]),
        ("topics", [EMAIL, "assert", "<a/>"]),
        ("topics", [EMAIL]),
    ):
        outputs = post(f"/predictions/{name}", {"inputs": inputs}).document["outputs"]
        assert list(outputs) == ["label", "probability"]
        assert len(outputs["label"]) == len(outputs["probability"]) == len(inputs)
        assert all(isinstance(label, str) for label in outputs["label"])


@on_both_engines
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([[0.5]], "expected shape [1, 32, 32], got [1, 1, 1]"),
        ({"instances": [[[0.5]]]}, "expected shape [1, 32, 32], got [1, 1, 1]"),
        ([[False]], "booleans"),
        ([[1e38] * 32] * 32, "not a number"),
        ([[float("nan")]], "not finite"),
    ],
    ids=["too small", "an instance too small", "booleans", "too large", "NaN"],
)
def test_an_input_that_does_not_fit_is_rejected_with_the_models_inputs(post: Post, body: Any, message: str) -> None:
    answer = post("/predictions/digits", body)
    assert (answer.status, message in answer.message) == (400, True), answer.body


@pytest.mark.parametrize("engine", ["builtin"], scope="module", indirect=True)
def test_kserves_protocols_read_json_whatever_its_type(post: Post) -> None:
    instances = json.dumps({"instances": [SETOSA]}).encode()
    tensor = {"name": "measurements", "shape": [1, 4], "datatype": "FP32", "data": SETOSA}
    for headers in (FORM, {"Content-Type": "text/plain"}, {}):
        assert "predictions" in post("/v1/models/iris:predict", instances, headers).document
        assert "outputs" in post("/v2/models/iris/infer", json.dumps({"inputs": [tensor]}).encode(), headers).document
    for body in (b"[1, 2", b'{"instances": [[1]]}', b"{}\n{}"):
        answer = post("/v1/models/iris:predict", body, FORM)
        assert (answer.status, answer.document["error"]) == (400, answer.message)


@pytest.mark.parametrize("engine", ["builtin"], scope="module", indirect=True)
def test_a_compressed_body_and_one_part_of_two_reach_our_handlers_as_they_should(post: Post) -> None:
    for headers, body in ((JSON, json.dumps({"b64": SEVEN_B64}).encode()), ({}, SEVEN)):
        answer = post("/predictions/digits", gzip.compress(body), {**headers, "Content-Encoding": "gzip"})
        assert next(iter(answer.document)) == "7"
    answer = post("/predictions/digits", part("data", SEVEN, file="a") + part("data", SEVEN, file="b") + END, PARTS)
    assert answer.status == 400
