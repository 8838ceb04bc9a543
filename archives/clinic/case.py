"""One request of the clinic's contract: the numbers of an image, a text, and the patient whom they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchmar_handlers.request import BadRequest
from torchmar_handlers.tables.table import Table
from torchmar_handlers.texts.encoded import Encoded
from torchmar_handlers.texts.vocabulary import Vocabulary

_BODY = '{"image_data": [numbers], "text_data": "text", "patient_id": "text", "metadata": {}}'


@dataclass(frozen=True)
class Case:
    """The two inputs of one request.

    Attributes:
        measures: the numbers in their own units, ``(measures,)`` float64.
        words: the words and pairs of words of the text that the model knows.
    """

    measures: np.ndarray
    words: Encoded


def read(body: Any, table: Table, vocabulary: Vocabulary, max_text: int) -> Case:
    """Return the inputs of a JSON body.

    Args:
        body: the parsed body; values may also be tensors of the Open Inference Protocol.
        table: the measures, in their order.
        vocabulary: the words that the model knows.
        max_text: the most characters of a text.

    Raises:
        BadRequest: a key is missing, or has a wrong type, length or value; the message says what is expected.
    """
    if not isinstance(body, Mapping):
        raise BadRequest(f"the body is not a JSON object; send {_BODY}")
    if missing := [key for key in ("image_data", "text_data") if body.get(key) is None]:
        raise BadRequest(f"the body has no {' and no '.join(map(repr, missing))}; send {_BODY}")
    if not isinstance(patient(body), str | None):
        raise BadRequest("'patient_id' is not a text")
    metadata = body.get("metadata")
    if metadata is not None and not isinstance(_text(metadata), Mapping | str):
        raise BadRequest("'metadata' is not an object")
    return Case(_measures(body["image_data"], table), _words(body["text_data"], vocabulary, max_text))


def patient(body: Mapping[str, Any]) -> Any:
    """Return the patient of a body, as the client sent it; None if it sent none."""
    return _text(body.get("patient_id"))


def _measures(value: Any, table: Table) -> np.ndarray:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    expected = f"'image_data' is an array of {len(table.names)} numbers, shape [{len(table.names)}]"
    if not isinstance(value, list | Mapping):
        raise BadRequest(f"{expected}: {', '.join(table.names)}")
    if isinstance(value, list) and len(value) != len(table.names):
        raise BadRequest(f"{expected}, and {len(value)} were sent; in this order: {', '.join(table.names)}")
    try:
        return table.values(value)
    except BadRequest as error:
        raise BadRequest(f"{expected}: {error.message}") from None


def _words(value: Any, vocabulary: Vocabulary, max_text: int) -> Encoded:
    text = _text(value)
    if not isinstance(text, str):
        raise BadRequest("'text_data' is not a text; send the findings in words")
    if len(text) > max_text:
        raise BadRequest(f"'text_data' has {len(text)} characters; {max_text} are allowed", 413)
    words = vocabulary.encode(text)
    if words.is_empty:
        # An answer from the numbers alone would look like one from both.
        known = [word for word in vocabulary.vocabulary if " " not in word]
        raise BadRequest(f"'text_data' has no word that the model knows; it knows {', '.join(known)}")
    return words


def _text(value: Any) -> Any:
    """Return a text of bytes, which tensors of the Open Inference Protocol have; any other value as it is."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else value
