"""The doctor: look at a machine, a configuration, a model store, a log and a server; say what is wrong.

One module for each kind of finding; findings are values. Nothing is changed, and nothing of an archive is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from torchmar import properties
from torchmar.diagnosis import (
    configuration,
    environment,
    exposure,
    gpus,
    java,
    log,
    machine,
    ports,
    server,
    store,
)
from torchmar.diagnosis.finding import Finding, Severity, error
from torchmar.engines import DEFAULT, EngineName
from torchmar.engines.server_records import ServerRecord
from torchmar.errors import TorchmarError
from torchmar.properties import Properties

__all__ = ["Finding", "Severity", "examine"]


def examine(
    config: Path | None, model_store: Path | None, run_folder: Path, engine: EngineName = DEFAULT
) -> Iterator[Finding]:
    """Yield what there is to say, as soon as it is known.

    Args:
        config: the configuration that a server is, or would be, started from; None: that of this folder.
        model_store: the folder with the archives; None is the configuration's, or ``model_store``.
        run_folder: the folder that the server runs with, or did.
        engine: the server that would run; where one runs, its engine counts.
    """
    running = ServerRecord.find(run_folder)
    engine = running.engine if running else engine
    unread: list[Finding] = []
    try:
        given = properties.read_or_default(config)
    except TorchmarError as problem:
        given = Properties(None, {})
        unread = [error("config", problem.message, problem.hint)]
    in_force = _in_force(given, running)
    folder = model_store or Path(in_force.get("model_store") or "model_store")
    looks: dict[str, Callable[[], Iterable[Finding]]] = {
        "config": lambda: unread or configuration.check(given, engine),
        "java": lambda: java.check() if engine == "torchserve" else (),
        "python": lambda: environment.check(engine),
        "gpus": gpus.check,
        "ports": lambda: ports.check(in_force, running),
        "exposure": lambda: exposure.check(in_force, engine),
        "machine": lambda: machine.check(folder, run_folder, running),
        "store": lambda: store.check(folder, engine),
        "log": lambda: log.check(run_folder),
        "server": lambda: server.check(run_folder, running),
    }
    for topic, look in looks.items():
        try:
            yield from look()
        except TorchmarError as problem:
            yield error(topic, problem.message, problem.hint)
        except OSError as problem:
            yield error(topic, f"{problem.filename or topic} cannot be read: {problem.strerror}", _READABLE)


_READABLE = "mend it, or run torchmar doctor as the user that the server runs as"


def _in_force(given: Properties, running: ServerRecord | None) -> Properties:
    """Return the configuration that counts: the running server's, which --host and --port may have changed."""
    if running is None:
        return given
    try:
        return properties.read(Path(running.folder, "config.properties"))
    except TorchmarError:
        return given
