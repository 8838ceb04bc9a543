"""The time budget of an optimisation, and of each of its steps."""

from __future__ import annotations

import time

SHORTEST = 30.0  # seconds
USED_UP = "the time was used up"
_LEAST_LIMIT = 60.0  # least limit of a step, if that much time is left
_LIMIT_PART = 3  # each step may take this part of the budget: one third


class Budget:
    """The time budget of an optimisation, which starts now.

    Args:
        seconds: length of the budget.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._started = seconds, time.monotonic()

    @property
    def spent(self) -> float:
        """The seconds since the beginning."""
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        """The seconds until the end; negative after it."""
        return self._seconds - self.spent

    @property
    def used_up(self) -> bool:
        """Whether a step that has just failed may have failed only because the time was used up."""
        return self.left <= 0

    @property
    def step_limit(self) -> float:
        """The time limit of the next step in seconds."""
        return min(max(1.0, self.left), max(_LEAST_LIMIT, self._seconds / _LIMIT_PART))
