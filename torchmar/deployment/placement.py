"""The placement of a plan's workers on GPUs; running workers keep their GPUs if possible; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torchmar.deployment import bin_packing, versions
from torchmar.deployment.actual import LiveModel
from torchmar.deployment.bin_packing import Demand
from torchmar.deployment.desired_version import DesiredVersion
from torchmar.deployment.store_index import StoreIndex
from torchmar.deployment.target import spread
from torchmar.errors import TorchmarError

_Key = tuple[str, str]  # model and version


@dataclass(frozen=True)
class Gpu:
    """A GPU after the plan: bytes of memory, bytes that its workers need, and the number of workers by version."""

    size: int
    used: int
    workers: tuple[tuple[str, int], ...]


def place(
    desired: Sequence[DesiredVersion], live: Mapping[str, LiveModel], index: StoreIndex, sizes: Sequence[int]
) -> tuple[list[DesiredVersion], tuple[Gpu, ...]]:
    """Return the versions with the GPU of each of their workers, and the state of each GPU after the plan.

    Args:
        desired: the versions, some of which need GPUs.
        live: registered models. Their workers keep their memory until the new ones have the traffic.
        index: the model store.
        sizes: bytes of memory of each GPU.

    Raises:
        TorchmarError: the workers do not fit; the message contains the numbers.
    """
    on_gpus = [version for version in desired if version.state.on_gpus and version.target.min_workers]
    if not on_gpus:
        return list(desired), ()
    staying = {version.key for version in on_gpus if _can_stay(version)}
    # A version that gets more workers keeps the GPUs that the server would choose, if these have enough room.
    growing = {
        version.key for version in on_gpus if version.live and version.target.min_workers > len(version.live.workers)
    }
    try:
        devices = _assign(on_gpus, staying, desired, live, index, sizes)
    except TorchmarError:
        if not growing & staying:
            raise
        devices = _assign(on_gpus, staying - growing, desired, live, index, sizes)
    placed = [_with_devices(version, devices.get(version.key)) for version in desired]
    on_devices = [version for version in placed if version.target.devices]
    return placed, tuple(_gpu(device, size, on_devices) for device, size in enumerate(sizes))


def _can_stay(version: DesiredVersion) -> bool:
    """Return whether the workers of a version may keep their GPUs."""
    if version.live is None or not version.live.device_ids:
        return False
    devices = set(spread(version.live.device_ids, version.target.min_workers))
    allowed = version.state.devices is None or devices <= set(version.state.devices)
    return allowed and (version.state.gpus is None or len(devices) <= version.state.gpus)


def _with_devices(version: DesiredVersion, devices: tuple[int, ...] | None) -> DesiredVersion:
    """Return a version with the GPUs of its workers; a registered build on other GPUs cannot stay."""
    if devices is not None:
        version = replace(version, target=replace(version.target, devices=devices))
    if version.live and list(version.target.differences(version.live)):
        version = replace(version, live=None)
    return version


def _assign(
    on_gpus: Sequence[DesiredVersion],
    staying: set[_Key],
    desired: Sequence[DesiredVersion],
    live: Mapping[str, LiveModel],
    index: StoreIndex,
    sizes: Sequence[int],
) -> dict[_Key, tuple[int, ...]]:
    demands = [_demand(version, stays=version.key in staying) for version in on_gpus]
    keys = {(version.model, version.live.version) for version in on_gpus if version.live and version.key in staying}
    memory = {(version.model, versions.base(version.version)): version.target.worker_memory for version in desired}
    demands += _running(live, keys, memory, index)
    assigned = bin_packing.assign(sizes, demands)
    return {version.key: devices for version, devices in zip(on_gpus, assigned, strict=False)}


def _demand(version: DesiredVersion, *, stays: bool) -> Demand:
    count = version.target.min_workers
    return Demand(
        version.name,
        count,
        version.target.worker_memory,
        tuple(version.state.devices) if version.state.devices is not None else None,
        version.state.gpus,
        spread(version.live.device_ids, count) if version.live and stays else None,
    )


def _running(
    live: Mapping[str, LiveModel], keys: set[_Key], memory: Mapping[_Key, int], index: StoreIndex
) -> Iterator[Demand]:
    """Yield the demand of each registered version that is not kept; it ends when its successor has the traffic."""
    for model in live.values():
        for version in model.versions.values():
            if version.device_ids and version.workers and (model.name, version.version) not in keys:
                stored = index.archives.get(version.url)
                desired_memory = memory.get((model.name, versions.base(version.version)))
                need = desired_memory or (stored.worker_memory if stored else 0)
                devices = spread(version.device_ids, len(version.workers))
                yield Demand(f"{model.name} {version.version}", len(devices), need, fixed=devices)


def _gpu(device: int, size: int, placed: Sequence[DesiredVersion]) -> Gpu:
    counts = [(version, (version.target.devices or ()).count(device)) for version in placed]
    used_memory = sum(count * version.target.worker_memory for version, count in counts)
    return Gpu(size, used_memory, tuple((version.name, count) for version, count in counts if count))
