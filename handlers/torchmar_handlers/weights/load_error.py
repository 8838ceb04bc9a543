"""The error of weights that cannot be loaded, for the operator who reads the worker's log."""

from __future__ import annotations


class LoadError(RuntimeError):
    """Weights, a model file or an option that cannot be used: what is wrong, where, and what to do next."""


def summary(error: BaseException) -> str:
    """Return the message of an exception on one line of at most 400 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + " ..."
