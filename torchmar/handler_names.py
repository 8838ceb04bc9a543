"""The handlers that recipes and manifests name: torchmar's own, TorchServe's, and files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

CARRIED_PACKAGE = "torchmar_handlers"
STOCK_HANDLERS = ("image_classifier", "image_segmenter", "object_detector", "text_classifier")


def handler_problem(handler: str, folder: Path) -> tuple[str, str] | None:
    """Return the problem of a recipe's ``handler`` and a hint; None: the handler exists."""
    module, _, _ = handler.partition(":")
    if module.endswith(".py"):
        return None if (folder / module).is_file() else (f"there is no file {folder / module}", "")
    if module.startswith(f"{CARRIED_PACKAGE}."):
        names = carried_handlers()
        modules = [f"{CARRIED_PACKAGE}.{name}" for name in names]
        return None if module in modules else (f"torchmar has no handler {module!r}", f"it has {', '.join(modules)}")
    if module in STOCK_HANDLERS:
        return None
    hint = f"name a file (handler.py), one of torchmar's ({CARRIED_PACKAGE}.image_classifier) or of TorchServe's: "
    return f"no handler is called {module!r}", hint + ", ".join(STOCK_HANDLERS)


def carried_handlers() -> list[str]:
    """Return the names of the handler modules in the package that archives carry."""
    not_handlers = {"__init__", "base", "request"}
    return sorted(file.stem for file in carried_folder().glob("*.py") if file.stem not in not_handlers)


def carried_folder() -> Path:
    """Return the folder of ``torchmar_handlers``, without importing the package (which would need torch)."""
    spec = importlib.util.find_spec(CARRIED_PACKAGE)
    assert spec and spec.submodule_search_locations, "torchmar is installed without its handlers"
    return Path(spec.submodule_search_locations[0])
