"""A variant's answers and times, loaded as a worker loads it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmar.optimizing.process.jobs import Weights

_WARM_UP, _WARM_UP_SECONDS = 5, 1.0  # calls before the measured ones: TorchScript compiles in the first calls
_LEAST, _MOST = 12, 400  # limits for the number of measured calls of a batch size
_SECONDS = 1.5  # limit for the duration of the measured calls of a batch size
_ROUNDS = 6  # rounds, each with all batch sizes, so that a disturbance does not affect one size alone


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Load weights, answer inputs, and time batches.

    Args:
        job: ``weights``, the arguments of `Weights`; ``inputs``, a file of `captured.save`; ``places``, the indices of
            its inputs to answer and time; ``batch_sizes``; ``answers``, the file for the outputs, which is
            written unless it is empty.

    Returns:
        ``load_seconds``: time to the first answer; ``memory``: in bytes; ``times``: for each batch size, the seconds of
            its
        calls in their order, and the CPU seconds of all threads in each call; ``others``: the cores that other
        programs used; ``outputs``: their names; ``differentiable``.

        The file of the outputs has an array ``I.J`` for output J of input I.
    """
    import psutil
    import torch

    from torchmar.load import machine_use
    from torchmar.optimizing.process import captured, source
    from torchmar.worker.process import loading

    weights = Weights(**job["weights"])
    loading.activate_archive(weights.folder)
    from torchmar_handlers import weights as handlers_weights
    from torchmar_handlers.common.forward import forward

    torch.set_num_threads(weights.threads)
    recorded = captured.load(Path(job["inputs"]))
    inputs = [recorded[place] for place in job["places"]]
    device = source.device_of(weights)
    gc.collect()
    # Compilers are child processes, such as those of torch.compile and of AOTInductor's test of the processor.
    process, use = psutil.Process(), machine_use.Reading(None, local=False, children=True)
    before = process.memory_full_info().uss
    started = time.perf_counter()
    model = source.model_of(weights)
    stored_dtype = handlers_weights.dtype(model)
    dtype = stored_dtype if stored_dtype in (torch.float16, torch.bfloat16) else None  # as the base handler does

    def answer(instance: captured.Captured) -> Any:
        batch = source.batch_of(instance, device)
        with torch.inference_mode():
            output = forward(model, batch, device=device, dtype=dtype)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return output

    first = answer(inputs[0])
    load_seconds = time.perf_counter() - started
    if job["answers"]:
        _save_answers([answer(instance) for instance in inputs], Path(job["answers"]))
    if all(instance.rows for instance in inputs):
        batches = {size: list(captured.batches(inputs, size)) for size in job["batch_sizes"]}
    else:  # it is unknown how to make a batch of them
        batches = {1: inputs}
    times = _timed(answer, batches)
    return {
        "load_seconds": load_seconds,
        "memory": max(0, process.memory_full_info().uss - before),
        "times": times,
        "others": use.use_until(machine_use.Reading(None, local=False, children=True)).other_cores or 0.0,
        "outputs": [name for name, _ in source.flat(first)],
        "differentiable": handlers_weights.differentiable(model),
    }


def _timed(
    answer: Callable[[Any], Any], batches: Mapping[int, Sequence[Any]]
) -> dict[int, tuple[list[float], list[float]]]:
    """Return the seconds and the CPU seconds of calls with each batch in turn, by batch size.

    The first calls are not measured.
    """
    for members in batches.values():
        deadline = time.perf_counter() + _WARM_UP_SECONDS
        for place in range(max(_WARM_UP, 2 * len(members))):
            answer(members[place % len(members)])
            if time.perf_counter() > deadline and place >= len(members):
                break
    times: dict[int, tuple[list[float], list[float]]] = {size: ([], []) for size in batches}
    for turn in range(1, _ROUNDS + 1):
        for size, members in batches.items():
            elapsed, computed = times[size]
            while len(elapsed) < _LEAST * turn / _ROUNDS or (
                sum(elapsed) < _SECONDS * turn / _ROUNDS and len(elapsed) < _MOST * turn / _ROUNDS
            ):
                started, cpu_started = time.perf_counter(), time.process_time()
                answer(members[len(elapsed) % len(members)])
                computed.append(time.process_time() - cpu_started)
                elapsed.append(time.perf_counter() - started)
    return times


def _save_answers(outputs: Sequence[Any], path: Path) -> None:
    import numpy as np
    import torch

    from torchmar.optimizing.process.source import flat

    arrays: dict[str, Any] = {}
    for place, output in enumerate(outputs):
        for number, (_, tensor) in enumerate(flat(output)):
            value = tensor.detach().cpu()
            # NumPy has no bfloat16.
            arrays[f"{place}.{number}"] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    np.savez(path, **arrays)
