"""The options of a tuning: the server, the time limit, the settings."""

from __future__ import annotations

from dataclasses import dataclass

from torchmar.engines import EngineName
from torchmar.errors import TorchmarError
from torchmar.tuning.search import MOST_TRIALS
from torchmar.tuning.space import Space

SHORTEST_BUDGET = 30.0  # seconds
SHORTEST_TRIAL = 1.0  # seconds


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """The options of a tuning.

    Attributes:
        engine: the server.
        seconds: time that the tuning may take.
        most_trials: largest number of trials.
        space: grid of settings; None: all settings that are useful on this machine.
        trial_seconds: duration of each measurement; None: the rate determines it.
        head: address of the cluster's head, for the engine ray; None: that of the configuration, or a cluster of this
            machine alone.

    Raises:
        TorchmarError: the time is too short.
    """

    engine: EngineName
    seconds: float
    most_trials: int = MOST_TRIALS
    space: Space | None = None
    trial_seconds: float | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        if self.seconds < SHORTEST_BUDGET:
            raise TorchmarError(
                f"a budget of {self.seconds:.0f} s is too short: profiles and one trial take about "
                f"{SHORTEST_BUDGET:.0f} s",
                hint="--budget 5m is usually enough; a tuning that runs out of time continues when it is started again",
            )
        if self.trial_seconds is not None and self.trial_seconds < SHORTEST_TRIAL:
            raise TorchmarError(
                f"a measurement of {self.trial_seconds:g} s is too short to show a percentile", hint="--trial 10s"
            )

    @property
    def on_cluster(self) -> bool:
        """Whether the workers are replicas on a cluster."""
        return self.engine == "ray"
