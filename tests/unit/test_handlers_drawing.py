"""torchmar_handlers.drawing draws pictures of any input."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from torchmar_handlers.drawing import bars, heatmap, page, text_plot

RANDOM = np.random.RandomState(0)
TITLE, NOTE = "seven  98.3%", "integrated gradients, 50 steps, baseline zeros"


def opened(png: bytes) -> np.ndarray:
    """Return the pixels of a PNG that is a page: wide enough, with margins."""
    picture = Image.open(io.BytesIO(png))
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    pixels = np.asarray(picture)
    assert pixels.shape[1] >= 300
    for margin in (pixels[:20], pixels[-20:], pixels[:, :20], pixels[:, -20:]):
        assert margin.min() == 255
    return pixels


def share(pixels: np.ndarray, colour: page.Colour) -> float:
    return float((np.abs(pixels.astype(int) - colour).sum(-1) < 30).mean())


def heat(height: int = 8, width: int = 8, channels: int = 1, **options: str) -> bytes:
    image = RANDOM.randint(0, 256, (channels, height, width)).astype(np.uint8)
    values = np.linspace(-1, 1, image.size).reshape(image.shape)
    return heatmap.draw(image, values, **{"title": TITLE, "note": NOTE} | options)


def text(content: str = "a fine film, badly cut", **options: str) -> bytes:
    starts = range(0, len(content), 4)
    spans = [(place, place + 4, (-1) ** number * place / len(content)) for number, place in enumerate(starts)]
    return text_plot.draw(content, spans, **{"title": TITLE, "note": NOTE} | options)


def row(count: int = 5, **options: str) -> bytes:
    features = [(f"feature {number}", str(number), (-1) ** number * float(number)) for number in range(count)]
    return bars.draw(features, **{"title": TITLE, "note": NOTE} | options)


PICTURES: dict[str, Callable[..., bytes]] = {"heatmap": heat, "words": text, "bars": row}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_a_picture_is_the_same_each_time(draw: Callable[..., bytes]) -> None:
    RANDOM.seed(0)
    first = draw()
    RANDOM.seed(0)
    assert draw() == first
    assert share(opened(first), page.FOR) > 0
    assert share(opened(first), page.AGAINST) > 0


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize(
    "title", ["", "word " * 200, "x" * 500, "Überraschung 中文 😀\n\ud800\x00\x07é", " "], ids=range(5)
)
def test_a_title_stays_within_the_margins(draw: Callable[..., bytes], title: str) -> None:
    assert opened(draw(title=title, note=title)).shape[0] < 1000


# ------------------------------------------------------------------------------------------- page


def test_text_that_is_too_long_ends_in_dots() -> None:
    assert page.shortened("short", page.TEXT, 200) == "short"
    short = page.shortened("much too long for this", page.TEXT, 100)
    assert short.endswith("…")
    assert "much too long".startswith(short[:-1])
    assert 80 < page.width_of(short, page.TEXT) <= 100


def test_lines_break_at_spaces_and_the_last_is_shortened() -> None:
    assert page.wrapped("", page.TEXT, 100, 2) == []
    assert page.wrapped("label  98%", page.TEXT, 500, 2) == ["label  98%"]
    first, second = page.wrapped("one two three four five six seven eight nine", page.TEXT, 120, 2)
    assert not first.endswith("…")
    assert second.endswith("…")
    assert max(page.width_of(first, page.TEXT), page.width_of(second, page.TEXT)) <= 120


@pytest.mark.parametrize(
    "character", ["é", "e\u0301", "–", "ß", "\u00a0", "ﬁ", "中", "\ue000", "\ud800", "\x00", "\t", "א"]
)
def test_every_character_has_a_width(character: str) -> None:
    assert 0 < page.width_of(character, page.TEXT) < 3 * page.TEXT
    assert page.width_of("\u200d\ufe0f", page.TEXT) < page.TEXT


def test_numbers_have_a_sign_and_three_digits() -> None:
    texts = [page.number(value) for value in (1.5, -0.012345, 0.0, 123456.0, 123.4, -1e-9)]
    assert texts == ["+1.50", "-0.0123", "0", "+1.23e+05", "+123", "-1.00e-09"]


# ---------------------------------------------------------------------------------------- heatmap


@pytest.mark.parametrize(
    ("size", "channels"),
    [((1, 1), 1), ((1, 400), 3), ((400, 1), 1), ((2, 3), 3), ((900, 1200), 1), ((120, 241), 3), ((241, 120), 1)],
)
def test_an_image_of_any_size_has_a_heat_map(size: tuple[int, int], channels: int) -> None:
    pixels = opened(heat(*size, channels=channels))
    assert max(pixels.shape[:2]) < 1300


def test_positive_values_are_red_and_negative_ones_blue() -> None:
    values = np.zeros((1, 4, 4))
    values[0, :, 0], values[0, :, 3] = 1, -1
    pixels = opened(heatmap.draw(np.zeros((3, 4, 4), np.uint8), values, title="", note=""))
    columns = [pixels[200, 36 + 480 + 36 + 60 + 120 * place].tolist() for place in range(4)]
    assert columns[0] == list(page.FOR)
    assert columns[3] == list(page.AGAINST)
    assert columns[1] == columns[2] == [235, 235, 235]
    # The input stands beside it.
    assert pixels[200, 36 + 240].tolist() == [0, 0, 0]


def test_one_pixel_does_not_bleach_the_rest() -> None:
    values = np.ones((1, 20, 20))
    values[0, 0, 0] = 1e6
    pixels = opened(heatmap.draw(np.zeros((1, 20, 20), np.uint8), values, title="", note=""))
    assert share(pixels, page.FOR) > 0.2


@pytest.mark.parametrize("values", [np.zeros((1, 5, 5)), np.full((1, 5, 5), np.nan), np.full((1, 5, 5), np.inf)])
def test_zero_values_have_no_colour(values: np.ndarray) -> None:
    pixels = opened(heatmap.draw(np.full((1, 5, 5), 9, np.uint8), values, title="", note=""))
    # Those of the legend are left.
    assert share(pixels, page.FOR) < 0.005


def test_the_channels_of_attributions_are_summed() -> None:
    image, values = np.zeros((3, 6, 6), np.uint8), RANDOM.randn(3, 6, 6)
    summed = heatmap.draw(image, values.sum(0, keepdims=True), title="", note="")
    assert heatmap.draw(image, values, title="", note="") == summed


def test_values_that_are_neither_for_nor_against_are_red_from_the_smallest_on() -> None:
    values = np.full((1, 4, 4), 0.2)
    values[0, :, 0] = 0.5
    pixels = opened(heatmap.draw(np.zeros((1, 4, 4), np.uint8), values, title="", note="", signed=False))
    columns = [pixels[200, 36 + 480 + 36 + 60 + 120 * place].tolist() for place in range(2)]
    assert columns == [list(page.FOR), [235, 235, 235]]
    assert share(pixels, page.AGAINST) == 0


# ------------------------------------------------------------------------------------------ words

TEXTS = {
    "nothing": "",
    "space": " \n\t ",
    "a letter": "x",
    "20 characters": "not bad, not so good",
    "100000 characters": "too many words to read to the end; " * 2200,
    "one word": "x" * 5000,
    "lines": "\r\n one\n\n\ttwo\rthree\n",
    "many lines": "\n" * 1000,
    "wide space": " " * 3000 + "end",
    "scripts": "naïve Ωmega Привет 中文 שלום 😀👩‍👩‍👧 e\u0301 \ud800 \x00\u2028\ufeff",
}


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS)
def test_a_text_of_any_length_and_script_is_laid_out(content: str) -> None:
    pixels = opened(text(content))
    assert pixels.shape[0] < 1700
    assert pixels.shape[1] == 1040


def test_a_long_text_takes_more_lines_and_ends_in_a_count() -> None:
    heights = [opened(text("word " * count)).shape[0] for count in (2, 100, 400, 800, 900)]
    assert heights[0] < heights[1] < heights[2] < heights[3] == heights[4]
    lines, read = text_plot._lines("word " * 900, np.full(4_500, -1))
    assert len(lines) == 40
    assert sum(len(piece.text) for line in lines for piece in line) == pytest.approx(read, abs=80)
    assert read < 4_500


def test_white_space_and_line_breaks_are_kept() -> None:
    lines, read = text_plot._lines("one  two\n\n three", np.array([0] * 3 + [-1] * 2 + [1] * 3 + [-1] * 3 + [2] * 5))
    assert [[piece.text for piece in line] for line in lines] == [["one", "  ", "two"], [], [" ", "three"]]
    assert [piece.token for line in lines for piece in line] == [0, -1, 1, -1, 2]
    assert read == 16


def test_a_token_is_coloured_by_its_value() -> None:
    def colours(*spans: tuple[int, int, float]) -> list[float]:
        pixels = opened(text_plot.draw("xx yy", spans, title="", note=""))[:70]
        return [share(pixels, page.FOR), share(pixels, page.AGAINST)]

    assert colours() == colours((0, 2, 0.0)) == colours((0, 2, float("nan"))) == colours((2, 2, 5.0)) == [0, 0]
    assert colours((0, 2, 3.0))[0] > 0 == colours((0, 2, 3.0))[1]
    assert colours((3, 5, -0.1))[1] > 0 == colours((3, 5, -0.1))[0]
    assert colours((-5, 99, 1.0))[0] > colours((0, 2, 1.0))[0]


# ------------------------------------------------------------------------------------------- bars


def test_fifteen_features_have_a_bar_and_the_rest_share_one() -> None:
    heights = [opened(row(count)).shape[0] for count in (1, 5, 15, 16, 17, 500)]
    assert heights[0] < heights[1] < heights[2] < heights[3] == heights[4] == heights[5]


def test_the_strongest_feature_comes_first() -> None:
    features = [("a", "1", 0.5), ("b", "2", -2.0), ("c", "3", 1.0)]
    drawn = bars.draw(features, title="", note="")
    assert drawn == bars.draw(features[::-1], title="", note="")
    pixels = opened(drawn)
    # Rows of 38 pixels: one whose bar is blue, then two whose bars are red.
    tops = [pixels[28 + 38 * place : 28 + 38 * place + 38] for place in range(3)]
    assert [share(top, page.AGAINST) > 0.1 for top in tops] == [True, False, False]
    assert 0 == share(tops[0], page.FOR) < share(tops[2], page.FOR) < share(tops[1], page.FOR)


@pytest.mark.parametrize(
    "features",
    [
        [],
        [("a", "", 0.0), ("b", "1", 0.0)],
        [("a", "1", float("nan")), ("b", "1", float("inf"))],
        [("name " * 100, "value " * 100, -1e-300), ("", "", -1e300)],
        [("中文", "😀", 1.0)] * 40,
    ],
)
def test_features_of_any_kind_are_drawn(features: list[tuple[str, str, float]]) -> None:
    opened(bars.draw(features, title=TITLE, note=NOTE, ends=("lowers", "raises")))
