"""AOTInductor: a program that was compiled for one kind of device."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torchmar_handlers.weights import machine
from torchmar_handlers.weights.exported_model import ExportedModel, Input, signature
from torchmar_handlers.weights.load_error import LoadError, summary

logger = logging.getLogger(__name__)

# Flags of /proc/cpuinfo, by the names in packages for the instructions of the processor of the compilation.
_FLAGS = {"AVX2": "avx2", "AVX512": "avx512f", "AVX512_VNNI": "avx512_vnni", "AMX_TILE": "amx_tile"}


class Compiled(ExportedModel):
    """A compiled program, as a module.

    The machine code does not check its inputs: an input of another type or layout is read as if it had the right one,
        and
    for a larger batch than that of the compilation, only the first rows are answered. Inputs are checked and laid out
    here.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        inputs: list[Input] | None,
        keywords: list[str],
        output_names: tuple[str, ...],
        channels_last: tuple[bool, ...] = (),
    ) -> None:
        super().__init__(inputs, output_names)
        self._run = run
        self._keywords = keywords
        self._channels_last = channels_last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program on inputs given by position, or by name if it was compiled with names."""
        if self._inputs is None:
            return self._run(*map(_contiguous, args), **{name: _contiguous(value) for name, value in kwargs.items()})
        values = self.arrange(args, kwargs)
        layouts = self._channels_last or (False,) * len(values)
        values = [_contiguous(value, last) for value, last in zip(values, layouts, strict=True)]
        split = len(values) - len(self._keywords)
        return self._run(*values[:split], **dict(zip(self._keywords, values[split:], strict=True)))


def load(path: Path, device: torch.device) -> Compiled:
    """Return the program of a package (``.pt2``) on ``device``.

    Raises:
        LoadError: the program is damaged, or made for another kind of device, processor or torch.
    """
    kind, instructions, source = _read(path)
    if kind and kind != device.type:
        raise LoadError(
            f"{path.name} was compiled for {kind}, and this worker runs on {device.type}: compile it for "
            f"{device.type}, or set deviceType: {'gpu' if kind == 'cuda' else kind} in model-config.yaml"
        )
    if device.type == "cpu" and (
        lack := machine.missing([_FLAGS[name] for name in instructions.split() if name in _FLAGS], device)
    ):
        logger.warning(
            "%s was compiled for a processor with %s, and %s: if the worker crashes, compile it again on this machine",
            path.name,
            instructions,
            lack,
        )
    _allow_amx()
    try:
        loader = _loader(path, -1 if device.type == "cpu" else device.index or 0)
    except Exception as error:
        raise LoadError(
            f"{path.name} is an AOTInductor package that torch {torch.__version__} cannot load: compile it again "
            f"with this torch on this kind of machine ({summary(error)})"
        ) from error
    in_spec, out_spec = map(pytree.treespec_loads, loader.get_call_spec())
    checks = _checks(source)
    checks = checks if len(checks) == in_spec.num_leaves else []
    inputs, keywords, output_names = signature(in_spec, out_spec, (), [check[0] for check in checks])
    flat = len(inputs) == len(checks)

    def run(*args: Any, **kwargs: Any) -> Any:
        # As in the model's own call, which reads both trees from JSON in each call.
        tensors = [value for value in pytree.tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        return pytree.tree_unflatten(loader.run(tensors), out_spec)

    return Compiled(run, inputs, keywords, output_names, tuple(last for _, last in checks) if flat else ())


def load_library(path: Path, device: torch.device) -> Compiled:
    """Return the program of a library (``.so``) from ``torch._export.aot_compile``.

    Raises:
        LoadError: for the reasons of `load`.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _allow_amx()
    try:
        run = torch._export.aot_load(str(path), str(device))
    except Exception as error:
        raise LoadError(
            f"{path.name} is a compiled library that torch {torch.__version__} cannot load: compile it again "
            f"with this torch on this kind of machine ({summary(error)})"
        ) from error
    return Compiled(run, None, [], ())


def _contiguous(value: Any, channels_last: bool = False) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _allow_amx() -> None:
    """Request the system's permission for this process to use AMX, if the processor has it.

    A program does not request it: compiled matrix products would end the process with SIGILL.
    """
    # Before version 2.6, torch has no such function, and its compiler does not write such products.
    if allow := getattr(torch.cpu, "_init_amx", None):
        allow()


def _loader(path: Path, index: int) -> Any:
    """Return the program of a package on the device with ``index``; -1: the current one of its kind."""
    try:
        # aoti_load_package calls this, too, but first imports torch's compiler: 1.5 seconds of CPU and 90 MB.
        return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, index)
    except (AttributeError, TypeError):  # before version 2.8
        with _without_compiler():
            return torch._inductor.aoti_load_package(str(path), device_index=index).loader


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """Omit torch's comparison of the processor with that of the compilation, which only logs a difference.

    To find this processor's instructions, torch compiles a program for each set of them: 18 seconds of CPU unless a
    cache has the results, and a C++ compiler that no other step needs.
    """
    from torch._inductor import codecache

    # Before version 2.6, torch has no such comparison.
    original = getattr(codecache, "get_device_information", None)
    if original is not None:
        codecache.get_device_information = lambda device_type: {}
    try:
        yield
    finally:
        if original is not None:
            codecache.get_device_information = original


def _read(path: Path) -> tuple[str, str, str]:
    """Return the kind of device and the instructions that a package was compiled for, and its C++ source.

    An empty text means that the package does not contain it.
    """
    kind = instructions = source = ""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("_metadata.json"):
                metadata = json.loads(archive.read(name))
                kind = metadata.get("AOTI_DEVICE_KEY", kind)
                instructions = metadata.get("AOTI_CPU_ISA", instructions)
            elif name.endswith(".cpp"):
                text = archive.read(name).decode("utf-8", "replace")
                source = text if "check_input_0" in text else source
    return kind, instructions, source


def _checks(source: str) -> list[tuple[Input, bool]]:
    """Return for each input the type and shape that the C++ source checks, and whether it is channels-last.

    Torch compiles these comparisons into every program and omits them at run time, unless the variable
    AOTI_RUNTIME_CHECK_INPUTS is set; with it, they reject batch sizes that the program computes correctly.
    """
    checks = []
    for body in re.findall(r"static void check_input_\d+\((.*?)\n\}", source, re.DOTALL):
        dtype = re.search(r"aoti_torch_dtype_(\w+)\(", body)
        dimensions = [int(dimension) for dimension in re.findall(r"_(?:size|stride)\[(\d+)\]", body)]
        sizes = {int(dimension): int(size) for size, dimension in re.findall(r"\((\d+) != \w+_size\[(\d+)\]\)", body)}
        strides = {
            int(dimension): int(size) for size, dimension in re.findall(r"\((\d+) != \w+_stride\[(\d+)\]\)", body)
        }
        rank = 1 + max(dimensions, default=-1)
        shape = tuple(sizes.get(dimension) for dimension in range(rank))
        channels_last = rank == 4 and strides.get(1) == 1 and sizes.get(1) != 1
        checks.append((Input("", getattr(torch, dtype.group(1), None) if dtype else None, shape), channels_last))
    return checks
