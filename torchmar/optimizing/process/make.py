"""Make the files of a variant, by the module of its family."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchmar.optimizing.process import captured, source
from torchmar.optimizing.process.jobs import Made, Weights


def make(job: Mapping[str, Any]) -> dict[str, Any]:
    """Make a variant.

    A family is a module here, such as ``openvino``, with a function ``make_openvino(source, inputs, folder,
    **arguments)`` that returns `Made`.

    Args:
        job: ``weights``, the arguments of `Weights`; ``inputs``, a file of `captured.save`; ``names``, those of it that
            may be used; ``family``, ``arguments`` and ``folder``, where the files are written.

    Returns:
        `Made` as a mapping.

    Raises:
        NotApplicable: the variant cannot exist of these weights.
    """
    original = source.load(Weights(**job["weights"]))
    names = frozenset(job["names"])
    inputs = [each for each in captured.load(Path(job["inputs"])) if each.name in names]
    family = job["family"]
    function = getattr(importlib.import_module(f"torchmar.optimizing.process.{family}"), f"make_{family}")
    made: Made = function(original, inputs, Path(job["folder"]), **job["arguments"])
    return asdict(made)
