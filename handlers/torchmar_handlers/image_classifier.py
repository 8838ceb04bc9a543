"""A handler that returns the probabilities of labels for an image; explanations are per pixel."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ts.utils.util import PredictionException

from torchmar_handlers import explanations, weights
from torchmar_handlers.base import BaseHandler
from torchmar_handlers.common import labels, npy, signatures
from torchmar_handlers.common.forward import forward
from torchmar_handlers.common.reply import PNG, Reply
from torchmar_handlers.explanations import precision
from torchmar_handlers.explanations.explain_options import BASELINES, usual_steps
from torchmar_handlers.images.inputs import Input, Inputs
from torchmar_handlers.images.outputs import only
from torchmar_handlers.request import NotFinite, Request

logger = logging.getLogger(__name__)

_COMPARED = 4  # samples of an archive for the comparison of two types of gradients


class ImageClassifier(BaseHandler):
    """Classify images; options in the ``handler`` section of the configuration.

    =============== =========================== =============================================================
    option          default                     meaning
    =============== =========================== =============================================================
    mode            RGB                         what the model takes: ``RGB`` or ``L``
    resize          256                         pixels of the short side, or ``[height, width]``, or null
    crop            224; none if ``resize`` is  pixels of a square from the middle, or ``[height, width]``,
                    null or ``[height, width]`` or null
    mean, std       ImageNet's; 0 and 1 for L   what values from 0 to 1 are normalised with
    topk            5                           labels in an answer at the most
    output          labels                      ``labels``, or ``probabilities``: those of all classes, in their order
    max_pixels      89478485 (Pillow's limit)   larger images get 413
    exif            false                       turn photographs as their camera was held
    scaled_decoding false                       decode JPEG files whose sides are at least four times those after
                                                ``resize`` at a half, a quarter or an eighth of their sides
    method          integrated_gradients        of explanations; see `torchmar_handlers.explanations`
    n_steps         50                          steps of the integral of an explanation, or ``auto``
    baseline        zeros                       what explanations compare with: ``zeros``, ``mean`` or ``blur``
    gradient_dtype  float32                     ``bfloat16``: compute gradients with it if that gives the same
                                                explanations of the archive's samples, within 5 %
    layer           the last convolution        the layer that Grad-CAM looks at, by its dotted name
    =============== =========================== =============================================================

    By default, the answers are those of TorchServe's own ``image_classifier``. The model takes floats,
    ``(n, channels, height, width)``, and gives scores, ``(n, classes)``.

    A request is an image file, raw or in base64; pixels as an array, bytes ``(height, width, channels)``,
    or floats from 0 to 1 in this shape; or floats ``(channels, height, width)`` that are passed to the model unchanged.

    A prediction is ``{label: probability}``, the most probable first. In the Open Inference Protocol it
    consists of the tensors ``label`` and ``probability``, those of the most probable label. With ``output:
    probabilities`` it is an array, ``(classes,)``, and the tensor ``probabilities``, as clients of TensorFlow models
    expect. An explanation is JSON with ``attributions`` of the shape of the model's input, channels first; or, if the
    request accepts ``application/x-npy``, these alone, or, for ``image/png``, a picture. Requests may set
    ``method``, ``n_steps``, ``baseline`` and ``target`` (class index or label; by default the predicted class).
    """

    parallel_decode = True

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        options = self.options
        self.inputs = Inputs(options, self.device)
        self.topk = options.integer("topk", 5, low=1)
        self.output = options.text("output", "labels", choices=("labels", "probabilities"))
        self.default_options = {
            "method": options.text("method", explanations.METHODS[0], choices=explanations.IMAGE_METHODS),
            "n_steps": usual_steps(options),
            "baseline": options.text("baseline", BASELINES[0], choices=BASELINES),
        }
        self.layer = options.text("layer", "") or None
        bfloat16 = options.text("gradient_dtype", "float32", choices=("float32", "bfloat16")) == "bfloat16"
        self.warm_up(context)
        self.gradient_dtype = torch.bfloat16 if bfloat16 and self._explains_alike(torch.bfloat16) else None

    def typical_inputs(self) -> Iterator[Input]:
        """Yield a black image."""
        yield self.inputs.typical()

    def decode(self, request: Request) -> Input:
        """Return the image of a request, resized and cropped."""
        return self.inputs.read(request)

    def group(self, decoded: Input) -> Hashable:
        """Return shape and type: images with the same values share a pass."""
        return super().group(decoded.values)

    def preprocess(self, inputs: Sequence[Input]) -> torch.Tensor:
        """Stack images to a normalised batch, ``(n, channels, height, width)``."""
        return self.inputs.normalise(super().preprocess([image.values for image in inputs]))

    def postprocess(self, output: Any) -> Sequence[Any]:
        """Return the most probable labels of each row of scores, ``(n, classes)``, or its probabilities."""
        probabilities = only(output).softmax(1)
        if not bool(probabilities.isfinite().all()):
            raise NotFinite("the model's output for this image is not a number")
        if self.output == "probabilities":
            return list(probabilities.float().cpu().numpy())
        return labels.most_probable(probabilities, self.topk, self.label)

    def explain_handle(self, batch: torch.Tensor, requests: Sequence[Request]) -> list[Any]:
        """Return, for each request, its attributions as JSON or as a picture."""
        methods, defaults = explanations.IMAGE_METHODS, self.default_options
        requested = [explanations.read(request, methods=methods, defaults=defaults) for request in requests]
        scores = only(self.inference(batch))
        probabilities = scores.softmax(1)
        targets = probabilities.argmax(1).clone()
        for position, options in enumerate(requested):
            if options.target is not None:
                targets[position] = labels.class_of(options.target, probabilities.shape[1], self.mapping)
        explaining = self.explaining(requests)
        explained = explanations.explain(
            lambda rows: only(forward(explaining.model, rows, device=self.device, dtype=explaining.dtype)),
            batch,
            targets,
            requested,
            scores=scores if explaining.weights is None else None,
            model=explaining.model,
            layer=self.layer,
            differentiable=weights.differentiable(explaining.model),
            weights=explaining.weights,
            # The original of optimised weights was not compared.
            dtype=self.gradient_dtype if explaining.weights is None else None,
        )
        of_targets = probabilities.gather(1, targets[:, None])[:, 0].tolist()
        answers: list[Any] = []
        for request, image, explanation, probability in zip(requests, batch, explained, of_targets, strict=True):
            label = self.label(explanation.target)
            if request.accepts(npy.CONTENT_TYPE):
                answers.append(explanation.attributions)
            elif request.accepts(PNG):
                from torchmar_handlers.drawing import heatmap

                pixels = self.inputs.restore(image[None])[0]
                title = f"{label}  {probability:.1%}"
                picture = heatmap.draw(
                    pixels, explanation.attributions, title=title, note=explanation.note, signed=explanation.signed
                )
                answers.append(Reply(picture, PNG))
            else:
                answers.append(explanations.document(explanation, label=label, probability=round(probability, 6)))
        return answers

    def _explains_alike(self, dtype: torch.dtype) -> bool:
        """Return whether gradients in another type give the same explanations of the archive's samples."""
        batches = []
        for request in self.sample_requests():
            with contextlib.suppress(PredictionException):  # a sample that the handler rejects
                batches.append(self.preprocess([self.decode(request)]))
        if not batches:
            logger.warning("gradient_dtype: gradients are computed in float32: the archive has no samples to compare")
            return False
        if not weights.differentiable(self.model):
            logger.warning("gradient_dtype has no effect: these weights give no gradients")
            return False
        error = precision.largest_error(self._scores, batches[:_COMPARED], dtype)
        if error > precision.MOST_ERROR:
            logger.warning(
                "gradient_dtype: gradients are computed in float32: bfloat16 changes explanations of the archive's "
                "samples by up to %.0f %%, and %.0f %% are allowed",
                100 * error,
                100 * precision.MOST_ERROR,
            )
        return error <= precision.MOST_ERROR

    def _scores(self, rows: torch.Tensor) -> torch.Tensor:
        return only(forward(self.model, rows, device=self.device, dtype=self.dtype))

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return the most probable label of each image, with its probability; explanations by their keys."""
        if isinstance(answers[0], np.ndarray) and answers[0].ndim == 1:
            return {"probabilities": answers}
        if not isinstance(answers[0], Mapping) or "attributions" in answers[0]:
            return signatures.by_key(answers)
        best = [next(iter(answer.items())) for answer in answers]
        return {"label": [label for label, _ in best], "probability": [value for _, value in best]}

    def signature(self) -> signatures.Signature:
        """Return an image file as input, and the most probable label as output; arrays are accepted, too."""
        probabilities = [signatures.tensor("probabilities", "FP32", len(self.mapping) if self.mapping else None)]
        outputs = probabilities if self.output == "probabilities" else signatures.best_class()
        return signatures.of([signatures.tensor("image", "BYTES")], outputs)
