"""A tuning that has ended: the question, the measurements and the result."""

from __future__ import annotations

from dataclasses import dataclass

from torchmar.engines import EngineName
from torchmar.load.results import Machine
from torchmar.tuning.prediction import Predictor
from torchmar.tuning.search import Result
from torchmar.tuning.space import Space
from torchmar.tuning.target import Question, Target
from torchmar.tuning.trials import Record


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A tuning that has ended.

    Attributes:
        name: name of the model.
        version: version of the archive.
        engine: description of the machine.
        machine: machine on which it ran.
        torch: version of torch.
        question: goal of the search.
        space: grid of settings.
        requests: number of different requests.
        record: all measurements.
        result: result of the search.
        seconds: duration, without interruptions.
        had_stages: whether the archive has stages.
        had_threads: whether the archive sets a number of threads.
        predictor: predictions, with all corrections.
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
        """The target, or that of a lower percentile by which settings were compared, as trials had few requests."""
        return self.predictor.target
