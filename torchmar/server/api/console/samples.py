"""The last answers of registered versions to the samples of their archives, compared with what the samples expect."""

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

_LONGEST = 4000  # characters of an answer that is kept
_MOST_DIFFERENCES = 20


class SampleAnswers:
    """The last answers, as long as a version is registered and the server runs. Methods are called in its loop."""

    def __init__(self) -> None:
        self._by_version: WeakKeyDictionary[Version, dict[int, dict[str, Any]]] = WeakKeyDictionary()

    def of(self, version: Version) -> list[dict[str, Any]]:
        """Return the last answer to each sample that was sent, by their numbers."""
        known = self._by_version.get(version, {})
        return [known[number] for number in sorted(known)]

    def put(self, version: Version, answer: dict[str, Any]) -> None:
        """Keep an answer in place of the last one to the same sample."""
        self._by_version.setdefault(version, {})[answer["number"]] = answer


def judged(
    number: int, sample: Mapping[str, Any], status: int, body: bytes, content_type: str, milliseconds: float
) -> dict[str, Any]:
    """Return the document of an answer, with its differences from what the sample expects. Blocking.

    Args:
        number: of the sample.
        sample: as the archive has it.
        status: of the answer.
        body: of the answer.
        content_type: of the answer.
        milliseconds: from the request to the answer.
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
