"""Suppressing TorchServe's imports of OpenVINO, if it is installed.

TorchServe's base handler imports ``openvino.torch``, a backend of ``torch.compile``, in every worker: this takes two
seconds and 200 MB, even if the archive does not use it. ``torch.compile`` finds the backend without this import.
OpenVINO also sends statistics about its use when it is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_PACKAGE = "openvino"
_IMPORTER = "ts.torch_handler.base_handler"


class _Finder:
    """An import finder that only rejects OpenVINO for TorchServe's base handler."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if name.partition(".")[0] == _PACKAGE and _importer() == _IMPORTER:
            raise ImportError(f"TorchServe's base handler does without {name}", name=name)
        return None


def leave_out() -> None:
    """Suppress these imports from now on, in this process and its forks."""
    # In sys.modules, None stands for a module that must not be imported; OpenVINO has its own replacement.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    sys.meta_path.insert(0, _Finder())


def _importer() -> str:
    """Return the name of the module with the import statement."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(
        (__name__, "importlib.", "_frozen_importlib")
    ):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))
