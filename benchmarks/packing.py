"""Time the packing of weights: torchmar, compared with torch-model-archiver and with the floor.

Every figure of one size comes from the same run, on the same file, one after the other, after
a round that is not counted; each figure is the median. `openssl dgst -sha256` is the floor of
any program that hashes (one pass over the file), `cp` of any program that copies. Every archive is
read again, and its weights are compared before its time counts.

    python benchmarks/packing.py [--sizes 10MB 100MB 1GB] [--rounds 3] [--picture packing.png]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.machine import processor

from torchmar import byte_sizes

UNIT = 1 if sys.platform == "darwin" else 1024  # unit of the system's memory sizes
HANDLER = "def handle(rows, context):\n    return rows\n"


@dataclass(frozen=True)
class Timed:
    """Seconds, and the peak of resident memory in bytes, of one whole process."""

    seconds: float
    memory: int


def main() -> int:
    """Measure, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["10MB", "100MB", "1GB"], help="of the weights")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds; one more runs first")
    parser.add_argument("--folder", type=Path, help="the working folder; default: the temporary folder")
    parser.add_argument("--picture", type=Path, help="write the ratios as a PNG")
    options = parser.parse_args()
    results: dict[str, dict[str, Timed]] = {}
    machine = f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}, median of {options.rounds}\n")
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="packing-") as folder:
            results[size] = measure(Path(folder), byte_sizes.parse(size), options.rounds)
        _print(size, results[size])
    if options.picture:
        draw(results, options.picture)
        print(f"wrote {options.picture}")
    return 0


def measure(folder: Path, size: int, rounds: int) -> dict[str, Timed]:
    """Return the time and memory of each way of packing ``size`` random bytes."""
    weights, digest = folder / "model.pt", hashlib.sha256()
    with weights.open("wb") as stream:
        for start in range(0, size, 1 << 20):
            chunk = os.urandom(min(1 << 20, size - start))
            digest.update(chunk)
            stream.write(chunk)
    (folder / "handler.py").write_text(HANDLER)
    (folder / "archive.yaml").write_text('name: m\nversion: "1.0"\nhandler: handler.py\nweights: model.pt\n')
    theirs = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", "m", "--version", "1.0"]
    theirs += ["--handler", "handler.py", "--serialized-file", "model.pt", "--export-path", "out"]
    ours = [sys.executable, "-m", "torchmar", "build", ".", "--store", "out"]
    archive = folder / "out" / "m.mar"
    ways: dict[str, tuple[list[str], Callable[[], None]]] = {
        "torchmar build": ([*ours, "--force"], lambda: _same(folder / "out" / "m-1.0.mar", digest.hexdigest())),
        "torchmar build, unchanged": (ours, lambda: None),
        "torch-model-archiver": (theirs, lambda: _same(archive, digest.hexdigest())),
        "torch-model-archiver zip-store": (
            [*theirs, "--archive-format", "zip-store"],
            lambda: _same(archive, digest.hexdigest()),
        ),
        "openssl sha256": (["openssl", "dgst", "-sha256", "model.pt"], lambda: None),
        "cp": (["cp", "model.pt", "out/copy"], lambda: None),
        "python -c pass": ([sys.executable, "-c", "pass"], lambda: None),
    }
    times: dict[str, list[Timed]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, (command, check) in ways.items():
            if name != "torchmar build, unchanged":
                shutil.rmtree(folder / "out", ignore_errors=True)
                (folder / "out").mkdir()
            os.sync()  # so that this side does not wait for the data of the previous one
            took = run(command, folder)
            check()
            if number:
                times[name].append(took)
    return {
        name: Timed(statistics.median(one.seconds for one in took), max(one.memory for one in took))
        for name, took in times.items()
    }


def run(command: list[str], folder: Path) -> Timed:
    """Run a command to its end; stop if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    errors = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{errors.decode()}")
    return Timed(seconds, usage.ru_maxrss * UNIT)


def _same(archive: Path, digest: str) -> None:
    with zipfile.ZipFile(archive) as packed, packed.open("model.pt") as stream:
        found = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    if found.hexdigest() != digest:
        sys.exit(f"{archive}: the weights are not those that were packed")


def _print(size: str, results: dict[str, Timed]) -> None:
    ours, floor = results["torchmar build"], results["openssl sha256"]
    print(f"{size:<32} seconds   peak memory   torchmar is   of one SHA-256")
    for name, took in results.items():
        if name == "python -c pass":
            continue
        faster = f"{took.seconds / ours.seconds:.1f} x" if name.startswith("torch-") else ""
        # A new process starts as a copy of this one: less than that cannot be measured.
        least = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
        memory = f"{took.memory / 10**6:.0f} MB" if took.memory > 1.1 * least else f"< {1.1 * least / 10**6:.0f} MB"
        print(
            f"  {name:<30} {took.seconds:7.2f}   {memory:>11}   {faster:>11}   {took.seconds / floor.seconds:11.2f} x"
        )
    start = results["python -c pass"].seconds
    beyond = (results["torchmar build, unchanged"].seconds - start) * 1000
    print(f"  unchanged, beyond the start of the interpreter: {beyond:.0f} ms\n")


def draw(results: dict[str, dict[str, Timed]], file: Path) -> None:
    """Write a PNG: seconds of each way as bars, one panel per size, each with its own scale."""
    from PIL import Image, ImageDraw, ImageFont

    names = ["torchmar build", "torch-model-archiver zip-store", "torch-model-archiver", "openssl sha256"]
    colours = {"torchmar build": (178, 24, 43), "openssl sha256": (150, 153, 158)}
    row, left, bar = 26, 300, 420
    height = 40 + len(results) * (len(names) * row + 44)
    page = Image.new("RGB", (left + bar + 150, height), (255, 255, 255))
    pen, font, bold = ImageDraw.Draw(page), ImageFont.load_default(15), ImageFont.load_default(18)
    top = 20
    for size, took in results.items():
        pen.text((20, top), f"{size} of weights", (32, 33, 36), bold)
        top += 32
        longest = max(took[name].seconds for name in names)
        for name in names:
            seconds = took[name].seconds
            width = max(2, round(bar * seconds / longest))
            pen.text((left - 12, top + row / 2), name, (80, 83, 90), font, anchor="rm")
            pen.rectangle((left, top + 4, left + width, top + row - 4), fill=colours.get(name, (67, 110, 160)))
            ratio = seconds / took["torchmar build"].seconds
            label = f"{seconds:.2f} s" + (f"   {ratio:.1f} x" if name.startswith("torch-") else "")
            pen.text((left + width + 8, top + row / 2), label, (32, 33, 36), font, anchor="lm")
            top += row
        top += 12
    page.save(file)


if __name__ == "__main__":
    sys.exit(main())
