"""The number of threads that torch uses for each kind of batch, chosen by measurement.

More threads help a batch only if each has work and a core. They share the work of an operator in equal parts and wait
for the slowest one: a small model spends more time waiting than working, and on a machine with other programs, one
thread that has lost its core delays all others. The number of free cores is unknown and changes; the time of a batch
with a number of threads can be measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from statistics import median

LONG = 0.005  # CPU seconds of a batch; below this, threads wait for each other longer than they work
VERY_LONG = 0.05  # CPU seconds of a batch; above this, a measurement with one thread would take too long
RECENT = 5  # number of batches whose median counts, so that one slow batch has no effect
TRIAL = 3  # batches of a trial
WARM_UP = 8  # batches before the first trial; TorchScript compiles in the first three
LONGEST_PAUSE = 256  # batches between trials that change nothing
GAIN = 1.15  # speedup above which more threads are kept
LOSS = 1.05  # slowdown up to which fewer threads are kept, to leave cores to other programs
SLOWER = 1.25  # slowdown against the best time above which something must have changed
HOPELESS = 2.0  # slowdown against the usual time above which a trial ends at once
IDLE = 0.25  # used part of the additional threads' time below which fewer threads are tried


def set_torch_threads(count: int) -> None:
    """Set the number of threads for torch's operators, when the calling thread starts them."""
    import torch

    torch.set_num_threads(count)


class AdaptiveThreads:
    """The thread counts of a worker for each kind of batch, between one and a limit.

    Args:
        wanted: number that the handler has set while it loaded, the largest to use; None: it has set none.
        set_threads: called with a new count before a batch.
    """

    def __init__(self, configured: int | None, set_threads: Callable[[int], object] = set_torch_threads) -> None:
        self._configured, self._set = configured, set_threads
        self._limit, self._current = 1, 0
        self._choices: dict[Hashable, ThreadChoice] = {}
        self._choice: ThreadChoice | None = None

    def limit(self, most: int) -> None:
        """Use at most ``most`` threads from now on."""
        self._limit = max(1, min(most, self._configured or most))
        self._choices.clear()
        self._choice = None
        self._use(min(self._current or 1, self._limit))

    def before(self, kind: Hashable, size: int) -> None:
        """Set the number of threads for a batch.

        Args:
            kind: value that similar batches share, for example whether they are predictions.
            size: number of requests in the batch; sizes between two powers of two count as similar.
        """
        if self._limit > 1:
            key = kind, size.bit_length()
            self._choice = self._choices.get(key) or self._choices.setdefault(key, ThreadChoice(self._limit))
            self._use(self._choice.count)

    def after(self, size: int, seconds: float, cpu_seconds: float) -> None:
        """Record the time of the batch: elapsed time, and CPU time of all threads of the process."""
        if self._choice:
            self._choice.record(size, seconds, cpu_seconds)

    def _use(self, count: int) -> None:
        if count != self._current:
            self._current = count
            self._set(count)


class ThreadChoice:
    """The thread count for batches of one kind: the current one, and occasional trials of another.

    Batches whose CPU time is below `LONG` get one thread. For others, more threads are tried, and kept if they are
    `GAIN` times as fast. Fewer are tried when batches have become `SLOWER`, or the additional threads are mostly idle,
    and are kept if they are hardly slower. CPU time decides which batches are long, because elapsed time also grows
    when other programs use the cores. Trials without a change are repeated less and less often.

    Attributes:
        count: number of threads for the next batch.
    """

    def __init__(self, most: int) -> None:
        self.count = 1
        self._most, self._kept = most, 1
        self._times: deque[float] = deque(maxlen=RECENT)  # seconds of a request
        self._cpu: deque[float] = deque(maxlen=RECENT)  # CPU seconds of a batch
        self._cores: deque[float] = deque(maxlen=RECENT)  # mean number of cores in use
        self._trial: list[float] = []
        self._best = float("inf")
        self._pause = self._next_pause = WARM_UP
        self._tried_all = self._unproven = False

    def record(self, size: int, seconds: float, cpu_seconds: float) -> None:
        """Record the time of a batch of ``size`` requests with ``count`` threads."""
        per_request = seconds / max(1, size)
        if self.count != self._kept:
            self._record_trial(per_request)
            return
        self._times.append(per_request)
        self._cpu.append(cpu_seconds)
        self._cores.append(cpu_seconds / seconds if seconds > 0 else 1.0)
        self._pause -= 1
        if self._kept == 1 and cpu_seconds > VERY_LONG and not self._tried_all:
            self._keep(self._most)
            self._tried_all = self._unproven = True
        elif len(self._times) == RECENT and (self._kept > 1 or max(self._cpu) >= LONG):
            self._decide()

    def _decide(self) -> None:
        usual, cpu = median(self._times), median(self._cpu)
        if cpu < (VERY_LONG if self._unproven else LONG):
            if self._kept > 1:
                self._keep(1)
                self._tried_all = False
            return
        self._unproven = False
        self._best = min(self._best, usual)
        if self._pause > 0:
            return
        idle = median(self._cores) < 1 + IDLE * (self._kept - 1)
        if self._kept > 1 and (idle or usual > SLOWER * self._best):
            self.count = self._kept // 2
        elif self._kept < self._most:
            self.count = min(self._most, 2 * self._kept) if self._tried_all else self._most
            self._tried_all = True

    def _record_trial(self, per_request: float) -> None:
        self._trial.append(per_request)
        usual = median(self._times)
        if len(self._trial) < TRIAL and per_request < HOPELESS * usual:
            return
        trial_seconds, is_more = median(self._trial), self.count > self._kept
        if trial_seconds * GAIN < usual if is_more else trial_seconds < usual * LOSS:
            self._keep(self.count)
            return
        self.count = self._kept
        self._trial.clear()
        self._best = usual  # the threads are not the reason of the slowdown
        self._next_pause = min(2 * self._next_pause, LONGEST_PAUSE)
        self._pause = self._next_pause

    def _keep(self, count: int) -> None:
        self.count = self._kept = count
        self._pause = self._next_pause = WARM_UP
        self._best = float("inf")
        self._unproven = False
        for recent in (self._times, self._cpu, self._cores, self._trial):
            recent.clear()
