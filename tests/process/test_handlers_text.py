"""The handlers of texts answer each text for itself, in any language, however it is sent."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

from tests.support.environments import environment_without
from tests.support.paths import ROOT
from torchmar import archive, sample_check
from torchmar.errors import LoadError
from torchmar.exchange import Request, Response
from torchmar.worker import Worker
from torchmar_handlers.common.options import OptionError, Options
from torchmar_handlers.texts import outputs, spans, vocabulary
from torchmar_handlers.texts import tokenizer as tokenizer_module
from torchmar_handlers.texts.encoded import Encoded, ReadError, trimmed

ARCHIVES = ROOT / "archives"
CLASSIFIER, EMBEDDER, TOKENS = (
    f"torchmar_handlers.{name}" for name in ("text_classifier", "text_embedder", "token_classifier")
)
JSON, NPY, PNG, TEXT = "application/json", "application/x-npy", "image/png", "text/plain"
MAIL = "Return the subject header of a multipart mail message."
EVENT = "The coroutine waits until the event loop is closed."
# Languages, directions, characters of two code units, of several code points, and of none that shows.
TEXTS = (
    MAIL,
    EVENT,
    "zip",
    "日本語の電子メール、中文邮件",
    "رسالة بريد إلكتروني",
    "🎉 family: 👨‍👩‍👧‍👦, flag: 🇺🇳, accent: e\u0301 🎉",
    "a\0b\0mail",
    "tab\tline\r\nbreak\u2028and\u00a0space mail",
    "\ufeffbyte order mark, mail",
    "ﬁrst İstanbul ẞ ǅ K",
    "mail " * 3000,
    "x" * 4000,
    "((((" * 200,
)


def decoded(answer: Response) -> Any:
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def message(answer: Response) -> str:
    return str(json.loads(answer.body)["message"])


def text(value: str, **more: Any) -> Request:
    return Request(value.encode(), TEXT, **more)


def body(document: Any, **more: Any) -> Request:
    return Request(json.dumps(document).encode(), JSON, **more)


def best(answer: dict[str, float]) -> str:
    return max(answer, key=lambda label: answer[label])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Callable[[str], Path]:
    """Return a function that gives the archive of a name, built once."""
    store = tmp_path_factory.mktemp("texts")
    return lambda name: archive.build(ARCHIVES / name, store).path


@pytest.fixture(scope="module")
def topics(built: Callable[[str], Path]) -> Iterator[Worker]:
    with Worker(built("topics")) as worker:
        yield worker


@pytest.fixture(scope="module")
def search(built: Callable[[str], Path]) -> Iterator[Worker]:
    with Worker(built("search")) as worker:
        yield worker


@pytest.fixture(scope="module")
def highlight(built: Callable[[str], Path]) -> Iterator[Worker]:
    with Worker(built("highlight")) as worker:
        yield worker


WORKERS = pytest.mark.parametrize("name", ["topics", "search", "highlight"])


@pytest.fixture
def worker(name: str, request: pytest.FixtureRequest) -> Worker:
    return request.getfixturevalue(name)  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------- all of them


@WORKERS
def test_an_archive_keeps_its_samples(built: Callable[[str], Path], name: str) -> None:
    proved = sample_check.run_samples(built(name))
    assert proved.problems == ()
    assert set(proved.bad_request_statuses) == {400}


def close(first: Any, second: Any) -> bool:
    """Return whether two answers are equal except for numbers in the fourth decimal."""
    if isinstance(first, dict) and isinstance(second, dict):
        # Which label of a hair's breadth is among the most probable may differ.
        shared = first.keys() & second.keys()
        return bool(shared) and all(close(first[key], second[key]) for key in shared)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(close, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) < 1e-4
    return bool(first == second)


@WORKERS
def test_a_batch_of_long_and_short_texts_is_answered_like_its_texts_one_by_one(worker: Worker, name: str) -> None:
    requests = [text(content) for content in TEXTS]
    alone = [decoded(worker.predict_batch([request])[0]) for request in requests]
    for order in (range(len(TEXTS)), reversed(range(len(TEXTS)))):
        chosen = list(order)
        together = [decoded(answer) for answer in worker.predict_batch([requests[index] for index in chosen])]
        for index, answer in zip(chosen, together, strict=True):
            assert close(alone[index], answer), TEXTS[index][:40]


GOOD = {
    "text": text(MAIL),
    "text with a charset": Request(MAIL.encode(), "text/plain; charset=utf-8"),
    "bytes": Request(MAIL.encode()),
    "form": Request(MAIL.encode(), "application/x-www-form-urlencoded"),
    "JSON string": body(MAIL),
    "JSON text": body({"text": MAIL}),
    "JSON data": body({"data": MAIL}),
}


@pytest.mark.parametrize("request_", GOOD.values(), ids=GOOD)
def test_a_text_is_taken_however_it_is_sent(topics: Worker, request_: Request) -> None:
    (answer,) = topics.predict_batch([request_])
    assert decoded(answer) == decoded(topics.predict_batch([text(MAIL)])[0])
    assert best(decoded(answer)) == "email"


def test_each_protocol_gets_its_own_form_of_answer_for_each_text(topics: Worker) -> None:
    alone = [decoded(answer) for answer in topics.predict_batch([text(MAIL), text(EVENT)])]
    tensor = {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": [MAIL, EVENT]}
    answers = topics.predict_batch(
        [
            body([MAIL, {"text": EVENT}]),
            body({"instances": [MAIL, {"text": EVENT}]}),
            body({"inputs": {"text": [MAIL, EVENT]}}),
            body({"inputs": [tensor], "id": "7"}),
        ]
    )
    plain, rows, columns, tensors = (decoded(answer) for answer in answers)
    assert close(plain, alone) and close(rows["predictions"], alone)
    assert columns["outputs"]["label"] == ["email", "asyncio"]
    assert close(columns["outputs"]["probability"], [max(answer_alone.values()) for answer_alone in alone])
    assert [best(answer_alone) for answer_alone in plain] == ["email", "asyncio"]
    label, probability = tensors["outputs"]
    assert (label["datatype"], label["data"]) == ("BYTES", ["email", "asyncio"])
    assert close(probability["data"], [max(answer_alone.values()) for answer_alone in alone])
    assert tensors["id"] == "7"


BAD = {
    "empty": (Request(b"", TEXT), 400, "empty"),
    "empty JSON text": (body({"text": ""}), 400, "empty"),
    "no text": (body({"words": MAIL}), 400, "no 'text'"),
    "JSON null": (body(None), 400, "empty"),
    "JSON number": (body(7), 400, "not a number"),
    "JSON boolean": (body({"text": True}), 400, "not a boolean"),
    "JSON list as a text": (body({"text": ["a"]}), 400, "not an array"),
    "no instances": (body({"instances": []}), 400, "empty"),
    "an empty instance": (body({"instances": [MAIL, ""]}), 400, "instance 1"),
    "a number of an array": (body([MAIL, 5]), 400, "instance 1: a text is expected, not a number"),
    "broken JSON": (Request(b'{"text": ', JSON), 400, "not JSON"),
    "not UTF-8": (Request(b"mail \xff\xfe", "application/octet-stream"), 400, "not UTF-8: byte 5 is 0xff"),
    "text that is not UTF-8": (Request(b"\xf0\x28\x8c\x28", TEXT), 400, "not UTF-8"),
    "UTF-16": (Request(MAIL.encode("utf-16")), 400, "not UTF-8"),
    "half of a surrogate pair": (Request(b'{"text": "mail \\ud83c"}', JSON), 400, "character 5 is half"),
    "too many characters": (text("a" * 20_001), 413, "20001 characters; 20000 are allowed"),
    "an array of arrays": (body([[MAIL]]), 400, "not an array"),
}


@WORKERS
def test_bad_requests_get_their_own_error_and_others_their_answers(worker: Worker, name: str) -> None:
    requests = [part for request, _, _ in BAD.values() for part in (request, text(MAIL))]
    answers = worker.predict_batch(requests)
    expected = decoded(worker.predict_batch([text(MAIL)])[0])
    for (kind, (_, status, why)), answer in zip(BAD.items(), answers[::2], strict=True):
        assert (answer.status, answer.content_type) == (status, JSON), (kind, answer.body)
        assert why in message(answer), (kind, answer.body)
    assert all(close(decoded(answer), expected) for answer in answers[1::2])
    assert "failed" not in worker.log()


@WORKERS
def test_no_text_is_an_error_of_the_server(worker: Worker, name: str) -> None:
    chance = random.Random(0)
    planes = ((0, 0x250), (0x300, 0x370), (0x590, 0x700), (0x2000, 0x2070), (0x4E00, 0x4F00), (0x1F300, 0x1FA00))

    def strange() -> str:
        low, high = chance.choice(planes)
        return "".join(chr(chance.randrange(low, high)) for _ in range(chance.randrange(1, 40)))

    texts = [strange() for _ in range(150)]
    for start in range(0, len(texts), 30):
        chosen = texts[start : start + 30]
        for content, answer in zip(chosen, worker.predict_batch([text(content) for content in chosen]), strict=True):
            assert answer.status == 200 or (answer.status == 400 and "no word" in message(answer)), (
                content,
                answer.body,
            )
            if name == "highlight":
                for entity in decoded(answer)["entities"]:
                    assert entity["text"] == content[entity["start"] : entity["end"]] != ""


def test_a_worker_imports_heavy_packages_only_where_needed() -> None:
    code = """
import sys
from torchmar.worker.process import optional_imports
optional_imports.leave_out()  # as workers do
import torchmar_handlers.text_classifier, torchmar_handlers.text_embedder, torchmar_handlers.token_classifier
print([name for name in ("captum", "tokenizers", "safetensors", "PIL") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.decode() == "[]\n"


# -------------------------------------------------------------------------------------- classifier


def test_predictions_and_explanations_share_a_batch(topics: Worker) -> None:
    answers = topics.predict_batch(
        [
            text(MAIL, explain=True),
            text(EVENT),
            Request(b"", TEXT, explain=True),
            text(EVENT, explain=True, accept="image/png, */*"),
            text(MAIL),
            text(EVENT, explain=True),
            body({"text": MAIL, "target": "nonsense"}, explain=True),
        ]
    )
    assert [answer.status for answer in answers] == [200, 200, 400, 200, 200, 200, 400]
    assert [best(decoded(answers[index])) for index in (1, 4)] == ["asyncio", "email"]
    assert [decoded(answers[index])["label"] for index in (0, 5)] == ["email", "asyncio"]
    assert answers[3].content_type == PNG
    assert Image.open(io.BytesIO(answers[3].body)).width > 300


def test_an_explanation_gives_the_contribution_of_each_word(topics: Worker, built: Callable[[str], Path]) -> None:
    explanation = decoded(topics.predict_batch([text(MAIL, explain=True)])[0])
    assert (explanation["method"], explanation["n_steps"], explanation["label"]) == (
        "integrated_gradients",
        50,
        "email",
    )
    assert explanation["probability"] == decoded(topics.predict_batch([text(MAIL)])[0])["email"]
    values = [abs(token["value"]) for token in explanation["tokens"]]
    assert values == sorted(values, reverse=True)
    assert explanation["tokens"][0]["text"] in ("mail", "multipart", "header", "message")
    for token in explanation["tokens"]:
        assert MAIL[token["start"] : token["end"]] == token["text"]
    # Completeness: the values sum to the difference of scores between the text and no embeddings at all.
    model, encoding = loaded_topics()
    ids, mask = torch.tensor([encoding.ids]), torch.ones(1, len(encoding.ids), dtype=torch.long)
    with torch.no_grad():
        score = model(ids, mask)[0, 2]
        model.embedding.weight.zero_()
        difference = score - model(ids, mask)[0, 2]
    assert sum(token["value"] for token in explanation["tokens"]) == pytest.approx(difference.item(), abs=1e-2)


def loaded_topics() -> tuple[Any, Any]:
    """Return the topics model, made without the handler, and the encoding of a text."""
    from safetensors.torch import load_file

    model = module_at(ARCHIVES / "topics" / "model.py").Topics()
    model.load_state_dict(load_file(ARCHIVES / "topics" / "topics.safetensors"))
    return model.eval(), Tokenizer.from_file(str(ARCHIVES / "topics" / "tokenizer.json")).encode(MAIL)


def module_at(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


def test_probabilities_are_those_of_the_model_alone(topics: Worker) -> None:
    model, encoding = loaded_topics()
    with torch.no_grad():
        expected = model(torch.tensor([encoding.ids]), torch.ones(1, len(encoding.ids))).softmax(1)[0]
    prediction = decoded(topics.predict_batch([text(MAIL)])[0])
    labels = ["asyncio", "compression", "email", "numbers", "testing", "xml"]
    assert len(prediction) == 3  # topk
    for label, probability in prediction.items():
        assert probability == pytest.approx(expected[labels.index(label)].item(), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "feature_ablation"}, {"method": "feature_ablation", "label": "email"}),
        ({"method": "occlusion", "baseline": "mask"}, {"method": "occlusion", "baseline": "mask"}),
        ({"method": "saliency"}, {"method": "saliency"}),
        ({"target": "xml", "n_steps": 7}, {"target": 5, "label": "xml", "n_steps": 7}),
        ({"target": 0, "baseline": "unk"}, {"target": 0, "label": "asyncio", "baseline": "unk"}),
    ],
)
def test_an_explanation_follows_its_options(topics: Worker, options: dict[str, Any], expected: dict[str, Any]) -> None:
    explanation = decoded(topics.predict_batch([body({"text": MAIL, **options}, explain=True)])[0])
    assert {key: explanation[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"target": 6}, "from 0 to 5"),
        ({"target": "mails"}, "neither a label"),
        ({"method": "grad_cam"}, "method 'grad_cam' is none of"),
        ({"baseline": "blur"}, "baseline"),
        ({"n_steps": 0}, "n_steps"),
    ],
)
def test_a_request_that_cannot_be_explained_gets_its_own_400(topics: Worker, options: dict[str, Any], why: str) -> None:
    bad, good = topics.predict_batch([body({"text": MAIL, **options}, explain=True), text(MAIL, explain=True)])
    assert (bad.status, good.status) == (400, 200)
    assert why in message(bad)


def test_instances_are_explained_each_for_itself(topics: Worker) -> None:
    rows = body({"instances": [MAIL, EVENT], "parameters": {"n_steps": 10}}, explain=True)
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": [MAIL, EVENT]}
    explained_rows, explained_tensors = topics.predict_batch([rows, body({"inputs": [tensor]}, explain=True)])
    assert [
        (explanation["label"], explanation["n_steps"]) for explanation in decoded(explained_rows)["explanations"]
    ] == [
        ("email", 10),
        ("asyncio", 10),
    ]
    named = {output["name"]: output["data"] for output in decoded(explained_tensors)["outputs"]}
    assert named["label"] == ["email", "asyncio"]
    assert json.loads(named["tokens"][0])[0]["text"] in MAIL


@pytest.mark.parametrize("picture", [False, True])
def test_an_explanation_of_any_text_has_its_places_in_the_text(topics: Worker, picture: bool) -> None:
    short = [content for content in TEXTS if len(content) < 500]
    answers = topics.predict_batch([text(content, explain=True, accept=PNG if picture else "*/*") for content in short])
    for content, answer in zip(short, answers, strict=True):
        assert answer.status == 200, (content, answer.body)
        if picture:
            assert Image.open(io.BytesIO(answer.body)).format == "PNG"
            continue
        places = sorted((token["start"], token["end"]) for token in decoded(answer)["tokens"])
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(places))
        assert all(content[token["start"] : token["end"]] == token["text"] for token in decoded(answer)["tokens"])


# ---------------------------------------------------------------------------------------- embedder


def vectors(worker: Worker, texts: Sequence[str]) -> np.ndarray:
    return np.array(
        [decoded(answer)["embedding"] for answer in worker.predict_batch([text(content) for content in texts])]
    )


def test_a_vector_is_as_long_as_1(search: Worker) -> None:
    embeddings = vectors(search, TEXTS)
    assert embeddings.shape == (len(TEXTS), 96)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


def test_paraphrases_are_closest(search: Worker) -> None:
    texts = [
        "Copy the contents of one file to another file.",
        "Parse a date and time from a string.",
        "Start a new thread and wait until it is finished.",
        "Send a mail message to the SMTP server.",
        "Compress the data with the given level.",
    ]
    queries = ["copying files", "parse the date", "wait for threads", "send mail by SMTP", "compressed data"]
    nearest = (vectors(search, queries) @ vectors(search, texts).T).argmax(1)
    assert nearest.tolist() == [0, 1, 2, 3, 4]


def test_vectors_are_arrays_for_clients_that_accept_them(search: Worker) -> None:
    expected = vectors(search, [MAIL, EVENT])
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": [MAIL, EVENT]}
    one, both, tensors = search.predict_batch(
        [text(MAIL, accept=NPY), body([MAIL, EVENT], accept=NPY), body({"inputs": [tensor]})]
    )
    assert one.content_type == both.content_type == NPY
    single, double = np.load(io.BytesIO(one.body)), np.load(io.BytesIO(both.body))
    assert (single.dtype, single.shape, double.shape) == (np.float32, (96,), (2, 96))
    assert np.abs(double - expected).max() < 1e-5 and np.abs(single - expected[0]).max() < 1e-5
    (output,) = decoded(tensors)["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("embedding", "FP32", [2, 96])
    assert np.abs(np.array(output["data"]).reshape(2, 96) - expected).max() < 1e-5


def test_an_embedder_has_no_explanations(search: Worker) -> None:
    explained, predicted = search.predict_batch([text(MAIL, explain=True), text(MAIL)])
    assert (explained.status, predicted.status) == (501, 200)


# -------------------------------------------------------------------------------- token classifier

SOURCE = '''import json  # 🎉 読む

class Reader:
    """Read what was written."""

    def read(self, path):
        with open(path) as stream:
            return json.load(stream)


def count(items, limit=None):
    total = 0
    for item in items:
        if item is not None and total < 10:
            total += 1
    return total
'''


def test_spans_are_those_of_pythons_own_tokenizer(highlight: Worker) -> None:
    exact = set(module_at(ARCHIVES / "highlight" / "train.py").spans(SOURCE))
    entities = decoded(highlight.predict_batch([text(SOURCE)])[0])["entities"]
    marked = {(entity["start"], entity["end"], entity["label"]) for entity in entities}
    assert 2 * len(marked & exact) / (len(marked) + len(exact)) > 0.85
    assert [entity["start"] for entity in entities] == sorted(entity["start"] for entity in entities)
    for entity in entities:
        assert SOURCE[entity["start"] : entity["end"]] == entity["text"]
        assert 0 < entity["score"] <= 1


def test_a_text_without_tokens_has_no_spans(highlight: Worker) -> None:
    answers = highlight.predict_batch([text(" \t "), text("import os"), text("\r\r"), text("\n\n")])
    assert [len(decoded(answer)["entities"]) for answer in answers] == [0, 2, 0, 0]


def test_a_text_without_tokens_is_rejected_where_the_model_needs_some(topics: Worker) -> None:
    bad, good = topics.predict_batch([text(" \t "), text(MAIL)])
    assert (bad.status, good.status) == (400, 200)
    assert message(bad) == "the text has no word that the model knows"


def encoded(words: str) -> Encoded:
    """Return words as tokens; those with ## in front go on with a word."""
    places, numbers, place = [], [], 0
    for token in words.split():
        length = len(token.removeprefix("##"))
        if not token.startswith("##") and places:
            place += 1
        numbers.append(numbers[-1] if token.startswith("##") else len(set(numbers)))
        places.append((place, place + length))
        place += length
    shown = words.replace(" ##", "")
    return Encoded(shown, list(range(len(places))), places, [False] * len(places), numbers)


@pytest.mark.parametrize(
    ("tokens", "labels", "whole_words", "expected"),
    [
        ("Ada Love ##lace met Bab ##bage", "B-P I-P I-P O B-P I-P", False, ["P:Ada Lovelace", "P:Babbage"]),
        ("Ada Lovelace Babbage", "B-P I-P B-P", False, ["P:Ada Lovelace", "P:Babbage"]),
        ("Ada London", "B-P I-L", False, ["P:Ada", "L:London"]),
        ("of London", "O I-L", False, ["L:London"]),
        ("Ada of Lovelace", "B-P O I-P", False, ["P:Ada", "P:Lovelace"]),
        ("Ada Lovelace", "B-P E-P", False, ["P:Ada Lovelace"]),
        ("Ada Bob", "S-P S-P", False, ["P:Ada", "P:Bob"]),
        ("Ada Lovelace of London", "P P O L", False, ["P:Ada Lovelace", "L:London"]),
        ("Love ##lace", "B-P O", False, ["P:Love"]),
        ("Love ##lace", "B-P O", True, ["P:Lovelace"]),
        ("Love ##lace met", "O B-P O", True, []),
        ("Ada Love ##lace met", "B-P I-P B-L O", True, ["P:Ada Lovelace"]),
        ("Bab ##bage Ada", "B-P B-P I-P", True, ["P:Babbage Ada"]),
        ("of it", "O O", False, []),
    ],
)
def test_labels_of_tokens_make_spans(tokens: str, labels: str, whole_words: bool, expected: list[str]) -> None:
    text_ = encoded(tokens)
    given = labels.split()
    prefixes = spans.has_prefixes(given)
    joined = spans.join(text_, given, [0.5] * len(given), prefixes=prefixes, whole_words=whole_words)
    assert [f"{span.label}:{text_.text[span.start : span.end]}" for span in joined] == expected
    assert all(span.score == 0.5 for span in joined)


def test_special_tokens_end_a_span() -> None:
    two = Encoded("a b", [1, 2, 3], [(0, 1), (0, 0), (2, 3)], [False, True, False], [0, None, 1])
    joined = spans.join(two, ["P", "P", "P"], [1.0, 1.0, 0.5], prefixes=False, whole_words=False)
    assert [(span.start, span.end, span.score) for span in joined] == [(0, 1, 1.0), (2, 3, 0.5)]


@pytest.mark.parametrize(
    ("part", "expected"), [((0, 5), (1, 4)), ((1, 4), (1, 4)), ((4, 5), (4, 5)), ((0, 0), (0, 0)), ((0, 9), (1, 8))]
)
def test_places_leave_white_space_out(part: tuple[int, int], expected: tuple[int, int]) -> None:
    assert trimmed(" the end ", part) == expected


# ------------------------------------------------------------------- tokenizers and models of others


def words(*names: str, special: bool = False, **padding: Any) -> Tokenizer:
    """Return a tokenizer of whole lower-case words, as a file of the archive has it."""
    ids = {name: number for number, name in enumerate(("[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", *names))}
    tokenizer = Tokenizer(models.WordLevel(ids, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    if padding:
        tokenizer.enable_padding(**padding)
    return tokenizer


class Likes(nn.Module):
    """Counts the good and the bad words: ids 5 and 6."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        good, bad = ((ids == number) * mask for number in (5, 6))
        return torch.stack([bad.sum(1), good.sum(1)], 1).float()


class Transformers(nn.Module):
    """A model with the inputs of transformers in another order, which records them."""

    def forward(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        half = torch.full(input_ids.shape, 0.5)
        six = 2 * (input_ids == 6)
        scores = torch.stack([half, token_type_ids.float(), attention_mask.float(), six.float()], 2)
        return {"hidden": torch.zeros_like(scores), "logits": scores}


class Embedded(nn.Module):
    """One vector for each token: its id, and 1."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.stack([input_ids.float(), torch.ones_like(input_ids, dtype=torch.float)], 2)


@pytest.fixture
def serving(make: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that builds an archive of a handler, a scripted module and a tokenizer."""

    def build(handler: str, model: Any, tokenizer: Tokenizer | str | None, labels: Any = None, **options: Any) -> Path:
        stream = io.BytesIO()
        if isinstance(model, nn.Module):
            name = "model.pt"
            torch.jit.save(torch.jit.script(model.eval()), stream)
        else:
            name = "model.pt2"
            torch.export.save(model, stream)
        disk: dict[str, str | bytes] = {name: stream.getvalue()}
        files = {}
        if tokenizer is not None:
            disk["tokenizer.json"] = tokenizer if isinstance(tokenizer, str) else tokenizer.to_str()
            files = {"tokenizer.json": "tokenizer.json"}
        config = {"handler": options, "batchSize": 8}
        return make(handler=handler, disk=disk, weights=name, files=files, labels=labels, config=config)

    return build


def test_special_tokens_take_no_part_in_an_explanation(serving: Callable[..., Path]) -> None:
    archive_ = serving(CLASSIFIER, Likes(), words("good", "bad", special=True), ["bad", "good"])
    with Worker(archive_) as worker:
        explanation = decoded(worker.predict_batch([text("Good, not bad: good!", explain=True)])[0])
    # Counting has no gradients; the explanation leaves words out instead.
    assert (explanation["method"], explanation["instead_of"]) == ("feature_ablation", "integrated_gradients")
    assert [(token["text"], token["value"]) for token in explanation["tokens"][:2]] == [("Good", 1.0), ("good", 1.0)]
    assert sorted(token["text"] for token in explanation["tokens"]) == sorted(
        ["Good", ",", "not", "bad", ":", "good", "!"]
    )


def test_a_character_that_replaces_several_has_the_place_of_all_of_them(serving: Callable[..., Path]) -> None:
    tokenizer = words("good", "bad", "'")
    steps = [normalizers.Replace(old, new) for old, new in (("%67", "g"), ("%27", "'"), ("%20", " "))]
    tokenizer.normalizer = normalizers.Sequence(steps)
    with Worker(serving(CLASSIFIER, Likes(), tokenizer, ["bad", "good"])) as worker:
        explanation = decoded(worker.predict_batch([text("bad %67ood%27%20bad'", explain=True)])[0])
    assert sorted((token["start"], token["text"]) for token in explanation["tokens"]) == [
        (0, "bad"),
        (4, "%67ood"),
        (10, "%27"),
        (13, "%20bad"),  # white space in the decoded text is part of no token
        (19, "'"),
    ]


@pytest.mark.parametrize("direction", ["left", "right"])
def test_models_are_called_by_the_names_of_their_inputs(serving: Callable[..., Path], direction: str) -> None:
    tokenizer = words("a", "b", special=True, direction=direction, pad_id=9, pad_token="[PAD]")
    archive_ = serving(TOKENS, Transformers(), tokenizer, ["O", "TYPE", "MASK", "SIX"])
    with Worker(archive_) as worker:
        answers = [decoded(item)["entities"] for item in worker.predict_batch([text("a b a a b"), text("b")])]
    labelled = [[(entity["label"], entity["text"]) for entity in answer] for answer in answers]
    assert labelled == [[("MASK", "a"), ("SIX", "b"), ("MASK", "a a"), ("SIX", "b")], [("SIX", "b")]]


def test_vectors_of_tokens_are_pooled_as_configured(serving: Callable[..., Path]) -> None:
    tokenizer = words("a", "b", special=True)
    embeddings = {}
    for pooling in ("mean", "first", "last"):
        with Worker(serving(EMBEDDER, Embedded(), tokenizer, pooling=pooling, normalize=False)) as worker:
            answers = worker.predict_batch([text("a b b"), text("b")])
            embeddings[pooling] = [decoded(answer)["embedding"] for answer in answers]
    assert embeddings["mean"] == [[(3 + 5 + 6 + 6 + 4) / 5, 1.0], [pytest.approx((3 + 6 + 4) / 3), 1.0]]
    assert embeddings["first"] == [[3.0, 1.0], [3.0, 1.0]]
    assert embeddings["last"] == [[4.0, 1.0], [4.0, 1.0]]


def test_a_model_of_one_length_gets_texts_of_that_length(serving: Callable[..., Path]) -> None:
    ids = torch.zeros(2, 6, dtype=torch.long)
    rows = torch.export.Dim("rows")
    program = torch.export.export(Likes(), (ids, ids.clone()), dynamic_shapes={"ids": {0: rows}, "mask": {0: rows}})
    with Worker(serving(CLASSIFIER, program, words("good", "bad"), ["bad", "good"])) as worker:
        answers = worker.predict_batch([text("good"), text("bad " * 30), text("good bad good good", explain=True)])
    good, bad, explained = map(decoded, answers)
    assert good["good"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-5)
    assert bad["bad"] == pytest.approx(1 / (1 + np.exp(-6)), abs=1e-5)
    assert [token["value"] for token in explained["tokens"]] == [1.0, 1.0, 1.0, 0.0]


def test_long_texts_are_cut_and_marked_as_truncated(serving: Callable[..., Path]) -> None:
    tokenizer = words("a", "b", special=True)
    long = "a a a a a a a"
    archive_ = serving(TOKENS, Transformers(), tokenizer, ["O", "TYPE", "MASK", "SIX"], max_tokens=5)
    with Worker(archive_) as worker:
        cut, whole = (decoded(answer) for answer in worker.predict_batch([text(long), text("a a a")]))
    assert cut == {"entities": [{**cut["entities"][0], "text": "a a a"}], "truncated_to": [0, 5]}
    assert "truncated_to" not in whole


def test_long_texts_are_rejected_where_they_are_not_to_be_cut(serving: Callable[..., Path]) -> None:
    archive_ = serving(CLASSIFIER, Likes(), words("good"), max_tokens=5, truncate=False)
    with Worker(archive_) as worker:
        long, short = worker.predict_batch([text("good " * 6), text("good " * 5)])
    assert (long.status, short.status) == (413, 200)
    assert message(long) == "the text has 6 tokens; 5 are allowed"


def test_scores_that_are_no_numbers_fail_only_their_text(serving: Callable[..., Path]) -> None:
    class Divides(nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return 1 / torch.stack([(ids == 5).sum(1), (ids > 0).sum(1)], 1).float()

    with Worker(serving(CLASSIFIER, Divides(), words("good", "bad"))) as worker:
        answers = worker.predict_batch([text("good"), text("bad"), text("good")])
    assert [answer.status for answer in answers] == [200, 400, 200]
    assert "not a number" in message(answers[1])


@pytest.mark.parametrize(
    ("tokenizer", "options", "why"),
    [
        (None, {}, "the archive has no tokenizer.json"),
        ("{}", {}, "tokenizer.json is not a tokenizer"),
        ("no JSON", {}, "tokenizer.json is not a tokenizer"),
        (words("a", special=True), {"max_tokens": 2}, "handler.max_tokens: 2 leaves no room"),
        (words("a"), {"max_tokens": "many"}, "handler.max_tokens: 'many' is not a whole number"),
        (words("a"), {"threads": 100_000}, "handler.threads: 100000 is not from 1 to 1024"),
        (words("a"), {"max_token": 8}, "did you mean 'max_tokens'?"),
        (words("a"), {"method": "grad_cam"}, "handler.method: 'grad_cam' is none of"),
        (words("a"), {"baseline": "noise"}, "handler.baseline: 'noise' is none of zeros, mask, unk, pad"),
    ],
)
def test_an_archive_that_cannot_work_does_not_load(
    serving: Callable[..., Path], tokenizer: Any, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(LoadError) as raised:
        Worker(serving(CLASSIFIER, Likes(), tokenizer, **options)).close()
    assert why in str(raised.value.traceback)


def test_without_tokenizers_the_error_names_the_package_to_install(
    serving: Callable[..., Path], tmp_path: Path
) -> None:
    python = environment_without(tmp_path / "environment", ("tokenizers",))
    with pytest.raises(LoadError) as raised:
        Worker(serving(CLASSIFIER, Likes(), words("a")), python=str(python)).close()
    assert "`pip install tokenizers`" in str(raised.value.traceback)


def test_the_one_tensor_that_counts_is_found() -> None:
    one, other = torch.zeros(2, 3), torch.ones(2, 3)
    assert outputs.only(one, ()) is one
    assert outputs.only((other, one), ("logits",)) is other
    assert outputs.only((other, one), ("logits",), ("hidden", "logits")) is one
    assert outputs.only({"hidden": other, "logits": one}, ("logits",)) is one
    with pytest.raises(ValueError, match="str, not a tensor"):
        outputs.only("text", ())
    with pytest.raises(ValueError, match=r"\(2, 3\), not \(4, classes\)"):
        outputs.scores(one, (4,))


def test_a_tokenizer_may_ask_for_less_than_the_model_takes(tmp_path: Path) -> None:
    tokenizer = words("a")
    tokenizer.enable_truncation(7)
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    assert tokenizer_module.Tokenizer(file, Options(), Likes()).max_tokens == 7
    assert tokenizer_module.Tokenizer(file, Options({"max_tokens": 100}), Likes()).max_tokens == 100
    with pytest.raises(OptionError, match="not at least 1"):
        tokenizer_module.Tokenizer(file, Options({"max_tokens": 0}), Likes())


# ---------------------------------------------------------------- archives of TorchServe's own handler

NEWS = """
import torch
from torch import nn

class News(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.EmbeddingBag(200, 8, sparse=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, text, offsets):
        return self.fc(self.embedding(text, offsets))
"""
HEADLINES = (
    "Stocks rise on Wall Street",
    "<b>The team</b> didn't win the Café cup; they're out!",
    "World leaders meet &amp; talk, it's a start. I'd've known",
    "Wall Street: stocks, stocks & stocks...",
    "SHE'LL rise &#39;again&#39; -- can't've, won't",
    "leaders",
)


@pytest.fixture(scope="module")
def news() -> dict[str, bytes]:
    """Return the files of an archive for TorchServe's handler, with all words of the headlines in the vocabulary."""
    from ts.handler_utils.text_utils import get_tokenizer, ngrams_iterator

    tokens = {"<unk>": 0}
    for headline in HEADLINES:
        for ngram in ngrams_iterator(get_tokenizer("basic_english")(vocabulary.cleaned(headline)), 2):
            tokens.setdefault(ngram, len(tokens))
    torch.manual_seed(0)
    scope: dict[str, Any] = {"__name__": "news"}
    exec(compile(NEWS, "news.py", "exec"), scope)
    model = scope["News"]()
    nn.init.normal_(model.embedding.weight)
    return {"model.py": NEWS.encode(), "news.pt": saved(model.state_dict()), "source_vocab.pt": saved(tokens)}


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def of_news(make: Callable[..., Path], news: dict[str, bytes], handler: str, **keys: Any) -> Path:
    files = {"source_vocab.pt": "source_vocab.pt"}
    names = ["World", "Sports", "Business", "Sci/Tech"]
    keys = {"labels": names, "config": {"batchSize": 8}, **keys}
    return make(handler=handler, disk=dict(news), weights="news.pt", model_file="model.py", files=files, **keys)


def test_an_archive_of_torchserves_handler_gets_the_same_answers(
    make: Callable[..., Path], news: dict[str, bytes]
) -> None:
    requests = [text(headline) for headline in HEADLINES]
    with Worker(of_news(make, news, "text_classifier")) as stock:
        expected = [decoded(stock.predict_batch([request])[0]) for request in requests]
    with Worker(of_news(make, news, CLASSIFIER)) as ours:
        answers = [decoded(answer) for answer in ours.predict_batch(requests)]
        alone = [decoded(ours.predict_batch([request])[0]) for request in requests]
    assert [list(answer) for answer in answers] == [list(answer) for answer in expected]
    for given in (answers, alone):
        for answer, wanted in zip(given, expected, strict=True):
            assert answer == pytest.approx(wanted, abs=1e-5)
    assert len({best(answer) for answer in answers}) > 1


def test_words_that_no_vocabulary_has_are_unknown_or_left_out(
    make: Callable[..., Path], news: dict[str, bytes]
) -> None:
    unknown = [text("qwertz stocks"), text("stocks"), text("qwertz"), text("?!"), body(["stocks", "leaders"])]
    with Worker(of_news(make, news, CLASSIFIER)) as worker:
        first, second, third, empty, both = worker.predict_batch(unknown)
    assert (first.status, second.status, third.status, empty.status) == (200, 200, 200, 400)
    assert decoded(first) != decoded(second)  # <unk> is a word, too
    assert len(decoded(both)) == 2
    without = [name for name in torch.load(io.BytesIO(news["source_vocab.pt"])) if name != "<unk>"]
    listed = {**news, "source_vocab.pt": saved(["nothing", *without])}
    with Worker(of_news(make, listed, CLASSIFIER)) as worker:
        first, second, third = worker.predict_batch(unknown[:3])
    assert decoded(first) == decoded(second)
    assert (third.status, message(third)) == (400, "the text has no word that the model knows")


def test_topk_ranks_the_scores_of_a_model_with_a_vocabulary(make: Callable[..., Path], news: dict[str, bytes]) -> None:
    with Worker(of_news(make, news, CLASSIFIER, config={"handler": {"topk": 2}})) as worker:
        scores = list(decoded(worker.predict_batch([text(HEADLINES[0])])[0]).values())
    assert len(scores) == 2 and scores[0] > scores[1]


def test_pairs_of_words_are_explained_by_their_words(make: Callable[..., Path], news: dict[str, bytes]) -> None:
    with Worker(of_news(make, news, CLASSIFIER)) as worker:
        explained, picture, predicted, ablated = worker.predict_batch(
            [
                text(HEADLINES[1], explain=True),
                text(HEADLINES[1], explain=True, accept=PNG),
                text(HEADLINES[1]),
                body({"text": HEADLINES[0], "method": "feature_ablation"}, explain=True),
            ]
        )
    explanation = decoded(explained)
    assert explanation["text"] == "the team did not win the cafe cup they are out"
    in_order = sorted(explanation["tokens"], key=lambda token: token["start"])
    assert [token["text"] for token in in_order] == explanation["text"].split()
    assert explanation["method"] == "integrated_gradients"
    assert abs(explanation["convergence_delta"]) < 1e-3
    assert (explanation["label"], explanation["probability"]) == max(
        decoded(predicted).items(), key=lambda item: item[1]
    )
    assert Image.open(io.BytesIO(picture.body)).format == "PNG"
    assert decoded(ablated)["method"] == "feature_ablation"


class Vocab:
    """Stands for any class of a vocabulary, torchtext's for instance."""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (saved(Vocab()), "get_stoi"),
        (b"junk", "can be loaded without running code"),
        (saved({"a": "b"}), "it holds a dict"),
        (saved({}), "it holds a dict"),
        (saved(torch.zeros(3)), "it holds a Tensor"),
        (saved([1, 2]), "it holds a list"),
        (saved({"a": -1}), "it holds a dict"),
    ],
)
def test_an_invalid_vocabulary_is_reported(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "source_vocab.pt"
    file.write_bytes(content)
    with pytest.raises(ReadError, match=why):
        vocabulary.Vocabulary(file, 2)


def test_clean_up_is_that_of_torchserve() -> None:
    from ts.torch_handler.text_handler import TextHandler

    class Stock(TextHandler):  # type: ignore[misc]
        """TorchServe's own clean-up, step by step as in its text_classifier."""

        def cleaned(self, value: str) -> str:
            value = self._expand_contractions(self._remove_html_tags(value).lower())
            return str(self._remove_punctuation(self._remove_accented_characters(value)))

    stock = Stock()
    chance = random.Random(0)
    parts = ["don't", "I'd've", "<b>", "&amp;", "é", "Café", "ß", "İ", "'", "o'clock", " ", "the", "🎉", "’s", "it's"]
    for _ in range(300):
        value = "".join(chance.choice(parts) for _ in range(12))
        assert vocabulary.cleaned(value) == stock.cleaned(value)
    # A long s is an s to a pattern that ignores case, and no key of the table: TorchServe's handler fails there.
    assert vocabulary.cleaned("it'\u017f here") == "its here"
