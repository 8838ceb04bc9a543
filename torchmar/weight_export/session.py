"""Export a model: write it, compare it with its source in a fresh process, and move it to its place."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchmar.atomic import temporary_path
from torchmar.conversion import starting
from torchmar.errors import TorchmarError
from torchmar.weight_export.sources import Source, source_of

#: The suffix of each format's file.
TARGETS: Mapping[str, str] = {
    "torchscript-trace": ".pt",
    "torchscript-script": ".pt",
    "onnx": ".onnx",
    "export": ".pt2",
    "aoti": ".pt2",
    "openvino": ".xml",
}
TITLES: Mapping[str, str] = {
    "torchscript-trace": "TorchScript by a trace",
    "torchscript-script": "TorchScript by its code",
    "onnx": "ONNX",
    "export": "torch.export",
    "aoti": "AOTInductor",
    "openvino": "OpenVINO",
}
_TRIED = ("export", "onnx", "openvino", "torchscript-script", "torchscript-trace")  # tried after a failure, best first
_SHOWN = 5  # number of listed cases that the model rejects
_ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",
    "CUDA_VISIBLE_DEVICES": "",  # a model that is exported on the CPU runs on every device
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",  # no cache beside the model file
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

Step = Callable[[str], None]
"""Called with a text about the current step."""


@dataclass(frozen=True)
class Tensor:
    """An input or an output; a name in its shape is a dimension of any size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def show(self) -> str:
        """Return name, type and shape."""
        return " ".join(part for part in (self.name, self.dtype, f"[{', '.join(map(str, self.shape))}]") if part)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Weights that were exported.

    Attributes:
        source: name of the model.
        to: format of the weights.
        files: paths of the files; a recipe names the first as weights, and the others belong to it.
        inputs: inputs, by position.
        outputs: outputs, by position; their shapes are those for the example.
        sizes: compared sizes of each dimension of any size.
        bounds: smallest size, largest size (None: no limit) and common divisor of the sizes of each dimension of any
            size; empty if they are not known.
        difference: largest difference between the answers, relative to the largest output, or to 1.
        compared: number of compared inputs.
        guessed: whether the shapes come from the weights, because there was no example.
        notes: further remarks for the user.
    """

    source: str
    to: str
    files: tuple[Path, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    sizes: Mapping[str, Sequence[int]]
    bounds: Mapping[str, tuple[int, int | None, int]]
    difference: float
    compared: int
    guessed: bool
    notes: tuple[str, ...]


def export_weights(
    model: Path,
    to: str,
    *,
    model_file: Path | None = None,
    examples: Sequence[Path] = (),
    dynamic: Sequence[str] = (),
    opset: int | None = None,
    output: Path | None = None,
    on_step: Step = lambda text: None,
) -> Export:
    """Write the weights of a model in another format, if they then give the same answers.

    Args:
        model: weights, a Keras or TensorFlow model, an archive, or a recipe.
        to: format of the weights, one of `TARGETS`.
        model_file: the Python file with the model's class, for weights without code.
        examples: files with inputs: ``.npy``, ``.npz`` (several by name), ``.json``, ``.jsonl``, ``.pt``,
            ``.safetensors``. The first is traced, all are compared. Without examples, the weights must tell the shapes.
        dynamic: names of the dimensions of any size: ``batch,seq`` for all inputs, ``image:batch,_,height,width`` for
            one input, ``none`` for no dimension; default: ``batch``.
        opset: opset of ONNX; default: the newest that torch writes and ONNX Runtime reads.
        output: path of the file; default: the name of the model, with the suffix of the format, in the current folder.
        on_step: called with a text about the current step.

    Returns:
        The exported weights.

    Raises:
        TorchmarError: the model cannot be exported, or would answer differently; no file is written then.
    """
    if to not in TARGETS:
        raise TorchmarError(f"no format is called {to!r}", hint=f"known: {', '.join(TARGETS)}")
    if opset is not None and to != "onnx":
        raise TorchmarError("--opset is for ONNX only")
    if importlib.util.find_spec("torch") is None:
        raise TorchmarError("torch is not installed, which exports models", hint="pip install 'torchmar[export]'")
    for file in examples:
        if not file.is_file():
            raise TorchmarError(f"there is no example {file}", hint="--example x.npy, .npz, .json, .jsonl or .pt")
    target = _target(model, to, output)
    part = temporary_path(target)
    with tempfile.TemporaryDirectory(prefix="torchmar-export-") as name:
        scratch = Path(name)
        try:
            part.mkdir()
            source = source_of(model, model_file, scratch)
            if source.converted and source.converted.file.suffix == ".xml":
                return _of_tensorflow(source, to, target, part)
            return _exported(source, to, target, part, scratch, examples, dynamic, opset, on_step)
        except OSError as error:
            raise TorchmarError(f"{target} cannot be written: {error.strerror or error}") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _target(model: Path, to: str, output: Path | None) -> Path:
    """Return the file to write."""
    source = model.absolute().parent if model.name == "archive.yaml" else model.absolute()
    name = source.name if source.is_dir() else source.stem
    target = output or Path(f"{name}{TARGETS[to]}")
    if target.is_dir():
        raise TorchmarError(f"{target} is a folder", hint=f"name a file: --output {target / name}{TARGETS[to]}")
    if not target.absolute().parent.is_dir():
        raise TorchmarError(f"there is no folder {target.parent} to write {target.name} to")
    if to == "openvino" and target.suffix != ".xml":
        raise TorchmarError(f"{target}: a model of OpenVINO is a file .xml, with .bin beside it")
    if target.exists() and model.exists() and target.resolve() == model.resolve():
        raise TorchmarError(f"{target} is the model itself", hint="name another file: --output")
    return target


def _exported(
    source: Source,
    to: str,
    target: Path,
    part: Path,
    scratch: Path,
    examples: Sequence[Path],
    dynamic: Sequence[str],
    opset: int | None,
    on_step: Step,
) -> Export:
    job: dict[str, Any] = {
        "folder": str(source.folder),
        "weights": source.weights,
        "model_file": source.model_file,
        "options": dict(source.options),
        "examples": [str(file.absolute()) for file in examples],
        "dynamic": list(dynamic),
        "opset": opset,
        "rewrite": source.converted is not None,
        "calls": None,
    }
    if source.archive and not examples:
        from torchmar.weight_export.recording import record  # imports psutil, which only the extra worker installs

        on_step(f"recording what the handler of {source.shown} gives its model")
        job["calls"] = str(record(source.archive, source.folder, source.shown, scratch))
    file = part.absolute() / target.name
    on_step(f"exporting {source.shown} to {TITLES[to]}")
    attempts = attempt(source.shown, job, {to: file}, scratch)
    result = attempts.made[to]
    if not result.get("message"):
        return _result(source, to, _moved(part, target), attempts)
    hint = result["hint"]
    if not result.get("inapplicable"):
        on_step("trying the other formats")
        hint = "; ".join(filter(None, (hint, _alternatives(source.shown, job, to, scratch))))
    raise TorchmarError(f"{source.shown} cannot be exported to {TITLES[to]}: {result['message']}", hint=hint)


@dataclass(frozen=True)
class Attempts:
    """Formats in which a model was written, and whose answers were compared.

    Attributes:
        described: ``inputs``, ``outputs`` and ``guessed`` of `torchmar.conversion.export_process.export`.
        made: results of that function and of `torchmar.conversion.export_check.check` by format; for a rejected format
            its ``message`` and ``hint``.
    """

    described: Mapping[str, Any]
    made: Mapping[str, Mapping[str, Any]]


def attempt(shown: str, job: Mapping[str, Any], files: Mapping[str, Path], scratch: Path) -> Attempts:
    """Write a model in several formats in one process, and compare the answers in another.

    Args:
        shown: name of the model in messages.
        job: job of `torchmar.conversion.export_process.export`, without targets and cases.
        files: files to write, by format.
        scratch: folder for the files of the processes.

    Raises:
        TorchmarError: the model cannot be loaded.
    """
    folder = Path(tempfile.mkdtemp(prefix="attempt-", dir=scratch))
    cases = str(folder / "cases.pt")
    targets = [{"to": to, "path": str(file)} for to, file in files.items()]
    try:
        described = _run("export_process", {**job, "targets": targets, "cases": cases}, scratch)
    except starting.ConversionError as error:
        if not error.crashed:
            raise TorchmarError(f"{shown} cannot be exported: {error.message}", hint=error.hint) from None
        if len(files) > 1:
            attempts = [attempt(shown, job, {to: file}, scratch) for to, file in files.items()]
            return Attempts({}, {to: result for single in attempts for to, result in single.made.items()})
        return Attempts({}, {to: {"message": error.message, "hint": error.hint} for to in files})
    made: dict[str, Any] = described.pop("targets")
    exported = {to: file for to, file in files.items() if "message" not in made[to]}
    compared = _compared(exported, {to: made[to]["bounds"] for to in exported}, cases, scratch) if exported else {}
    for to, result in compared.items():
        if "message" in result:  # the tracer may have logged the reason as a warning
            result["message"] = "; ".join(
                [result["message"], *(note for note in made[to]["notes"] if "tracer" in note)]
            )
        made[to] = {**made[to], **result}
    return Attempts(described, made)


def _alternatives(shown: str, job: Mapping[str, Any], to: str, scratch: Path) -> str:
    """Try the other formats, and return those that work, as a hint."""
    folder = Path(tempfile.mkdtemp(prefix="others-", dir=scratch))
    files = {name: folder / f"{name}{TARGETS[name]}" for name in _TRIED if name != to}
    made = attempt(shown, {**job, "opset": None}, files, scratch).made
    options = [f"--to {name}" for name, result in made.items() if "message" not in result]
    if not options:
        return "none of the other formats works for it"
    return f"tried, and the answers are the same: {', '.join(options)}"


def _compared(
    files: Mapping[str, Path], bounds: Mapping[str, Any], cases: str, scratch: Path
) -> dict[str, dict[str, Any]]:
    targets = [{"to": to, "path": str(file), "bounds": bounds[to]} for to, file in files.items()]
    try:
        return _run("export_check", {"cases": cases, "targets": targets}, scratch)
    except starting.ConversionError as error:
        if len(files) == 1:
            return {to: {"message": f"it crashes when it is run: {error.message}", "hint": error.hint} for to in files}
        results: dict[str, dict[str, Any]] = {}
        for to, file in files.items():
            results |= _compared({to: file}, bounds, cases, scratch)
        return results


def _run(module: str, job: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    return starting.run(module, job, Path(tempfile.mkdtemp(prefix="work-", dir=scratch)), _ENVIRONMENT)


def _moved(part: Path, target: Path) -> tuple[Path, ...]:
    """Move the files of an export to their place; the one that is named as weights is the last."""
    names = sorted((file.name for file in part.iterdir() if file.is_file()), key=lambda name: name == target.name)
    for name in names:
        os.replace(part / name, target.with_name(name))
    return tuple(target.with_name(name) for name in reversed(names))


def _result(source: Source, to: str, files: tuple[Path, ...], attempts: Attempts) -> Export:
    described, made = attempts.described, attempts.made[to]
    notes = list(made["notes"])
    if skipped := described["skipped"]:
        more = f" and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
        notes.append(f"not compared, for the model itself does not take it: {', '.join(skipped[:_SHOWN])}{more}")
    if source.converted:
        notes.append(f"converted from Keras: {source.converted.show()}")
    return Export(
        source=source.shown,
        to=to,
        files=files,
        inputs=tuple(Tensor(tensor["name"], tensor["dtype"], tuple(tensor["shape"])) for tensor in described["inputs"]),
        outputs=tuple(Tensor("", tensor["dtype"], tuple(tensor["shape"])) for tensor in described["outputs"]),
        sizes=made["sizes"],
        bounds={name: (limits[0], limits[1], limits[2]) for name, limits in made["bounds"].items()},
        difference=made["difference"],
        compared=made["compared"],
        guessed=described["guessed"],
        notes=tuple(notes),
    )


def _of_tensorflow(source: Source, to: str, target: Path, part: Path) -> Export:
    """Copy the result of a TensorFlow model's conversion, whose answers were compared then."""
    assert source.converted
    if to != "openvino":
        raise TorchmarError(
            f"{source.shown} cannot be exported to {TITLES[to]}: it is a TensorFlow model, which OpenVINO reads, and "
            "nothing else here",
            hint="--to openvino",
        )
    for file in source.converted.files:
        shutil.copyfile(file, part / target.with_suffix(file.suffix).name)
    files = _moved(part, target)
    return Export(
        source=source.shown,
        to=to,
        files=files,
        inputs=(),
        outputs=(),
        sizes={},
        bounds={},
        difference=source.converted.difference,
        compared=source.converted.random + source.converted.samples,
        guessed=True,
        notes=source.converted.notes,
    )
