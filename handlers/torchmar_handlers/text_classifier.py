"""A handler that returns the probabilities of labels for a text; explanations are per word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmar_handlers import weights
from torchmar_handlers.common import labels, signatures
from torchmar_handlers.common.forward import forward
from torchmar_handlers.common.reply import PNG, Reply
from torchmar_handlers.explanations import TOKEN_METHODS, Explanation, document, explain_tokens
from torchmar_handlers.explanations import read as read_options
from torchmar_handlers.explanations.explain_options import usual_steps
from torchmar_handlers.explanations.explanation import rounded
from torchmar_handlers.request import Request
from torchmar_handlers.texts import outputs, tokenizer, vocabulary
from torchmar_handlers.texts.encoded import Encoded, Reader
from torchmar_handlers.texts.handler import TextHandler
from torchmar_handlers.weights.optimized import Explaining


class TextClassifier(TextHandler):
    """Classify texts; options in the ``handler`` section of the configuration.

    ============== ======================== ===============================================================
    option         default                  meaning
    ============== ======================== ===============================================================
    topk           5; all with a            labels in an answer at the most
                   vocabulary
    ngrams         2                        with a vocabulary: words in a row that are looked up together
    method         integrated_gradients     of explanations; see `torchmar_handlers.explanations`
    n_steps        50                       steps of the integral of an explanation, or ``auto``
    baseline       zeros                    what explanations compare with: ``zeros`` (no embedding), ``mask``,
                                            ``unk`` or ``pad`` (that token)
    ============== ======================== ===============================================================

    and those of `torchmar_handlers.texts.handler.TextHandler`. The model gives scores, ``(n, classes)``.

    An archive of TorchServe's own ``text_classifier``, which has a ``source_vocab.pt`` instead of
    ``tokenizer.json``, gets the same answers, with TorchServe's clean-up and pairs of words: all classes, in their
    order. See `torchmar_handlers.texts.vocabulary`.

    A prediction is ``{label: probability}``, the most probable first. In the Open Inference Protocol it
    consists of the tensors ``label`` and ``probability``, those of the most probable label.

    An explanation has ``tokens``: ``{"text", "start", "end", "value"}``, the largest absolute values first, for
    (above 0) or against the label; or, if the request accepts ``image/png``, it is a picture of the text.
    With a vocabulary, the places refer to ``text``, the text after the clean-up, and the value of a
    pair of words is shared by them. Requests may set ``method``, ``n_steps``, ``baseline`` and ``target``
    (class index or label; by default the predicted class).
    """

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        options = self.options
        self.in_order = self.has_vocabulary and options.get("topk") is None
        self.topk = options.integer("topk", 5, low=1)
        self.default_options = {
            "method": options.text("method", TOKEN_METHODS[0], choices=TOKEN_METHODS),
            "n_steps": usual_steps(options),
            "baseline": options.text("baseline", "zeros", choices=("zeros", *self.reader.replacements)),
        }
        self.warm_up(context)

    def read_with(self, folder: Path) -> Reader:
        """Return the tokenizer of the archive, or the vocabulary of an archive for TorchServe's handler."""
        ngrams = self.options.integer("ngrams", 2, low=1, high=10)
        file = folder / str(self.manifest["model"].get("sourceVocab") or vocabulary.FILE)
        self.has_vocabulary = file.is_file() and not (folder / tokenizer.FILE).is_file()
        if self.has_vocabulary:
            return vocabulary.Vocabulary(file, ngrams)
        return super().read_with(folder)

    def inference(self, data: Sequence[Encoded], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the scores of texts, ``(n, classes)``."""
        return outputs.scores(super().inference(self.arguments(data)), (len(data),), self.output_names)

    def postprocess(self, output: torch.Tensor) -> list[dict[str, float]]:
        """Return the most probable labels of each text."""
        probabilities = output.softmax(1)
        if self.in_order:
            return [
                {self.label(index): round(value, 6) for index, value in enumerate(row)}
                for row in probabilities.tolist()
            ]
        return labels.most_probable(probabilities, self.topk, self.label)

    def explain_handle(self, batch: Sequence[Encoded], requests: Sequence[Request]) -> list[Any]:
        """Return, for each request, the attribution of each word, as JSON or as a picture."""
        replacements = self.reader.replacements
        requested = [
            read_options(
                request,
                methods=TOKEN_METHODS,
                defaults=self.default_options,
                baselines=("zeros", *replacements),
            )
            for request in requests
        ]
        probabilities = self.inference(batch).softmax(1)
        targets = probabilities.argmax(1).clone()
        for position, options in enumerate(requested):
            if options.target is not None:
                targets[position] = labels.class_of(options.target, probabilities.shape[1], self.mapping)
        explaining = self.explaining(requests)
        for part in explaining.model.modules():
            if isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag):
                part.sparse = False  # a way to train; the gradients of explanations are dense
        reader = self.reader.of(explaining.model)
        ids, mask, special = (tensor.to(self.device) for tensor in reader.tensors(batch))
        explained = explain_tokens(
            lambda ids, mask: self._scored(reader.called_with(ids, mask), len(ids), explaining),
            ids,
            mask,
            targets,
            requested,
            replacements=replacements,
            module=explaining.model,
            special=special,
            one_length=reader.length is not None,
            differentiable=weights.differentiable(explaining.model),
            weights=explaining.weights,
        )
        of_targets = probabilities.gather(1, targets[:, None])[:, 0].tolist()
        return [self._explanation(*row) for row in zip(requests, batch, explained, of_targets, strict=True)]

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return the most probable label of each text, with its probability; explanations by their keys."""
        first = answers[0]
        if isinstance(first, Reply) or isinstance(first.get("tokens"), list):
            return signatures.by_key(answers)
        best = [max(answer.items(), key=lambda item: item[1]) for answer in answers]
        return {"label": [label for label, _ in best], "probability": [value for _, value in best]}

    def signature(self) -> signatures.Signature:
        """Return a text as input, and the most probable label as output."""
        return signatures.of([signatures.tensor("text", "BYTES")], signatures.best_class())

    def _scored(self, arguments: tuple[torch.Tensor, ...], rows: int, explaining: Explaining) -> torch.Tensor:
        output = forward(explaining.model, arguments, device=self.device, dtype=explaining.dtype)
        return outputs.scores(output, (rows,), weights.output_names(explaining.model))

    def _explanation(self, request: Request, encoded: Encoded, explanation: Explanation, probability: float) -> Any:
        spans = self.reader.credited(encoded, explanation.attributions.tolist())
        label = self.label(explanation.target)
        if request.accepts(PNG):
            from torchmar_handlers.drawing import text_plot

            title = f"{label}  {probability:.1%}"
            return Reply(text_plot.draw(encoded.text, spans, title=title, note=explanation.note), PNG)
        values = rounded(np.array([value for _, _, value in spans])).tolist()
        tokens = [
            {"text": encoded.text[start:end], "start": start, "end": end, "value": value}
            for (start, end, _), value in zip(spans, values, strict=True)
        ]
        content = document(explanation, label=label, probability=round(probability, 6))
        del content["shape"], content["attributions"]
        if self.has_vocabulary:
            content["text"] = encoded.text
        content["tokens"] = sorted(tokens, key=lambda token: -abs(token["value"]))
        return content
