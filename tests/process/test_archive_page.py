"""The page archive reads every line of a page, turned pages too, and answers each page for itself."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.support import pretrained
from tests.support.paths import ROOT
from torchmar import archive, comparison, sample_check
from torchmar.exchange import Request, Response
from torchmar.worker import Worker

PAGE = ROOT / "archives" / "page"
SAMPLES = PAGE / "samples"
PNG, JSON = "image/png", "application/json"

# What the package rapidocr 3.10.0 reads in the scan, with its own pre- and postprocessing in OpenCV: lines and boxes.
SCAN = {
    "Region-based segmentation": (3, 9, 296, 36),
    "Let us first determine markers of the coins and the": (2, 45, 379, 68),
    "background. These markers are pixels that we can label": (1, 62, 380, 87),
    "unambiguously as either object or background. Here,": (1, 79, 380, 105),
    "the markers are found at the two extreme parts of the": (1, 95, 381, 124),
    "histogram of grey values:": (3, 114, 173, 140),
    "markers = np.zeros like(coins)": (37, 167, 243, 190),
}


@pytest.fixture(scope="module")
def built(weights: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.build("page", tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def worker(built: Path) -> Iterator[Worker]:
    with Worker(built) as running:
        yield running


@pytest.fixture(scope="module")
def text_regions() -> Any:
    """Return the module of the archive that finds regions in a map."""
    spec = importlib.util.spec_from_file_location("page_text_regions", PAGE / "text_regions.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def flooded(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """Return the cells of each part of a mask that touch, corners included, in the order of their first cells."""
    left, parts = set(map(tuple, np.argwhere(mask).tolist())), []
    while left:
        part, waiting = set[tuple[int, int]](), [min(left)]
        while waiting:
            row, column = cell = waiting.pop()
            if cell in left:
                left.remove(cell)
                part.add(cell)
                waiting += [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        parts.append(part)
    return parts


def test_cells_that_touch_are_one_region(text_regions: Any) -> None:
    chance = np.random.default_rng(0)
    for _ in range(50):
        mask = chance.random((20, 24)) < chance.uniform(0.05, 0.6)
        found = [
            {(row, column) for row, start, end in runs.tolist() for column in range(start, end)}
            for runs in text_regions._components(mask)
        ]
        assert sorted(found, key=min) == flooded(mask)


@pytest.mark.parametrize("degrees", range(-40, 41, 10))
def test_a_region_is_turned_as_its_line_and_widened(text_regions: Any, degrees: int) -> None:
    bar = Image.new("L", (200, 200))
    ImageDraw.Draw(bar).rectangle((50, 90, 149, 109), 255)
    probabilities = np.asarray(bar.rotate(-degrees, Image.Resampling.BICUBIC), np.float32) / 255
    (region,) = text_regions.find(probabilities, threshold=0.5, box_threshold=0.5, widen=1.2, most=10)
    right = region.corners[1] - region.corners[0]
    assert np.degrees(np.arctan2(right[1], right[0])) == pytest.approx(degrees, abs=2)
    # 100 x 20 cells have an area of 2000 and a circumference of 240: 10 cells on each side.
    assert region.size == pytest.approx((120, 40), abs=3)
    assert region.corners.mean(axis=0) == pytest.approx((99.5, 99.5), abs=1.5)


def drawn(*lines: tuple[tuple[int, int], str], size: tuple[int, int] = (500, 300), letters: int = 30) -> Image.Image:
    """Return a white page with lines of text, each from its upper left corner on."""
    page = Image.new("RGB", size, "white")
    for place, text in lines:
        ImageDraw.Draw(page).text(place, text, "black", ImageFont.load_default(letters))
    return page


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def ask(worker: Worker, content: bytes, accept: str = "*/*") -> Response:
    (answer,) = worker.predict_batch([Request(content, PNG, accept=accept)])
    return answer


def decoded(answer: Response) -> Any:
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


@pytest.fixture(scope="module")
def of_samples(built: Path, worker: Worker) -> list[Response]:
    """Return the answer to each sample, once: a page takes a second of CPU time."""
    with archive.Archive(built) as opened:
        return [worker.predict_batch([request])[0] for request in sample_check.sample_requests(opened)]


def test_its_samples_are_answered_as_expected(built: Path, of_samples: list[Response]) -> None:
    with archive.Archive(built) as opened:
        for sample, answer in zip(opened.samples, of_samples, strict=True):
            assert comparison.differences(sample, answer) == []


def test_a_scan_is_read_as_by_the_package(built: Path, of_samples: list[Response]) -> None:
    with archive.Archive(built) as opened:
        place = [sample.input for sample in opened.samples].index("samples/scan.png")
    lines = decoded(of_samples[place])["lines"]
    assert [line["text"] for line in lines] == list(SCAN)
    for line, box in zip(lines, SCAN.values(), strict=True):
        assert line["box"] == pytest.approx(box, abs=2)


def test_boxes_are_around_the_lines_in_pixels_of_the_image(worker: Worker) -> None:
    text = "Seven boats"
    page = drawn(((120, 90), text))
    dark = np.argwhere(np.asarray(page.convert("L")) < 128)
    (line,) = decoded(ask(worker, png(page)))["lines"]
    assert line["text"] == text and line["score"] > 0.9
    assert line["box"] == pytest.approx([*dark.min(axis=0)[::-1], *dark.max(axis=0)[::-1]], abs=10)


@pytest.mark.parametrize("degrees", [-20, 5])
def test_a_turned_page_is_read_in_its_own_order(worker: Worker, degrees: float) -> None:
    page = drawn(((60, 90), "Left of it"), ((320, 90), "On the right"), ((60, 180), "And below"), size=(560, 300))
    turned = page.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor="white")
    assert decoded(ask(worker, png(turned)))["text"].split("\n") == ["Left of it", "On the right", "And below"]


def test_a_line_that_runs_from_top_to_bottom_is_read(worker: Worker) -> None:
    page = drawn(((60, 60), "Spine of a book"), size=(400, 160)).rotate(-90, expand=True)
    (line,) = decoded(ask(worker, png(page)))["lines"]
    assert line["text"] == "Spine of a book"


def test_white_on_black_is_read(worker: Worker) -> None:
    inverted = Image.eval(drawn(((60, 90), "Night train 42")), lambda value: 255 - value)
    assert decoded(ask(worker, png(inverted)))["text"] == "Night train 42"


def test_pages_in_a_batch_are_answered_as_each_alone(worker: Worker) -> None:
    two, one, none = (
        Request(png(page), PNG)
        for page in (
            # Squares: the short side is enlarged.
            drawn(((60, 90), "Seven boats"), ((40, 180), "And below"), size=(300, 300)),
            drawn(((20, 100), "Night train 42"), size=(250, 250)),
            Image.new("RGB", (120, 120), "white"),
        )
    )
    requests = [two, Request(b"no image", PNG), one, none, two]
    alone = [worker.predict_batch([request])[0] for request in requests[:-1]]
    together = worker.predict_batch(requests)
    assert [answer.status for answer in together] == [200, 400, 200, 200, 200]
    assert [len(decoded(answer)["lines"]) for answer in alone if answer.status == 200] == [2, 1, 0]
    assert [answer.body for answer in together] == [answer.body for answer in (*alone, alone[0])]


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (2600, 40)])
def test_a_page_of_an_odd_size_is_answered(worker: Worker, size: tuple[int, int]) -> None:
    assert decoded(ask(worker, png(Image.new("RGB", size, "white")))) == {"text": "", "lines": []}


def test_noise_is_answered(worker: Worker) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 400, 3), dtype=np.uint8)
    assert ask(worker, png(Image.fromarray(noise))).status == 200


def test_a_picture_shows_the_page_and_what_was_read(worker: Worker) -> None:
    for page in (drawn(((120, 90), "Seven boats")), Image.open(SAMPLES / "empty.png")):
        answer = ask(worker, png(page), PNG)
        assert answer.content_type == PNG
        picture = Image.open(io.BytesIO(answer.body))
        assert (picture.width - 1) / picture.height == pytest.approx(2 * page.width / page.height, rel=0.01)


def test_outputs_have_names_over_the_open_inference_protocol(worker: Worker) -> None:
    content = base64.b64encode(png(drawn(((60, 90), "Seven boats"), ((60, 180), "And below")))).decode()
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [content]}]}
    (answer,) = worker.predict_batch([Request(json.dumps(body).encode(), JSON)])
    columns = {output["name"]: output["data"][0] for output in decoded(answer)["outputs"]}
    assert columns["text"].split("\n") == ["Seven boats", "And below"]
    assert [line["text"] for line in json.loads(columns["lines"])] == ["Seven boats", "And below"]
