"""Start a worker's process; run as a file, by any Python that has TorchServe."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

_NAME = "_torchmar_worker"  # no archive has a module of this name


def main(job: str) -> None:
    """Be what a job says; see ``process/main.py``."""
    # Our own folder must not be a place of modules.
    sys.path.pop(0)
    folder = Path(__file__).parent / "process"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec
    assert spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = package
    spec.loader.exec_module(package)
    importlib.import_module(f"{_NAME}.main").main(json.loads(job))


if __name__ == "__main__":
    main(sys.argv[1])
