"""A process that writes a model in other formats: ``python -m torchmar.conversion.export_process``.

It loads the model as a worker does, and computes its answers for `torchmar.conversion.export_check`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from torchmar.conversion.exporters import EXPORTERS, cases, dimensions, examples, failure
from torchmar.conversion.exporters.model import Axes, Example, Model, input_names, tensors
from torchmar.conversion.exporters.program import bounds, export_program
from torchmar.conversion.process import Inapplicable, Rejected, main

_TRACED = ("onnx", "export", "aoti", "openvino")  # targets that are made from a program of torch.export
_OLDEST_TORCH = (2, 9)  # the first version whose programs can run without their own checks
_ROWS = 2  # number of rows of a guessed example
_SIZES = (12, 64, 224)  # sizes of its other free dimensions; the first one that the model accepts is used


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Write a model in one or several formats, and the cases with its answers.

    Args:
        job: ``folder``; ``weights`` (the file, relative to the folder or absolute); ``model_file`` or None;
            ``options`` of the section ``handler``, ``examples`` (files), ``calls`` (None, or a file with the name, the
            arguments and the keywords of calls of the model); ``dynamic`` (names of dimensions); ``opset`` or None;
            ``rewrite`` (whether the format of the model may be that of the target); ``targets`` (``to`` and ``path`` of
            each); and ``cases``, the file to write.

    Returns:
        ``inputs``: ``name``, ``dtype`` and ``shape`` of each, with names of the dimensions of any size; ``outputs``:
        the same, without names; ``guessed``: whether there was no example; ``skipped``: the cases that the model itself
        does not take; ``targets``: of each ``notes`` and
        ``bounds`` of its dimensions, or the ``message`` and ``hint`` of its rejection, and whether the model is not to
        blame (``inapplicable``).

    Raises:
        Rejected: no target is possible.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < _OLDEST_TORCH:
        raise Rejected(f"torch {torch.__version__} is too old to export models", "pip install 'torchmar[export]'")
    torch.manual_seed(0)
    source = _Source(job)
    example_inputs, guessed = source.examples([Path(file) for file in job["examples"]], job["calls"])
    axes = source.axes(job["dynamic"], example_inputs[0], guessed)
    answered, skipped = source.answer(example_inputs, axes)
    cases.save(answered, Path(job["cases"]))
    results: dict[str, Any] = {}
    for target in job["targets"]:
        to, path = target["to"], Path(target["path"])
        try:
            results[to] = source.write(to, path, example_inputs[0], axes, job["opset"])
        except Rejected as rejected:
            inapplicable = isinstance(rejected, Inapplicable)
            results[to] = {"message": str(rejected), "hint": rejected.hint, "inapplicable": inapplicable}
    return {
        "inputs": [
            {
                "name": name,
                "dtype": _dtype(tensor),
                "shape": [dimension_names.get(n, size) for n, size in enumerate(tensor.shape)],
            }
            for name, tensor, dimension_names in zip(source.names, example_inputs[0], axes, strict=False)
        ],
        "outputs": [{"dtype": _dtype(tensor), "shape": list(tensor.shape)} for tensor in answered[0].expected],
        "guessed": guessed,
        "skipped": skipped,
        "targets": results,
    }


class _Source:
    """The model to export."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        weights = importlib.import_module("torchmar_handlers.weights")
        formats = importlib.import_module("torchmar_handlers.weights.formats")
        self._first_layer = importlib.import_module("torchmar_handlers.weights.first_layer")
        path = Path(job["folder"], job["weights"])
        self.name, self._folder = path.name, Path(job["folder"])
        # At first while the model file is imported, as in a worker; then last, so that no file hides a package.
        sys.path.insert(0, job["folder"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.form = formats.identify(path).name
                # The model that a worker runs; for a program, also the program to export.
                self.loaded: nn.Module = weights.load(
                    self._folder, job["weights"], job["model_file"], torch.device("cpu"), job["options"], threads=1
                )
                self.model: Model = self.loaded
                if self.form == "EXPORTED":
                    self.model = torch.export.load(path)
                elif self.form == "ONNX":
                    self.model = path
            except weights.LoadError as error:
                raise Rejected(str(error)) from None
            except Exception as error:  # any exception of the model file
                place = f" at {place}" if (place := failure.place_of(error)) else ""
                raise Rejected(
                    f"{job['model_file']} raises {type(error).__name__}: {failure.reason(error)}{place}"
                ) from None
        sys.path.append(sys.path.pop(0))
        self.floats: torch.dtype = weights.dtype(self.loaded)
        self.known: Sequence[Any] = weights.inputs(self.loaded)
        self._weights = weights
        self._rewrite = bool(job["rewrite"])
        required, names = self._parameters()
        self.required = required
        self.names = names

    def _parameters(self) -> tuple[int, list[str]]:
        """Return the number of inputs that the model needs, and the names of all its inputs."""
        if isinstance(self.loaded, torch.jit.ScriptModule):
            schema: Any = self.loaded.forward.schema  # type: ignore[attr-defined]
            arguments = schema.arguments[1:]
            return sum(not entry.has_default_value() for entry in arguments), [entry.name for entry in arguments]
        if self.form in ("EXPORTED", "ONNX"):
            names = self._weights.input_names(self.loaded)
            return len(self.known), list(names) or input_names(self.model, len(self.known))
        parameters = [
            parameter
            for parameter in inspect.signature(self.loaded.forward).parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        return sum(entry.default is entry.empty for entry in parameters), [entry.name for entry in parameters]

    def examples(self, files: Sequence[Path], calls: str | None) -> tuple[list[Example], bool]:
        """Return the examples, and whether they are guessed.

        Raises:
            Rejected: a file cannot be used, or there is none and the shapes are unknown.
        """
        example_inputs = [
            item for file in files for item in examples.read(file, self.names, self.floats, self.required)
        ]
        if calls and not example_inputs:
            recorded: Any = torch.load(calls, weights_only=True)
            return [examples.of_call(name, args, kwargs, self.names) for name, args, kwargs in recorded], False
        if example_inputs:
            for number, example in enumerate(example_inputs, 1):
                self._check_taken(example, f"example {number}" if len(example_inputs) > 1 else "the example")
            return example_inputs, False
        guess = self._of_signature()
        if guess is None:
            shapes = self._first_layer.typical_inputs(self.loaded) if self.required <= 1 else ()
            guess = next(((_filled(tensor),) for tensor in shapes if self._takes((_filled(tensor),))), None)
        if guess is None:
            raise Rejected(
                f"the shapes of the inputs ({', '.join(self.names) or 'unnamed'}) are not known from the weights",
                "give an example: --example x.npy, or --example inputs.npz with an array for each name",
            )
        return [guess], True

    def axes(self, texts: Sequence[str], example: Example, guessed: bool) -> Axes:
        """Return the names of the dimensions of any size.

        Raises:
            Rejected: the names do not fit the model, or an example is needed to find the others.
        """
        fixed = self._fixed()
        if fixed is not None:
            desired = dimensions.parse(texts, self.names, example) if texts and texts != [dimensions.NONE] else None
            return _of_program(self.names, fixed, desired)
        axes = dimensions.parse(texts, self.names, example)
        if guessed and (unknown := [size for size in self._unknown(example) if size not in axes[0]]):
            raise Rejected(
                f"the size of dimension {unknown[0]} of its input {self.names[0]!r} is not known from the weights",
                "give an example: --example x.npy; or a name to each dimension of any size, with _ for others: "
                f"--dynamic {','.join(_example_names(example, self._unknown(example)))}",
            )
        return axes

    def answer(self, example_inputs: Sequence[Example], axes: Axes) -> tuple[list[cases.Case], list[str]]:
        """Return the cases that the model accepts, with its answers, and the names of the other cases.

        Raises:
            Rejected: the answers of the model are random.
        """
        answered, skipped = [], []
        for case in cases.vary(example_inputs, axes):
            try:
                expected = self._run(case.inputs)
            except Exception:  # any exception means that the model does not accept this size or these values
                skipped.append(case.name)
                continue
            answered.append(cases.Case(case.name, case.inputs, case.sizes, expected))
        second = self._run(example_inputs[0])
        first = answered[0].expected
        if any(not torch.equal(left, right) for left, right in zip(first, second, strict=True)) and not _both_nan(
            first, second
        ):
            raise Rejected(
                "its answers to the same input differ from call to call: it computes with random numbers, or keeps a "
                "state",
                "remove the random numbers; a dropout is off after model.eval()",
            )
        for name in {name for dimension_names in axes for name in dimension_names.values()}:
            if len({case.sizes[name] for case in answered}) < 2:
                raise Rejected(
                    f"the model takes only {answered[0].sizes[name]} as the size of the dimension {name}",
                    f"leave it out of --dynamic: {dimensions.NONE}, or _ in its place",
                )
        return answered, skipped

    def write(self, to: str, path: Path, example: Example, axes: Axes, opset: int | None) -> dict[str, Any]:
        """Write the model in one format; return the notes, and the bounds of its dimensions.

        Raises:
            Rejected: the model cannot be written in this format.
        """
        if self.form in ("AOTINDUCTOR", "LIBRARY", "OPENVINO"):
            raise Inapplicable("it is a compiled program, of which nothing else can be made", "export its source")
        forms = {"EXPORTED": ("export",), "ONNX": ("onnx",), "TORCHSCRIPT": ("torchscript-trace", "torchscript-script")}
        if to in forms.get(self.form, ()) and opset is None and not self._rewrite:
            raise Inapplicable("it is in this format already")
        model, limits = self.model, {}
        if to in _TRACED and not isinstance(model, Path):
            program = export_program(model, example, axes)
            limits = bounds(program, axes)
            if self.floats != torch.bfloat16 or to in ("export", "aoti"):
                model = program
        options: dict[str, Any] = {"names": self.names[: len(example)]} if to in ("onnx", "openvino") else {}
        if to == "onnx":
            options["opset"] = opset
        notes = EXPORTERS[to](model, example, axes, path, **options)
        return {"notes": notes, "bounds": limits}

    def _run(self, inputs: Example) -> list[torch.Tensor]:
        with torch.no_grad():
            return [tensor.detach().clone() for tensor in tensors(self.loaded(*inputs))]

    def _takes(self, inputs: Example) -> bool:
        try:
            return all(tensor.numel() for tensor in self._run(inputs))
        except Exception:  # whatever the model raises
            return False

    def _check_taken(self, example: Example, label: str) -> None:
        try:
            self._run(example)
        except Exception as error:  # whatever the model raises
            inputs = ", ".join(
                f"{name} {_dtype(tensor)} {list(tensor.shape)}"
                for name, tensor in zip(self.names, example, strict=False)
            )
            place = f", at {place}" if (place := failure.place_of(error)) else ""
            raise Rejected(
                f"the model does not take {label} ({inputs}): {failure.reason(error)}{place}",
                self._hint(example),
            ) from None

    def _hint(self, example: Example) -> str:
        """Return a hint with a change of the example that the model accepts; empty if none is found."""
        changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "the model takes it with a first dimension for the batch: x[None]": lambda tensor: tensor[None],
            "the model takes it as float32: x.astype('float32'); in JSON write 1.0, not 1": lambda tensor: tensor.to(
                self.floats
            ),
            "the model takes it as whole numbers: x.astype('int64')": lambda tensor: tensor.long(),
            "the model takes it with the channels first: x.transpose(0, 3, 1, 2)": lambda tensor: (
                tensor.movedim(-1, 1) if tensor.dim() == 4 else tensor
            ),
        }
        for hint, change in changes.items():
            if self._takes(tuple(map(change, example))):
                return hint
        return ""

    def _of_signature(self) -> Example | None:
        """Return an example with the shapes that the weights declare; None if they declare none."""
        if not self.known or any(declared.shape is None or declared.dtype is None for declared in self.known):
            return None
        generator = torch.Generator().manual_seed(0)
        for free in _SIZES:
            values = []
            for declared in self.known:
                shape = [size or (free if place else _ROWS) for place, size in enumerate(declared.shape)]
                if declared.dtype.is_floating_point:
                    values.append(torch.rand(shape, generator=generator).to(declared.dtype))
                else:
                    values.append(torch.ones(shape, dtype=declared.dtype))
            if self._takes(tuple(values)):
                return tuple(values)
        return None

    def _fixed(self) -> Axes | None:
        """Return the dimensions of any size of a program, with their names; None for other models."""
        if self.form == "ONNX":
            onnx = importlib.import_module("onnx")
            ports = onnx.load(str(self.model), load_external_data=False).graph.input
            dimensions_by_name = {port.name: port.type.tensor_type.shape.dim for port in ports}
            return tuple(
                {
                    place: dimension.dim_param or f"{name}_{place}"
                    for place, dimension in enumerate(dimensions_by_name[name])
                    if not dimension.HasField("dim_value")
                }
                for name in self.names
            )
        if not isinstance(self.model, ExportedProgram):
            return None
        values = {node.name: node.meta.get("val") for node in self.model.graph.nodes if node.op == "placeholder"}
        leaves = [values.get(str(leaf)) for leaf in self.model.graph_signature.user_inputs]
        symbols: dict[str, str] = {}
        axes = []
        for name, value in zip(self.names, leaves, strict=False):
            axis_names: dict[int, str] = {}
            for place, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                if not isinstance(size, int):
                    usual = "batch" if place == 0 and "batch" not in symbols.values() else f"{name}_{place}"
                    axis_names[place] = symbols.setdefault(str(size.node.expr), usual)
            axes.append(axis_names)
        return tuple(axes)

    def _unknown(self, example: Example) -> list[int]:
        """Return the dimensions of a guessed example that the first layer does not determine."""
        if self.known and all(declared.shape is not None for declared in self.known):
            return []
        (tensor,) = example
        return list(range(2, tensor.dim())) if tensor.dim() > 2 else [1] if tensor.dtype == torch.int64 else []


def _filled(tensor: torch.Tensor) -> torch.Tensor:
    """Return a guessed example with several rows of numbers."""
    shape = (_ROWS, *tensor.shape[1:])
    if tensor.is_floating_point():
        return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(tensor.dtype)
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(tensor.dtype)


def _of_program(names: Sequence[str], original: Axes, desired: Axes | None) -> Axes:
    """Return the dimensions of any size of a program, with the desired names.

    Raises:
        Rejected: one of the dimensions is fixed.
    """
    if desired is None:
        return original
    renamed: dict[str, str] = {}
    for name, axes, desired_axes in zip(names, original, desired, strict=False):
        for place, new_name in desired_axes.items():
            if place not in axes:
                raise Rejected(
                    f"dimension {place} of its input {name!r} is fixed, and cannot become {new_name}",
                    "export the model that it was made of, with this dimension in --dynamic",
                )
            renamed[axes[place]] = new_name
    return tuple({place: renamed.get(name, name) for place, name in axes.items()} for axes in original)


def _example_names(example: Example, unknown: Sequence[int]) -> list[str]:
    usual = {1: "seq"} if unknown == [1] else {2: "height", 3: "width", 4: "depth"}
    return ["batch", *(usual[place] if place in unknown else "_" for place in range(1, example[0].dim()))]


def _both_nan(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(left.nan_to_num(), right.nan_to_num()) for left, right in zip(first, second, strict=True))


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


if __name__ == "__main__":
    main(export)
