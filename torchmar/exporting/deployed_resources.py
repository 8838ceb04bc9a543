"""The resources that a server needs for the models of a deployment: cores and GPUs for workers, memory for archives.

Memory is an estimate from the sizes of the archives: only a measurement shows how much a model needs for a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchmar.deployment import desired_version, placement
from torchmar.deployment.desired import Deployment
from torchmar.deployment.store_index import StoredArchive, StoreIndex
from torchmar.errors import TorchmarError
from torchmar.exporting.pods import Resources

MIB = 1 << 20

_SERVER, _WORKER = 1024 * MIB, 256 * MIB  # bytes of a server with torch, and of a forked worker
_STEP = 256 * MIB  # estimates are whole multiples of it


def resources(
    deployment: Deployment,
    archives: Mapping[tuple[str, str], StoredArchive | None],
    index: StoreIndex,
    gpu_sizes: Sequence[int],
) -> Resources:
    """Return the resources of one server with all workers of a deployment.

    Args:
        deployment: the models.
        archives: the archive of each listed model and version.
        index: the model store.
        gpu_sizes: bytes of memory of each GPU of the machines that pods run on.

    Raises:
        TorchmarError: the workers do not fit on the GPUs, or an archive is missing.
    """
    if missing := [" ".join(key) for key, stored in archives.items() if stored is None]:
        folder = index.folder or "a model store on this machine"
        raise TorchmarError(f"there is no archive of {', '.join(missing)} in {folder}", hint="torchmar build makes it")
    placed, gpus = placement.place(list(desired_version.match(deployment, {}, archives)), {}, index, gpu_sizes)
    memory, workers = _SERVER, 0
    for version in placed:
        count = version.target.min_workers
        size = version.stored.path.stat().st_size if version.stored and version.stored.path.is_file() else 0
        # The weights of a worker on the CPU, and the weights in the archive, from which they were read.
        memory += count * (_WORKER + size) + size
        workers += count
    used_gpus = [number for number, gpu in enumerate(gpus) if gpu.workers]
    rounded = -(-memory // _STEP) * _STEP // MIB
    return Resources(
        cpu=str(max(1, workers)),
        memory=f"{rounded // 1024}Gi" if rounded % 1024 == 0 else f"{rounded}Mi",
        # Workers number GPUs from 0, so that all GPUs up to the last used one are needed.
        gpus=max(used_gpus, default=-1) + 1,
    )
