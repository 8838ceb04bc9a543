"""Seeds of forked workers, so that each generates other random numbers, like separately started processes."""

from __future__ import annotations

import random
import sys


def reseed() -> int | None:
    """Seed the generators of Python, numpy and torch from the system, as in a new process.

    Returns:
        The seed of torch, for `reseed_again`; None without torch.
    """
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    torch = sys.modules.get("torch")
    return int(torch.default_generator.seed()) if torch else None


def reseed_again(before: int | None) -> None:
    """Seed the generators of a fork with a loaded model; torch's only if the handler has not seeded it.

    Args:
        before: result of `reseed` before the model was loaded.
    """
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    torch = sys.modules.get("torch")
    if torch and torch.default_generator.initial_seed() == before:
        torch.default_generator.seed()
