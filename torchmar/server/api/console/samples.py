"""The last answers of registered versions to the samples of their archives, compared with the expected answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import ValidationError

from torchmar import comparison
from torchmar.exchange import Response
from torchmar.recipe import Sample
from torchmar.server.models.registry import Version

_LONGEST = 4000  # characters of an answer that are kept
_MOST_DIFFERENCES = 20


class SampleAnswers:
    """The last answers, kept while the version is registered and the server runs. Methods run in its loop."""

    def __init__(self) -> None:
        self._by_version: WeakKeyDictionary[Version, dict[int, dict[str, Any]]] = WeakKeyDictionary()

    def of(self, version: Version) -> list[dict[str, Any]]:
        """Return the last answer to each sample, by the samples' numbers."""
        answers = self._by_version.get(version, {})
        return [answers[number] for number in sorted(answers)]

    def put(self, version: Version, answer: dict[str, Any]) -> None:
        """Keep an answer, in place of the previous one to the same sample."""
        self._by_version.setdefault(version, {})[answer["number"]] = answer


def judged(
    number: int, sample: Mapping[str, Any], status: int, body: bytes, content_type: str, milliseconds: float
) -> dict[str, Any]:
    """Return the document of an answer, with its differences from the expected answer. Blocking.

    Args:
        number: number of the sample.
        sample: the sample in the archive.
        status: status of the answer.
        body: body of the answer.
        content_type: content type of the answer.
        milliseconds: time from the request to the answer.
    """
    try:
        expected = Sample.model_validate(sample)
        differences = comparison.differences(expected, Response(status, body, {"content-type": content_type}))
    except (ValidationError, RecursionError):
        differences = ["the sample in the archive cannot be read"]
    readable = "json" in content_type or content_type.startswith("text/")
    return {
        "number": number,
        "time": round(time.time(), 3),
        "milliseconds": round(milliseconds, 3),
        "status": status,
        "type": content_type,
        "size": len(body),
        "text": body[: 4 * _LONGEST].decode("utf-8", "replace")[:_LONGEST] if readable else "",
        "differences": differences[:_MOST_DIFFERENCES],
    }
