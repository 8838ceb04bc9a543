"""A process that converts a Keras model to a program of torch.export: ``python -m torchmar.conversion.keras_program``.

It uses Keras on the torch backend, which reads ``.keras`` and ``.h5`` without TensorFlow, and in which a model is a
``torch.nn.Module``. The model is loaded in Keras' safe mode, which rejects code in the file.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchmar.conversion.exporters.exported import save
from torchmar.conversion.graph_rewriting import identifiers, rewrite
from torchmar.conversion.keras_alone import keras
from torchmar.conversion.process import Rejected, fitted, gap, main, sample_arrays

TOLERANCE = 1e-4  # relative to the largest output, or to 1
_BATCHES = (1, 3)  # numbers of rows of the random inputs
_ROWS = 3  # number of rows of the trace; 0 and 1 would become constants
_ANY = 12  # size of a dimension of any size, except the batch dimension
_TOKENS = 2  # random integers are smaller than this, or than the smallest vocabulary


Spec = tuple[tuple[Any, ...], str]
"""The shape (None is any size) and type of an input."""

Compared = tuple[tuple[torch.Tensor, ...], list[torch.Tensor], str]
"""Inputs, the source's answers, and ``random`` or ``samples``."""


class Source(nn.Module):
    """A Keras model that takes its inputs by position, and returns a tensor or a dict of tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.names = [str(tensor.name) for tensor in model.inputs]

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Return the model's output, in inference mode."""
        structure = self.model._inputs_struct if hasattr(self.model, "_inputs_struct") else list(inputs)
        arguments: Any = inputs[0]
        if isinstance(structure, dict):
            arguments = dict(zip(structure, inputs, strict=True))
        elif len(inputs) > 1:
            arguments = list(inputs)
        output = self.model(arguments, training=False)
        if isinstance(output, list | tuple):
            if len(output) == 1:
                return output[0]
            return dict(zip(_output_names(self.model, len(output)), output, strict=True))
        return output


def convert(job: dict[str, Any]) -> dict[str, Any]:
    """Convert a model and compare the answers.

    Args:
        job: ``source`` and ``target`` (paths), ``channels_first``, ``drop_activations``, and ``samples``: JSON values,
            or ``{"npy": base64}``.

    Returns:
        ``difference`` (the largest), ``random`` and ``samples`` (numbers of comparisons) and ``notes``.

    Raises:
        Rejected: the model cannot be converted.
    """
    source = Source(_load(Path(job["source"])))
    source.eval()
    specs = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in source.model.inputs]
    _check_types(source, specs)
    _check_states(source)
    images = len(specs) == 1 and len(specs[0][0]) == 4 and specs[0][0][3] in (1, 3)
    channels_first = bool(job["channels_first"]) and images
    worst: float | None = None
    for fixed in (False, True):
        program, rows = _trace(source, specs, fixed=fixed)
        inputs = [*_random(source, specs, rows), *_samples(job["samples"], source.names, specs, rows)]
        compared = [*_answered(source, inputs)]
        for drop in ([*job["drop_activations"]], []):
            notes = ["for one row at a time"] if rows == 1 else []
            exported, dropped = _simplified(program, source, specs, channels_first, drop, notes)
            save(exported, Path(job["target"]))
            difference = _compare(Path(job["target"]), compared, channels_first, dropped)
            if difference is not None and difference <= TOLERANCE:
                if dropped:
                    notes.append(f"without its last {dropped}, which the handler computes")
                kinds = [kind for _, _, kind in compared]
                counts = {kind: kinds.count(kind) for kind in ("random", "samples")}
                return {"difference": difference, **counts, "notes": notes}
            worst = difference if difference is not None else worst
    by = "" if worst is None else f": by {worst:.1e}, more than {TOLERANCE}"
    raise Rejected(f"the converted model answers differently{by}", "keep the model in Keras, in a handler of your own")


def _simplified(
    program: Any, source: Source, specs: Sequence[Spec], channels_first: bool, drop: Sequence[str], notes: list[str]
) -> tuple[Any, str]:
    """Return the rewritten program and the dropped activation; the unchanged program if it cannot be rewritten."""
    try:
        exported, dropped = _rewritten(program, identifiers(source.names), specs, channels_first, drop)
    except Exception as error:  # any exception of torch: the traced program has the same answers
        if channels_first:
            raise Rejected(
                f"it cannot be converted for images with the channels first: {_first_line(error)}",
                "use torchmar_handlers.tensors, which takes the channels last, or a handler of your own",
            ) from error
        notes.append(f"as Keras computes it ({_first_line(error)})")
        program.module_call_graph[0].signature.forward_arg_names = identifiers(source.names)
        return program, ""
    if channels_first:
        notes.append("channels first, as the handler has images")
    return exported, dropped


def _load(path: Path) -> Any:
    try:
        model: Any = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise _not_loaded(path, error) from error
    if not getattr(model, "inputs", None):
        raise Rejected(
            "its inputs have no shapes: it is a subclassed model, or was saved before it was called",
            "begin it with keras.Input, call it once, and save it again",
        )
    return model


def _not_loaded(path: Path, error: Exception) -> Rejected:
    text = _chain(error)
    if "safe_mode" in text or "Lambda" in text:
        return Rejected(
            "it has a Lambda layer, whose code would run when the file is loaded",
            "replace the Lambda by a layer of Keras, such as Rescaling, Permute or keras.ops in a functional model, "
            "and save it again",
        )
    for mark in ("Unknown layer: ", "Could not locate class ", "Could not locate function ", "Unknown "):
        if mark in text:
            class_name = text.partition(mark)[2].split(".")[0].split("\n")[0].strip("'\" ")
            return Rejected(
                f"it has {class_name!r}, which is not Keras' own: its code is not in the file",
                "replace it by layers of Keras and save it again, or write a handler that has its code",
            )
    if "No model config found" in text or "model_config" in text:
        return Rejected("it has weights and no model", "save the whole model: model.save('model.keras')")
    last = " ".join(text.split())[:300]
    hint = "open it with the Keras that wrote it, and save it as .keras"
    if "tensorflow" in text.lower():
        hint = "remove what needs TensorFlow, such as TextVectorization, from the model, and do it before the request"
    return Rejected(f"Keras {keras.__version__} cannot load it: {last}", hint)


def _chain(error: BaseException | None) -> str:
    texts: list[str] = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def _check_types(source: Source, specs: Sequence[Spec]) -> None:
    for name, (_, dtype) in zip(source.names, specs, strict=True):
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise Rejected(
                f"its input {name!r} is of the type {dtype}, which torch does not have",
                "begin the model with numbers, and do what needs texts before the request",
            )


def _check_states(source: Source) -> None:
    for layer in source.model._flatten_layers():
        if getattr(layer, "stateful", False) is True:
            raise Rejected(
                f"the layer {layer.name!r} ({type(layer).__name__}) is stateful: a request would change the next one's "
                "answer",
                "save the model with stateful=False",
            )


def _trace(source: Source, specs: Sequence[Spec], *, fixed: bool) -> tuple[Any, int | None]:
    """Return an exported program with dimensions of any size, and its number of rows if it only accepts one."""
    row_counts = {shape[0] for shape, _ in specs} - {None}
    if fixed:
        rows = row_counts.pop() if row_counts else 1
        return _export(source, _example(source, specs, rows), _dimensions(specs, set())), rows
    program = _export(source, _example(source, specs, _ROWS), _dimensions(specs, {0}))
    values = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    for name, (shape, _), value in zip(source.names, specs, values, strict=True):
        for place, size in enumerate(shape):
            if place > 0 and size is None and isinstance(value.shape[place], int):
                raise Rejected(
                    f"dimension {place} of its input {name!r} has no size, and the model computes with a fixed one",
                    "give keras.Input the size, and save the model again",
                )
    if any(
        shape[0] is None and isinstance(value.shape[0], int) for (shape, _), value in zip(specs, values, strict=True)
    ):
        return _trace(source, specs, fixed=True)
    return program, row_counts.pop() if row_counts else None


def _export(source: Source, inputs: tuple[torch.Tensor, ...], dimensions: Any) -> Any:
    try:
        with torch.no_grad():
            return torch.export.export(source, inputs, dynamic_shapes={"inputs": dimensions}, strict=False)
    except Exception as error:
        raise _stopped(error) from error


def _stopped(error: Exception) -> Rejected:
    """Return the reason why a model cannot be traced or run, with the innermost layer in the traceback."""
    stopped: Any = None
    link: BaseException | None = error
    while link is not None and stopped is None:
        trace = link.__traceback__
        while trace is not None:
            layer = trace.tb_frame.f_locals.get("self")
            if isinstance(layer, keras.Operation) and not isinstance(layer, keras.Model):
                stopped = layer
            trace = trace.tb_next
        link = link.__cause__ or link.__context__
    context = f"the layer {stopped.name!r} ({type(stopped).__name__}) stops it: " if stopped is not None else ""
    return Rejected(f"{context}{_first_line(error)}", "replace the layer, or write a handler that runs Keras")


def _first_line(error: Exception) -> str:
    """Return the first line of an error, without the text that Keras adds around it."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    text = re.sub(r"^Exception encountered when calling .*\n", "", text)
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), type(error).__name__)


def _dimensions(specs: Sequence[Spec], places: set[int]) -> tuple[Any, ...]:
    dynamic = torch.export.Dim.AUTO
    return tuple(
        {place: dynamic for place, size in enumerate(shape) if size is None and (place > 0 or 0 in places)}
        for shape, _ in specs
    )


def _example(source: Source, specs: Sequence[Spec], rows: int, *, wide: bool = False) -> tuple[torch.Tensor, ...]:
    """Return random inputs: floats from 0 to 1, or from -3 to 3 and for images 0 to 255; integers of the vocabulary."""
    generator = torch.Generator().manual_seed(rows + wide)
    layers = source.model._flatten_layers()
    vocabularies = [getattr(layer, key, None) for layer in layers for key in ("input_dim", "num_tokens")]
    limit = min([size for size in vocabularies if isinstance(size, int)], default=_TOKENS)
    inputs = []
    for shape, dtype in specs:
        sizes = [size if size is not None else _ANY if place else rows for place, size in enumerate(shape)]
        kind: torch.dtype = getattr(torch, dtype)
        if kind.is_floating_point:
            values = torch.rand(sizes, generator=generator)
            if wide:
                values = values * 255 if len(shape) == 4 else values * 6 - 3
        else:
            values = torch.randint(0, max(limit, 1), sizes, generator=generator)
        inputs.append(values.to(kind))
    return tuple(inputs)


def _rewritten(
    program: Any, names: Sequence[str], specs: Sequence[Spec], channels_first: bool, drop: Sequence[str]
) -> tuple[Any, str]:
    module = rewrite(program.module(check_guards=False), names, channels_first=channels_first, drop_activations=drop)
    values = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    inputs, dimensions = [], []
    for position, (value, (_, dtype)) in enumerate(zip(values, specs, strict=True)):
        any_size = [not isinstance(size, int) for size in value.shape]
        sizes = [(_ANY if place else _ROWS) if free else int(value.shape[place]) for place, free in enumerate(any_size)]
        if position == 0 and channels_first:
            sizes, any_size = [sizes[place] for place in (0, 3, 1, 2)], [any_size[place] for place in (0, 3, 1, 2)]
        inputs.append(torch.zeros(sizes, dtype=getattr(torch, dtype)))
        dimensions.append({place: torch.export.Dim.AUTO for place, free in enumerate(any_size) if free})
    with torch.no_grad():
        exported = torch.export.export(
            module.eval(), tuple(inputs), dynamic_shapes=dict(zip(names, dimensions, strict=True)), strict=False
        )
    return exported, module.dropped


def _random(source: Source, specs: Sequence[Spec], rows: int | None) -> Iterator[tuple[tuple[torch.Tensor, ...], str]]:
    for count, wide in zip((rows,) * 2 if rows else _BATCHES, (False, True), strict=True):
        yield _example(source, specs, count, wide=wide), "random"


def _samples(
    samples: Sequence[Any], names: Sequence[str], specs: Sequence[Spec], rows: int | None
) -> Iterator[tuple[tuple[torch.Tensor, ...], str]]:
    """Yield the samples that are tensors of the model's shapes; others have to be decoded by the handler."""
    for sample in samples:
        try:
            arrays = sample_arrays(sample, names)
            inputs = tuple(
                torch.from_numpy(fitted(array, shape)).to(getattr(torch, dtype))
                for array, (shape, dtype) in zip(arrays, specs, strict=True)
            )
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError):
            continue
        if len({len(tensor) for tensor in inputs}) == 1 and (rows is None or len(inputs[0]) == rows):
            yield inputs, "samples"


def _answered(source: Source, inputs: Sequence[tuple[tuple[torch.Tensor, ...], str]]) -> Iterator[Compared]:
    """Yield inputs with the source's answers; samples that it does not accept are left out."""
    for values, kind in inputs:
        try:
            with torch.no_grad():
                output = source(*values)
        except Exception as error:  # any exception of a layer
            if kind == "samples":
                continue
            raise _stopped(error) from error
        yield values, _tensors(output), kind


def _compare(target: Path, compared: Sequence[Compared], channels_first: bool, dropped: str) -> float | None:
    """Return the largest difference, relative to the largest output or 1; None if an output is missing."""
    module = torch.export.load(target).module()
    largest = 0.0
    for inputs, expected, _ in compared:
        fed = [tensor.movedim(-1, 1).contiguous() for tensor in inputs] if channels_first else inputs
        try:
            with torch.no_grad():
                actual = _tensors(module(*fed))
        except Exception:  # for example, for a size that was not traced
            return None
        if dropped:
            actual = [tensor.softmax(-1) if dropped == "softmax" else tensor.sigmoid() for tensor in actual]
        if [(tensor.shape, tensor.dtype) for tensor in expected] != [(tensor.shape, tensor.dtype) for tensor in actual]:
            return None
        gaps = (gap(tensor.numpy(), other.numpy()) for tensor, other in zip(expected, actual, strict=True))
        largest = max([largest, *gaps])
    return largest


def _tensors(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _output_names(model: Any, count: int) -> list[str]:
    names = getattr(model, "output_names", None) or [f"output_{place}" for place in range(count)]
    return identifiers(names)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.use_deterministic_algorithms(True, warn_only=True)
    main(convert)
