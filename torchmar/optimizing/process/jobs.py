"""The arguments and results of steps, as values that become JSON, and errors that are rows of the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class NotApplicable(Exception):
    """A variant that cannot exist of these weights; the text is the reason, in words that follow ``skipped:``."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights as a worker loads them.

    Attributes:
        folder: of the extracted archive, first on ``sys.path``.
        serialized_file: the weights, a path in ``folder`` or an absolute one.
        model_file: of the model's class, in ``folder``.
        options: of the section ``handler``.
        pt2: the section of that name.
        threads: of the model.
        gpu: the index of the GPU; None: the CPU.
    """

    folder: str
    serialized_file: str | None
    model_file: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    pt2: Any = None
    threads: int = 1
    gpu: int | None = None


@dataclass(frozen=True, kw_only=True)
class Made:
    """A variant that was made.

    Attributes:
        options: of the section ``handler`` with which `torchmar_handlers.weights.load` loads it.
        files: names of what was written to the folder; the first is loaded. Empty: the original weights, with other
            options.
        needs: what the processor or the GPU must have, see `torchmar.optimizing.results.Row.needs`.
        packages: distributions that load it, beside torch.
        note: what to know about it, or empty.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    note: str = ""
