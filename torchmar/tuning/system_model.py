"""The simulated server of each setting: profiles, corrected by trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchmar.tuning.profile import Profile
from torchmar.tuning.service_model import ServiceModel, fit
from torchmar.tuning.simulation import Stage, System, capacity
from torchmar.tuning.space import Setting

FINE_REQUESTS = 2_500  # requests that are simulated for an exact statistic
_LOOP = {
    "builtin": 60e-6,
    "ray": 200e-6,
    "torchserve": 300e-6,
}  # CPU seconds of a request in the server, until they are measured
_CLIENT = 40e-6  # the same in the client
# Stalls are not simulated. A stall delays requests that arrive during it, and until the queue is empty again.
_MOST_UTILISATION = 0.95


@dataclass(frozen=True, kw_only=True)
class Correction:
    """The correction of settings with the same workers and threads, from trials.

    Attributes:
        scale: factor of the times of batches.
        tail: seconds to add to the statistic of the target, at this utilisation.
        utilisation: used part of the capacity when the tail was measured.
    """

    scale: float = 1.0
    tail: float = 0.0
    utilisation: float = 0.5

    def tail_at(self, utilisation: float) -> float:
        """Return the seconds to add at another utilisation: fewer at a lower one.

        The remaining capacity works off the requests that wait after a stall, so that a stall of the same length
        delays requests in proportion to utilisation / (1 - utilisation). This does not apply to higher rates:
        trials measure them.
        """
        return self.tail * min(1.0, _growth(utilisation) / _growth(self.utilisation)) if self.tail > 0 else self.tail


def _growth(utilisation: float) -> float:
    bounded = min(max(utilisation, 0.01), _MOST_UTILISATION)
    return bounded / (1 - bounded)


class SystemModel:
    """The simulated servers of one archive on one machine.

    Args:
        profiles: profiles with different numbers of threads; at least one.
        engine: ``builtin``, ``ray`` or ``torchserve``.
        cores: number of cores of the machine, or of all machines of a cluster.
        queue_size: largest number of requests that wait on the server.

    Attributes:
        corrections: corrections of settings with the same workers and threads, by their layout.
        loop: CPU seconds of a request in the server.
        client: CPU seconds of a request in the client.
        latency_offset: seconds to add to every latency.
        efficiency: the part of the cores, and of the event loop's core, that requests can use.
        step_shares: shares of the steps before and after the model in the time of a request; (0, 0) before the first
            trial.
        measured_memory: bytes of the server with its workers, by the number of workers.
    """

    def __init__(self, profiles: Sequence[Profile], *, engine: str, cores: float, queue_size: int) -> None:
        self.services: Mapping[tuple[int, bool], ServiceModel] = {
            (profile.threads, profile.gpu): fit(profile.times) for profile in profiles
        }
        self.corrections: dict[tuple[int, int, int, int, bool], Correction] = {}
        self.loop, self.client, self.latency_offset = _LOOP[engine], _CLIENT, 0.0
        self.efficiency = 1.0
        self.step_shares = (0.0, 0.0)
        self.measured_memory: dict[int, int] = {}
        self.cores = cores
        self._engine, self._queue_size = engine, queue_size
        self._worker_memory = max(profile.memory for profile in profiles)

    def system(self, setting: Setting) -> System:
        """Return the simulated server of a setting."""
        correction = self.correction(setting)
        before, after = self.step_shares
        service = self.service(setting).scaled(correction.scale)
        stages: list[Stage | None] = [None, None]
        moved = 0.0
        for index, (share, workers) in enumerate(((before, setting.preprocess), (after, setting.postprocess))):
            if workers:
                moved += share
                stages[index] = Stage(workers=workers, service=service.scaled(share))
        return System(
            service=service.scaled(max(0.01, 1 - moved)),
            workers=setting.workers,
            batch_size=setting.batch_size,
            delay=setting.delay_ms / 1000 if self._engine == "torchserve" else None,
            cores=self.cores * self.efficiency,
            loop=self.loop / self.efficiency,
            latency=self.latency_offset,
            client=self.client,
            queue_size=self._queue_size,
            preprocess=stages[0],
            postprocess=stages[1],
        )

    def knows(self, setting: Setting) -> bool:
        """Return whether a setting can be predicted: the time of the steps in its stages is known."""
        before, after = self.step_shares
        return (before > 0 or not setting.preprocess) and (after > 0 or not setting.postprocess)

    def service(self, setting: Setting) -> ServiceModel:
        """Return the profile of the setting's threads, or of the nearest number of threads."""
        thread_counts = [threads for threads, gpu in self.services if gpu == setting.gpu]
        threads = min(
            thread_counts, key=lambda threads: (max(threads, setting.threads) / min(threads, setting.threads), threads)
        )
        return self.services[threads, setting.gpu]

    def memory(self, setting: Setting) -> int:
        """Return the memory of the server with its workers, in bytes."""
        measured, count = self.measured_memory, setting.processes
        if not measured:
            return self._worker_memory * count
        nearest = min(measured, key=lambda processes: abs(processes - count))
        others = [processes for processes in measured if processes != nearest]
        per_process = self._worker_memory  # too much if workers share memory, which only trials show
        if others:
            other = max(others, key=lambda processes: abs(processes - nearest))
            per_process = max(0, (measured[other] - measured[nearest]) // (other - nearest))
        return max(0, measured[nearest] + per_process * (count - nearest))

    def correction(self, setting: Setting) -> Correction:
        """Return the correction of a setting; if no trial has measured its layout, the most favourable correction."""
        if measured := self.corrections.get(setting.layout):
            return measured
        if not self.corrections:
            return Correction()
        # The best correction so far: a setting that looks worse than it is would never be measured.
        shortest = min(self.corrections.values(), key=lambda fitted: fitted.tail / _growth(fitted.utilisation))
        return Correction(
            scale=min(fitted.scale for fitted in self.corrections.values()),
            tail=max(0.0, shortest.tail),
            utilisation=shortest.utilisation,
        )

    def tail(self, setting: Setting, rate: float) -> float:
        """Return the seconds to add to a setting's simulated statistic at a rate."""
        return self.correction(setting).tail_at(rate / capacity(self.system(setting)))

    def state(self, setting: Setting) -> tuple[object, ...]:
        """Return a value that changes with each correction of a setting."""
        return self.correction(setting), (self.loop, self.client, self.latency_offset, self.efficiency)
