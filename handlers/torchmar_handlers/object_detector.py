"""A handler that returns boxes with labels and scores for an image."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torchmar_handlers.base import BaseHandler
from torchmar_handlers.common import signatures
from torchmar_handlers.common.options import OptionError
from torchmar_handlers.common.reply import PNG, Reply
from torchmar_handlers.images.inputs import Input, Inputs
from torchmar_handlers.images.outputs import detections
from torchmar_handlers.protocols.plain import in_json
from torchmar_handlers.request import Request


class ObjectDetector(BaseHandler):
    """Detect objects; options in the ``handler`` section of the configuration.

    ============== ===================== ================================================================
    option         default               meaning
    ============== ===================== ================================================================
    mode           RGB                   what the model takes: ``RGB`` or ``L``
    threshold      0.5                   boxes with a lower score are left out
    max_detections 100                   boxes of an image at the most
    stacked        false                 the model takes a tensor ``(n, channels, height, width)`` of images
                                         of one size, not a list of images of any sizes
    resize         null                  pixels of the short side, or ``[height, width]``
    mean, std      0 and 1               what values from 0 to 1 are normalised with
    max_pixels     89478485 (Pillow's)   larger images get 413
    exif           false                 turn photographs as their camera was held
    ============== ===================== ================================================================

    By default, the answers are those of TorchServe's own ``object_detector``. The model has the interface of
    torchvision's models: a list of floats ``(channels, height, width)`` from 0 to 1 in, for each a mapping with
    ``boxes`` ``(k, 4)`` as x1 y1 x2 y2, ``labels`` and ``scores`` ``(k,)`` out. With ``stacked``, it may return the
    three as tensors with the images first. Requests are those of `torchmar_handlers.image_classifier`.

    An answer is a list of ``{label: [x1, y1, x2, y2], "score": s}``, in pixels of the original image,
    the highest score first; or, if the request accepts ``image/png``, the image with the boxes.
    """

    parallel_decode = True

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        options = self.options
        self.inputs = Inputs(options, self.device, resize=None, normalised=False)
        if self.inputs.geometry.crop is not None:
            raise OptionError("crop", "a detector sees the whole image; leave this out, or set it to null")
        self.threshold = options.number("threshold", 0.5, low=0, high=1)
        self.max_detections = options.integer("max_detections", 100, low=1)
        self.stacked = options.flag("stacked", False)
        self.warm_up(context)

    def typical_inputs(self) -> Iterator[Input]:
        """Yield a black image."""
        yield self.inputs.typical()

    def decode(self, request: Request) -> Input:
        """Return the image of a request."""
        return self.inputs.read(request)

    def group(self, decoded: Input) -> Hashable:
        """Return the common property of images that share a pass: sides that are within a factor of two.

        A model of lists pads small images to the size of the largest, which takes time and memory.
        """
        if self.stacked:
            return super().group(decoded.values)
        return tuple(side.bit_length() for side in decoded.values.shape[1:])

    def preprocess(self, inputs: Sequence[Input]) -> Sequence[Input]:
        """Return the images unchanged: they may differ in size."""
        return inputs

    def predict_handle(self, batch: Sequence[Input], requests: Sequence[Request]) -> list[Any]:
        """Return the boxes of each image, as JSON or as a picture."""
        detected = self.detect(batch)
        return [self._answer(*row) for row in zip(requests, batch, detected, strict=True)]

    def detect(self, batch: Sequence[Input]) -> list[dict[str, np.ndarray]]:
        """Return for each image ``boxes`` ``(k, 4)``, ``labels`` and ``scores`` ``(k,)``, the highest score first.

        Boxes below the threshold are omitted. Boxes are in pixels of the original images.
        """
        if self.stacked:
            values: Any = self.inputs.normalise(super().preprocess([item.values for item in batch]))
        else:
            values = [self.inputs.normalise(item.values.to(self.device)[None])[0] for item in batch]
        detected = detections(self.inference(values), len(batch))
        return [self._kept(detection, image) for detection, image in zip(detected, batch, strict=True)]

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return the objects of each image as JSON: their numbers differ, which tensors do not permit."""
        return {"output": [in_json(answer) for answer in answers]}

    def signature(self) -> signatures.Signature:
        """Return an image file as input, and JSON as output; arrays are accepted, too."""
        return signatures.of([signatures.tensor("image", "BYTES")], [signatures.tensor("output", "BYTES")])

    def document(self, detection: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Return the objects in an image as JSON."""
        rows = zip(detection["labels"].tolist(), detection["boxes"].tolist(), detection["scores"].tolist(), strict=True)
        return [
            {self.label(label): [round(corner, 2) for corner in box], "score": round(score, 6)}
            for label, box, score in rows
        ]

    def _kept(self, detection: Mapping[str, torch.Tensor], image: Input) -> dict[str, np.ndarray]:
        boxes, labels, scores = (detection[name].numpy() for name in ("boxes", "labels", "scores"))
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= self.threshold][: self.max_detections]
        height, width = image.values.shape[1:]
        scale = np.array([image.width / width, image.height / height] * 2, np.float32)
        return {"boxes": boxes[order] * scale, "labels": labels[order].astype(np.int64), "scores": scores[order]}

    def _answer(self, request: Request, image: Input, detection: Mapping[str, np.ndarray]) -> Any:
        if not request.accepts(PNG):
            return self.document(detection)
        from torchmar_handlers.drawing import boxes

        height, width = image.values.shape[1:]
        scale = np.array([width / image.width, height / image.height] * 2)
        kinds, scores = detection["labels"].tolist(), detection["scores"].tolist()
        pixels = image.values if image.values.dtype == torch.uint8 else None
        picture = self.inputs.restore(image.values[None].to(self.device))[0] if pixels is None else pixels.numpy()
        drawn = [
            boxes.Box(corners, kind, f"{self.label(kind)}  {score:.2f}")
            for corners, kind, score in zip((detection["boxes"] * scale).tolist(), kinds, scores, strict=True)
        ]
        return Reply(boxes.draw(picture, drawn), PNG)
