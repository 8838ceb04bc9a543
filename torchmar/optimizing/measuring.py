"""The measurements of an optimisation: times, answers and explanations of weights, each from a process of its own."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchmar.load import machine_use
from torchmar.load.measuring import MAX_OTHERS
from torchmar.optimizing import agreement, budget, choice
from torchmar.optimizing.agreement import Outputs
from torchmar.optimizing.budget import Budget
from torchmar.optimizing.process.jobs import Weights
from torchmar.optimizing.recording import Recording
from torchmar.optimizing.results import Timing
from torchmar.optimizing.steps import StepError
from torchmar.optimizing.variants import BASELINE

if TYPE_CHECKING:
    import numpy as np

_DRIFT = 0.1  # relative difference of the baseline's two measurements above which the report mentions it
_EXPLAINED = 4  # number of requests whose explanations are compared; explanations are slow
_EXPLAIN_SECONDS = 20.0

_Times = tuple[list[float], list[float]]
"""The elapsed seconds of calls, and the CPU seconds of all threads in each call."""


@dataclass(frozen=True)
class Measured:
    """Weights that were run: the result of their process, and their answers for the held-out inputs."""

    result: Mapping[str, Any]
    outputs: Sequence[Outputs]


class Measurements:
    """Measures the original, then variants.

    Args:
        recording: the model and its recorded inputs.
        batch_sizes: batch sizes to measure; the first one decides.
        budget: time budget.
    """

    def __init__(self, recording: Recording, batch_sizes: Sequence[int], budget: Budget) -> None:
        self._recording, self._batch_sizes, self._budget = recording, batch_sizes, budget
        self._times: dict[str, dict[int, list[_Times]]] = {}
        self._baseline: Measured | None = None
        self._ranks: dict[str, int] = {}  # ranks of the original's answers, with the batch dimension
        self._explanations: dict[str, np.ndarray[Any, Any]] | None = None
        self._others = 0.0
        self._disturbances: list[str] = []

    @property
    def baseline(self) -> Measured:
        """The measurement of the original."""
        assert self._baseline is not None
        return self._baseline

    def measure_original(self) -> None:
        """Measure the original.

        Raises:
            StepError: the original gives no answers.
        """
        self._baseline = self._run(BASELINE, self._recording.original, answers=True)

    def measure(self, name: str, weights: Weights) -> Measured:
        """Measure a variant.

        Raises:
            StepError: the variant gives no answers, or not in time.
        """
        return self._run(name, weights, answers=True)

    def measure_original_again(self) -> None:
        """Measure the original again at the end; its interval then covers changes of the machine's speed."""
        try:
            if self._budget.left < 0:
                raise StepError(budget.USED_UP)
            repeated = self._run(BASELINE, self._recording.original, answers=False)
        except StepError as error:  # the earlier measurements are still worth a report
            reason = budget.USED_UP if self._budget.used_up else str(error)
            self._disturbances.append(
                "the original was not measured again at the end, which shows whether the machine's speed has changed: "
                + reason
            )
            return
        cpu = self.takes_cpu_time
        before, after = (
            statistics.median(_seconds(next(iter(measured.result["times"].values())), cpu=cpu))
            for measured in (self.baseline, repeated)
        )
        if abs(after / before - 1) > _DRIFT:
            self._disturbances.append(
                f"the original took {1000 * before:.3g} ms at the beginning and {1000 * after:.3g} ms at the end"
            )

    def explanations(self, name: str, weights: Weights) -> dict[str, float]:
        """Return the rank correlations between the explanations of a variant and the original, by the name of the
        request.

        Raises:
            StepError: the variant or the original gives no explanations, or not in time.
        """
        if self._explanations is None:
            self._explanations = self._explained(BASELINE, None, self._recording.requests[:_EXPLAINED])
        requests = [recorded for recorded in self._recording.requests if recorded["name"] in self._explanations]
        actual = self._explained(name, weights, requests)
        return {
            request: agreement.rank_agreement(scores, actual[request]) if scores.shape == actual[request].shape else 0.0
            for request, scores in self._explanations.items()
            if request in actual
        }

    @property
    def takes_cpu_time(self) -> bool:
        """Whether CPU time is used in place of elapsed time, which other programs have made longer.

        With one thread, both are equal on a quiet machine.
        """
        original = self._recording.original
        return bool(self._others) and original.threads == 1 and original.gpu is None

    def timings(self, name: str, *, cpu: bool = False) -> tuple[Timing, ...]:
        """Return the timings of each measurement of a variant, by batch size.

        Args:
            name: name of the variant; a variant that was not measured has no timings.
            cpu: whether to return CPU times if they are shorter, see `takes_cpu_time`.
        """
        return tuple(
            choice.timing(size, *(_seconds(pair, cpu=cpu) for pair in measurements))
            for size, measurements in sorted(self._times.get(name, {}).items())
        )

    @property
    def disturbances(self) -> tuple[str, ...]:
        """The reasons why the measurements are less certain."""
        if not self._others:
            return tuple(self._disturbances)
        note = "; the times are CPU times, which a quiet machine would need, too" if self.takes_cpu_time else ""
        return (f"other programs used up to {self._others:.1f} cores{note}", *self._disturbances)

    def _run(self, name: str, weights: Weights, *, answers: bool) -> Measured:
        recording = self._recording
        file = recording.captured.with_name(f"{name}.npz")
        job = {
            "weights": asdict(weights),
            "inputs": str(recording.captured),
            "places": recording.sides.held_out,
            "batch_sizes": self._batch_sizes,
            "answers": str(file) if answers else "",
        }
        result = recording.steps.run("run", job, seconds=self._budget.step_limit, name=name)
        if result["others"] > MAX_OTHERS * len(machine_use.cores()):
            self._others = max(self._others, result["others"])
        for size, times in result["times"].items():
            self._times.setdefault(name, {}).setdefault(int(size), []).append(times)
        return Measured(result, self._outputs(file, result["outputs"]) if answers else [])

    def _outputs(self, file: Path, names: Sequence[str]) -> list[Outputs]:
        """Return the answers in a file of the step ``run``, without the batch dimension, with the names of the
        original.

        Raises:
            StepError: an answer and that of the original differ in whether they have the batch dimension.
        """
        import numpy as np

        original_names = list(self._baseline.result["outputs"]) if self._baseline else list(names)
        output_names = [name or "output" for name in (original_names if len(original_names) == len(names) else names)]
        outputs: list[dict[str, np.ndarray[Any, Any]]] = [{} for _ in self._recording.held_out]
        with np.load(file) as arrays:
            for key, array in arrays.items():
                place, number = map(int, key.split("."))
                # Lists may differ in length between inputs.
                name = output_names[number] if number < len(output_names) else f"output {number + 1}"
                rank = self._ranks.setdefault(key, array.ndim)
                if array.ndim != rank:
                    raise StepError(f"{name!r} has {array.ndim} dimensions, and {rank} of the original")
                outputs[place][name] = array[0] if array.ndim and array.shape[0] == 1 else array
        return list(outputs)

    def _explained(
        self, name: str, weights: Weights | None, requests: Sequence[Mapping[str, Any]]
    ) -> dict[str, np.ndarray[Any, Any]]:
        import numpy as np

        file = self._recording.captured.with_name(f"{name}-explained.npz")
        job = {
            "model": self._recording.model,
            "weights": None if weights is None else asdict(weights),
            "requests": requests,
            "target": str(file),
            "seconds": _EXPLAIN_SECONDS,
        }
        limit = self._budget.step_limit
        result = self._recording.steps.run("explain", job, seconds=limit, name=f"{name}-explained")
        with np.load(file) as arrays:
            return {request: arrays[str(place)] for place, request in enumerate(result["explained"])}


def _seconds(times: _Times, *, cpu: bool) -> list[float]:
    """Return the seconds of calls; with ``cpu`` the seconds that a quiet machine would need.

    CPU time is longer than elapsed time if threads of an engine wait actively for each other.
    """
    return [min(pair) for pair in zip(*times, strict=True)] if cpu else times[0]
