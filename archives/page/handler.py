"""Read the lines of a page with PP-OCR: one model finds them, another reads each."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ctc
import line_images
import numpy as np
import reading
import text_regions
import torch
from PIL import Image
from text_regions import Region

from torchmar_handlers import weights
from torchmar_handlers.base import BaseHandler
from torchmar_handlers.common import signatures
from torchmar_handlers.common.forward import forward
from torchmar_handlers.common.reply import PNG, Reply
from torchmar_handlers.images.inputs import Inputs
from torchmar_handlers.images.reading import as_image
from torchmar_handlers.protocols.plain import in_json
from torchmar_handlers.request import Request

# Pixels: widths of lines in one pass. The model gives 18,710 numbers for every 8 pixels: 90 MB.
_WIDTH_AT_ONCE = 9600


class PageReader(BaseHandler):
    """Answer the image of a page with its lines of text.

    =============== ================ ================================================================
    option          default          meaning
    =============== ================ ================================================================
    recognition     recognition.onnx the model that reads lines, a file of the archive
    characters      characters.txt   its letters, one on each line
    min_side        736              pixels: the shorter side of smaller pages is enlarged to it
    max_side        2000             pixels: the longer side of larger pages is reduced to it
    threshold       0.3              the probability from which a pixel is text
    box_threshold   0.5              lines whose mean probability is lower are dropped
    text_threshold  0.5              lines whose letters have a lower mean probability are dropped
    widen           1.6              how much is added around what the first model finds
    max_lines       1000             lines of a page at the most
    =============== ================ ================================================================

    and ``max_pixels`` and ``exif``, as of the handlers of images. The answer is a picture where the client accepts
    ``image/png``.
    """

    parallel_decode = True

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        options = self.options
        self.inputs = Inputs(options, self.device, resize=None, normalised=False)
        self.min_side = options.integer("min_side", 736, low=32, high=4096)
        self.max_side = options.integer("max_side", 2000, low=self.min_side, high=8192)
        self.threshold = options.number("threshold", 0.3, low=0, high=1)
        self.box_threshold = options.number("box_threshold", 0.5, low=0, high=1)
        self.text_threshold = options.number("text_threshold", 0.5, low=0, high=1)
        self.widen = options.number("widen", 1.6, low=0, high=10)
        self.max_lines = options.integer("max_lines", 1000, low=1)
        self.warm_up(context)
        options.reject_unknown()

    def load_model(self, folder: Path, serialized_file: str | None, model_file: str | None, threads: int) -> None:
        """Load both models and the letters of the second."""
        super().load_model(folder, serialized_file, model_file, threads)
        recognition = self.options.text("recognition", "recognition.onnx")
        self.recognition = weights.load(folder, recognition, None, self.device, self.options, threads=threads)
        # Not splitlines: some of the letters are line ends to Unicode.
        listed = (folder / self.options.text("characters", "characters.txt")).read_text(encoding="utf-8").split("\n")
        self.characters = [*listed, " "]

    def decode(self, request: Request) -> tuple[Image.Image, np.ndarray]:
        """Return the page as it came, and as the first model takes it."""
        image = as_image(self.inputs.pixels(request)).convert("RGB")
        return image, line_images.values(line_images.page(image, self.min_side, self.max_side))

    def group(self, decoded: tuple[Image.Image, np.ndarray]) -> Hashable:
        """Return the size of the page that the first model sees."""
        return decoded[1].shape

    def typical_inputs(self) -> Iterator[tuple[Image.Image, np.ndarray]]:
        """Yield a white page."""
        image = Image.new("RGB", (self.min_side, self.min_side), "white")
        yield image, line_images.values(line_images.page(image, self.min_side, self.max_side))

    def preprocess(self, inputs: Sequence[tuple[Image.Image, np.ndarray]]) -> Any:
        """Return the pages as they came, and a batch of what the first model takes."""
        return [image for image, _ in inputs], super().preprocess([array for _, array in inputs])

    def predict_handle(self, batch: Any, requests: Sequence[Request]) -> Sequence[Any]:
        """Return what each page says."""
        images, arrays = batch
        maps = self.inference(arrays)[:, 0].cpu().numpy()
        regions = [self._regions(image, found) for image, found in zip(images, maps, strict=True)]
        crops = [line_images.line(image, one) for image, found in zip(images, regions, strict=True) for one in found]
        texts = iter(self._read(crops))
        answers: list[Any] = []
        for request, image, found in zip(requests, images, regions, strict=True):
            read = [(region, *next(texts)) for region in found]
            kept = [one for one in read if one[1].strip() and one[2] >= self.text_threshold]
            lines = [
                {"text": text, "score": round(score, 4), "box": [round(value, 1) for value in region.box.tolist()]}
                for region, text, score in kept
            ]
            if request.accepts(PNG):
                answers.append(Reply(reading.draw(image, [region.corners for region, _, _ in kept], lines), PNG))
            else:
                answers.append({"text": "\n".join(str(line["text"]) for line in lines), "lines": lines})
        return answers

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return lines as JSON, since pages have different numbers of them."""
        if not all(isinstance(answer, Mapping) for answer in answers):
            return None
        return {
            "text": [answer["text"] for answer in answers],
            "lines": [in_json(answer["lines"]) for answer in answers],
        }

    def signature(self) -> signatures.Signature:
        """Return the tensors: the file of an image to its text, and to its lines as JSON."""
        return signatures.of(
            [signatures.tensor("image", "BYTES")],
            [signatures.tensor("text", "BYTES"), signatures.tensor("lines", "BYTES")],
        )

    def _regions(self, image: Image.Image, probabilities: np.ndarray) -> list[Region]:
        """Return the lines of a page in reading order, in pixels of the page as it came."""
        found = text_regions.find(
            probabilities,
            threshold=self.threshold,
            box_threshold=self.box_threshold,
            widen=self.widen,
            most=self.max_lines,
        )
        scale = np.array(image.size) / probabilities.shape[::-1]
        scaled = [Region(np.clip(region.corners * scale, 0, image.size), region.score) for region in found]
        return text_regions.in_reading_order([region for region in scaled if min(region.size) > 3])

    def _read(self, crops: Sequence[np.ndarray]) -> list[tuple[str, float]]:
        """Return the text and the score of each line; lines of one width go through the model together."""
        groups: dict[int, list[int]] = {}
        for index, crop in enumerate(crops):
            groups.setdefault(crop.shape[2], []).append(index)
        texts: dict[int, tuple[str, float]] = {}
        for width, members in groups.items():
            count = min(self.max_forward_batch, max(1, _WIDTH_AT_ONCE // width))
            for start in range(0, len(members), count):
                part = members[start : start + count]
                output = self._recognise(torch.from_numpy(np.stack([crops[index] for index in part])))
                texts.update(zip(part, [ctc.read(one, self.characters) for one in output], strict=True))
        return [texts[index] for index in range(len(crops))]

    def _recognise(self, batch: torch.Tensor) -> np.ndarray:
        started = time.perf_counter()
        with torch.inference_mode():
            output = forward(self.recognition, batch, device=self.device)
        self._inference_seconds += time.perf_counter() - started
        return np.asarray(output.cpu().numpy())
