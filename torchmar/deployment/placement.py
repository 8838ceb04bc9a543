"""Place workers on GPUs: memory packed, replicas spread, pinned workers kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torchmar.deployment.gpu_sizes import show
from torchmar.errors import TorchmarError

_PATIENCE = 20_000  # arrangements to try before an answer is "not found" in place of "impossible"


@dataclass(frozen=True)
class Demand:
    """What the workers of one version need.

    Attributes:
        name: what messages call it.
        workers: how many there are.
        memory: bytes of GPU memory for each; 0 if unknown.
        devices: the GPUs that they may be on; None is all.
        spread: on how many GPUs they may be, at the most; None is all.
        fixed: where they are already, one GPU for each worker; they stay there.
    """

    name: str
    workers: int
    memory: int = 0
    devices: tuple[int, ...] | None = None
    spread: int | None = None
    fixed: tuple[int, ...] | None = None


def place(sizes: Sequence[int], demands: Sequence[Demand]) -> list[tuple[int, ...]]:
    """Return for every demand the GPU of each of its workers, in their order.

    Largest workers first, each on the GPU where fewest of its siblings are, and of those the one
    that it fills best (best-fit decreasing; Johnson 1973); where that comes to a dead end, other
    arrangements are tried. The same demands get the same places.

    Args:
        sizes: bytes of memory of each GPU.
        demands: what is to be placed, and what stands already.

    Raises:
        TorchmarError: it does not fit; the message has the numbers.
    """
    if not sizes:
        raise TorchmarError(
            "there is no GPU to place workers on",
            hint="nvidia-smi tells of none here; --gpus 2x80GiB, or gpus: under server:, says what there is",
        )
    free = list(sizes)
    places: list[list[int]] = [[] for _ in demands]
    for index, demand in enumerate(demands):
        for device in (*(demand.devices or ()), *(demand.fixed or ())):
            if device >= len(sizes):
                raise TorchmarError(f"{demand.name} wants GPU {device}; there are {len(sizes)} (0 to {len(sizes) - 1})")
        for device in demand.fixed or ():
            free[device] -= demand.memory
            places[index].append(device)
    over = [device for device, left in enumerate(free) if left < 0]
    if over:
        raise _too_much(sizes, free, demands, places, f"GPU {over[0]} has more on it than it holds")
    waiting = [index for index, demand in enumerate(demands) if demand.fixed is None for _ in range(demand.workers)]
    # What has the least choice goes before what is as large.
    waiting.sort(key=lambda index: (-demands[index].memory, len(demands[index].devices or sizes), index))
    search = _Search(demands, free, places, waiting)
    if not search.done():
        index = search.stuck
        why = f"a worker of {demands[index].name} needs {show(demands[index].memory)}"
        if search.tried > _PATIENCE:
            why += f" (after {_PATIENCE} arrangements)"
        raise _too_much(sizes, search.free_at_best, demands, search.places_at_best, why)
    return [tuple(place) for place in places]


class _Search:
    """A depth-first search, whose first path is best-fit decreasing."""

    def __init__(
        self, demands: Sequence[Demand], free: list[int], places: list[list[int]], waiting: Sequence[int]
    ) -> None:
        self.demands, self.free, self.places, self.waiting = demands, free, places, waiting
        self.load = Counter(device for place in places for device in place)
        self.tried = 0
        self.deepest = -1
        self.stuck = waiting[0] if waiting else 0
        self.free_at_best, self.places_at_best = list(free), [list(place) for place in places]

    def done(self) -> bool:
        """Place everything that waits; tell whether that was possible."""
        # A stack, not recursion: there may be more workers than Python nests calls.
        choices = [self._choices(0)]
        while choices and len(choices) <= len(self.waiting):
            device = choices[-1].pop(0) if choices[-1] and self.tried <= _PATIENCE else None
            if device is not None:
                self.tried += 1
                self._put(len(choices) - 1, device)
                choices.append(self._choices(len(choices)))
                continue
            choices.pop()
            if choices:
                self._take(len(choices) - 1)
        return bool(choices)

    def _choices(self, depth: int) -> list[int]:
        """Return the GPUs to try for one worker, the best first."""
        if depth == len(self.waiting):
            return []
        index = self.waiting[depth]
        demand, place = self.demands[index], self.places[index]
        if depth > self.deepest:
            self.deepest, self.stuck = depth, index
            self.free_at_best, self.places_at_best = list(self.free), [list(one) for one in self.places]
        found, alike = [], set()
        for device in self._candidates(demand, place):
            # Empty GPUs of one size are interchangeable, unless a worker is pinned to one.
            if self._equal(device) and self.free[device] in alike:
                continue
            if self._equal(device):
                alike.add(self.free[device])
            found.append(device)
        return found

    def _put(self, depth: int, device: int) -> None:
        index = self.waiting[depth]
        self.places[index].append(device)
        self.free[device] -= self.demands[index].memory
        self.load[device] += 1

    def _take(self, depth: int) -> None:
        index = self.waiting[depth]
        device = self.places[index].pop()
        self.free[device] += self.demands[index].memory
        self.load[device] -= 1

    def _candidates(self, demand: Demand, place: list[int]) -> list[int]:
        allowed = demand.devices if demand.devices is not None else range(len(self.free))
        used = set(place)
        full = demand.spread is not None and len(used) >= demand.spread
        possible = [
            device
            for device in sorted(set(allowed))
            if self.free[device] >= demand.memory and (device in used or not full)
        ]
        return sorted(
            possible,
            key=lambda device: (
                place.count(device),
                # Without a need for memory the GPU with the fewest workers fits best.
                self.free[device] if demand.memory else self.load[device],
                device,
            ),
        )

    def _equal(self, device: int) -> bool:
        return self.load[device] == 0 and all(demand.devices is None for demand in self.demands)


def _too_much(
    sizes: Sequence[int], free: Sequence[int], demands: Sequence[Demand], places: Sequence[Sequence[int]], why: str
) -> TorchmarError:
    lines = [f"the workers do not fit on the GPUs: {why}"]
    for device, size in enumerate(sizes):
        there = [
            f"{demand.name} {place.count(device)} x {show(demand.memory)}"
            for demand, place in zip(demands, places, strict=True)
            if device in place
        ]
        lines.append(
            f"  GPU {device}: {show(free[device])} of {show(size)} free; {', '.join(there) or 'nothing on it'}"
        )
    unplaced = [
        f"{demand.name} {missing} x {show(demand.memory)}"
        for demand, place in zip(demands, places, strict=True)
        if (missing := demand.workers - len(place)) > 0 and demand.fixed is None
    ]
    if unplaced:
        lines.append(f"  not placed: {', '.join(unplaced)}")
    return TorchmarError(
        "\n".join(lines),
        hint="fewer workers, less worker_memory, or more GPUs; while one version takes the place of another "
        "both are there",
    )
