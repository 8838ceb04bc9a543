"""The error of weights that cannot be loaded, for the operator who reads the worker's log."""

from __future__ import annotations


class LoadError(RuntimeError):
    """Weights, a model file or an option cannot be used; the message has the reason, the place and the remedy."""


def summary(error: BaseException) -> str:
    """Return the message of an exception on one line of at most 400 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + " ..."
