"""The export to a package of AOTInductor: machine code for this kind of processor."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from torchmar.conversion import cache
from torchmar.conversion.exporters import failure
from torchmar.conversion.exporters.model import Axes, Example, Model
from torchmar.conversion.exporters.program import export_program
from torchmar.conversion.process import Inapplicable

# Precompiled headers only pay off from the second program on, and would remain in /tmp.
_SETTINGS = {"aot_inductor.precompile_headers": False, "cpp_cache_precompile_headers": False}
_COMPILERS = ("g++", "clang++", "c++")


def to_aoti(
    model: Model, example: Example, dynamic: Axes, path: Path, *, settings: Mapping[str, Any] = MappingProxyType({})
) -> list[str]:
    """Compile a model.

    Args:
        model: eager, TorchScript or a program.
        example: inputs of an example.
        dynamic: names of the dimensions of any size.
        path: path of the ``.pt2`` file.
        settings: further settings of torch._inductor.config, in addition to those of every compilation.

    Returns:
        Notes about the package.

    Raises:
        Rejected: the model cannot be compiled, or there is no compiler.
    """
    if not any(map(shutil.which, (os.environ.get("CXX") or "", *_COMPILERS))):
        raise Inapplicable("there is no C++ compiler here, which AOTInductor needs", "apt-get install g++, or set CXX")
    program = export_program(model, example, dynamic)
    try:
        _find_instructions()
        # In a separate folder, because the default one in /tmp belongs to another user on some machines.
        with tempfile.TemporaryDirectory(prefix="torchmar-inductor-") as folder, _cached_in(folder), torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs={**_SETTINGS, **settings}
            )
    except Exception as error:  # an exception of the compilers of torch or C++
        raise failure.rejection(error, "AOTInductor", program) from error
    return [
        f"machine code for processors with {torch.backends.cpu.get_cpu_capability()}, for torch {torch.__version__}"
    ]


def _find_instructions() -> None:
    """Let torch find the vector instructions that the C++ compiler knows, by a dozen runs of it.

    This takes longer than compiling a small model; torch caches the results by its version and the compiler's.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with _cached_in(str(cache.instructions())):
        pick_vec_isa()


@contextlib.contextmanager
def _cached_in(folder: str) -> Iterator[None]:
    """Let torch's compilers store their files in a folder."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
        else:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
