"""Build, test and serve TorchServe model archives (``.mar``).

The names in ``__all__`` are the public Python API, together with the modules `torchmar.errors`, `torchmar.grpc`
(``pip install 'torchmar[grpc]'``), `torchmar.guard`, `torchmar.model_archiver` and `torchmar.testing`. Everything else
is internal and may change in any version. Each name is imported when it is first used, so that ``import torchmar``
takes milliseconds.

>>> from pathlib import Path
>>> import torchmar
>>> built = torchmar.build(Path("archives/lengths"), Path("model_store"))
>>> built.path.name
'lengths-1.0.mar'
>>> torchmar.check(built.path)
[]

Every failure is a `torchmar.errors.TorchmarError`. Nothing here imports torch: handlers run in worker processes only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchmar.archive import Archive, BuiltArchive, Member, Note, build, derive, import_archive
    from torchmar.checks import Code, Finding, check
    from torchmar.connection import Endpoint
    from torchmar.errors import TorchmarError
    from torchmar.exchange import Request, Response
    from torchmar.inference import InferenceClient, Tensor
    from torchmar.management import JobQueue, ManagementClient, ModelVersion, RegisteredModel, WorkerState
    from torchmar.sample_check import SampleReport, SampleResult, run_samples
    from torchmar.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "Archive",
    "BuiltArchive",
    "Code",
    "Endpoint",
    "Finding",
    "InferenceClient",
    "JobQueue",
    "ManagementClient",
    "Member",
    "ModelVersion",
    "Note",
    "RegisteredModel",
    "Request",
    "Response",
    "SampleReport",
    "SampleResult",
    "Tensor",
    "TorchmarError",
    "Worker",
    "WorkerState",
    "__version__",
    "build",
    "check",
    "derive",
    "import_archive",
    "run_samples",
]

_NAMES_BY_MODULE = {
    "archive": ("Archive", "BuiltArchive", "Member", "Note", "build", "derive", "import_archive"),
    "checks": ("Code", "Finding", "check"),
    "connection": ("Endpoint",),
    "errors": ("TorchmarError",),
    "exchange": ("Request", "Response"),
    "inference": ("InferenceClient", "Tensor"),
    "management": ("JobQueue", "ManagementClient", "ModelVersion", "RegisteredModel", "WorkerState"),
    "sample_check": ("SampleReport", "SampleResult", "run_samples"),
    "worker": ("Worker",),
}


def __getattr__(name: str) -> Any:
    for module, names in _NAMES_BY_MODULE.items():
        if name in names:
            value = getattr(importlib.import_module(f"torchmar.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
