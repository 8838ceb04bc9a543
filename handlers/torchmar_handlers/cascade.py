"""Two models in one archive, combined: crops of detected objects, a second model for uncertain answers, or the mean."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from torchmar_handlers.base import BaseHandler
from torchmar_handlers.common import signatures
from torchmar_handlers.common.options import OptionError
from torchmar_handlers.common.reply import PNG, Reply
from torchmar_handlers.images import regions
from torchmar_handlers.object_detector import ObjectDetector
from torchmar_handlers.protocols.plain import in_json
from torchmar_handlers.request import Request

_MODES = ("crops", "unsure", "mean")
_KEYS = ("handler", "weights", "model_file", "labels", "options")
_PACKAGE = __name__.rpartition(".")[0]


class Cascade(BaseHandler):
    """Answer with two models; options in the ``handler`` section of the configuration.

    ============== ===================== ================================================================
    option         default               meaning
    ============== ===================== ================================================================
    stages         (needed)              two mappings; see below
    mode           (needed)              ``crops``: the second answers each region that the first, an
                                         ``object_detector``, finds; ``unsure``: the second answers what
                                         the first is not sure of; ``mean``: both answer, and the mean
                                         of each label's probability is returned
    threshold      0.8                   for ``unsure``: the least probability that is sure
    topk           5                     for ``mean``: labels in an answer at the most
    square         false                 for ``crops``: widen regions to squares
    margin         0                     for ``crops``: what is added on every side, as a part of the
                                         region's longer side
    ============== ===================== ================================================================

    A stage names the ``handler`` (one of this package: ``image_classifier``), its ``weights`` and
    ``model_file`` in the archive, its ``labels`` (a list, a mapping from class index, or a JSON file in
    the archive; those of the archive unless given) and ``options`` of its own::

        stages:
          - {handler: object_detector, weights: scenes.pt, labels: [0, 1, 2]}
          - {handler: image_classifier, weights: digits.pt, options: {mode: L, resize: [32, 32]}}

    With ``crops`` an answer is that of the detector, and each object has the second's as ``answer``;
    where the request accepts ``image/png``, it is the image with boxes that are labelled so. A region
    is widened beyond the edges of the image by repeating the outermost pixels. The other modes need
    handlers that answer ``{label: probability}``, and give such answers themselves.
    """

    parallel_decode = True

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        options = self.options
        self.threshold = options.number("threshold", 0.8, low=0, high=1)
        self.topk = options.integer("topk", 5, low=1)
        self.square = options.flag("square", False)
        self.margin = options.number("margin", 0.0, low=0, high=1)
        self.named = self.first.named
        self.warm_up(context)

    def load_model(self, folder: Path, serialized_file: str | None, model_file: str | None, threads: int) -> None:
        """Load both stages from the archive in ``folder``."""
        self.model: Any = None  # the stages have their own
        self.dtype = None
        self.mode = self.options.text("mode", "", choices=_MODES)
        stages = self.options.get("stages")
        if not isinstance(stages, list) or len(stages) != 2:
            raise OptionError("stages", "a list of two mappings is expected")
        self.first, self.second = (
            self._stage(index, stage_options, folder, threads) for index, stage_options in enumerate(stages)
        )
        if self.mode == "crops" and not isinstance(self.first, ObjectDetector):
            raise OptionError("stages[0].handler", "crops are cut out of what an object_detector finds")
        if self.mode == "crops" and not hasattr(self.second, "inputs"):
            raise OptionError("stages[1].handler", "crops are answered by a handler of images")
        if self.mode == "mean":
            for stage in (self.first, self.second):
                # A mean needs the probability of every label.
                stage.topk = sys.maxsize

    def rows(self, request: Request) -> list[Any] | None:
        """Return the instances that the first stage finds in a plain body."""
        rows: list[Any] | None = self.first.rows(request)
        return rows

    def decode(self, request: Request) -> Any:
        """Return the input for the mode of the cascade: pixels, or the decoded input of one or both stages."""
        if self.mode == "crops":
            pixels = self.first.inputs.pixels(request)
            return pixels, self.first.inputs.fit(pixels)
        if self.mode == "mean":
            return self.first.decode(request), self.second.decode(request)
        return self.first.decode(request)

    def group(self, decoded: Any) -> Hashable:
        """Return the common properties that the stages need for one forward pass."""
        if self.mode == "mean":
            return self.first.group(decoded[0]), self.second.group(decoded[1])
        group: Hashable = self.first.group(decoded[1] if self.mode == "crops" else decoded)
        return group

    def typical_inputs(self) -> Iterator[Any]:
        """Yield the typical inputs of the stages that answer every request; none for ``crops``."""
        if self.mode == "mean":
            yield from zip(self.first.typical_inputs(), self.second.typical_inputs(), strict=False)
        elif self.mode == "unsure":
            yield from self.first.typical_inputs()

    def preprocess(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Return the inputs unchanged; each stage has its own."""
        return inputs

    def predict_handle(self, batch: Sequence[Any], requests: Sequence[Request]) -> Sequence[Any]:
        """Return the combined answers of both stages."""
        answer: Callable[[Sequence[Any], Sequence[Request]], Sequence[Any]] = getattr(self, f"_{self.mode}")
        stages = self.first, self.second
        before = sum(stage._inference_seconds for stage in stages)
        answers = answer(batch, requests)
        self._inference_seconds += sum(stage._inference_seconds for stage in stages) - before
        return answers

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return the answers as columns of the first stage; answers to crops as JSON, because their number differs."""
        if self.mode == "crops":
            return {"output": [in_json(answer) for answer in answers]}
        columns: Mapping[str, Any] | None = self.first.columns(answers)
        return columns

    def described_weights(self) -> dict[str, Any]:
        """Return the weights that each stage serves; empty: no stage has optimised weights."""
        stages = [stage.described_weights().get("weights") for stage in (self.first, self.second)]
        return {"weights": stages} if any(stages) else {}

    def signature(self) -> signatures.Signature:
        """Return the inputs and outputs of the first stage, which are also those of the second stage in its place."""
        signature: signatures.Signature = self.first.signature()
        return signature

    def _crops(self, batch: Sequence[Any], requests: Sequence[Request]) -> list[Any]:
        detections = self.first.detect([image for _, image in batch])
        crops = [
            self.second.inputs.fit(regions.cut(pixels, box, self.second.inputs.mode, self.square, self.margin))
            for (pixels, _), detection in zip(batch, detections, strict=True)
            for box in detection["boxes"]
        ]
        # The client's Accept header concerns the whole answer, not its parts.
        answers = iter(_predict(self.second, crops, [Request(0, {}, {})] * len(crops)))
        replies: list[Any] = []
        for request, (pixels, _), detection in zip(requests, batch, detections, strict=True):
            objects = self.first.document(detection)
            for region in objects:
                region["answer"] = next(answers)
            replies.append(self._picture(pixels, detection, objects) if request.accepts(PNG) else objects)
        return replies

    def _unsure(self, batch: Sequence[Any], requests: Sequence[Request]) -> list[Any]:
        answers = _predict(self.first, batch, requests)
        unsure = [
            index for index, answer in enumerate(answers) if max(_probabilities(answer).values()) < self.threshold
        ]
        rest = [requests[index] for index in unsure]
        # This runs in the worker's main thread: the threads of the pool are free.
        decoded = self.executor.map(self.second.decode, rest) if self.executor else map(self.second.decode, rest)
        for index, answer in zip(unsure, _predict(self.second, list(decoded), rest), strict=True):
            answers[index] = answer
        return answers

    def _mean(self, batch: Sequence[Any], requests: Sequence[Request]) -> list[dict[str, float]]:
        pairs = zip(
            _predict(self.first, [first for first, _ in batch], requests),
            _predict(self.second, [second for _, second in batch], requests),
            strict=True,
        )
        means = []
        for first, second in ((_probabilities(first), _probabilities(second)) for first, second in pairs):
            labels = dict.fromkeys([*first, *second])
            mean = {label: (first.get(label, 0.0) + second.get(label, 0.0)) / 2 for label in labels}
            best = sorted(mean, key=lambda label: -mean[label])[: self.topk]
            means.append({label: round(mean[label], 6) for label in best})
        return means

    def _picture(self, pixels: Any, detection: Mapping[str, np.ndarray], objects: Sequence[Mapping[str, Any]]) -> Reply:
        from torchmar_handlers.drawing import boxes
        from torchmar_handlers.images.reading import as_array

        drawn = []
        for box, kind, found_object in zip(
            detection["boxes"].tolist(), detection["labels"].tolist(), objects, strict=True
        ):
            label, probability = self.first.label(kind), found_object["score"]
            if isinstance(found_object["answer"], Mapping):
                best = next(iter(found_object["answer"].items()), None)
                label, probability = best if best and isinstance(best[1], float) else (label, probability)
            drawn.append(boxes.Box(box, kind, f"{label}  {probability:.2f}"))
        return Reply(boxes.draw(as_array(pixels).transpose(2, 0, 1), drawn), PNG)

    def _stage(self, index: int, stage: Any, folder: Path, threads: int) -> Any:
        """Return the loaded handler of a stage."""
        place = f"stages[{index}]"
        if not isinstance(stage, Mapping):
            raise OptionError(place, "a mapping with handler and weights is expected")
        if unknown := [key for key in stage if key not in _KEYS]:
            raise OptionError(f"{place}.{unknown[0]}", f"no key is called so; there are {', '.join(_KEYS)}")
        for key in ("weights", "model_file"):
            name = stage.get(key)
            if name is not None and not (isinstance(name, str) and (folder / name).is_file()):
                hint = "name it under files: in the recipe"
                raise OptionError(f"{place}.{key}", f"there is no file {name!r} in the archive; {hint}")
        stage_handler = _handler(f"{place}.handler", stage.get("handler"))
        options = stage.get("options")
        if options is not None and not isinstance(options, Mapping):
            raise OptionError(f"{place}.options", "a mapping of options is expected")
        model = {"serializedFile": stage.get("weights"), "modelFile": stage.get("model_file")}
        config = {"handler": {**(options or {}), "threads": threads, "warm_up": False}}
        context = SimpleNamespace(
            manifest={**self.manifest, "model": {**self.manifest["model"], **model}},
            model_yaml_config={**self.model_yaml_config, **config},
            system_properties=self.context.system_properties,
        )
        try:
            stage_handler.initialize(context)
        except OptionError as error:
            problem = str(error).removeprefix("model-config.yaml: handler.")
            raise OptionError(f"{place}.options", problem) from error
        if (labels := stage.get("labels")) is not None:
            stage_handler.mapping = _labels(f"{place}.labels", labels, folder)
        return stage_handler


def _predict(stage: Any, inputs: Sequence[Any], requests: Sequence[Request]) -> list[Any]:
    """Return a stage's answers to decoded inputs, with one forward pass for each group."""
    groups: dict[Hashable, list[int]] = {}
    for index, value in enumerate(inputs):
        groups.setdefault(stage.group(value), []).append(index)
    answers: dict[int, Any] = {}
    for members in groups.values():
        for start in range(0, len(members), stage.max_forward_batch):
            part = members[start : start + stage.max_forward_batch]
            batch = stage.preprocess([inputs[index] for index in part])
            predictions = stage.predict_handle(batch, [requests[index] for index in part])
            answers.update(zip(part, predictions, strict=True))
    return [answers[index] for index in range(len(inputs))]


def _probabilities(answer: Any) -> Mapping[str, float]:
    if not isinstance(answer, Mapping) or not answer or not all(isinstance(value, float) for value in answer.values()):
        raise ValueError("a stage does not answer {label: probability}; only the mode crops can do without")
    return answer


def _handler(place: str, name: Any) -> Any:
    """Return the handler that a stage names, not loaded yet."""
    names = sorted(file.stem for file in Path(__file__).parent.glob("*.py"))
    plain = str(name).removeprefix(f"{_PACKAGE}.")
    if plain in names and plain != "cascade":
        module = importlib.import_module(f"{_PACKAGE}.{plain}")
        for value in vars(module).values():
            # The only class that the file defines, not one that it imports.
            is_handler = isinstance(value, type) and issubclass(value, BaseHandler) and value is not BaseHandler
            if is_handler and value.__module__ == module.__name__:
                return value()
    raise OptionError(place, f"{name!r} is no handler of {_PACKAGE}; image_classifier is one")


def _labels(place: str, labels: Any, folder: Path) -> dict[str, str]:
    """Return the labels of a stage by class index as text."""
    if isinstance(labels, str):
        try:
            labels = json.loads((folder / labels).read_bytes())
        except (OSError, ValueError) as error:
            raise OptionError(place, f"{labels} in the archive is no JSON file of labels: {error}") from None
    if isinstance(labels, list):
        return {str(index): str(label) for index, label in enumerate(labels)}
    if isinstance(labels, Mapping):
        return {str(index): str(label) for index, label in labels.items()}
    raise OptionError(place, "a list, a mapping from class index or a JSON file in the archive is expected")
