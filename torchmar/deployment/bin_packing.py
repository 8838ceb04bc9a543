"""The assignment of workers to GPUs: it packs memory, spreads replicas and keeps fixed workers; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torchmar.deployment.gpu_sizes import show
from torchmar.errors import TorchmarError

_MAX_ATTEMPTS = 20_000  # limit of tried assignments; beyond it, a failure does not mean that there is no solution


@dataclass(frozen=True)
class Demand:
    """The GPUs that the workers of a version need.

    Attributes:
        name: name of the version in messages.
        workers: the number of workers.
        memory: bytes of GPU memory for each worker; 0 if unknown.
        devices: the allowed GPUs; None: all.
        spread: the largest number of GPUs to use; None: all.
        fixed: the GPUs of its running workers, if these stay.
    """

    name: str
    workers: int
    memory: int = 0
    devices: tuple[int, ...] | None = None
    spread: int | None = None
    fixed: tuple[int, ...] | None = None


def assign(sizes: Sequence[int], demands: Sequence[Demand]) -> list[tuple[int, ...]]:
    """Return the GPU of each worker for every demand, in the order of the workers.

    The workers with the largest memory are assigned first: each to the GPU with the fewest workers of the same version,
    and among these to the GPU with the least free memory (best-fit decreasing; Johnson 1973). If that fails, other
    assignments are tried. Equal demands give equal assignments.

    Args:
        sizes: memory of each GPU in bytes.
        demands: demands of the workers to assign, and of running ones.

    Raises:
        TorchmarError: the workers do not fit; the message contains the numbers.
    """
    if not sizes:
        raise TorchmarError(
            "there is no GPU to place workers on",
            hint="nvidia-smi lists none on this machine; name them with --gpus 2x80GiB, or gpus: under server:",
        )
    free = list(sizes)
    assigned: list[list[int]] = [[] for _ in demands]
    for index, demand in enumerate(demands):
        for device in (*(demand.devices or ()), *(demand.fixed or ())):
            if device >= len(sizes):
                raise TorchmarError(f"{demand.name} needs GPU {device}; there are {len(sizes)} (0 to {len(sizes) - 1})")
        for device in demand.fixed or ():
            free[device] -= demand.memory
            assigned[index].append(device)
    over = [device for device, room in enumerate(free) if room < 0]
    if over:
        raise _does_not_fit(
            sizes, free, demands, assigned, f"the workers on GPU {over[0]} need more memory than it has"
        )
    waiting = [index for index, demand in enumerate(demands) if demand.fixed is None for _ in range(demand.workers)]
    # Among workers of the same size, those with the fewest allowed GPUs are first.
    waiting.sort(key=lambda index: (-demands[index].memory, len(demands[index].devices or sizes), index))
    search = _Search(demands, free, assigned, waiting)
    if not search.run():
        index = search.stuck
        reason = f"a worker of {demands[index].name} needs {show(demands[index].memory)}"
        if search.attempts > _MAX_ATTEMPTS:
            reason += f" (after {_MAX_ATTEMPTS} attempts)"
        raise _does_not_fit(sizes, search.best_free, demands, search.best_assigned, reason)
    return [tuple(devices) for devices in assigned]


class _Search:
    """A depth-first search, whose first path is best-fit decreasing."""

    def __init__(
        self, demands: Sequence[Demand], free: list[int], assigned: list[list[int]], waiting: Sequence[int]
    ) -> None:
        self.demands, self.free, self.assigned, self.waiting = demands, free, assigned, waiting
        self.load = Counter(device for devices in assigned for device in devices)
        self.attempts = 0
        self.deepest = -1
        self.stuck = waiting[0] if waiting else 0
        self.best_free, self.best_assigned = list(free), [list(devices) for devices in assigned]

    def run(self) -> bool:
        """Assign every waiting worker; return whether that is possible."""
        # With a stack instead of recursion, because there may be more workers than Python's limit of nested calls.
        choices = [self._choices(0)]
        while choices and len(choices) <= len(self.waiting):
            device = choices[-1].pop(0) if choices[-1] and self.attempts <= _MAX_ATTEMPTS else None
            if device is not None:
                self.attempts += 1
                self._assign(len(choices) - 1, device)
                choices.append(self._choices(len(choices)))
                continue
            choices.pop()
            if choices:
                self._unassign(len(choices) - 1)
        return bool(choices)

    def _choices(self, depth: int) -> list[int]:
        """Return the GPUs to try for one worker, the best first."""
        if depth == len(self.waiting):
            return []
        index = self.waiting[depth]
        demand, devices = self.demands[index], self.assigned[index]
        if depth > self.deepest:
            self.deepest, self.stuck = depth, index
            self.best_free, self.best_assigned = list(self.free), [list(assignment) for assignment in self.assigned]
        choices, seen_sizes = [], set()
        for device in self._candidates(demand, devices):
            # Empty GPUs of the same size are interchangeable, unless a version may only use some GPUs.
            if self._interchangeable(device) and self.free[device] in seen_sizes:
                continue
            if self._interchangeable(device):
                seen_sizes.add(self.free[device])
            choices.append(device)
        return choices

    def _assign(self, depth: int, device: int) -> None:
        index = self.waiting[depth]
        self.assigned[index].append(device)
        self.free[device] -= self.demands[index].memory
        self.load[device] += 1

    def _unassign(self, depth: int) -> None:
        index = self.waiting[depth]
        device = self.assigned[index].pop()
        self.free[device] += self.demands[index].memory
        self.load[device] -= 1

    def _candidates(self, demand: Demand, assigned: list[int]) -> list[int]:
        allowed = demand.devices if demand.devices is not None else range(len(self.free))
        used = set(assigned)
        full = demand.spread is not None and len(used) >= demand.spread
        possible = [
            device
            for device in sorted(set(allowed))
            if self.free[device] >= demand.memory and (device in used or not full)
        ]
        return sorted(
            possible,
            key=lambda device: (
                assigned.count(device),
                # If the memory of a worker is unknown, the GPU with the fewest workers is best.
                self.free[device] if demand.memory else self.load[device],
                device,
            ),
        )

    def _interchangeable(self, device: int) -> bool:
        return self.load[device] == 0 and all(demand.devices is None for demand in self.demands)


def _does_not_fit(
    sizes: Sequence[int], free: Sequence[int], demands: Sequence[Demand], assigned: Sequence[Sequence[int]], reason: str
) -> TorchmarError:
    lines = [f"the workers do not fit on the GPUs: {reason}"]
    for device, size in enumerate(sizes):
        workers = [
            f"{demand.name} {devices.count(device)} x {show(demand.memory)}"
            for demand, devices in zip(demands, assigned, strict=True)
            if device in devices
        ]
        lines.append(
            f"  GPU {device}: {show(free[device])} of {show(size)} free; {', '.join(workers) or 'no workers on it'}"
        )
    unplaced = [
        f"{demand.name} {missing} x {show(demand.memory)}"
        for demand, devices in zip(demands, assigned, strict=True)
        if (missing := demand.workers - len(devices)) > 0 and demand.fixed is None
    ]
    if unplaced:
        lines.append(f"  not placed: {', '.join(unplaced)}")
    return TorchmarError(
        "\n".join(lines),
        hint="fewer workers, less worker_memory, or more GPUs; while one version replaces another, "
        "the workers of both are on the GPUs",
    )
