"""The settings of an optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of an optimisation.

    Attributes:
        keep: requirements of agreement, such as ``labels>=0.99``; empty: the defaults of the kind of model.
        check: a command that measures an archive; None: there is no check.
        data: folder of inputs in addition to the archive's samples.
        batch_sizes: batch sizes to measure; the first one decides.
        threads: number of threads of the model; None: the number that the handler sets.
        seconds: length of the time budget.
        variants: names; empty: all.
    """

    keep: tuple[str, ...] = ()
    check: str | None = None
    data: Path | None = None
    batch_sizes: tuple[int, ...] = (1,)
    threads: int | None = None
    seconds: float = 600.0
    variants: tuple[str, ...] = ()
