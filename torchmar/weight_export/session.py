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
from torchmar.weight_export.sources import Source, opened

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
_TRIED = ("export", "onnx", "openvino", "torchscript-script", "torchscript-trace")  # after a failure, the best first
_ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",
    "CUDA_VISIBLE_DEVICES": "",  # what is exported on the CPU runs on every device
    "PYTHONHASHSEED": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

Step = Callable[[str], None]
"""Called with what is done now."""


@dataclass(frozen=True)
class Tensor:
    """An input or an output; in its shape, a name is any size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def show(self) -> str:
        """Return name, type and shape."""
        return " ".join(part for part in (self.name, self.dtype, f"[{', '.join(map(str, self.shape))}]") if part)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Weights that were written.

    Attributes:
        source: the model.
        to: the format.
        files: the first is the one to name as weights; others lie beside it.
        inputs: by position.
        outputs: by position; with the sizes of the example.
        sizes: of each dimension of any size, those that were compared.
        bounds: of each dimension of any size, the smallest and the largest size (None: no limit), and the number that
            it is a multiple of; empty where they are not known.
        difference: the largest between the answers, relative to the largest output, or to 1.
        compared: the number of inputs.
        guessed: whether there was no example, and the shapes are those of the weights.
        notes: what else to know.
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
    """Write the weights of a model in another format, if it then answers as before.

    Args:
        model: weights, a Keras or TensorFlow model, an archive, or a recipe.
        to: one of `TARGETS`.
        model_file: the Python file with the model's class, for weights without code.
        examples: files with inputs: ``.npy``, ``.npz`` (several by name), ``.json``, ``.jsonl``, ``.pt``,
            ``.safetensors``. The first is traced, all are compared. Without them the shapes must be known.
        dynamic: names of the dimensions of any size: ``batch,seq`` for all inputs, ``image:batch,_,height,width`` for
            one, ``none`` for none; default: ``batch``.
        opset: of ONNX; default: the newest that torch writes and ONNX Runtime reads.
        output: the file; default: the name of the model, with the suffix of the format, in the current folder.
        on_step: called with what is done now.

    Returns:
        What was written.

    Raises:
        TorchmarError: it cannot be exported, or would answer otherwise; nothing is written.
    """
    if to not in TARGETS:
        raise TorchmarError(f"no format is called {to!r}", hint=f"known: {', '.join(TARGETS)}")
    if opset is not None and to != "onnx":
        raise TorchmarError("--opset is for ONNX only")
    if importlib.util.find_spec("torch") is None:
        raise TorchmarError("torch is not installed, which exports models", hint="pip install 'torchmar[worker]'")
    for file in examples:
        if not file.is_file():
            raise TorchmarError(f"there is no example {file}", hint="--example x.npy, .npz, .json, .jsonl or .pt")
    target = _target(model, to, output)
    part = temporary_path(target)
    with tempfile.TemporaryDirectory(prefix="torchmar-export-") as name:
        scratch = Path(name)
        try:
            part.mkdir()
            with opened(model, model_file, scratch) as source:
                if source.converted and source.converted.file.suffix == ".xml":
                    return _of_tensorflow(source, to, target, part)
                return _exported(source, to, target, part, scratch, examples, dynamic, opset, on_step)
        except OSError as error:
            raise TorchmarError(f"{target} cannot be written: {error.strerror or error}") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _target(model: Path, to: str, output: Path | None) -> Path:
    """Return the file to write."""
    named = model.absolute().parent if model.name == "archive.yaml" else model.absolute()
    name = named.name if named.is_dir() else named.stem
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
        "cases": str(scratch / "cases.pt"),
    }
    on_step(f"exporting {source.shown} to {TITLES[to]}")
    file = part.absolute() / target.name
    written = _run("export_process", {**job, "targets": [{"to": to, "path": str(file)}]}, scratch, source)
    made = written["targets"][to]
    if "message" not in made:
        on_step(f"comparing {target.name} with {source.shown} in a fresh process")
        compared = _compared([(to, file, made["bounds"])], job["cases"], scratch)[to]
        if "message" not in compared:
            files = _moved(part, target)
            return _result(source, to, files, written, made, compared)
        made = {**compared, "message": "; ".join([compared["message"], *_causes(made)])}
    hint = made["hint"]
    if not made.get("inapplicable"):
        on_step("trying the other formats")
        hint = "; ".join(filter(None, (hint, _alternatives(job, to, scratch, source))))
    raise TorchmarError(f"{source.shown} cannot be exported to {TITLES[to]}: {made['message']}", hint=hint)


def _causes(made: Mapping[str, Any]) -> list[str]:
    """Return the notes of an export that tell why it may answer differently."""
    return [note for note in made["notes"] if "tracer" in note]


def _alternatives(job: Mapping[str, Any], to: str, scratch: Path, source: Source) -> str:
    """Return the formats that work, for a hint, which are tried."""
    folder = Path(tempfile.mkdtemp(prefix="others-", dir=scratch))
    others = [(name, folder / f"{name}{TARGETS[name]}") for name in _TRIED if name != to]
    targets = [{"to": name, "path": str(file)} for name, file in others]
    try:
        made = _run("export_process", {**job, "opset": None, "targets": targets}, scratch, source)["targets"]
        written = [(name, file, made[name]["bounds"]) for name, file in others if "message" not in made[name]]
        compared = _compared(written, job["cases"], scratch) if written else {}
    except TorchmarError:  # a crash, of which no format is the cause
        return ""
    good = [f"--to {name}" for name, result in compared.items() if "message" not in result]
    if not good:
        return "none of the other formats works for it"
    return f"tried, and the answers are the same: {', '.join(good)}"


def _compared(
    written: Sequence[tuple[str, Path, Mapping[str, Any]]], cases: str, scratch: Path
) -> dict[str, dict[str, Any]]:
    targets = [{"to": to, "path": str(file), "bounds": dict(bounds)} for to, file, bounds in written]
    try:
        return starting.run("export_check", {"cases": cases, "targets": targets}, _work(scratch), _ENVIRONMENT)
    except starting.ConversionError as error:
        if len(written) == 1:
            return {written[0][0]: {"message": f"it crashes when it is run: {error.message}", "hint": error.hint}}
        results: dict[str, dict[str, Any]] = {}
        for one in written:
            results |= _compared([one], cases, scratch)
        return results


def _run(module: str, job: Mapping[str, Any], scratch: Path, source: Source) -> dict[str, Any]:
    try:
        return starting.run(module, job, _work(scratch), _ENVIRONMENT)
    except starting.ConversionError as error:
        raise TorchmarError(f"{source.shown} cannot be exported: {error.message}", hint=error.hint) from None


def _work(scratch: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix="work-", dir=scratch))


def _moved(part: Path, target: Path) -> tuple[Path, ...]:
    """Move the files of an export to their place, the one that is named as weights last."""
    names = sorted((file.name for file in part.iterdir() if file.is_file()), key=lambda name: name == target.name)
    for name in names:
        os.replace(part / name, target.with_name(name))
    return tuple(target.with_name(name) for name in reversed(names))


def _result(
    source: Source,
    to: str,
    files: tuple[Path, ...],
    written: Mapping[str, Any],
    made: Mapping[str, Any],
    compared: Mapping[str, Any],
) -> Export:
    notes = list(made["notes"])
    if source.converted:
        notes.append(f"converted from Keras: {source.converted.show()}")
    return Export(
        source=source.shown,
        to=to,
        files=files,
        inputs=tuple(Tensor(each["name"], each["dtype"], tuple(each["shape"])) for each in written["inputs"]),
        outputs=tuple(Tensor("", each["dtype"], tuple(each["shape"])) for each in written["outputs"]),
        sizes=compared["sizes"],
        bounds={name: (limits[0], limits[1], limits[2]) for name, limits in made["bounds"].items()},
        difference=compared["difference"],
        compared=compared["compared"],
        guessed=written["guessed"],
        notes=tuple(notes),
    )


def _of_tensorflow(source: Source, to: str, target: Path, part: Path) -> Export:
    """Copy what a TensorFlow model has become, which was compared when it was converted."""
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
