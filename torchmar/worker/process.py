"""The worker process: load one extracted archive, then answer batches until the parent goes.

Run as a file, by any Python that has TorchServe: it imports nothing of torchmar. Its only
connection is an inherited socket, on which it speaks TorchServe's worker protocol.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any


def main(arguments: list[str]) -> None:
    """Serve ``{"fd", "model_dir", "name", "handler", "batch_size", "gpu", "envelope"}``, given as JSON."""
    job = json.loads(arguments[0])
    # Ctrl-C reaches the whole terminal; the parent decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # As TorchServe does it: the archive is the working folder and comes first on the path,
    # so that the packages it carries win over installed ones. Our own folder must not be there.
    sys.path[0] = job["model_dir"]
    os.chdir(job["model_dir"])
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    connection = socket.socket(fileno=job["fd"])
    try:
        service = _load(job)
    except BaseException as error:
        _tell(connection, 500, "".join(_own_traceback(error)))
        sys.exit(1)
    _tell(connection, 200, "loaded")
    service.set_cl_socket(connection)

    from ts.protocol.otf_message_handler import retrieve_msg

    # Its line per request would drown what the handler has to say.
    logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("Backend received inference"))
    while True:
        _, batch = retrieve_msg(connection)  # exits the process when the parent has gone
        connection.sendall(service.predict(batch))


def _load(job: dict[str, Any]) -> Any:
    import ts
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
    from ts.model_loader import ModelLoaderFactory

    metrics = MetricsCacheYamlImpl(str(Path(ts.__file__).parent / "configs" / "metrics.yaml"))
    metrics.initialize_cache()
    metrics.model_name = job["name"]
    return ModelLoaderFactory.get_model_loader().load(
        job["name"],
        job["model_dir"],
        job["handler"],
        job["gpu"],
        job["batch_size"],
        job["envelope"],
        True,
        metrics,
    )


def _tell(connection: socket.socket, code: int, message: str) -> None:
    data = message.encode("utf-8", "replace")
    connection.sendall(struct.pack("!ii", code, len(data)) + data + struct.pack("!i", -1))


def _own_traceback(error: BaseException) -> list[str]:
    """Return the traceback that helps: the handler's frames, and the error that it raised."""
    swallowed = error.__context__
    if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("ts.torch_handler.") and swallowed:
        # The loader takes any ImportError of a handler for "no such file" and reports that instead.
        error = swallowed
        error.__context__ = error.__cause__
    return traceback.format_exception(type(error), error, _from_handler(error.__traceback__))


def _from_handler(trace: TracebackType | None) -> TracebackType | None:
    """Return ``trace`` without the frames of the loader before the handler's first."""
    start = trace
    while start:
        file = start.tb_frame.f_code.co_filename
        if file != __file__ and not file.endswith("ts/model_loader.py") and not file.startswith("<frozen importlib"):
            break
        if file == "<frozen importlib._bootstrap>" and start.tb_next is None:
            break
        start = start.tb_next
    return start


if __name__ == "__main__":
    main(sys.argv[1:])
