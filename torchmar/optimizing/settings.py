"""The settings of an optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of an optimisation.

    Attributes:
        keep: requirements of agreement, such as ``labels>=0.99``; empty: the defaults of the kind of model.
        check: a command that measures an archive; None: there is none.
        data: a folder of inputs beside the archive's samples.
        batch_sizes: that are measured; the first decides.
        threads: of the model; None: those that the handler sets.
        seconds: that it may take.
        variants: names; empty: all.
    """

    keep: tuple[str, ...] = ()
    check: str | None = None
    data: Path | None = None
    batch_sizes: tuple[int, ...] = (1,)
    threads: int | None = None
    seconds: float = 600.0
    variants: tuple[str, ...] = ()
