"""The original weights of an archive, loaded for conversion, and the dimensions in which its inputs vary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchmar.optimizing.process.captured import Captured, batches
from torchmar.optimizing.process.jobs import NotApplicable, Weights
from torchmar.worker.process import loading

_OTHER_SIZES = 8  # largest number of further sizes of a dimension


@dataclass(frozen=True, kw_only=True)
class Source:
    """A loaded model.

    Attributes:
        weights: the weights' files and options.
        module: module that `torchmar_handlers.weights.load` returned.
        path: path of the file; None: there is only a model file.
        kind: the format, in words that follow "is": "a TorchScript archive".
        input_names: names of the input tensors; empty: they have none.
        output_names: names of the outputs; empty: they have none.
    """

    weights: Weights
    module: nn.Module
    path: Path | None
    kind: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """The device of the module."""
        return device_of(self.weights)

    @property
    def format(self) -> str:
        """The name of the format in `torchmar_handlers.weights.formats.Format`; ``EAGER`` for a model file."""
        if self.path is None:
            return "EAGER"
        from torchmar_handlers.weights.formats import identify

        form = identify(self.path)
        return "EAGER" if form.needs_model_file else form.name

    def names_of(self, example: Captured) -> tuple[str, ...]:
        """Return a name for each tensor of an input, as the handler passes them."""
        names = self.input_names
        by_position = [names[place] if place < len(names) else f"input_{place}" for place in range(len(example.args))]
        return (*by_position, *example.kwargs)

    def call(self, example: Captured) -> Any:
        """Return the module's output for an input."""
        from torchmar_handlers.common.forward import forward

        with torch.inference_mode():
            return forward(self.module, batch_of(example, self.device), device=self.device)


def load(weights: Weights) -> Source:
    """Load the original weights; the archive's folder becomes the working folder, and the first entry of the path.

    Raises:
        torchmar_handlers.weights.LoadError: they cannot be loaded.
    """
    loading.activate_archive(weights.folder)
    from torchmar_handlers import weights as handlers_weights
    from torchmar_handlers.weights.formats import identify

    torch.set_num_threads(weights.threads)
    module = model_of(weights)
    path = None if weights.serialized_file is None else Path(weights.folder, weights.serialized_file)
    return Source(
        weights=weights,
        module=module,
        path=path,
        kind="an eager model" if path is None else identify(path).value,
        input_names=handlers_weights.input_names(module),
        output_names=handlers_weights.output_names(module),
    )


def model_of(weights: Weights) -> nn.Module:
    """Return the module of weights, loaded by the archive's own loader; the archive must be active."""
    from torchmar_handlers import weights as handlers_weights

    return handlers_weights.load(
        Path(weights.folder),
        weights.serialized_file,
        weights.model_file,
        device_of(weights),
        weights.options,
        threads=weights.threads,
        pt2=weights.pt2,
    )


def device_of(weights: Weights) -> torch.device:
    """Return the device on which a worker would load these weights."""
    return torch.device("cpu") if weights.gpu is None else torch.device("cuda", weights.gpu)


def batch_of(example: Captured, device: torch.device) -> Any:
    """Return an input as `torchmar_handlers.common.forward.forward` takes it, on a device.

    Raises:
        NotApplicable: the handler passes some arguments by position and others by name.
    """

    def on_device(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        return [on_device(item) for item in value] if isinstance(value, list) else value

    if example.args and example.kwargs:
        raise NotApplicable("the handler gives the model some arguments by position and others by name")
    if example.kwargs:
        return {name: on_device(value) for name, value in example.kwargs.items()}
    values = tuple(map(on_device, example.args))
    return values if len(values) > 1 else values[0]


def example_of(source: Source, inputs: Sequence[Captured]) -> Captured:
    """Return an example: two instances, because exporters treat a size of one as constant; or the only accepted number.

    Raises:
        NotApplicable: an argument of the model is no tensor, or the tensors share no number of rows.
    """
    from torchmar_handlers import weights as handlers_weights

    if any(item.tensors is None for item in inputs):
        raise NotApplicable("the handler gives the model more than tensors, such as lists of images")
    largest = max(inputs, key=lambda item: sum(value.numel() for value in item.tensors or ()) / (item.rows or 1))
    if not largest.rows:
        raise NotApplicable("the inputs of the model share no number of rows, which a batch has")
    alike = [item for item in inputs if item is not largest and item.kind == largest.kind]  # rows that differ
    return next(batches([largest, *alike], handlers_weights.fixed_rows(source.module) or 2))


def varying_sizes(source: Source, inputs: Sequence[Captured], example: Captured) -> tuple[frozenset[int], ...]:
    """Return the dimensions of each tensor of an example that may have another size, including the batch dimension.

    They are the dimensions that the weights declare as free. Without a declaration, they are those in which inputs
    differ, and those in which the module accepts other sizes: requests may have sizes that no recorded input has.
    """
    declared = _declared_sizes(source, example)
    if declared is not None:
        return declared
    tensors = example.tensors or ()
    free = [{0, *axes} for axes in _differing_sizes(inputs, tensors)]
    for axis in range(1, max((tensor.dim() for tensor in tensors), default=0)):
        for size in {tensor.shape[axis] for tensor in tensors if tensor.dim() > axis}:
            places = [
                place
                for place, tensor in enumerate(tensors)
                if tensor.dim() > axis and tensor.shape[axis] == size and axis not in free[place]
            ]
            if places and all(_takes(source, example, places, axis, other) for other in (size + 1, size - 1, 2 * size)):
                for place in places:
                    free[place].add(axis)
    return tuple(map(frozenset, free))


def _declared_sizes(source: Source, example: Captured) -> tuple[frozenset[int], ...] | None:
    """Return the dimensions of each tensor that the weights declare as free; None: the declaration is incomplete."""
    from torchmar_handlers import weights as handlers_weights

    tensors = example.tensors or ()
    declared = {
        spec.name or str(place): spec.shape for place, spec in enumerate(handlers_weights.inputs(source.module))
    }
    names = source.names_of(example)
    shapes = [declared.get(name, declared.get(str(place))) for place, name in enumerate(names)]
    if any(shape is None or len(shape) != tensor.dim() for shape, tensor in zip(shapes, tensors, strict=True)):
        return None
    return tuple(frozenset(axis for axis, size in enumerate(shape or ()) if size is None) for shape in shapes)


def _differing_sizes(inputs: Sequence[Captured], tensors: Sequence[torch.Tensor]) -> list[set[int]]:
    """Return the dimensions of each tensor, except the batch dimension, in which inputs differ."""
    columns = zip(*(item.tensors or () for item in inputs), strict=True)
    differing: list[set[int]] = [set() for _ in tensors]
    for place, column in enumerate(columns):
        differing[place] = {
            axis for axis in range(1, tensors[place].dim()) if len({value.shape[axis] for value in column}) > 1
        }
    return differing


def other_sizes(source: Source, inputs: Sequence[Captured]) -> Iterator[Captured]:
    """Yield an example, then the example with another size of each varying dimension, one dimension at a time.

    Their names describe the size; the module itself may reject some of them.

    Raises:
        NotApplicable: for the reasons of `example_of`.
    """
    example = example_of(source, inputs)
    yield example
    free = varying_sizes(source, inputs, example)
    tensors = example.tensors or ()
    groups: dict[tuple[int, int], list[int]] = {}
    for place, (tensor, axes) in enumerate(zip(tensors, free, strict=True)):
        for axis in axes:
            groups.setdefault((axis, tensor.shape[axis]), []).append(place)
    observed = [instance.tensors or () for instance in inputs]
    for (axis, size), places in groups.items():
        sizes = {values[places[0]].shape[axis] for values in observed} if axis else {1, 3}
        for other in sorted({*sizes, size + 1, size - 1, 2 * size} - {size, 0})[:_OTHER_SIZES]:
            yield _resized(example, places, axis, other)


def _takes(source: Source, example: Captured, places: Sequence[int], axis: int, size: int) -> bool:
    """Return whether the module accepts tensors with another size."""
    if size < 1:
        return True
    with contextlib.suppress(Exception):  # any error: the module rejects the size
        source.call(_resized(example, places, axis, size))
        return True
    return False


def _resized(example: Captured, places: Sequence[int], axis: int, size: int) -> Captured:
    """Return an example with another size of some tensors: cut off, or repeated from the start."""

    def resized(place: int, tensor: torch.Tensor) -> torch.Tensor:
        if place not in places:
            return tensor
        return tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])

    args = tuple(resized(place, value) for place, value in enumerate(example.args))
    count = len(args)
    kwargs = {name: resized(count + place, value) for place, (name, value) in enumerate(example.kwargs.items())}
    return Captured(f"size {size} of dimension {axis}", args, kwargs)


def flat(output: Any) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors and numbers of an output with their names: keys of mappings, positions in tuples.

    A single value has an empty name.
    """
    return list(_flat(output, ""))


def incomparable(output: Any) -> str:
    """Return the type of the first value in an output that `flat` omits; empty: it omits nothing but None."""
    if output is None or isinstance(output, torch.Tensor | int | float):
        return ""
    if hasattr(output, "items"):
        output = [value for _, value in output.items()]
    if not isinstance(output, tuple | list):
        return type(output).__name__
    return next(filter(None, map(incomparable, output)), "")


def _flat(output: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(output, torch.Tensor):
        yield name, output
        return
    if isinstance(output, int | float):
        yield name, torch.tensor(output)
        return
    items = (
        output.items() if hasattr(output, "items") else enumerate(output) if isinstance(output, tuple | list) else ()
    )
    for key, value in items:
        yield from _flat(value, f"{name}.{key}" if name else str(key))
