"""An image in, probabilities by label out; explained by integrated gradients."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from torchmar_handlers import attribution, heatmap
from torchmar_handlers.base import BaseHandler
from torchmar_handlers.reply import PNG, Reply
from torchmar_handlers.request import BadRequest, Request


class ImageClassifier(BaseHandler):
    """Classify images; options in the ``handler`` section of the configuration.

    ========== ==================================== =======================================
    option     default                              meaning
    ========== ==================================== =======================================
    mode       RGB                                  what the model takes: ``RGB`` or ``L``
    size       [224, 224]                           height and width of the model's input
    mean, std  0 and 1 for every channel            normalisation of values between 0 and 1
    topk       5                                    labels in an answer at the most
    max_pixels 89478485 (Pillow's own limit)        larger images get 413
    n_steps    50                                   steps of the integral of an explanation
    threads    cores divided by ``maxWorkers``      threads of torch in this worker
    warm_up    true                                 answer the archive's samples before clients come
    ========== ==================================== =======================================

    A prediction is ``{label: probability}``, the most probable first. An explanation is JSON
    with ``attributions`` of the shape of the model's input, channels first; or, where the
    request accepts ``image/png``, the picture of it. Its target is the class predicted,
    unless the request has a ``target`` (class index or label).
    """

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        options = self.options
        self.mode = str(options.get("mode", "RGB"))
        self.height, self.width = (int(side) for side in options.get("size", (224, 224)))
        channels = len(self.mode)
        self.mean = torch.tensor(options.get("mean", [0.0] * channels), device=self.device).view(1, -1, 1, 1)
        self.std = torch.tensor(options.get("std", [1.0] * channels), device=self.device).view(1, -1, 1, 1)
        self.topk = int(options.get("topk", 5))
        self.max_pixels = int(options.get("max_pixels", Image.MAX_IMAGE_PIXELS or 0))
        self.n_steps = int(options.get("n_steps", 50))
        self.warm_up(context)

    def decode(self, request: Request) -> torch.Tensor:
        """Return the image of a request as bytes, ``(channels, height, width)``."""
        content = request.content()
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > self.max_pixels:
                    raise BadRequest(
                        f"the image has {image.width}x{image.height} pixels; {self.max_pixels} are allowed", 413
                    )
                pixels = image.convert(self.mode).resize((self.width, self.height), Image.Resampling.BILINEAR)
        except UnidentifiedImageError:
            raise BadRequest("the body is not an image of a known format") from None
        except Image.DecompressionBombError as error:
            raise BadRequest(str(error), 413) from None
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise for damaged files
            raise BadRequest(f"the image is damaged: {error}") from None
        array = np.asarray(pixels).reshape(self.height, self.width, -1)
        return torch.from_numpy(array.copy()).permute(2, 0, 1)

    def preprocess(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Stack images to a normalised float batch, ``(n, channels, height, width)``."""
        batch = super().preprocess(inputs).float() / 255
        return (batch - self.mean) / self.std

    def postprocess(self, output: torch.Tensor) -> list[dict[str, float]]:
        """Return the most probable labels of each row of scores, ``(n, classes)``."""
        probabilities, classes = output.softmax(1).topk(min(self.topk, output.shape[1]))
        return [
            {self._label(index): round(value, 6) for index, value in zip(row, values, strict=True)}
            for row, values in zip(classes.tolist(), probabilities.tolist(), strict=True)
        ]

    def explain_handle(self, batch: torch.Tensor, requests: Sequence[Request]) -> list[Any]:
        """Return, for each request, its attributions as JSON or as a picture."""
        probabilities = self.inference(batch).softmax(1)
        targets = probabilities.argmax(1).clone()
        for position, request in enumerate(requests):
            if (target := request.option("target")) is not None:
                targets[position] = self._class(target, probabilities.shape[1])
        attributions, deltas = attribution.integrated_gradients(self.model, batch, targets, self.n_steps)
        images = ((batch * self.std + self.mean) * 255).round().clamp(0, 255).byte()
        chosen = probabilities.gather(1, targets[:, None])[:, 0]
        return [
            self._explanation(*row)
            for row in zip(
                requests,
                images.cpu().numpy(),
                attributions.cpu().numpy(),
                targets.tolist(),
                chosen.tolist(),
                deltas.tolist(),
                strict=True,
            )
        ]

    def _explanation(
        self, request: Request, image: np.ndarray, values: np.ndarray, target: int, probability: float, delta: float
    ) -> Any:
        if request.accepts(PNG):
            title = f"{self._label(target)}  {probability:.1%}"
            note = f"integrated gradients, {self.n_steps} steps"
            return Reply(heatmap.draw(image, values, title=title, note=note), PNG)
        # Four digits of the largest: more is noise of the integral, and megabytes of it.
        largest = float(np.abs(values).max())
        decimals = 4 - math.ceil(math.log10(largest)) if largest > 0 else 0
        return {
            "method": "integrated_gradients",
            "n_steps": self.n_steps,
            "target": target,
            "label": self._label(target),
            "probability": round(probability, 6),
            "convergence_delta": float(f"{delta:.3g}"),
            "shape": list(values.shape),
            "attributions": np.round(values.astype(np.float64), decimals).tolist(),
        }

    def _label(self, index: int) -> str:
        return str((self.mapping or {}).get(str(index), index))

    def _class(self, target: Any, classes: int) -> int:
        """Return the class index that a request's ``target``, an index or a label, means."""
        labels = {label: int(index) for index, label in (self.mapping or {}).items()}
        index = labels.get(str(target), int(target) if str(target).isdecimal() else -1)
        if not 0 <= index < classes:
            raise BadRequest(f"target {target!r} is neither a label nor a class index from 0 to {classes - 1}")
        return index
