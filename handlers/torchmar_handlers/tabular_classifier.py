"""A handler that returns the probabilities of labels for a row of a table; explanations are per column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchmar_handlers.common import signatures
from torchmar_handlers.common.options import OptionError
from torchmar_handlers.request import BadRequest, NotFinite
from torchmar_handlers.tables.handler import TabularHandler

_ACTIVATIONS = ("auto", "softmax", "sigmoid", "none")


class TabularClassifier(TabularHandler):
    """Classify rows; options in the ``handler`` section of the configuration, in addition to those of `TabularHandler`.

    ============== ======================== ==========================================================
    option         default                  meaning
    ============== ======================== ==========================================================
    activation     auto                     what makes probabilities of the model's scores:
                                            ``softmax``, ``sigmoid`` or ``none`` (they are
                                            probabilities already); ``auto`` is ``sigmoid`` for a
                                            model with one output, ``softmax`` for others
    topk           5                        labels in an answer at the most
    ============== ======================== ==========================================================

    A model with one output has two classes: its score is for the second label. With more
    outputs, ``sigmoid`` gives each label an independent probability.

    A prediction is ``{label: probability}``, the most probable first. In the Open Inference Protocol
    it consists of the tensors ``label`` and ``probability``, those of the most probable label. An explanation is for
    the most probable label, unless the request has a ``target`` (class index or label).
    """

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        activation = self.options.text("activation", _ACTIVATIONS[0], choices=_ACTIVATIONS)
        if activation == "softmax" and self.outputs == 1:
            raise OptionError("activation", "softmax of one output is always 1; sigmoid is meant")
        if activation == "auto":
            activation = "sigmoid" if self.outputs == 1 else "softmax"
        self.activation = activation
        self.topk = self.options.integer("topk", 5, low=1)
        classes = max(2, self.outputs)
        self.labels = [self.label(index) for index in range(classes)]
        self.warm_up(context)

    def postprocess(self, output: torch.Tensor) -> list[dict[str, float]]:
        """Return the most probable labels of each row of the model's output, ``(n, outputs)``."""
        probabilities = self.probabilities(self.scores(output))
        if not bool(probabilities.isfinite().all()):
            raise NotFinite("the model's output for this row is not a number")
        values, classes = probabilities.topk(min(self.topk, len(self.labels)))
        labels = self.labels
        return [
            {labels[index]: round(value, 6) for index, value in zip(row, numbers, strict=True)}
            for row, numbers in zip(classes.tolist(), values.tolist(), strict=True)
        ]

    def scores(self, output: torch.Tensor) -> torch.Tensor:
        """Return a score for each class, ``(n, classes)``."""
        if self.outputs > 1:
            return output
        first = 1 - output if self.activation == "none" else -output
        return torch.cat([first, output], 1)

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """Return scores, ``(n, classes)``, as probabilities."""
        if self.activation == "none":
            return scores
        return scores.sigmoid() if self.activation == "sigmoid" else scores.softmax(1)

    def targets(self, scores: torch.Tensor, requested: Sequence[Any]) -> torch.Tensor:
        """Return the class of each row's explanation: the requested one, else the most probable."""
        targets = scores.argmax(1)
        for position, target in enumerate(requested):
            if target is not None:
                targets[position] = self._class(target)
        return targets

    def predictions(self, scores: torch.Tensor, targets: torch.Tensor) -> list[dict[str, Any]]:
        """Return the label and the probability of each row's target."""
        of_targets = self.probabilities(scores).gather(1, targets[:, None])[:, 0]
        return [
            {"label": self.labels[target], "probability": round(value, 6)}
            for target, value in zip(targets.tolist(), of_targets.tolist(), strict=True)
        ]

    def titled(self, prediction: Mapping[str, Any]) -> str:
        """Return ``label  probability``."""
        return f"{prediction['label']}  {prediction['probability']:.1%}"

    def predicted(self, answers: Sequence[Any]) -> Mapping[str, Any]:
        """Return the most probable label of each row, with its probability."""
        first = [next(iter(answer.items())) for answer in answers]
        return {"label": [label for label, _ in first], "probability": [value for _, value in first]}

    def predicted_signature(self) -> list[signatures.Tensor]:
        """Return the descriptions of label and probability."""
        return signatures.best_class()

    def _class(self, target: Any) -> int:
        """Return the class index for a request's ``target``, a label or an index."""
        text = str(target)
        if text in self.labels:
            return self.labels.index(text)
        if text.isdecimal() and int(text) < len(self.labels):
            return int(text)
        count = len(self.labels) - 1
        raise BadRequest(f"target {target!r} is neither a label nor a class index from 0 to {count}")
