"""The loading of an extracted archive with TorchServe's loader; errors have the handler's own traceback."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from .messages import ModelSpec

_ENVELOPES = "ts.torch_handler.request_envelope."
_KSERVE = ("kserve", "kservev2")
#: Handlers of torchmar that run or unpickle code from packages of other tools.
PACKAGE_HANDLERS = frozenset({"torchmar_handlers.mlflow", "torchmar_handlers.sagemaker"})


def activate_archive(folder: str, extra: str = "", *, own: bool = False) -> None:
    """Make an archive's folder the working folder and the first entry of the path, as TorchServe does.

    Packages inside the archive take precedence over installed ones, also in processes of the handler.

    Args:
        folder: folder where the archive was extracted.
        extra: folder with requirements that were installed for it; empty: none.
        own: whether the folder is a copy for one server, so that Python may write bytecode into it.
    """
    folders = [folder, *([extra] if extra else [])]
    sys.path[:0] = folders
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *([before] if before else [])])
    os.chdir(folder)
    if not own:
        # Otherwise it may be the user's own archive, whose files are listed in it.
        sys.dont_write_bytecode = True


def load(model: ModelSpec) -> Any:
    """Return TorchServe's service for a model.

    Handlers of torchmar read KServe's protocols themselves, without KServe's envelopes, whose handlers answer one
    request at a time. In handlers that run packages of other tools, the package reads the bodies.
    """
    import ts
    from ts.model_loader import ModelLoaderFactory

    metrics = _metrics(model.metrics_config or str(Path(ts.__file__).parent / "configs" / "metrics.yaml"))
    metrics.initialize_cache()
    metrics.model_name = model.name
    service = ModelLoaderFactory.get_model_loader().load(
        model.name,
        model.model_dir,
        model.handler,
        model.gpu,
        model.batch_size,
        model.envelope or None,
        model.limit_max_image_pixels,
        metrics,
    )
    inner = getattr(getattr(service._entry_point, "__self__", None), "_handle_fn", None)
    if envelope_of(service) in _KSERVE and is_ours(inner) and model.handler not in PACKAGE_HANDLERS:
        service._entry_point = inner
    return service


def _metrics(file: str) -> Any:
    """Return TorchServe's cache of the metrics in a file, which is parsed in C: in Python, it takes 10 ms."""
    import yaml
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

    class Metrics(MetricsCacheYamlImpl):  # type: ignore[misc]
        def _parse_yaml_file(self, config_file_path: str) -> None:
            try:
                text = Path(config_file_path).read_text(encoding="utf-8")
                self._parsed_file = yaml.load(text, yaml.CSafeLoader)
            except Exception:  # PyYAML has been built without C, or TorchServe reports the error
                super()._parse_yaml_file(config_file_path)
            else:
                logging.info(f"Successfully loaded {config_file_path}.")

    return Metrics(file)


def envelope_of(service: Any) -> str:
    """Return the name of the envelope around a service's handler; empty if there is none."""
    module = type(getattr(service._entry_point, "__self__", None)).__module__
    return module.removeprefix(_ENVELOPES) if module.startswith(_ENVELOPES) else ""


def is_ours(entry_point: Any) -> bool:
    """Return whether requests reach the handler through torchmar's base handler, not through a method of its own."""
    return str(getattr(entry_point, "__module__", "")).partition(".")[0] == "torchmar_handlers"


def own_traceback(error: BaseException) -> str:
    """Return the useful part of a traceback: the handler's frames, and the error that it raised."""
    swallowed = error.__context__
    if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("ts.torch_handler.") and swallowed:
        # The loader interprets any ImportError in a handler as "no such file", and reports that instead.
        error = swallowed
        error.__context__ = error.__cause__
    return "".join(traceback.format_exception(type(error), error, _from_handler(error.__traceback__)))


def _from_handler(trace: TracebackType | None) -> TracebackType | None:
    """Return ``trace`` without the frames of torchmar and of the loader before the handler's first frame."""
    own_folder = str(Path(__file__).parent)
    start = trace
    while start:
        file = start.tb_frame.f_code.co_filename
        if not file.startswith((own_folder, "<frozen importlib")) and not file.endswith("ts/model_loader.py"):
            break
        if file == "<frozen importlib._bootstrap>" and start.tb_next is None:
            break
        start = start.tb_next
    return start
