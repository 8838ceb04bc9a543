"""A handler that returns the class of every pixel of an image."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torchmar_handlers.base import BaseHandler
from torchmar_handlers.common import npy, signatures
from torchmar_handlers.common.options import OptionError
from torchmar_handlers.common.reply import PNG, Reply
from torchmar_handlers.images import class_map
from torchmar_handlers.images.inputs import Input, Inputs
from torchmar_handlers.images.outputs import only
from torchmar_handlers.request import NotFinite, Request


class ImageSegmenter(BaseHandler):
    """Segment images; options in the ``handler`` section of the configuration.

    ============= =========================== ===========================================================
    option        default                     meaning
    ============= =========================== ===========================================================
    mode          RGB                         what the model takes: ``RGB`` or ``L``
    resize        256                         pixels of the short side, or ``[height, width]``, or null
    crop          224; none if ``resize`` is  pixels of a square from the middle, or ``[height, width]``,
                  null or ``[height, width]`` or null
    mean, std     ImageNet's; 0 and 1 for L   what values from 0 to 1 are normalised with
    original_size false                       answer at the size of the image as it came; needs crop: null
    max_pixels    89478485 (Pillow's limit)   larger images get 413
    exif          false                       turn photographs as their camera was held
    ============= =========================== ===========================================================

    The model takes floats, ``(n, channels, height, width)``, and gives scores of classes for every pixel,
    ``(n, classes, height, width)``, or a mapping with these as ``out``; of a single class, 1 is where the
    score is above 0. Requests are those of `torchmar_handlers.image_classifier`.

    An answer contains the class map as runs, and its classes::

        {"shape": [120, 160],
         "runs": [[0, 4023], [3, 11], ...],
         "classes": {"board": {"index": 0, "pixels": 17012, "probability": 0.998}, ...}}

    A run is a class and the number of its consecutive pixels, which continue in the next row;
    ``probability`` is the mean of the softmax of the pixels in that class. If the request accepts
    ``image/png``, the answer is a PNG whose palette indices are the classes; if it accepts
    ``application/x-npy``, the map as bytes. In the Open Inference Protocol it is the tensor ``class_map``.
    The class and the probability of each pixel as two floats, the answer of TorchServe's own
    ``image_segmenter``, have a hundred times the size, and are not offered.
    """

    parallel_decode = True

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        self.inputs = Inputs(self.options, self.device)
        self.original_size = self.options.flag("original_size", False)
        if self.original_size and self.inputs.geometry.crop is not None:
            raise OptionError("original_size", "the crop leaves the edges unknown; set crop: null")
        self.warm_up(context)

    def typical_inputs(self) -> Iterator[Input]:
        """Yield a black image."""
        yield self.inputs.typical()

    def decode(self, request: Request) -> Input:
        """Return the image of a request, resized and cropped."""
        return self.inputs.read(request)

    def group(self, decoded: Input) -> Hashable:
        """Return shape and type: images of one size share a pass."""
        return super().group(decoded.values)

    def preprocess(self, inputs: Sequence[Input]) -> tuple[torch.Tensor, Sequence[Input]]:
        """Return a normalised batch, ``(n, channels, height, width)``, and the inputs in it."""
        return self.inputs.normalise(super().preprocess([image.values for image in inputs])), inputs

    def inference(
        self, data: tuple[torch.Tensor, Sequence[Input]], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the probability and the class of every pixel, ``(n, height, width)``, and the sizes of the images."""
        values, inputs = data
        sizes = torch.tensor([(image.height, image.width) for image in inputs])
        return *class_map.most_probable(only(super().inference(values))), sizes

    def postprocess_handle(
        self, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor], requests: Sequence[Request]
    ) -> list[Any]:
        """Return the class map of each image."""
        probabilities, classes, sizes = output
        if not bool(probabilities.isfinite().all()):
            raise NotFinite("the model's output for this image is not a number")
        rows = zip(requests, sizes.tolist(), classes.cpu().numpy(), probabilities.cpu().numpy(), strict=True)
        return [self._answer(*row) for row in rows]

    def _answer(self, request: Request, size: tuple[int, int], classes: np.ndarray, probabilities: np.ndarray) -> Any:
        if self.original_size:
            rows, columns = (class_map.nearest(length, side) for length, side in zip(size, classes.shape, strict=True))
            classes, probabilities = classes[rows[:, None], columns], probabilities[rows[:, None], columns]
        if request.accepts(PNG):
            return Reply(class_map.png(classes), PNG)
        if request.accepts(npy.CONTENT_TYPE):
            return classes
        return class_map.document(classes, probabilities, self.mapping or {})

    def signature(self) -> signatures.Signature:
        """Return an image file as input, and the class of each pixel as output; arrays are accepted, too."""
        return signatures.of(
            [signatures.tensor("image", "BYTES")], [signatures.tensor("class_map", "INT32", None, None)]
        )

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return the class maps as one tensor, if they have the same shape."""
        if any(not isinstance(answer, Mapping) or answer["shape"] != answers[0]["shape"] for answer in answers):
            return None
        return {"class_map": np.stack([class_map.of_runs(answer["runs"], answer["shape"]) for answer in answers])}
