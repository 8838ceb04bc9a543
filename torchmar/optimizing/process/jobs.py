"""The arguments and results of steps, as values that become JSON, and errors that are rows of the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class NotApplicable(Exception):
    """A variant that is not possible for these weights; the text is the reason, in words that follow ``skipped:``."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights, with all that a worker needs to load them.

    Attributes:
        folder: folder of the extracted archive, first on ``sys.path``.
        serialized_file: file of the weights, a path in ``folder`` or an absolute one.
        model_file: file of the model's class, in ``folder``.
        options: options of the section ``handler``.
        pt2: the section ``pt2``.
        threads: number of threads of the model.
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
        options: options of the section ``handler`` with which `torchmar_handlers.weights.load` loads it.
        files: names of the files in the folder; the first one is loaded. Empty: the original weights, with other
            options.
        needs: requirements on the processor or the GPU, see `torchmar.optimizing.results.Row.needs`.
        packages: distributions that are needed to load it, beside torch.
        note: remark for the user, or empty.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    note: str = ""
