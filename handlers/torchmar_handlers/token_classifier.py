"""A handler that returns labelled spans of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchmar_handlers.common import signatures
from torchmar_handlers.protocols.plain import in_json
from torchmar_handlers.request import Request
from torchmar_handlers.texts import outputs, spans
from torchmar_handlers.texts.encoded import Encoded
from torchmar_handlers.texts.handler import TextHandler


class TokenClassifier(TextHandler):
    """Label the parts of texts; options in the ``handler`` section of the configuration.

    ============== ======================== ===============================================================
    option         default                  meaning
    ============== ======================== ===============================================================
    whole_words    false                    give all tokens of a word (as the tokenizer cuts words, before it
                                            cuts them further) the label of its first, as models want that
                                            were trained on first tokens
    ============== ======================== ===============================================================

    and those of `torchmar_handlers.texts.handler.TextHandler`. The model gives scores, ``(n, length, classes)``.

    A prediction is ``{"entities": [{"label", "text", "start", "end", "score"}]}`` in the order of the text, with
    places in characters and the mean probability of the tokens. Labels ``B-NAME`` and ``I-NAME`` make spans
    called ``NAME``; with labels without prefixes, neighbours with the same label are a span; ``O`` is no span.
    If the text was cut, ``truncated_to`` is the part that the model got, ``[start, end]``.
    """

    empty_texts = True

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        self.whole_words = self.options.flag("whole_words", False)
        self.prefixes = spans.has_prefixes(list((self.mapping or {}).values()))
        self.warm_up(context)

    def predict_handle(self, batch: Sequence[Encoded], requests: Sequence[Request]) -> list[dict[str, Any]]:
        """Return the spans of each text."""
        if batch[0].is_empty:  # then all texts of the batch are empty
            return [{"entities": []} for _ in batch]
        ids, mask, _ = self.pieces.tensors(batch)
        output = self.inference(self.pieces.called_with(ids, mask))
        logits = outputs.scores(output, ids.shape, self.output_names)
        best, classes = (part.cpu() for part in logits.softmax(2).max(2))
        rows = zip(batch, self.pieces.rows(classes, batch), self.pieces.rows(best, batch), strict=True)
        return [self._answer(encoded, labels.tolist(), scores.tolist()) for encoded, labels, scores in rows]

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return the entities of each text, and the part of it that the model got (or ``null``), as JSON."""
        return {
            "entities": [in_json(answer["entities"]) for answer in answers],
            "truncated_to": [in_json(answer.get("truncated_to")) for answer in answers],
        }

    def signature(self) -> signatures.Signature:
        """Return a text as input, and JSON as output."""
        outputs = [signatures.tensor("entities", "BYTES"), signatures.tensor("truncated_to", "BYTES")]
        return signatures.of([signatures.tensor("text", "BYTES")], outputs)

    def _answer(self, encoded: Encoded, classes: Sequence[int], scores: Sequence[float]) -> dict[str, Any]:
        joined = spans.join(
            encoded, list(map(self.label, classes)), scores, prefixes=self.prefixes, whole_words=self.whole_words
        )
        entities = [
            {
                "label": span.label,
                "text": encoded.text[span.start : span.end],
                "start": span.start,
                "end": span.end,
                "score": round(span.score, 6),
            }
            for span in joined
        ]
        return {"entities": entities, **({"truncated_to": list(encoded.kept)} if encoded.kept else {})}
