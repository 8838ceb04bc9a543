"""The time that an optimisation may take, and how much of it a step may."""

from __future__ import annotations

import time

SHORTEST = 30.0  # seconds
USED_UP = "the time was used up"
_LEAST_LIMIT = 60.0  # seconds that a step may take, if there is so much time left
_LIMIT_PART = 3  # of the budget: no step may take more than one of so many parts


class Budget:
    """The time of an optimisation, from now on.

    Args:
        seconds: that it may take.
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
        """Whether a step that has just failed has ended for want of time, and not for a reason of its own."""
        return self.left <= 0

    @property
    def step_limit(self) -> float:
        """The seconds that the next step may take."""
        return min(max(1.0, self.left), max(_LEAST_LIMIT, self._seconds / _LIMIT_PART))
