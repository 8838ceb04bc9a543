"""The decision whether workers may be forks of a process that has loaded the model, by the handler and its state.

Forks share everything that ``initialize`` has created: offsets of open files, names of scratch files, connections, the
state of random generators. This changes no response only if the handler's code is known, which `mode` decides, and if
the process has a single thread and no connection, which `objection` checks.
"""

from __future__ import annotations

import contextlib
import gc
import os
import stat
import sys
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .loading import PACKAGE_HANDLERS, envelope_of
from .supervisor import children

#: Each worker loads the model itself; workers are forks because the handler's code is known; or its author allows it.
NEVER, KNOWN, ALLOWED = "never", "known", "allowed"

# TorchServe's handlers that only keep the model and values computed from files, according to their code in 0.12.0.
_STOCK = frozenset({"image_classifier", "image_segmenter", "object_detector", "text_classifier"})
_OURS = "torchmar_handlers"
# Generators would produce the same numbers in all workers, connections would mix their data, and the first worker to
# exit would remove temporary folders.
_UNSHAREABLE = frozenset(
    {
        *(
            "numpy.random._generator.Generator",
            "numpy.random.mtrand.RandomState",
            "random.Random",
            "torch._C.Generator",
        ),
        *("sqlite3.Connection", "tempfile.TemporaryDirectory", "tempfile._TemporaryFileWrapper"),
    }
)
_NOT_SEARCHED = (type, ModuleType, FunctionType, CodeType)  # these refer to everything that was ever imported


def mode(handler: str, *, model_file: bool, allowed: bool | None) -> tuple[str, str]:
    """Decide whether the workers of a model are forks, before the model is loaded.

    Args:
        handler: handler, as the manifest names it.
        model_file: whether the manifest names a file with the class of the model.
        allowed: the value of ``torchmar: {fork: ...}`` in ``model-config.yaml``; None: it is not set.

    Returns:
        One of `NEVER`, `KNOWN` and `ALLOWED`, and the reason.
    """
    if allowed is not None:
        reason = f"model-config.yaml sets torchmar: {{fork: {str(allowed).lower()}}}"
        return (ALLOWED if allowed else NEVER), reason
    if handler in PACKAGE_HANDLERS:
        return NEVER, f"what the code that {handler} runs keeps between requests is not known"
    if handler not in _STOCK and not handler.startswith(f"{_OURS}."):
        return NEVER, f"what {handler} keeps between requests is not known"
    if model_file:
        return NEVER, "the archive has a model file, and what its class keeps between requests is not known"
    return KNOWN, f"{handler} keeps nothing between requests that workers must not share"


def objection(fork: str, service: Any, folder: str, before: set[int]) -> str:
    """Return the reason why a process that has loaded a model must not be forked; empty: it may be forked.

    Args:
        fork: `KNOWN` or `ALLOWED`.
        service: the loaded service.
        folder: folder of the extracted archive.
        before: file descriptors that were open before the model was loaded.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "it uses a GPU"
    # Handlers may use os.register_at_fork to end their threads before a fork.
    probe = os.fork()
    if not probe:
        os._exit(0)
    os.waitpid(probe, 0)
    if (count := _thread_count()) > 1:
        return f"it has started {count - 1} thread{'' if count == 2 else 's'} while loading"
    if children():
        return "it has started a process while loading"
    for descriptor in descriptors() - before:
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return "it has opened a connection while loading"
            if fork == KNOWN:
                return "it has left a file open while loading"
    if fork == ALLOWED:
        return ""
    if kind := held(service._entry_point):
        return f"it holds a {kind}"
    return _unknown_code(service, Path(folder))


def held(value: Any) -> str:
    """Return the type of an object within a value, at any depth, that forks must not share; empty: there is none."""
    seen: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        kind = type(item)
        if id(item) in seen or issubclass(kind, _NOT_SEARCHED):
            continue
        seen.add(id(item))
        if (name := f"{kind.__module__}.{kind.__qualname__}") in _UNSHAREABLE:
            return name
        stack += gc.get_referents(item)
    return ""


def descriptors() -> set[int]:
    """Return the file descriptors of this process."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            listed = {int(name) for name in os.listdir(folder) if name.isdigit()}  # noqa: PTH208
            return {number for number in listed if _is_open(number)}  # the listed folder itself was open, too
    return set()


def _unknown_code(service: Any, folder: Path) -> str:
    """Return a description of code that has run and does not belong to known handlers; empty: there is none."""
    handler = getattr(service._entry_point, "__self__", None)
    kind = type(handler).__module__
    if envelope_of(service):
        handler = getattr(getattr(handler, "_handle_fn", None), "__self__", None)
        kind = type(handler).__module__
    if not kind.startswith(f"{_OURS}.") and kind.removeprefix("ts.torch_handler.") not in _STOCK:
        return f"the handler is of {kind}, which is not known"
    # Without pathlib: these are thousands of modules, which take a tenth of a second then.
    prefix = f"{folder}{os.sep}"
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != _OURS and (file := _file(module)) and file.startswith(prefix):
            return f"it has imported {file.removeprefix(prefix)}, which is not known"
    return ""


def _file(module: ModuleType | None) -> str | None:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) else None


def _thread_count() -> int:
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208
    except OSError:
        import threading

        return threading.active_count()


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
