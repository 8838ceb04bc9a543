"""The recording at the start of an optimisation: the Python that runs the steps, and the inputs of the model.

The requests pass through the archive's handler once; all variants are made for, and compared on, the recorded inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from torchmar import gpus
from torchmar.archive import Archive
from torchmar.errors import TorchmarError
from torchmar.optimizing import inputs, requirements
from torchmar.optimizing.budget import Budget
from torchmar.optimizing.observer import Observer
from torchmar.optimizing.process.describe import describe
from torchmar.optimizing.process.jobs import Weights
from torchmar.optimizing.settings import Settings
from torchmar.optimizing.split import Split, split
from torchmar.optimizing.steps import StepError, Steps
from torchmar.optimizing.variants import PACKAGES
from torchmar.worker.venvs.folder import Venv

_MEMORY_PART = 0.8  # part of the free memory at the beginning
_DISTRIBUTIONS = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf", "onnx", "onnxscript", "numpy")
_DESCRIBE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class StepPython:
    """The Python that runs the steps.

    Attributes:
        version: its version.
        missing: missing modules that variants need.
        versions: versions of the installed distributions.
        own: whether it is the Python of this process.
    """

    version: str
    missing: tuple[str, ...]
    versions: Mapping[str, str]
    own: bool


@dataclass(frozen=True, kw_only=True)
class Recording:
    """An archive's model, and its recorded inputs.

    Attributes:
        steps: starts the processes of steps.
        python: the Python that runs them.
        model: the archive, as steps load its handler.
        requests: requests with an answer, in the form for steps.
        explains: whether the handler explains.
        original: the original weights.
        size: bytes of the original weights.
        captured: file of the inputs.
        names: names of the inputs.
        sides: the split of the inputs into those that calibrate and those that judge.
        kind: kind of the model.
        required: requirements of agreement.
    """

    steps: Steps
    python: StepPython
    model: Mapping[str, Any]
    requests: Sequence[Mapping[str, Any]]
    explains: bool
    original: Weights
    size: int
    captured: Path
    names: Sequence[str]
    sides: Split
    kind: requirements.Kind
    required: tuple[requirements.Requirement, ...]

    @property
    def held_out(self) -> list[str]:
        """The names of the inputs that judge."""
        return [self.names[place] for place in self.sides.held_out]

    @property
    def calibration(self) -> list[str]:
        """The names of the inputs that calibrate."""
        return [self.names[place] for place in self.sides.calibration]


def record(
    archive: Archive,
    model_dir: Path,
    work: Path,
    settings: Settings,
    *,
    venv: Venv | None,
    budget: Budget,
    observer: Observer,
) -> Recording:
    """Record the inputs of an archive's model.

    Args:
        archive: archive to optimise.
        model_dir: folder of its content.
        work: an empty folder for the files of steps.
        settings: settings of the user.
        venv: the archive's environment; None: it has none.
        budget: time budget.
        observer: gets the progress, and the reasons why requests are left out.

    Raises:
        TorchmarError: the handler has no model that can be replaced, no request is answered, or a requirement is wrong.
    """
    manifest, config = archive.manifest, archive.config
    requests = inputs.read(archive, settings.data)
    options = config.get("handler")
    options = dict(options) if isinstance(options, Mapping) else {}
    kind = requirements.kind_of(manifest.model.handler, options)
    required = requirements.required(settings.keep, kind, check=settings.check is not None)
    gpu = 0 if gpus.count() and config.get("deviceType") != "cpu" else None
    model: dict[str, Any] = {
        "name": manifest.name,
        "model_dir": str(model_dir),
        "handler": manifest.model.handler,
        "batch_size": int(archive.number("batchSize", 1)),
        "gpu": gpu,
        "envelope": manifest.model.envelope or "",
    }
    steps = Steps(work, memory=int(psutil.virtual_memory().available * _MEMORY_PART), venv=venv)
    python = _described(archive.path, steps, venv)
    observer.on_step(f"recording the model's inputs for {len(requests)} requests")
    captured, entries = work / "inputs.pt", list(inputs.write(requests, work))
    job = {"model": model, "requests": entries, "target": str(captured)}
    try:
        result = steps.run("capture", job, seconds=budget.left)
    except StepError as error:
        raise TorchmarError(
            f"{archive.path.name}: the inputs of its model cannot be recorded: {error}",
            hint="torchmar check --run shows whether the archive answers its samples",
        ) from None
    if rejected := result["rejected"]:
        observer.on_warning(_left_out(archive.path.name, rejected, len(requests)))
    if not result["inputs"]:
        raise TorchmarError(f"{archive.path.name}: its handler answers without calling self.model")
    return Recording(
        steps=steps,
        python=python,
        model=model,
        requests=[written_request for written_request in entries if written_request["name"] not in dict(rejected)],
        explains=bool(result["explains"]),
        original=Weights(
            folder=str(model_dir),
            serialized_file=manifest.model.serialized_file,
            model_file=manifest.model.model_file,
            options=options,
            pt2=config.get("pt2"),
            threads=settings.threads or int(result["threads"]),
            gpu=gpu,
        ),
        size=_size(model_dir, manifest.model.serialized_file),
        captured=captured,
        names=[name for name, _ in result["inputs"]],
        sides=split([digest for _, digest in result["inputs"]]),
        kind=kind,
        required=required,
    )


def _described(archive: Path, steps: Steps, venv: Venv | None) -> StepPython:
    job = {"modules": PACKAGES, "distributions": _DISTRIBUTIONS}
    try:
        result = describe(job) if venv is None else steps.run("describe", job, seconds=_DESCRIBE_SECONDS)
    except StepError as error:
        raise TorchmarError(f"{archive.name}: its environment cannot run an optimisation: {error}") from None
    return StepPython(
        version=result["python"], missing=tuple(result["missing"]), versions=result["versions"], own=venv is None
    )


def _left_out(archive: str, rejected: Sequence[tuple[str, str]], count: int) -> str:
    """Return a sentence about the requests that are left out, with the reason.

    Raises:
        TorchmarError: all requests are left out.
    """
    first, reason = rejected[0]
    if len(rejected) == count:
        raise TorchmarError(f"{archive}: no request is answered; {first}: {reason}")
    if len(rejected) == 1:
        return f"{first} is left out: the original answers it with {reason}"
    return f"{len(rejected)} of {count} requests are left out: the original answers {first} with {reason}"


def _size(folder: Path, serialized_file: str | None) -> int:
    """Return the bytes of the original weights, with the files that belong to them."""
    if serialized_file is None:
        return 0
    file = folder / serialized_file
    tensor_file = file.with_suffix(".bin")
    files = {file, tensor_file} if file.suffix == ".xml" and tensor_file.is_file() else {file}
    return sum(part.stat().st_size for part in files)
