"""Why weights cannot be loaded, in words for the operator who reads the worker's log."""

from __future__ import annotations


class LoadError(RuntimeError):
    """Weights, a model file or an option that cannot be used: what is wrong, where, and what to do next."""


def said(error: BaseException) -> str:
    """Return what an exception says, on one line that a log can hold."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + " ..."
