"""Export to a package of AOTInductor: machine code for this kind of processor."""

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

# Headers that are compiled before pay off from the second program on, and would stay in /tmp.
_SETTINGS = {"aot_inductor.precompile_headers": False, "cpp_cache_precompile_headers": False}
_COMPILERS = ("g++", "clang++", "c++")


def to_aoti(
    model: Model, example: Example, dynamic: Axes, path: Path, *, settings: Mapping[str, Any] = MappingProxyType({})
) -> list[str]:
    """Compile a model.

    Args:
        model: eager, TorchScript or a program.
        example: its inputs.
        dynamic: the names of the dimensions of any size.
        path: of the ``.pt2`` file.
        settings: of torch._inductor.config, beside those that every compilation has.

    Returns:
        What to know about it.

    Raises:
        Rejected: it cannot be compiled, or there is no compiler.
    """
    if not any(map(shutil.which, (os.environ.get("CXX") or "", *_COMPILERS))):
        raise Inapplicable("there is no C++ compiler here, which AOTInductor needs", "apt-get install g++, or set CXX")
    program = export_program(model, example, dynamic)
    try:
        _find_instructions()
        # In a folder of its own: the default one, in /tmp, is another user's on some machines.
        with tempfile.TemporaryDirectory(prefix="torchmar-inductor-") as folder, _cached_in(folder), torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs={**_SETTINGS, **settings}
            )
    except Exception as error:  # of the compilers of torch and of C++
        raise failure.rejection(error, "AOTInductor", program) from error
    return [
        f"machine code for processors with {torch.backends.cpu.get_cpu_capability()}, for torch {torch.__version__}"
    ]


def _find_instructions() -> None:
    """Have torch find the vector instructions that the C++ compiler knows, by a dozen runs of it.

    They take longer than to compile a small model, and torch keeps their results by its version and the compiler's.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with _cached_in(str(cache.instructions())):
        pick_vec_isa()


@contextlib.contextmanager
def _cached_in(folder: str) -> Iterator[None]:
    """Have torch's compilers keep their files in a folder."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
        else:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
