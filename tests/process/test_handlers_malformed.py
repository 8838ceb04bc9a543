"""Malformed requests get their own 4xx, and the other requests of a batch their answers."""

from __future__ import annotations

import functools
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.paths import ROOT
from torchmar import archive, exchange, recipe
from torchmar.exchange import Request, Response
from torchmar.worker import Worker

ARCHIVES = sorted((ROOT / "archives").glob("*/archive.yaml"))
OWN = [file.parent.name for file in ARCHIVES if "\nhandler: handler.py\n" in file.read_text()]
# An archive of each handler: how it reads requests does not depend on the weights.
STOCK = {recipe.read(file.parent)[0].handler: file.parent.name for file in reversed(ARCHIVES)}
NAMES = sorted({*OWN, *STOCK.values()})


def image(kind: str, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 80).convert(mode).save(stream, kind)
    return stream.getvalue()


def part_of(path: Path, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.open(path).crop((0, 0, *size)).save(stream, "PNG")
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def bomb() -> bytes:
    """Return a PNG of a few bytes whose header declares 60000 x 60000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def v2(shape: object, datatype: object, data: object) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}]}).encode()


JPEG, PNG = image("JPEG"), image("PNG")
JSON, TEXT, BYTES = "application/json", "text/plain", "application/octet-stream"
MALFORMED = {
    "nothing": (b"", BYTES),
    "nothing as JSON": (b"", JSON),
    "nothing as text": (b"", TEXT),
    "one NUL": (b"\0", BYTES),
    "noise": (bytes(range(256)) * 8, BYTES),
    "noise as an image": (bytes(range(256)) * 8, "image/jpeg"),
    "noise as text": (b"\xf0\x28\x8c\x28", TEXT),
    "noise as JSON": (b"\xff\xfe{", JSON),
    "spaces": (b" \n\t " * 20, TEXT),
    "UTF-16": ("twelve".encode("utf-16"), TEXT),
    "a lone surrogate": (b'"\\ud800"', JSON),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "image/jpeg"),
    "the head of a JPEG": (JPEG[:30], "image/jpeg"),
    "half a PNG": (PNG[: len(PNG) // 2], "image/png"),
    "a PNG with a wrong checksum": (PNG[:60] + b"\0\0\0\0" + PNG[64:], "image/png"),
    "a decompression bomb": (bomb(), "image/png"),
    "a line of pixels": (image("PNG", (5000, 1)), "image/png"),
    "one pixel": (image("PNG", (1, 1)), "image/png"),
    "16-bit grey": (image("PNG", mode="I;16"), "image/png"),
    "CMYK": (image("JPEG", mode="CMYK"), "image/jpeg"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
    "a zip": (b"PK\x05\x06" + bytes(18), "application/zip"),
    "half of JSON": (b'{"instances": [', JSON),
    "JSON with NaN": (b'{"instances": [NaN, Infinity]}', JSON),
    "JSON too deep": (b"[" * 900 + b"]" * 900, JSON),
    "JSON far too deep": (b"[" * 200_000, JSON),
    "instances too deep": (b'{"instances": ' + b"[" * 60 + b"]" * 60 + b"}", JSON),
    "null": (b"null", JSON),
    "a number": (b"1e400", JSON),
    "a huge number": (b"9" * 4000, JSON),
    "true": (b"true", JSON),
    "an empty object": (b"{}", JSON),
    "an empty array": (b"[]", JSON),
    "an empty string": (b'""', JSON),
    "unknown keys": (b'{"unexpected": [1, {"deep": null}]}', JSON),
    "data null": (b'{"data": null}', JSON),
    "data of numbers": (b'{"data": 7}', JSON),
    "data not base64": (b'{"data": "%%%"}', JSON),
    "a data URL of nothing": (b'{"data": "data:image/png;base64,"}', JSON),
    "instances null": (b'{"instances": null}', JSON),
    "instances empty": (b'{"instances": []}', JSON),
    "instances of null": (b'{"instances": [null, {}, [], ""]}', JSON),
    "too many instances": (json.dumps({"instances": [0] * 5000}).encode(), JSON),
    "another signature": (b'{"instances": [1], "signature_name": "regress"}', JSON),
    "columns of unequal length": (b'{"inputs": {"a": [1], "b": [1, 2]}}', JSON),
    "uneven rows": (b'{"instances": [[1, 2], [3]]}', JSON),
    "rows of text": (b'{"instances": [["a", "b"]]}', JSON),
    "a tensor without data": (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}', JSON),
    "a tensor of too many": (v2([2, 2], "FP32", [1.0]), JSON),
    "a tensor of a negative size": (v2([-1], "FP32", [1.0]), JSON),
    "a tensor of an endless size": (v2([2**62, 2**62], "FP32", [1.0]), JSON),
    "a tensor of an unknown type": (v2([1], "COMPLEX", [1.0]), JSON),
    "a tensor beyond its type": (v2([1], "UINT8", [-1]), JSON),
    "a tensor of nothing": (v2([0], "FP32", []), JSON),
    "a tensor of NaN": (b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [NaN,1,1,1]}]}', JSON),
    "half of .npy": (npy(np.zeros((4, 4)))[:-5], BYTES),
    ".npy that declares a huge size": (npy(np.zeros(3)).replace(b"(3,)", b"(9999999999999,)"), BYTES),
    ".npy of objects": (npy(np.array([{}], dtype=object)), BYTES),
    ".npy of texts": (npy(np.array(["a", "b"])), BYTES),
    ".npy of nothing": (npy(np.zeros((0, 4))), BYTES),
    ".npy of NaN": (npy(np.full((1, 4), np.nan)), BYTES),
    "CSV without a head": (b"1,2,3\n4,5\n", "text/csv"),
    "a form": (b"a=1&b=2", "application/x-www-form-urlencoded"),
    "YAML": (b"&a [*a]", "application/x-yaml"),
}


@pytest.fixture(scope="module", params=NAMES)
def worker_and_request(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Worker, Request]]:
    """Return a worker of an archive of each handler, and a request that it answers."""
    folder = ROOT / "archives" / request.param
    written, _ = recipe.read(folder)
    sample = next(recorded for recorded in written.samples if not recorded.explain and recorded.status == 200)
    good = Request(json.dumps(sample.json_body).encode(), JSON)
    if sample.input:
        good = exchange.read(folder / sample.input)
    handler = dict(written.config.handler)
    if request.param == "page":  # a whole one takes a second
        handler |= {"min_side": 64, "max_side": 192}
        good = Request(part_of(folder / "samples" / "invoice.png", (250, 85)), "image/png")
    # An explanation of a batch takes minutes on a busy machine.
    config = written.config.model_copy(update={"responseTimeout": 600, "handler": handler})
    written = written.model_copy(update={"config": config})
    path = tmp_path_factory.mktemp("store") / f"{request.param}.mar"
    archive.pack(archive.collect_members(written, folder), path)
    with Worker(path) as worker:
        yield worker, good


def same(answer: Response, alone: Response) -> None:
    """Assert that an answer is that of the same request alone, except for the last digits of numbers."""
    assert (answer.status, answer.content_type) == (alone.status, alone.content_type), answer.body[:300]
    if answer.content_type == JSON:
        assert json.loads(answer.body) == near(json.loads(alone.body))


def near(value: object) -> object:
    """Return ``value`` with numbers that are equal to those near them, and times that are equal to all."""
    if isinstance(value, dict):
        return {key: ANY if key == "timestamp" else near(element) for key, element in value.items()}
    if isinstance(value, list):
        return [near(item) for item in value]
    return pytest.approx(value, abs=1e-3, rel=1e-3) if isinstance(value, float) else value


@pytest.mark.parametrize("explain", [False, True], ids=["predict", "explain"])
def test_malformed_requests_get_their_own_4xx_and_others_their_answers(
    worker_and_request: tuple[Worker, Request], explain: bool
) -> None:
    worker, good = worker_and_request
    (alone,) = worker.predict_batch([good])
    assert alone.status == 200, alone.body
    bad = [Request(body, content_type, explain) for body, content_type in MALFORMED.values()]
    for start in range(0, len(bad), 8):
        part = bad[start : start + 8]
        first, *answers, last = worker.predict_batch([good, *part[:4], good, *part[4:], good])
        between = answers.pop(len(part[:4]))
        for answer in (first, between, last):
            same(answer, alone)
        for name, answer in zip(list(MALFORMED)[start : start + 8], answers, strict=True):
            # 501: the handler has no explanations at all. 200: to some handler it is no nonsense.
            assert answer.status < 500 or (explain and answer.status == 501), (name, answer.status, answer.body[:300])
            if answer.status >= 400:
                assert json.loads(answer.body)["message"], name
    assert "failed\nTraceback" not in worker.log()


# Arrays that are none of the model's: of every rank, of few and of many items, of every kind of number.
NUMBERS = {
    "booleans": False,
    "zeros": 0,
    "fractions": 0.5,
    "256": 256,
    "below zero": -1,
    "large": 1e38,
    "too large for float32": 1e300,
    "too large for int64": 2**70,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "texts": "1",
    "null": None,
}
SHAPES = ((1,), (3,), (4,), (1, 1), (1, 4), (4, 1), (1, 1, 1), (3, 1, 1), (1, 1, 3), (1, 28, 28), (3, 40, 40), (33, 32))


def filled(shape: tuple[int, ...], value: object) -> object:
    """Return nested lists of a shape."""
    return [filled(shape[1:], value) for _ in range(shape[0])] if shape else value


@functools.cache
def bodies() -> dict[str, tuple[bytes, str]]:
    """Return bodies of arrays with their types, once: they have 160,000 numbers."""
    made = {
        f"{shape} of {name} {form}": (json.dumps(body).encode(), JSON)
        for shape in SHAPES
        for name, value in NUMBERS.items()
        for form, body in (
            ("alone", filled(shape, value)),
            ("as an instance", {"instances": [filled(shape, value)]}),
        )
    }
    for dtype in ("bool", "uint8", "int64", "float16", "float64"):
        for shape in SHAPES:
            made[f"{shape} of {dtype}"] = (npy(np.ones(shape, dtype)), BYTES)
    return made


@pytest.mark.parametrize("explain", [False, True], ids=["predict", "explain"])
def test_arrays_of_every_shape_and_type_are_answered_or_rejected(
    worker_and_request: tuple[Worker, Request], explain: bool
) -> None:
    worker, good = worker_and_request
    (alone,) = worker.predict_batch([good])
    sent = {name: Request(body, content_type, explain) for name, (body, content_type) in bodies().items()}
    names = list(sent)[:: 3 if explain else 1]  # an explanation is many predictions
    for start in range(0, len(names), 24):
        part = names[start : start + 24]
        *answers, neighbour = worker.predict_batch([*(sent[name] for name in part), good])
        same(neighbour, alone)
        for name, answer in zip(part, answers, strict=True):
            assert answer.status < 500 or (explain and answer.status == 501), (name, answer.status, answer.body[:300])


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
arrays = st.builds(filled, st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple), leaves)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["instances", "inputs", "data", "b64", "text", "rows", "name", "shape", "datatype", "x", "target"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
tensors = st.fixed_dictionaries(
    {
        "name": st.text(max_size=3) | values,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | values,
        "datatype": st.sampled_from(["FP32", "BYTES", "INT64", "BOOL", "?"]) | values,
        "data": st.lists(leaves, max_size=4) | values,
    }
)
documents = (
    values
    | arrays
    | st.fixed_dictionaries({"instances": st.lists(arrays, min_size=1, max_size=2)})
    | st.fixed_dictionaries({"inputs": st.lists(tensors, max_size=2)})
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=documents | st.binary(max_size=60), explain=st.booleans())
def test_no_request_fails_another(worker_and_request: tuple[Worker, Request], document: object, explain: bool) -> None:
    worker, good = worker_and_request
    sent = (
        Request(document, explain=explain)
        if isinstance(document, bytes)
        else Request(json.dumps(document).encode(), JSON, explain)
    )
    answer, neighbour = worker.predict_batch([sent, good])
    assert answer.status < 500 or (explain and answer.status == 501), answer.body[:300]
    assert neighbour.status == 200, neighbour.body[:300]
