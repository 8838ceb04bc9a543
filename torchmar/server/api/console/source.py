"""The interface to the models that the console shows: those of this server (`documents.py`), or of another server."""

from __future__ import annotations

from typing import Any, Protocol


class Source(Protocol):
    """The models of a server as documents of the console's API.

    All methods raise ApiError (503) if the server does not answer.
    """

    @property
    def health(self) -> str:
        """``Healthy``, ``Partial Healthy`` or ``Unhealthy``."""

    @property
    def loading(self) -> bool:
        """Whether the models of the configuration are still being loaded."""

    def names(self) -> list[str]:
        """Return the names of all models."""

    def signatures(self) -> dict[str, object]:
        """Return for each model a value that changes with its `model`, except memory and waiting requests."""

    def model(self, name: str) -> dict[str, Any]:
        """Return the document of a model with all of its versions."""
