"""The clinic's contract: numbers of an image and a text in, ``{"success": true, "data": {...}}`` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import case
import numpy as np
import torch

from torchmar_handlers import weights
from torchmar_handlers.base import BaseHandler
from torchmar_handlers.common import signatures
from torchmar_handlers.common.reply import PNG, Reply
from torchmar_handlers.explanations import ExplainOptions, Explanation, document, explain
from torchmar_handlers.explanations import read as read_options
from torchmar_handlers.request import BadRequest, Request
from torchmar_handlers.tables.columns import read as read_columns
from torchmar_handlers.tables.table import Table
from torchmar_handlers.texts.vocabulary import FILE, Vocabulary

_METHODS = ("integrated_gradients", "gradient_shap", "saliency", "feature_ablation")
_BASELINE = "mean"  # the average numbers, and no word


class Clinic(BaseHandler):
    """Classify samples; options in the ``handler`` section of the configuration, beside those of `BaseHandler`.

    ============== ======================== ==========================================================
    option         default                  meaning
    ============== ======================== ==========================================================
    columns        (needed)                 the file with the numbers of ``image_data``, in their order
    max_text       4000                     characters of ``text_data`` at the most; more get 413
    ============== ======================== ==========================================================

    Words that the model does not know are left out; a text without any known word is refused. ``metadata`` is not read.

    An explanation is about the predicted class, unless the request has a ``target`` (class index or label). It gives
    the contribution of each number and of each word to the score; all of them add up to the difference from the score
    of average numbers without a text.
    """

    named = True

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        folder = Path(context.system_properties.get("model_dir"))
        self.table = Table(read_columns(self.options.get("columns"), folder))
        self.vocabulary = Vocabulary(folder / FILE, 2)
        self.max_text = self.options.integer("max_text", 4000, low=1)
        self.labels = [str((self.mapping or {}).get(str(index), index)) for index in range(2)]
        self.warm_up(context)
        self.options.reject_unknown()

    def decode(self, request: Request) -> case.Case:
        """Return the two inputs of a request."""
        return case.read(request.json(), self.table, self.vocabulary, self.max_text)

    def preprocess(self, inputs: Sequence[case.Case]) -> dict[str, torch.Tensor]:
        """Return what the model takes by name: standardised numbers, and 1 for each word that is in the text."""
        words = torch.zeros(len(inputs), len(self.vocabulary.vocabulary), device=self.device)
        for row, one in enumerate(inputs):
            words[row, list(one.words.ids)] = 1
        numbers = torch.from_numpy(self.table.encode(np.stack([one.measures for one in inputs])))
        return {"image_data": numbers.to(self.device), "text_data": words}

    def postprocess_handle(self, output: torch.Tensor, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """Return one answer per request, from the scores of the model, ``(n, 2)``."""
        answers = []
        for request, probabilities in zip(requests, output.softmax(1).tolist(), strict=True):
            by_label = {label: round(value, 6) for label, value in zip(self.labels, probabilities, strict=True)}
            prediction = max(by_label, key=by_label.__getitem__)
            data = {"prediction": prediction, "confidence": by_label[prediction], "probabilities": by_label}
            answers.append(self.enveloped(request, data))
        return answers

    def enveloped(self, request: Request, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return data in the envelope of the contract, with what every answer has."""
        patient_id, now = case.patient(request.json()), datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        more = {"patient_id": patient_id, "timestamp": now, "model_version": self.served_as()[1]}
        return {"success": True, "data": {**data, **more}}

    def error_keys(self, status: int, message: str) -> dict[str, Any]:
        """Return the keys of an error in the contract."""
        return {"success": False, "error": message}

    def explain_handle(self, batch: Mapping[str, torch.Tensor], requests: Sequence[Request]) -> list[Any]:
        """Return one explanation per request, as JSON or as a picture."""
        requested = [self._options(request) for request in requests]
        encoded = torch.cat([batch["image_data"], batch["text_data"]], 1)
        scores = self._scores(encoded)
        targets = scores.argmax(1)
        for row, options in enumerate(requested):
            if options.target is not None:
                targets[row] = self._class(options.target)
        explanations = explain(
            self._scores,
            encoded,
            targets,
            requested,
            scores=scores,
            baselines=torch.zeros_like(encoded),  # numbers are standardised: 0 is their mean
            differentiable=weights.differentiable(self.model),
        )
        probabilities = scores.softmax(1).gather(1, targets[:, None])[:, 0].tolist()
        return [self._explained(*one) for one in zip(requests, explanations, probabilities, strict=True)]

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return predictions as the outputs of `signature`; explanations stay objects."""
        names = [output["name"] for output in self.signature()["outputs"]]
        if not all(isinstance(answer, Mapping) and answer["data"].keys() >= set(names) for answer in answers):
            return None
        return {name: [answer["data"][name] for answer in answers] for name in names}

    def signature(self) -> signatures.Signature:
        """Return the tensors of other protocols: the two inputs, and the predicted class with its probability."""
        inputs = [
            signatures.tensor("image_data", "FP64", len(self.table.names)),
            signatures.tensor("text_data", "BYTES"),
        ]
        return signatures.of(
            inputs, [signatures.tensor("prediction", "BYTES"), signatures.tensor("confidence", "FP64")]
        )

    def describe_handle(self) -> dict[str, Any]:
        """Return the numbers, in their order and with their limits, and the words that the model knows."""
        numbers = [{"name": column.name, "takes": column.allowed} for column in self.table.columns]
        words = [word for word in self.vocabulary.vocabulary if " " not in word]
        return {"image_data": numbers, "text_data": words, "labels": self.labels}

    def _scores(self, encoded: torch.Tensor) -> torch.Tensor:
        """Return the scores of both inputs side by side, with gradients if they are enabled."""
        split = len(self.table.names)
        scores: torch.Tensor = self.model(image_data=encoded[:, :split], text_data=encoded[:, split:])
        return scores

    def _options(self, request: Request) -> ExplainOptions:
        defaults = {"method": _METHODS[0], "baseline": _BASELINE}
        options = read_options(request, methods=_METHODS, defaults=defaults, baselines=(_BASELINE,))
        if options.baseline != _BASELINE:
            raise BadRequest(f"baseline: explanations compare with the average numbers and no text, {_BASELINE!r}")
        return options

    def _class(self, target: Any) -> int:
        text = str(target)
        if text in self.labels:
            return self.labels.index(text)
        if text in ("0", "1"):
            return int(text)
        raise BadRequest(f"target {target!r} is neither a label ({', '.join(self.labels)}) nor a class index, 0 or 1")

    def _explained(self, request: Request, explanation: Explanation, probability: float) -> Any:
        one = self.decode(request)
        split = len(self.table.names)
        values = explanation.attributions.tolist()
        numbers = dict(sorted(zip(self.table.names, values[:split], strict=True), key=lambda item: -abs(item[1])))
        # A word that is twice in the text has one value, which its places share.
        shares = [values[split + number] / one.words.ids.count(number) for number in one.words.ids]
        words = [
            (one.words.text[start:end], value) for start, end, value in self.vocabulary.credited(one.words, shares)
        ]
        label = self.labels[explanation.target]
        if request.accepts(PNG):
            from torchmar_handlers.drawing import bars  # with Pillow, which most workers never need

            sent = dict(zip(self.table.names, one.measures.tolist(), strict=True))
            features = [(name, f"{sent[name]:.4g}", value) for name, value in numbers.items()]
            features += [(f'"{word}"', "", value) for word, value in words]
            return Reply(bars.draw(features, title=f"{label}  {probability:.1%}", note=explanation.note), PNG)
        data = document(explanation, label=label, probability=round(probability, 6))
        del data["shape"], data["attributions"]
        data["image_data"] = {name: round(value, 6) for name, value in numbers.items()}
        data["text_data"] = [{"word": word, "attribution": round(value, 6)} for word, value in words]
        return self.enveloped(request, data)
