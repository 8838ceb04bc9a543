"""The settings that a server can have for one model, and the grid that is searched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchmar.engines import EngineName
from torchmar.tuning.target import Target

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
DELAYS_MS = (1, 2, 5, 10, 20, 50, 100)  # TorchServe ignores a delay of 0 in model-config.yaml
_MOST_WORKERS = 64


@dataclass(frozen=True, kw_only=True, order=True)
class Setting:
    """The configuration of a model on a server.

    Attributes:
        workers: number of workers with the model.
        threads: number of threads of each worker.
        batch_size: largest number of requests in a batch.
        delay_ms: time that TorchServe waits for a full batch, in milliseconds; 0 for the built-in server, which does
            not wait.
        preprocess: workers of the stage before the model; 0: there is no such stage.
        postprocess: workers of the stage after it; 0: there is no such stage.
        gpu: whether the workers with the model have a GPU.
    """

    workers: int
    threads: int
    batch_size: int
    delay_ms: int = 0
    preprocess: int = 0
    postprocess: int = 0
    gpu: bool = False

    @property
    def processes(self) -> int:
        """All workers."""
        return self.workers + self.preprocess + self.postprocess

    @property
    def layout(self) -> tuple[int, int, int, int, bool]:
        """All values except those of batching: they decide how workers share the machine."""
        return self.workers, self.threads, self.preprocess, self.postprocess, self.gpu

    def __str__(self) -> str:
        parts = [
            count(self.workers, "worker"),
            f"{count(self.threads, 'thread')} each",
            f"batch size {self.batch_size}",
        ]
        if self.delay_ms:
            parts.append(f"delay {self.delay_ms} ms")
        stages = [
            f"{name} {workers}"
            for name, workers in (("preprocess", self.preprocess), ("postprocess", self.postprocess))
            if workers
        ]
        if stages:
            parts.append(f"stages {', '.join(stages)}")
        return ", ".join(parts) + (", on the GPU" if self.gpu else "")


def count(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 worker``, ``2 workers``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True, kw_only=True)
class Space:
    """The grid of settings.

    Attributes:
        cores: number of cores of the machine.
        batch_sizes: batch sizes in ascending order.
        delays_ms: delays of TorchServe; (0,) for the built-in server.
        choose_threads: whether the handler's number of threads can be configured; otherwise each worker has its share
            of the cores.
        stages: whether the handler can be split into stages, and the server supports them.
        gpus: number of GPUs of the machine.
        replicas: number of replicas that fit on a cluster, by their number of threads; empty: the workers are on this
            machine.
    """

    cores: int
    batch_sizes: Sequence[int] = BATCH_SIZES
    delays_ms: Sequence[int] = (0,)
    choose_threads: bool = True
    stages: bool = False
    gpus: int = 0
    replicas: Sequence[tuple[int, int]] = ()

    def settings(self) -> Iterator[Setting]:
        """Yield all settings of the grid, without those that are equal because their batch size is 1."""
        for workers, threads, preprocess, postprocess, gpu in self.layouts():
            for batch_size in self.batch_sizes:
                for delay in self.delays_ms if batch_size > 1 else self.delays_ms[:1]:
                    yield Setting(
                        workers=workers,
                        threads=threads,
                        batch_size=batch_size,
                        delay_ms=delay,
                        preprocess=preprocess,
                        postprocess=postprocess,
                        gpu=gpu,
                    )

    def layouts(self) -> Iterator[tuple[int, int, int, int, bool]]:
        """Yield workers, threads of each, workers of the two stages, and whether the workers have a GPU."""
        for gpu in (False, True) if self.gpus else (False,):
            for workers in self.worker_counts():
                for threads in self.thread_counts(workers):
                    yield workers, threads, 0, 0, gpu
            if not self.stages:
                continue
            for workers in (1, 2) if gpu else (1,):
                for preprocess in range(1, min(self.cores, 8) + 1):
                    # A worker of a stage has one thread; the remaining cores are for the model.
                    yield workers, max(1, (self.cores - preprocess) // workers), preprocess, 0, gpu

    def worker_counts(self) -> list[int]:
        """Return the numbers of workers: 1 to 4, then powers of two up to twice the cores, or those that fit."""
        powers = [2**power for power in range(3, 7)]
        if self.replicas:
            largest = max(number for _, number in self.replicas)
            return sorted({number for number in (1, 2, 3, 4, *powers, largest) if number <= largest})
        largest = min(2 * self.cores, _MOST_WORKERS)
        return sorted({number for number in (1, 2, 3, 4, self.cores, *powers) if number <= max(2, largest)})

    def thread_counts(self, workers: int) -> list[int]:
        """Return the numbers of threads of a worker: its share of the cores, and fewer if the handler allows it."""
        if self.replicas:
            return [threads for threads, number in self.replicas if number >= workers]
        share = max(1, self.cores // workers)
        if not self.choose_threads:
            return [share]
        return sorted({1, share, *(number for number in (2, 4, 8, 16) if number < share)})


def on_machine(cores: int, engine: EngineName, target: Target, *, handler_options: bool, gpus: int) -> Space:
    """Return the grid of settings that are useful for an archive.

    Args:
        cores: number of cores of the machine.
        engine: the server.
        target: target; delays leave most of its time for the batch.
        handler_options: whether the handler has torchmar's options, and can be split into stages.
        gpus: number of GPUs that the workers may use.
    """
    delays = tuple(delay for delay in DELAYS_MS if delay <= 500 * target.seconds) or DELAYS_MS[:1]
    return Space(
        cores=cores,
        delays_ms=delays if engine == "torchserve" else (0,),
        choose_threads=handler_options,
        stages=handler_options and engine == "builtin" and cores > 1,
        gpus=gpus,
    )
