"""Start a worker's process; run as a file, by any Python that has TorchServe."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

_NAME = "_torchmar_worker"  # no archive has a module with this name


def load() -> ModuleType:
    """Import the modules of worker processes, and return the one with their main function."""
    folder = Path(__file__).parent / "process"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec
    assert spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = package
    spec.loader.exec_module(package)
    return importlib.import_module(f"{_NAME}.main")


def main(message: str) -> None:
    """Run the process for a message; see ``process/main.py``."""
    # Modules must not be imported from this file's folder.
    sys.path.pop(0)
    load().main(json.loads(message))


if __name__ == "__main__":
    main(sys.argv[1])
