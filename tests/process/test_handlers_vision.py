"""The handlers of images see the pixels that torchvision would, and answer each image for itself."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import io
import json
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features
from torch import nn

from tests.support.paths import DIGITS, ROOT, SAMPLES
from torchmar import archive, recipe, sample_check
from torchmar.errors import LoadError
from torchmar.exchange import Request, Response, read
from torchmar.worker import Worker
from torchmar_handlers.images import arrays, class_map, jpeg, reading, regions
from torchmar_handlers.images.geometry import Geometry
from torchmar_handlers.images.reading import Reader
from torchmar_handlers.request import BadRequest

ARCHIVES = ROOT / "archives"
CLASSIFIER, SEGMENTER, DETECTOR, CASCADE = (
    f"torchmar_handlers.{name}" for name in ("image_classifier", "image_segmenter", "object_detector", "cascade")
)
MANY = 89_478_485
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PNG, NPY, JSON = "image/png", "application/x-npy", "application/json"
SEVEN = (SAMPLES / "seven.png").read_bytes()

Build = Callable[..., Path]


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return an image with detail of several sizes, of which no two pixels need be alike."""
    chance = np.random.default_rng(seed)
    coarse = chance.integers(0, 256, (max(1, height // 16), max(1, width // 16), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int32)
    fine = chance.integers(-30, 31, smooth.shape)
    return Image.fromarray((smooth + fine).clip(0, 255).astype(np.uint8)).convert(mode)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def scripted(module: nn.Module) -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), stream)
    return stream.getvalue()


def decoded(answer: Response) -> Any:
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def message(answer: Response) -> str:
    return str(json.loads(answer.body)["message"])


# ------------------------------------------------------------------------------------------- geometry


def by_pillow(image: Image.Image, resize: Any, crop: tuple[int, int] | None) -> np.ndarray:
    """Return an image of Pillow's after the steps of torchvision's Resize and CenterCrop."""
    width, height = image.size
    if isinstance(resize, int):
        short, long = resize, int(resize * max(width, height) / min(width, height))
        image = image.resize((short, long) if width <= height else (long, short), Image.Resampling.BILINEAR)
    elif resize:
        image = image.resize(resize[::-1], Image.Resampling.BILINEAR)
    if crop:
        high, wide = crop
        width, height = image.size
        pads = [max(0, wide - width), max(0, high - height)]
        border = (pads[0] // 2, pads[1] // 2, (pads[0] + 1) // 2, (pads[1] + 1) // 2)
        image = ImageOps.expand(image, border)
        left, top = round((image.width - wide) / 2.0), round((image.height - high) / 2.0)
        image = image.crop((left, top, left + wide, top + high))
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def sizes(count: int) -> Iterator[tuple[int, int]]:
    chance = random.Random(0)
    for index in range(count):
        most = ((900, 900), (300, 300), (12, 3000), (3000, 12))[index % 4]
        yield chance.randint(1, most[0]), chance.randint(1, most[1])


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("resize", "crop"),
    [(256, (224, 224)), (64, (99, 50)), ((40, 70), None), ((50, 60), (55, 41)), (None, (30, 300)), (None, None)],
)
def test_pixels_are_those_of_torchvision_within_a_level(mode: str, resize: Any, crop: tuple[int, int] | None) -> None:
    differ = total = 0
    for seed, (width, height) in enumerate(sizes(24)):
        image = noise(width, height, mode, seed)
        if isinstance(resize, int) and resize**2 * max(width / height, height / width) > 5e6:
            continue  # the steps of the reference would take gigabytes
        expected = by_pillow(image, resize, crop).astype(int)
        for pixels in (image, reading.as_array(image)):
            resized = Geometry(resize, crop).apply(pixels).astype(int)
            assert resized.shape == expected.shape
            apart = np.abs(resized - expected)
            assert (apart > 1).mean() < 1e-3 and apart.max() <= 2, (width, height)
            differ, total = differ + (apart > 0).sum(), total + apart.size
    assert differ / total < 0.03


def test_pixels_are_those_that_torchvision_makes() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    for resize, crop in ((256, 224), (100, 130), (37, 20)):
        steps = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])
        for seed, (width, height) in enumerate(sizes(24)):
            if max(width / height, height / width) < 50:
                image = noise(width, height, seed=seed)
                apart = np.abs(np.asarray(steps(image), int) - Geometry(resize, (crop, crop)).apply(image))
                assert (apart > 1).mean() < 1e-3 and apart.max() <= 2, (width, height)


def test_an_image_of_one_line_is_resized_only_where_it_is_kept() -> None:
    # Resized whole, these would be 256 x 16 million pixels.
    for width, height in ((1, 65_000), (65_000, 1)):
        assert Geometry(256, (224, 224)).apply(noise(width, height)).shape == (224, 224, 3)


# ------------------------------------------------------------------------------------------- reading

MODES = {
    "RGB JPEG": saved(noise(61, 43), "JPEG"),
    "grey JPEG": saved(noise(61, 43, "L"), "JPEG"),
    "CMYK JPEG": saved(noise(61, 43, "CMYK"), "JPEG"),
    "progressive JPEG": saved(noise(61, 43), "JPEG", progressive=True, quality=40),
    "JPEG without subsampling": saved(noise(61, 43), "JPEG", subsampling=0),
    "RGBA PNG": saved(noise(61, 43, "RGBA")),
    "LA PNG": saved(noise(61, 43, "LA")),
    "palette PNG": saved(noise(61, 43).quantize(16)),
    "bilevel PNG": saved(noise(61, 43, "1")),
    "GIF": saved(noise(61, 43), "GIF"),
    "animated GIF": saved(noise(61, 43), "GIF", save_all=True, append_images=[noise(61, 43, seed=1)]),
    "BMP": saved(noise(61, 43), "BMP"),
    "TIFF": saved(noise(61, 43), "TIFF"),
    "WebP": saved(noise(61, 43), "WEBP"),
    "PPM": saved(noise(61, 43), "PPM"),
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("content", MODES.values(), ids=MODES)
def test_a_file_of_any_mode_is_read_as_by_pillow(content: bytes, mode: str) -> None:
    expected = np.asarray(Image.open(io.BytesIO(content)).convert(mode))
    assert (reading.as_array(Reader(mode, MANY).read(content)[0]).squeeze() == expected).all()


def test_sixteen_bits_are_cut_to_the_upper_eight() -> None:
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        pixels, _ = Reader("RGB", MANY).read(saved(Image.fromarray(values), kind))
        assert (reading.as_array(pixels) == (values >> 8)[:, :, None]).all()


def test_a_photograph_is_rotated_only_if_configured() -> None:
    image, exif = noise(40, 20), Image.Exif()
    exif[274] = 6  # held upright
    content = saved(image, "JPEG", exif=exif)
    assert reading.size(Reader("RGB", MANY).read(content)[0]) == (40, 20)
    turned, original = Reader("RGB", MANY, exif=True).read(content)
    assert original == (20, 40)
    assert (reading.as_array(turned) == np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))).all()


@pytest.mark.skipif(not features.check_feature("libjpeg_turbo"), reason="Pillow has another libjpeg")
def test_jpeg_has_the_same_pixels_with_and_without_simplejpeg() -> None:
    pytest.importorskip("simplejpeg")
    for seed, (width, height) in enumerate(sizes(40)):
        options = {"quality": 10 + 2 * seed, "subsampling": seed % 3, "progressive": seed % 2 == 0}
        content = saved(noise(width, height, seed=seed), "JPEG", **options)
        pixels = jpeg.decode(content)
        assert pixels is not None
        assert (pixels == np.asarray(Image.open(io.BytesIO(content)))).all()


# A gradient with a disc: as smooth as a photograph, where noise has no smaller copy.
def scene(width: int, height: int) -> Image.Image:
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    disc = ((across - 0.4) ** 2 + (down - 0.5) ** 2 < 0.05) * 80
    return Image.fromarray(np.stack([across * 175 + disc, down * 175 + disc, 120 - disc], 2).astype(np.uint8))


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize(
    ("width", "height", "side", "scale"),
    [(640, 480, 256, 1), (1023, 1100, 256, 1), (1024, 1100, 256, 2), (1050, 1031, 128, 4), (2048, 2501, 128, 8)],
)
def test_a_large_jpeg_is_decoded_at_a_scale_if_configured(
    width: int, height: int, side: int, scale: int, upright: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[274] = 6 if upright else 1
    content = saved(scene(width, height), "JPEG", quality=90, exif=exif)
    geometry = Geometry(side, (side * 7 // 8, side * 7 // 8))
    scaled = Reader("RGB", MANY, exif=True, resized=geometry.resized)
    whole, original = Reader("RGB", MANY, exif=True).read(content)
    pixels, its_original = scaled.read(content)
    assert its_original == original == ((height, width) if upright else (width, height))
    assert reading.size(pixels) == tuple(-(-side // scale) for side in original)
    expected, seen = (geometry.apply(each, original).astype(int) for each in (whole, pixels))
    # The edge of the disc differs most; an image that was shifted by a pixel would by 80.
    assert np.abs(seen - expected).max() <= 40 and np.abs(seen - expected).mean() < 0.5
    assert reading.size(scaled.read(content, whole=True)[0]) == original
    if features.check_feature("libjpeg_turbo"):
        monkeypatch.setattr(jpeg, "decode", lambda *_: None)  # as without simplejpeg
        assert (reading.as_array(scaled.read(content)[0]) == reading.as_array(pixels)).all()


def test_other_files_are_never_decoded_at_a_scale() -> None:
    reader = Reader("RGB", MANY, resized=lambda width, height: (8, 8))
    for name in ("RGBA PNG", "WebP", "GIF"):
        assert reading.size(reader.read(MODES[name])[0]) == (61, 43)
    with pytest.raises(BadRequest, match="damaged"):
        reader.read(MODES["RGB JPEG"][:-200])


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header declares a large size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
FLOATS = saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
BAD = {
    "nothing": (b"", 400, "empty"),
    "NULs": (bytes(500), 400, "not an image"),
    "a text": (b"a seven, please", 400, "not an image"),
    "a truncated JPEG": (MODES["RGB JPEG"][:-200], 400, "damaged"),
    "a truncated PNG": (MODES["RGBA PNG"][:300], 400, "damaged"),
    "a truncated GIF": (MODES["GIF"][:-200], 400, "damaged"),
    "a head of a JPEG": (MODES["RGB JPEG"][:20], 400, "image"),
    "a bomb": (bomb(60_000, 60_000), 413, "60000"),
    "a lesser bomb": (bomb(12_000, 9_000), 413, "12000x9000"),
    "PostScript": (EPS, 400, "not an image"),
    "floating numbers": (FLOATS, 400, "floating"),
}


def test_damaged_files_raise_only_bad_request() -> None:
    chance = random.Random(0)
    reader = Reader("RGB", 10_000_000)
    for content in MODES.values():
        for _ in range(40):
            broken = bytearray(content)
            for _ in range(chance.randint(1, 8)):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            try:
                reader.read(bytes(broken[: chance.randint(1, len(broken))]))
            except BadRequest as refusal:
                assert refusal.error_code in (400, 413)


# ------------------------------------------------------------------------------------------- arrays


def test_bytes_are_pixels_and_floats_are_the_models_input() -> None:
    pixels = reading.as_array(noise(9, 5))
    for payload in (pixels, pixels.transpose(2, 0, 1), pixels.tolist(), pixels.astype(np.int64)):
        image, values = arrays.read(payload, "RGB", MANY)
        assert values is None and (reading.as_array(image) == pixels).all()
    floats = np.random.default_rng(0).normal(size=(3, 5, 9))
    for payload in (floats, floats.tolist(), floats.astype(np.float16)):
        image, values = arrays.read(payload, "RGB", MANY)
        assert image is None and values == pytest.approx(np.asarray(payload), rel=1e-6)
    grey = pixels[:, :, 0]
    image, _ = arrays.read(grey, "L", MANY)
    assert (reading.as_array(image)[:, :, 0] == grey).all()
    assert arrays.read(grey.astype(float), "L", MANY)[1].shape == (1, 5, 9)


WRONG_ARRAYS = {
    "flat": ([1, 2, 3], r"the shape \[3\] .*\(height, width, 3\)"),
    "ragged": ([[[1, 2, 3]], [[1, 2]]], "one length|each row"),
    "texts": ([[["a", "b", "c"]]], "nested lists of numbers"),
    "five channels": (np.zeros((4, 4, 5), np.uint8).tolist(), r"\[4, 4, 5\]"),
    "empty": ([], r"\[0\]"),
    "beyond a byte": (np.full((4, 4, 3), 256).tolist(), "0 to 255"),
    "fractions, channels last": (np.full((4, 4, 3), 1.5).tolist(), "floats from 0 to 1"),
    "not a number": (np.full((3, 4, 4), np.nan), "not finite"),
}


def test_floats_from_0_to_1_with_the_channels_last_are_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image, values = arrays.read((pixels / 255).tolist(), "RGB", MANY)
    assert values is None
    assert (np.asarray(image) == pixels).all()


@pytest.mark.parametrize(("payload", "message"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_an_array_that_is_no_image_is_rejected(payload: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        arrays.read(payload, "RGB", MANY)


# ------------------------------------------------------------------------------------------- classifier


class Colours(nn.Module):
    """Scores of 12 classes, each a fixed pattern of colours; large enough that every pixel counts."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(channels, 8, 5, stride=3)
        self.last = nn.Linear(8, 12)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=chance) / 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(images)).mean([2, 3])) * 3


LABELS = {str(index): [f"n{index:08}", f"colour {index}"] for index in range(12)}
NAMES = [f"colour {index}" for index in range(12)]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Build:
    """Return a function that builds an archive of one of the handlers, files on disk and recipe keys."""

    def build(handler: str, disk: dict[str, bytes], options: dict[str, Any] | None = None, **keys: Any) -> Path:
        folder = tmp_path_factory.mktemp("recipe")
        for name, content in disk.items():
            (folder / name).write_bytes(content)
        config = {"handler": options or {}, **keys.pop("config", {})}
        document = {"name": "made", "version": "1.0", "handler": handler, "config": config, **keys}
        target = tmp_path_factory.mktemp("store") / "made-1.0.mar"
        return archive.pack(archive.collect_members(recipe.Recipe.model_validate(document), folder), target).path

    return build


@pytest.fixture(scope="module")
def colours(build: Build) -> Iterator[Worker]:
    """Run a classifier with the options of TorchServe's own, which are none."""
    disk = {"model.pt": scripted(Colours()), "labels.json": json.dumps(LABELS).encode()}
    with Worker(build(CLASSIFIER, disk, weights="model.pt", labels="labels.json")) as worker:
        yield worker


@pytest.fixture(scope="module")
def digits_of_ours(build: Build) -> Iterator[Worker]:
    disk = {"digits.pt": (DIGITS / "digits.pt").read_bytes()}
    options = {"mode": "L", "resize": [32, 32], "topk": 3, "max_pixels": 100_000, "exif": True}
    labels = [str(digit) for digit in range(10)]
    with Worker(build(CLASSIFIER, disk, options, weights="digits.pt", labels=labels)) as worker:
        yield worker


def expected(image: Image.Image, topk: int = 5) -> dict[str, float]:
    """Return the answer of TorchServe's own classifier: its steps, in NumPy."""
    pixels = by_pillow(image.convert("RGB"), 256, (224, 224)) / 255
    values = torch.from_numpy((pixels - MEAN) / STD).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        best = Colours()(values).softmax(1)[0].topk(topk)
    return {NAMES[index]: value for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)}


IMAGES = {
    "640x480": noise(640, 480, seed=1),
    "480x640": noise(480, 640, seed=2),
    "a thumbnail": noise(30, 50, seed=3),
    "one pixel": noise(1, 1, seed=4),
    "a line": noise(3, 400, seed=5),
    "grey": noise(300, 300, "L", seed=6),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_a_classifier_without_options_answers_as_the_stock_one_does(colours: Worker, image: Image.Image) -> None:
    scores = decoded(colours.predict_batch([Request(saved(image), PNG)])[0])
    wanted = expected(image)
    assert list(scores) == list(wanted)
    assert scores == pytest.approx(wanted, abs=1e-3)


def test_a_long_line_is_answered_without_being_resized_whole(colours: Worker) -> None:
    answers = colours.predict_batch([Request(saved(noise(1, 5000))), Request(saved(noise(5000, 1)))])
    assert [answer.status for answer in answers] == [200, 200]


def test_files_of_all_sizes_and_formats_share_a_batch_and_are_answered_as_alone(colours: Worker) -> None:
    requests = [Request(content) for content in MODES.values()] + [Request(saved(single)) for single in IMAGES.values()]
    bad = [Request(content) for content, _, _ in BAD.values()]
    alone = [decoded(colours.predict_batch([request])[0]) for request in requests]
    mixed = list(zip(requests, bad, strict=False)) + [(request, None) for request in requests[len(bad) :]]
    order = [request for pair in mixed for request in pair if request]
    answers = dict(zip(map(id, order), colours.predict_batch(order), strict=True))
    for request, single in zip(requests, alone, strict=True):
        assert decoded(answers[id(request)]) == pytest.approx(single, abs=1e-5)
    for request, (_, status, expected_message) in zip(bad, BAD.values(), strict=True):
        assert answers[id(request)].status == status, answers[id(request)].body
        assert expected_message in message(answers[id(request)])
    assert "Traceback" not in colours.log()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_an_image_is_accepted_in_every_protocol(colours: Worker) -> None:
    image = noise(300, 260)
    pixels, text = np.asarray(image), base64.b64encode(saved(image)).decode()
    prepared = (by_pillow(image, 256, (224, 224)) / 255 - MEAN) / STD
    floats = prepared.transpose(2, 0, 1).astype(np.float32)
    wanted = expected(image)

    def v2(datatype: str, array: Any, shape: Sequence[int]) -> Request:
        tensor = {"name": "image", "datatype": datatype, "shape": shape, "data": array}
        return Request(json.dumps({"inputs": [tensor]}).encode(), JSON)

    plain = {
        "file": Request(saved(image)),
        "data": Request(json.dumps({"data": text}).encode(), JSON),
        "pixels": Request(json.dumps(pixels.tolist()).encode(), JSON),
        "pixels as data": Request(json.dumps({"data": pixels.tolist()}).encode(), JSON),
        "floats": Request(json.dumps(floats.tolist()).encode(), JSON),
        ".npy of pixels": Request(_npy(pixels), NPY),
        ".npy of floats": Request(_npy(floats), NPY),
    }
    for name, answer in zip(plain, colours.predict_batch(list(plain.values())), strict=True):
        assert decoded(answer) == pytest.approx(wanted, abs=1e-3), name
    instances = [{"b64": text}, {"data": text}, pixels.tolist()]
    (kserve,) = colours.predict_batch([Request(json.dumps({"instances": instances}).encode(), JSON)])
    for prediction in decoded(kserve)["predictions"]:
        assert prediction == pytest.approx(wanted, abs=1e-3)
    best = max(wanted, key=lambda label: wanted[label])
    for request in (
        v2("BYTES", [text, text], [2]),
        v2("UINT8", np.stack([pixels, pixels]).ravel().tolist(), [2, 260, 300, 3]),
        v2("FP32", np.stack([floats, floats]).ravel().tolist(), [2, 3, 224, 224]),
    ):
        outputs = {output["name"]: output["data"] for output in decoded(colours.predict_batch([request])[0])["outputs"]}
        assert outputs["label"] == [best, best]
        assert outputs["probability"] == pytest.approx([wanted[best]] * 2, abs=1e-3)


def test_an_image_file_is_a_photograph_of_the_camera_where_exif_is_read(digits_of_ours: Worker) -> None:
    exif = Image.Exif()
    exif[274] = 3  # upside down
    image = Image.open(io.BytesIO(SEVEN)).rotate(180)
    turned = Request(saved(image, "JPEG", exif=exif, quality=98))
    assert next(iter(decoded(digits_of_ours.predict_batch([turned])[0]))) == "7"


def test_an_option_limits_the_pixels(digits_of_ours: Worker) -> None:
    large, good, pixels = digits_of_ours.predict_batch(
        [Request(saved(noise(400, 300))), Request(SEVEN), Request(_npy(np.zeros((400, 300), np.uint8)), NPY)]
    )
    assert (large.status, good.status, pixels.status) == (413, 200, 413)
    assert "400x300 pixels; 100000 are allowed" in message(large)


def test_predictions_explanations_and_pictures_share_a_batch(digits_of_ours: Worker) -> None:
    three = (SAMPLES / "three.png").read_bytes()
    answers = digits_of_ours.predict_batch(
        [
            Request(SEVEN, explain=True),
            Request(three),
            Request(b"", explain=True),
            Request(three, explain=True, accept=PNG),
            Request(json.dumps({"data": base64.b64encode(SEVEN).decode(), "method": "saliency"}).encode(), JSON, True),
            Request(json.dumps({"data": base64.b64encode(SEVEN).decode(), "target": 3}).encode(), JSON, True),
            Request(SEVEN, explain=True, headers={"Explain-Method": "guesswork"}),
        ]
    )
    assert [answer.status for answer in answers] == [200, 200, 400, 200, 200, 200, 400]
    first, by_saliency, of_three = (decoded(answers[index]) for index in (0, 4, 5))
    assert (first["method"], first["label"], first["shape"]) == ("integrated_gradients", "7", [1, 32, 32])
    assert first["probability"] > 0.8
    assert (by_saliency["method"], of_three["label"]) == ("saliency", "3")
    assert Image.open(io.BytesIO(answers[3].body)).format == "PNG"
    assert answers[3].content_type == PNG
    # Alone, and captum's result for the same input.
    assert decoded(digits_of_ours.predict_batch([Request(SEVEN, explain=True)])[0])["attributions"] == pytest.approx(
        np.array(first["attributions"]), abs=1e-3
    )


class Differences(nn.Module):
    """Scores that are small differences of large numbers, which are all 1000 in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.stack([1000.5 + torch.arange(64) / 50, torch.zeros(64)], 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = images.flatten(1)
        return values @ self.table - values.sum(1, keepdim=True) * 1001


def test_gradients_are_computed_in_bfloat16_only_if_samples_have_the_same_explanations(build: Build) -> None:
    disk = {"digits.pt": (DIGITS / "digits.pt").read_bytes(), "coarse.pt": scripted(Differences()), "seven.png": SEVEN}
    for name, side, dtype in (("digits.pt", 32, "bfloat16"), ("coarse.pt", 8, None)):
        options = {"mode": "L", "resize": [side, side], "gradient_dtype": "bfloat16"}
        with Worker(build(CLASSIFIER, disk, options, weights=name, samples=[{"input": "seven.png"}])) as worker:
            (answer,) = worker.predict_batch([Request(SEVEN, explain=True)])
            assert decoded(answer).get("dtype") == dtype
            assert ("computed in float32: bfloat16 changes explanations" in worker.log()) == (dtype is None)


WRONG_OPTIONS = {
    "resize": ({"resize": "256"}, "handler.resize: '256' is neither"),
    "crop": ({"crop": [1, 2, 3]}, "handler.crop"),
    "mode": ({"mode": "BGR"}, "handler.mode: 'BGR' is none of RGB, L"),
    "mean": ({"mean": [0.5]}, "a list of 3 numbers"),
    "std": ({"std": [0.5, 0, 0.5]}, "divided by 0"),
    "method": ({"method": "guesswork"}, "handler.method: 'guesswork' is none of"),
    "baseline": ({"baseline": "void"}, "handler.baseline"),
    "gradient_dtype": ({"gradient_dtype": "int8"}, "'int8' is none of float32, bfloat16"),
    "n_steps": ({"n_steps": "all"}, "handler.n_steps: 'all' is neither auto nor a whole number"),
    "size": ({"size": [32, 32]}, "handler.size: no option is called so"),
}


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_a_wrong_option_is_reported_when_the_model_loads(build: Build, options: dict[str, Any], message: str) -> None:
    path = build(CLASSIFIER, {"model.pt": scripted(Colours())}, options, weights="model.pt")
    with pytest.raises(LoadError) as failure:
        Worker(path).close()
    assert message in failure.value.traceback


def test_the_stock_classifier_gives_the_same_top_five(build: Build) -> None:
    pytest.importorskip("torchvision")
    requests = [Request(saved(image.convert("RGB"))) for image in IMAGES.values()]
    answers = []
    for handler in ("image_classifier", CLASSIFIER):
        disk = {"model.pt": scripted(Colours()), "labels.json": json.dumps(LABELS).encode()}
        with Worker(build(handler, disk, weights="model.pt", labels="labels.json")) as worker:
            answers.append([decoded(answer) for answer in worker.predict_batch(requests)])
    for stock, ours in zip(*answers, strict=True):
        assert list(ours) == list(stock)
        assert ours == pytest.approx(stock, abs=1e-3)


# ------------------------------------------------------------------------------------------- scenes


def load(name: str, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scenes(weights: None) -> dict[str, Any]:
    """Return the objects in the samples of the scenes, by file name; train the model if that has not been done yet."""
    for name in ("scenes", "segments"):
        if not (ARCHIVES / name / f"{name}.pt").exists():
            subprocess.run([sys.executable, ARCHIVES / name / "train.py"], check=True)
    samples: dict[str, Any] = load("scenes", ARCHIVES / "scenes" / "scenes.py").samples()
    return samples


def sample(name: str, **changes: Any) -> Request:
    return dataclasses.replace(read(ARCHIVES / "scenes" / "samples" / name), **changes)


def iou(box: Sequence[float], other: Sequence[float]) -> float:
    wide, high = (min(box[i + 2], other[i + 2]) - max(box[i], other[i]) for i in (0, 1))
    shared = max(0.0, wide) * max(0.0, high)
    return shared / (sum((corners[2] - corners[0]) * (corners[3] - corners[1]) for corners in (box, other)) - shared)


@pytest.mark.parametrize("name", ["scenes", "segments", "reader"])
def test_an_archive_keeps_its_contract(name: str, scenes: object, tmp_path: Path) -> None:
    proven = sample_check.run_samples(archive.build(ARCHIVES / name, tmp_path).path)
    assert proven.problems == ()
    assert not proven.explains


def test_the_samples_are_the_scenes_that_their_script_draws(scenes: dict[str, Any]) -> None:
    files = [file for name in ("scenes", "segments", "reader") for file in (ARCHIVES / name / "samples").iterdir()]
    assert {file.name for file in files} == set(scenes)
    for file in files:
        pixels = np.asarray(Image.open(file), int)
        # Another version of NumPy or Pillow may round in another way.
        assert np.abs(pixels - scenes[file.name].pixels).max() <= 2


@pytest.fixture(scope="module")
def detector(scenes: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker(archive.build(ARCHIVES / "scenes", tmp_path_factory.mktemp("store")).path) as worker:
        yield worker


def label_and_box(detection: dict[str, Any]) -> tuple[str, list[float]]:
    return next((label, box) for label, box in detection.items() if isinstance(box, list))


def test_a_detector_finds_the_objects_of_a_scene(detector: Worker, scenes: dict[str, Any]) -> None:
    right = 0
    for name, answer in zip(scenes, detector.predict_batch([sample(name) for name in scenes]), strict=True):
        detections, scene = decoded(answer), scenes[name]
        box_of_digit = {str(digit): box for digit, box in zip(scene.digits.tolist(), scene.boxes.tolist(), strict=True)}
        boxes = [label_and_box(detection) for detection in detections]
        right += sum(label in box_of_digit and iou(box, box_of_digit[label]) > 0.5 for label, box in boxes)
        assert [detection["score"] for detection in detections] == sorted(
            (detection["score"] for detection in detections), reverse=True
        )
        assert all(detection["score"] >= 0.5 for detection in detections)
    assert right >= 0.8 * sum(len(scene.boxes) for scene in scenes.values())


def test_images_of_all_sizes_are_detected_in_a_batch_as_alone(detector: Worker, scenes: dict[str, Any]) -> None:
    crops = [saved(Image.fromarray(scenes["many.png"].pixels[:high, :wide])) for high, wide in ((40, 50), (97, 203))]
    requests = [*map(sample, scenes), *map(Request, crops), Request(b"broken"), Request(saved(noise(1, 1)))]
    together = detector.predict_batch(requests)
    assert [answer.status for answer in together].count(400) == 1
    for request, answer in zip(requests, together, strict=True):
        (alone,) = detector.predict_batch([request])
        assert alone.status == answer.status
        if alone.status == 200:
            for single, batched in zip(decoded(alone), decoded(answer), strict=True):
                assert label_and_box(single)[0] == label_and_box(batched)[0]
                assert label_and_box(single)[1] == pytest.approx(label_and_box(batched)[1], abs=0.02)
                assert single["score"] == pytest.approx(batched["score"], abs=1e-4)


def test_the_scenes_model_answers_an_image_independently_of_its_batch(scenes: dict[str, Any]) -> None:
    model = torch.jit.load(ARCHIVES / "scenes" / "scenes.pt").eval()
    images = [torch.from_numpy(scene.pixels).permute(2, 0, 1).float() / 255 for scene in scenes.values()]
    images += [images[0][:, :33, :47], torch.ones(3, 200, 300)]

    def confident(answer: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # Below that there is nothing but ties: where in an empty image the score is 0.01 is anybody's guess.
        return {key: value[answer["scores"] > 0.3] for key, value in answer.items()}

    with torch.inference_mode():
        for image, beside in zip(images, map(confident, model(images)), strict=True):
            alone = confident(model([image])[0])
            assert alone["labels"].tolist() == beside["labels"].tolist()
            for key, tolerance in (("boxes", 1e-2), ("scores", 1e-4)):  # boxes are in pixels
                assert torch.allclose(alone[key], beside[key], rtol=0, atol=tolerance)


def test_boxes_are_drawn_if_a_picture_is_requested(detector: Worker) -> None:
    picture, plain, none = detector.predict_batch(
        [sample("two.png", accept=PNG), sample("two.png"), sample("none.png", accept=PNG)]
    )
    assert (picture.content_type, plain.content_type) == (PNG, JSON)
    shown, empty = (
        np.asarray(Image.open(io.BytesIO(picture_answer.body)).convert("RGB"), int)
        for picture_answer in (picture, none)
    )
    from torchmar_handlers.drawing import boxes

    def drawn(pixels: np.ndarray) -> int:
        return sum((np.abs(pixels - colour).sum(-1) == 0).sum() for colour in boxes._COLOURS)

    assert drawn(shown) > 1000 > drawn(empty)


def test_a_detector_and_a_segmenter_have_no_explanations(detector: Worker, segmenter: Worker) -> None:
    for worker in (detector, segmenter):
        rejected, answered = worker.predict_batch([sample("one.png", explain=True), sample("one.png")])
        assert (rejected.status, answered.status) == (501, 200)
        assert "no explanations" in message(rejected)


class Stacked(nn.Module):
    """Two boxes in every image of a stack, the second as bright as the image is, as named tensors."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        count = images.size(0)
        boxes = torch.tensor([[0.0, 0.0, 4.0, 2.0], [4.0, 2.0, 8.0, 6.0]])
        bright = images.flatten(1).mean(1)
        return {
            "boxes": boxes[None].expand(count, -1, -1),
            "labels": torch.tensor([1, 2])[None].expand(count, -1),
            "scores": torch.stack([torch.full_like(bright, 0.6), bright], 1),
        }


class LossesToo(nn.Module):
    """A model with the outputs of torchvision's detectors in TorchScript: losses, then the boxes."""

    def forward(self, images: list[torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
        detections: list[dict[str, torch.Tensor]] = []
        for _ in range(len(images)):
            detections.append(
                {
                    "boxes": torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(60, -1),
                    "labels": torch.ones(60, dtype=torch.int64),
                    "scores": torch.linspace(0, 1, 60),
                }
            )
        losses: dict[str, torch.Tensor] = {}
        return losses, detections


def test_a_model_of_stacked_images_returns_boxes_in_pixels_of_the_image(build: Build) -> None:
    options = {"stacked": True, "resize": [8, 8], "threshold": 0.3}
    path = build(DETECTOR, {"model.pt": scripted(Stacked())}, options, weights="model.pt", labels=["-", "a", "b"])
    white, black = (Request(saved(Image.new("RGB", (16, 80), colour))) for colour in ("white", "black"))
    with Worker(path) as worker:
        bright, dark = map(decoded, worker.predict_batch([white, black]))
    assert bright == [{"b": [8, 20, 16, 60], "score": 1.0}, {"a": [0, 0, 8, 20], "score": 0.6}]
    assert dark == [{"a": [0, 0, 8, 20], "score": 0.6}]


def test_a_detector_of_torchvisions_in_torchscript_is_understood(build: Build) -> None:
    path = build(DETECTOR, {"model.pt": scripted(LossesToo())}, {"max_detections": 3}, weights="model.pt")
    with Worker(path) as worker:
        detections = decoded(worker.predict_batch([Request(saved(noise(9, 9)))])[0])
    assert [detection["1"] for detection in detections] == [[1, 2, 3, 4]] * 3
    assert detections[0]["score"] == 1


# ------------------------------------------------------------------------------------------- segmenter


@pytest.fixture(scope="module")
def segmenter(scenes: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker(archive.build(ARCHIVES / "segments", tmp_path_factory.mktemp("store")).path) as worker:
        yield worker


def test_runs_numbers_and_picture_are_one_class_map(segmenter: Worker, scenes: dict[str, Any]) -> None:
    as_json, as_png, as_npy = segmenter.predict_batch(
        [sample("two.png", accept=accept) for accept in ("*/*", PNG, NPY)]
    )
    document = decoded(as_json)
    classes = class_map.of_runs(document["runs"], document["shape"])
    picture = Image.open(io.BytesIO(as_png.body))
    assert (picture.mode, as_png.content_type, as_npy.content_type) == ("P", PNG, NPY)
    assert (np.asarray(picture) == classes).all()
    assert (np.load(io.BytesIO(as_npy.body)) == classes).all()
    truth = scenes["two.png"].classes
    assert (classes == truth).mean() > 0.95
    assert sum(statistics["pixels"] for statistics in document["classes"].values()) == truth.size
    for label, statistics in document["classes"].items():
        assert statistics["pixels"] == (classes == statistics["index"]).sum()
        assert label == ("board" if statistics["index"] == 0 else str(statistics["index"] - 1))
        assert 0.3 < statistics["probability"] <= 1
    # A tenth of what two floats for each pixel take in digits alone.
    assert len(as_json.body) < truth.size


def test_images_of_all_sizes_are_segmented_in_a_batch_as_alone(segmenter: Worker, scenes: dict[str, Any]) -> None:
    requests = [*map(sample, scenes), sample("two.png"), Request(b"broken"), Request(saved(noise(1, 1)))]
    together = segmenter.predict_batch(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = segmenter.predict_batch([request])
        assert alone.status == answer.status
        if alone.status == 200:
            one, other = (
                class_map.of_runs(document["runs"], document["shape"]) for document in map(decoded, (alone, answer))
            )
            assert (one != other).mean() < 1e-3  # where two classes are equally probable
    assert [answer.status for answer in together].count(400) == 1


def test_a_class_map_is_a_tensor_of_the_open_inference_protocol(segmenter: Worker, scenes: dict[str, Any]) -> None:
    content = base64.b64encode(sample("one.png").body).decode()
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": [content, content]}]}
    (output,) = decoded(segmenter.predict_batch([Request(json.dumps(body).encode(), JSON)])[0])["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("class_map", "INT32", [2, 96, 120])
    assert (np.array(output["data"]).reshape(2, 96, 120)[1] == scenes["one.png"].classes).mean() > 0.95


class Bright(nn.Module):
    """One score for each pixel of a grey image: how much brighter it is than the middle."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - 0.5) * 20


def test_a_class_map_has_the_images_own_size_if_requested(build: Build) -> None:
    options = {"mode": "L", "resize": [8, 8], "original_size": True}
    path = build(SEGMENTER, {"model.pt": scripted(Bright())}, options, weights="model.pt", labels=["dark", "bright"])
    image = np.zeros((30, 20), np.uint8)
    image[:, 10:] = 255
    with Worker(path) as worker:
        one, other = map(
            decoded, worker.predict_batch([Request(saved(Image.fromarray(image))), Request(saved(noise(7, 9)))])
        )
    assert (one["shape"], other["shape"]) == ([30, 20], [9, 7])
    assert one["runs"][:3] == [[0, 10], [1, 10], [0, 10]]
    assert one["classes"]["bright"]["pixels"] == one["classes"]["dark"]["pixels"] == 300


def test_an_image_that_the_resizing_would_make_huge_gets_413(build: Build) -> None:
    options = {"mode": "L", "resize": 256, "crop": None, "max_pixels": 1_000_000}
    path = build(SEGMENTER, {"model.pt": scripted(Bright())}, options, weights="model.pt")
    with Worker(path) as worker:
        line, good = worker.predict_batch([Request(saved(noise(1, 5000))), Request(saved(noise(40, 50)))])
    assert (line.status, good.status) == (413, 200)
    assert "256x1280000" in message(line)


def test_the_original_size_needs_the_edges(build: Build) -> None:
    path = build(SEGMENTER, {"model.pt": scripted(Bright())}, {"mode": "L", "original_size": True}, weights="model.pt")
    with pytest.raises(LoadError) as failure:
        Worker(path).close()
    assert "set crop: null" in failure.value.traceback


def test_the_palette_is_that_of_pascal_voc() -> None:
    wanted = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    assert class_map.palette()[:7].tolist() == wanted
    assert class_map.palette()[[8, 20, 255]].tolist() == [[64, 0, 0], [0, 64, 128], [224, 224, 192]]


# ------------------------------------------------------------------------------------------- cascade


@pytest.fixture(scope="module")
def reader(scenes: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker(archive.build(ARCHIVES / "reader", tmp_path_factory.mktemp("store")).path) as worker:
        yield worker


def test_a_cascade_answers_each_region_as_two_models_by_hand(
    reader: Worker, detector: Worker, scenes: dict[str, Any]
) -> None:
    names = list(scenes)
    requests = [part for name in names for part in (sample(name), Request(b"broken"))]
    answers = reader.predict_batch(requests)
    assert {answer.status for answer in answers[1::2]} == {400}
    model = torch.jit.load(DIGITS / "digits.pt").eval()
    right = regions_seen = 0
    for name, answer, detected in zip(
        names, answers[::2], detector.predict_batch(list(map(sample, names))), strict=True
    ):
        reader_regions = decoded(answer)
        assert len(reader_regions) == len(decoded(detected))
        for region_answer, detection in zip(reader_regions, decoded(detected), strict=True):
            label, box = label_and_box(detection)
            assert region_answer[label] == pytest.approx(box, abs=0.02)
            region = regions.cut(scenes[name].pixels, np.array(region_answer[label]), "L", True, 0.0)
            grey = torch.from_numpy(Geometry((32, 32)).apply(region).copy()).permute(2, 0, 1)[None].float() / 255
            with torch.inference_mode():
                best = model((grey - 0.25) / 0.45).softmax(1)[0].topk(3)
            wanted = dict(zip(map(str, best.indices.tolist()), best.values.tolist(), strict=True))
            # Boxes are rounded to a hundredth of a pixel, crops are cut between pixels.
            assert region_answer["answer"] == pytest.approx(wanted, abs=0.05)
            right, regions_seen = right + (next(iter(region_answer["answer"])) == label), regions_seen + 1
    assert right >= 0.7 * regions_seen > 5


def test_the_picture_of_a_cascade_shows_its_answers(reader: Worker) -> None:
    picture, plain = reader.predict_batch([sample("two.png", accept=PNG), sample("two.png")])
    assert Image.open(io.BytesIO(picture.body)).format == "PNG"
    assert "answer" in decoded(plain)[0]


class Fixed(nn.Module):
    """Probabilities by the brightness of a grey image: sure of the first class where it is black."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images.flatten(1).mean(1)
        zero = torch.zeros_like(bright)
        return torch.stack([4 * (1 - bright), zero + self.bias, zero], 1)


STAGE = {"handler": "image_classifier", "options": {"mode": "L", "resize": [4, 4]}}


@pytest.fixture(scope="module")
def two_models(build: Build) -> Callable[..., Path]:
    disk = {"one.pt": scripted(Fixed(0.0)), "two.pt": scripted(Fixed(3.0))}
    files = {"models/two.pt": "two.pt"}

    def built(**options: Any) -> Path:
        stages = [{**STAGE, "weights": "one.pt"}, {**STAGE, "weights": "models/two.pt", "labels": ["a", "b", "d"]}]
        return build(
            CASCADE, disk, {"stages": stages, **options}, weights="one.pt", files=files, labels=["a", "b", "c"]
        )

    return built


BLACK, WHITE = (Request(saved(Image.new("L", (9, 7), value))) for value in (0, 255))


def softmax(*scores: float) -> list[float]:
    powers = np.exp(scores)
    return list(powers / powers.sum())


def test_the_second_model_answers_where_the_first_is_uncertain(two_models: Callable[..., Path]) -> None:
    with Worker(two_models(mode="unsure", threshold=0.7)) as worker:
        black, white, broken, again = worker.predict_batch([BLACK, WHITE, Request(b"?"), BLACK])
    assert decoded(black) == decoded(again) == pytest.approx(dict(zip("abc", softmax(4, 0, 0), strict=True)), abs=1e-5)
    assert decoded(white) == pytest.approx(dict(zip("abd", softmax(0, 3, 0), strict=True)), abs=1e-5)
    assert broken.status == 400


def test_two_models_answer_with_their_mean(two_models: Callable[..., Path]) -> None:
    with Worker(two_models(mode="mean", topk=3)) as worker:
        black, broken, white = worker.predict_batch([BLACK, Request(b"?"), WHITE])
    first, second = softmax(0, 0, 0), softmax(0, 3, 0)
    wanted = {"b": (first[1] + second[1]) / 2, "a": (first[0] + second[0]) / 2, "c": first[2] / 2}
    assert list(decoded(white)) == list(wanted)
    assert decoded(white) == pytest.approx(wanted, abs=1e-5)
    assert next(iter(decoded(black))) == "a"
    assert broken.status == 400


WRONG_STAGES: dict[str, tuple[dict[str, Any], str]] = {
    "no mode": ({"stages": [STAGE, STAGE]}, "handler.mode: '' is none of crops, unsure, mean"),
    "one stage": ({"mode": "mean", "stages": [STAGE]}, "handler.stages: a list of two"),
    "no handler": ({"mode": "mean", "stages": [{"weights": "one.pt"}, STAGE]}, "handler.stages[0].handler: None"),
    "unknown handler": ({"mode": "mean", "stages": [{**STAGE, "handler": "oracle"}, STAGE]}, "'oracle' is no handler"),
    "no handler of these": ({"mode": "mean", "stages": [{**STAGE, "handler": "base"}, STAGE]}, "'base' is no handler"),
    "unknown key": ({"mode": "mean", "stages": [{**STAGE, "topk": 1}, STAGE]}, "stages[0].topk: no key is called so"),
    "no file": ({"mode": "mean", "stages": [{**STAGE, "weights": "x.pt"}, STAGE]}, "there is no file 'x.pt'"),
    "no detector": ({"mode": "crops", "stages": [{**STAGE, "weights": "one.pt"}] * 2}, "an object_detector finds"),
    "a stage's option": (
        {"mode": "mean", "stages": [{**STAGE, "weights": "one.pt", "options": {"topkk": 1}}, STAGE]},
        "handler.stages[0].options: topkk: no option is called so; did you mean 'topk'?",
    ),
}


@pytest.mark.parametrize(("options", "message"), WRONG_STAGES.values(), ids=WRONG_STAGES)
def test_an_invalid_stage_is_reported_when_the_archive_loads(
    build: Build, options: dict[str, Any], message: str
) -> None:
    path = build(CASCADE, {"one.pt": scripted(Fixed(0.0))}, options, weights="one.pt")
    with pytest.raises(LoadError) as failure:
        Worker(path).close()
    assert message in failure.value.traceback
