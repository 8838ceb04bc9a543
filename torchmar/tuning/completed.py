"""A tuning that has ended: what was asked, what was measured, what was found."""

from __future__ import annotations

from dataclasses import dataclass

from torchmar.engines import EngineName
from torchmar.load.results import Machine
from torchmar.tuning.prediction import Predictor
from torchmar.tuning.search import Question, Result
from torchmar.tuning.space import Space
from torchmar.tuning.target import Target
from torchmar.tuning.trials import Record


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A tuning that has ended.

    Attributes:
        name: of the model.
        version: of the archive.
        engine: the server.
        machine: that it ran on.
        torch: the version of torch.
        question: what was to be found.
        space: the settings.
        requests: the number of different requests.
        record: all that was measured.
        result: of the search.
        seconds: that it took, without interruptions.
        had_stages: whether the archive has stages.
        had_threads: whether it has a number of threads.
        predictor: with all corrections.
    """

    name: str
    version: str
    engine: EngineName
    machine: Machine
    torch: str
    question: Question
    space: Space
    requests: int
    record: Record
    result: Result
    seconds: float
    had_stages: bool = False
    had_threads: bool = False
    predictor: Predictor

    @property
    def compared(self) -> Target:
        """The target, or that of the lower percentile by which settings were compared, as trials had few requests."""
        return self.predictor.target
