"""The functions of a SageMaker package: found in its script, and called with or without ``context``."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchmar_handlers.common.options import OptionError
from torchmar_handlers.weights.load_error import LoadError

logger = logging.getLogger(__name__)

CODE = "code"
PROGRAM = "inference.py"
#: The functions that a script may define, with the numbers of their arguments without ``context``.
ARGUMENTS: Mapping[str, int] = {
    "pre_model_fn": 1,
    "model_fn": 1,
    "model_warmup_fn": 2,
    "transform_fn": 4,
    "input_fn": 2,
    "predict_fn": 2,
    "output_fn": 2,
}
Function = Callable[..., Any]


def load(folder: Path, program: str | None) -> dict[str, Function]:
    """Import the script of a package, and return its functions, each of which takes ``context`` first.

    The folder ``code`` becomes the first entry of the path, so that the script finds the modules beside it.

    Args:
        folder: folder of the extracted archive.
        program: the script, ``inference.py``, or a module, in ``code`` or at the top; None: ``inference.py``, which
            need not exist.

    Raises:
        OptionError: there is no such script.
        LoadError: its functions cannot be called, or exclude each other.
    """
    code = folder / CODE
    if code.is_dir():
        sys.path.insert(0, str(code))
    name = (program or PROGRAM).removesuffix(".py").replace("/", ".")
    path = Path(*name.split("."))
    if not any((root / path).with_suffix(".py").is_file() or (root / path).is_dir() for root in (code, folder)):
        if program is not None:
            place = f"neither {CODE}/ nor the top of the archive has {path}.py"
            raise OptionError("program", f"{place}; without this option, SAGEMAKER_PROGRAM names the script")
        logger.info("the package has no %s: the default functions are run", PROGRAM)
        return {}
    importlib.invalidate_caches()
    module = importlib.import_module(name)
    scripts = [script for root in (code, folder) if (script := (root / path).with_suffix(".py")).is_file()]
    imported = getattr(module, "__file__", None)
    if scripts and not (imported and any(script.samefile(imported) for script in scripts)):
        # Otherwise its functions would be missing, and the default functions would run in their place.
        raise LoadError(f"the script {name}.py has the name of a module of Python or of a package: rename it")
    functions = {
        function: _with_context(function, implementation, count)
        for function, count in ARGUMENTS.items()
        if (implementation := getattr(module, function, None)) is not None
    }
    if "transform_fn" in functions and (
        others := [other for other in ("input_fn", "predict_fn", "output_fn") if other in functions]
    ):
        raise LoadError(f"{name}.py defines transform_fn and {', '.join(others)}, which transform_fn replaces")
    return functions


def _with_context(name: str, function: Any, count: int) -> Function:
    """Return a function that takes ``context`` first, and passes it on as the last argument if there is one for it."""
    if not callable(function):
        raise LoadError(f"{name} is no function")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function that is not written in Python
        return lambda context, *arguments: function(*arguments)
    if len(signature.parameters) == count + 1:
        return lambda context, *arguments: function(*arguments, context)
    try:
        signature.bind(*[None] * count)
    except TypeError:
        raise LoadError(
            f"{name} takes {len(signature.parameters)} arguments; {count}, or {count + 1} with context, are expected"
        ) from None
    return lambda context, *arguments: function(*arguments)
