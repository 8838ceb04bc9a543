"""Run a step in the environment of an archive, which has the packages of workers, but not those of torchmar.

Run as a file, ``python start.py STEP JOB RESULT``, by any Python from 3.10 on.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_ROOT = Path(__file__).parents[2]
# Packages of which steps need some modules, and whose own __init__ imports packages that such environments lack.
_EMPTY = ("conversion", "worker")


def main(step: str, job: str, result: str) -> None:
    """Run a step; see `torchmar.optimizing.process`."""
    # Modules must be imported neither from the folder of this file nor from that of torchmar.
    sys.path.pop(0)
    spec = importlib.util.spec_from_file_location(
        "torchmar", _ROOT / "__init__.py", submodule_search_locations=[str(_ROOT)]
    )
    assert spec
    assert spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules["torchmar"] = package
    spec.loader.exec_module(package)
    for name in _EMPTY:
        empty = ModuleType(f"torchmar.{name}")
        empty.__path__ = [str(_ROOT / name)]
        sys.modules[empty.__name__] = empty
        setattr(package, name, empty)
    importlib.import_module("torchmar.optimizing.process.__main__").main(step, job, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
