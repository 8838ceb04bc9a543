"""torch.compile, which compiles a model in the first calls of each worker."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchmar.optimizing.process.captured import Captured
from torchmar.optimizing.process.exporting import torch_module
from torchmar.optimizing.process.jobs import Made, NotApplicable
from torchmar.optimizing.process.source import Source


def make_compiled(source: Source, inputs: Sequence[Captured], folder: Path, mode: str | None = None) -> Made:
    """Return the option that compiles the original weights.

    Raises:
        NotApplicable: the weights have no code that torch.compile reads, or there is no C++ compiler.
    """
    torch_module(source)
    if source.format not in ("EAGER", "EXPORTED"):
        raise NotApplicable(f"the original is {source.kind}, which torch.compile does not take")
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        raise NotApplicable("there is no C++ compiler, which torch.compile needs: apt-get install g++")
    compile_options: Any = True if mode is None else {"mode": mode}
    return Made(options={"compile": compile_options}, note="compiled anew by each worker when it loads")
