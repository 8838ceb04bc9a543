"""Measure memory and start of four workers of a user's handler: torchmar's server, compared with TorchServe.

The handler is a class in the archive that loads large weights in one of three formats, so that every worker runs
its ``initialize``. Each format is served in one run by TorchServe as shipped, by the built-in server with defaults, and
by the built-in server with ``torchmar: {fork: true}``, whose workers are forks of one process that has loaded the
model. Answers are compared before any figure counts. Memory is the proportional set size of all processes of a server,
after all four workers have answered and are idle. Times are from registration to the first answer of one worker, and
from one worker to four; CPU seconds are those of the whole server in both together, and are more reliable than times if
other programs use the machine. Ratios are to TorchServe's figures of the same run.

    scripts/bench memory [--size 1GB] [--small 1MB] [--rounds 1]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness.load import check
from harness.machine import processor
from harness.measures import ready
from harness.models import JSON, Model
from harness.processes import cpu_seconds, memory
from harness.sides import Builtin, Shipped, Side
from safetensors.torch import save_file
from torch import nn

from torchmar import archive, byte_sizes, recipe
from torchmar.cli.terminal import show_table, table

_WIDTH = 4096
_REST_SECONDS = 3.0
_WORKERS = 4
_HANDLER = """
import os

import torch


def net(layers, width):
    linear = [torch.nn.Linear(width, width) for _ in range(layers)]
    return torch.nn.Sequential(torch.nn.Linear(64, width), *linear, torch.nn.Linear(width, 10))


class Rows:
    def initialize(self, context):
        path = os.path.join(context.system_properties["model_dir"], "FILE")
        LOAD
        self.model.eval()

    def handle(self, data, context):
        rows = torch.as_tensor([row.get("data") or row.get("body") for row in data])
        with torch.inference_mode():
            return self.model(rows).tolist()
"""
_LOADS = {
    "TorchScript": ("weights.pt", "self.model = torch.jit.load(path)"),
    "state dict": (
        "weights.pth",
        "self.model = net(LAYERS, WIDTH)\n        self.model.load_state_dict(torch.load(path, weights_only=True))",
    ),
    "safetensors": (
        "weights.safetensors",
        "from safetensors.torch import load_file\n"
        "        self.model = net(LAYERS, WIDTH)\n        self.model.load_state_dict(load_file(path))",
    ),
}


@dataclass(frozen=True)
class Figures:
    """Bytes of four workers; seconds to the first answer of one worker, and from one worker to four; CPU seconds."""

    memory: int
    one: float
    four: float
    cpu: float


def main() -> int:
    """Measure and print the tables; exit 1 if a side failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="1GB", help="size of the large weights")
    parser.add_argument("--small", default="1MB", help="size of further weights for which times are measured")
    parser.add_argument(
        "--formats", nargs="+", choices=list(_LOADS), default=list(_LOADS), help="formats of the large weights"
    )
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the servers, too
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{processor()}, {cores} cores, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"median of {options.rounds}; load average {os.getloadavg()[0]:.1f}")
    failed = False
    with tempfile.TemporaryDirectory(prefix="memory-") as home:
        for size in (options.size, options.small):
            for kind in options.formats if size == options.size else ["state dict"]:
                failed |= not _compare(Path(home), kind, size, options.rounds)
    return failed


def _compare(home: Path, kind: str, size: str, rounds: int) -> bool:
    """Measure and print one format; return whether no side failed."""
    with tempfile.TemporaryDirectory(dir=home) as folder:
        model = _model(Path(folder), kind, byte_sizes.parse(size))
        sides = {"TorchServe": Shipped(), "built in": Builtin(), "built in, fork: true": _Forking()}
        found: dict[str, list[Figures]] = {title: [] for title in sides}
        problems = []
        for _ in range(rounds):
            for title, side in sides.items():
                print(f"{kind}, {size}: {title}", file=sys.stderr, flush=True)
                try:
                    found[title].append(_measure(side, model))
                except Exception as error:
                    problems.append(f"{title}: {error}")
    medians = {
        title: [median(getattr(run, name) for run in figures) for name in ("memory", "one", "four", "cpu")]
        for title, figures in found.items()
        if figures
    }
    rows = [(title, *_columns(values, medians.get("TorchServe"))) for title, values in medians.items()]
    print(f"\n{kind}, {size} of weights\n")
    heads = ("", "memory of 4", "of TorchServe's", "1st answer s", "of its", "1 to 4 s", "of its", "CPU s", "of its")
    show_table(table(heads, rows, right=heads[1:]))
    for problem in problems:
        print(f"failed: {problem}")
    return not problems


def _columns(values: list[float], base: list[float] | None) -> Iterator[str]:
    texts = [f"{values[0] / 1e6:,.0f} MB", *(f"{value:.2f}" for value in values[1:])]
    for number, text in enumerate(texts):
        yield text
        yield f"{values[number] / base[number]:.0%}" if base else ""


def _measure(side: Side, model: Model) -> Figures:
    with side.start(model, empty=True) as running:
        assert running.management
        spent, started = cpu_seconds(running.pid), time.perf_counter()
        running.management.register(model.file, initial_workers=1)
        ready(running, model)
        one = time.perf_counter() - started
        started = time.perf_counter()
        running.management.scale(model.name, min_worker=_WORKERS)
        four = time.perf_counter() - started
        spent = cpu_seconds(running.pid) - spent
        with ThreadPoolExecutor(32) as clients:  # as many at once as four workers take, so that each gets requests
            list(clients.map(lambda _: check(running, model), range(64)))
        time.sleep(_REST_SECONDS)
        return Figures(memory(running.pid), one, four, spent)


class _Forking(Builtin):
    """torchmar's server with archives that allow forks."""

    key, store = "builtin-fork", "fork"


def _model(folder: Path, kind: str, size: int) -> Model:
    """Return a perceptron with ``size`` bytes of weights, packed for every side."""
    torch.manual_seed(0)
    width = _WIDTH if size > 100 << 20 else 256
    layers = max(1, round(size / width**2 / 4))
    linear = [nn.Linear(width, width) for _ in range(layers)]
    module = nn.Sequential(nn.Linear(64, width), *linear, nn.Linear(width, 10)).eval().requires_grad_(False)
    inputs = [torch.rand(64).mul(1000).round().div(1000) for _ in range(8)]
    with torch.inference_mode():
        answers = [module(tensor[None])[0].tolist() for tensor in inputs]
    file, load = _LOADS[kind]
    if kind == "TorchScript":
        torch.jit.save(torch.jit.trace(module, torch.zeros(1, 64)), folder / file)
    elif kind == "state dict":
        torch.save(module.state_dict(), folder / file)
    else:
        save_file(module.state_dict(), folder / file)
    code = _HANDLER.replace("FILE", file).replace("LOAD", load, 1)
    (folder / "handler.py").write_text(code.replace("LAYERS", str(layers)).replace("WIDTH", str(width)))
    config: dict[str, dict[str, Any]] = {"bare": {}, "fork": {"config": {"torchmar": {"fork": True}}}}
    for way, keys in config.items():
        document = {"name": "big", "version": "1.0", "handler": "handler.py", "files": {file: file}, **keys}
        made = recipe.Recipe.model_validate(document)
        archive.pack(archive.collect_members(made, folder), folder / way / "big-1.0.mar")
    return Model(
        "big",
        folder / file,
        {"bare": folder / "bare", "ours": folder / "bare", "fork": folder / "fork"},
        JSON,
        tuple(json.dumps([round(value, 3) for value in tensor.tolist()]).encode() for tensor in inputs),
        tuple(answers),
        lambda found, expected: all(abs(a - b) < 1e-4 for a, b in zip(found, expected, strict=True)),
    )


if __name__ == "__main__":
    sys.exit(main())
