"""The checks of ``torchmar doctor``: machine, configuration, model store, logs and server.

There is one module for each topic; findings are values. Nothing is changed, and no code of an archive is run.
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
    venvs,
)
from torchmar.diagnosis.finding import Finding, error
from torchmar.engines import DEFAULT, EngineName
from torchmar.engines.server_records import ServerRecord
from torchmar.errors import TorchmarError
from torchmar.properties import Properties

__all__ = ["Finding", "examine"]


def examine(
    config: Path | None, model_store: Path | None, run_folder: Path, engine: EngineName = DEFAULT
) -> Iterator[Finding]:
    """Yield findings, each as soon as it is known.

    Args:
        config: the server's configuration; None: that of the working directory.
        model_store: folder with the archives; None: that of the configuration, or ``model_store``.
        run_folder: the server's run folder.
        engine: kind of server; the kind of a server that runs with the run folder takes precedence.
    """
    running = ServerRecord.find(run_folder)
    engine = running.engine if running else engine
    unread: list[Finding] = []
    try:
        configured = properties.read_or_default(config)
    except TorchmarError as problem:
        configured = Properties(None, {})
        unread = [error("config", problem.message, problem.hint)]
    effective = _effective(configured, running)
    folder = model_store or Path(effective.get("model_store") or "model_store")
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "config": lambda: unread or configuration.check(configured, engine),
        "java": lambda: java.check() if engine == "torchserve" else (),
        "python": lambda: environment.check(engine),
        "gpus": gpus.check,
        "ports": lambda: ports.check(effective, running),
        "exposure": lambda: exposure.check(effective, engine),
        "machine": lambda: machine.check(folder, run_folder, running),
        "store": lambda: store.check(folder, engine),
        "venv": lambda: venvs.check(folder, effective, engine),
        "log": lambda: log.check(run_folder),
        "server": lambda: server.check(run_folder, running),
    }
    for topic, check in checks.items():
        try:
            yield from check()
        except TorchmarError as problem:
            yield error(topic, problem.message, problem.hint)
        except OSError as problem:
            yield error(topic, f"{problem.filename or topic} cannot be read: {problem.strerror}", _READABLE)


_READABLE = "make it readable, or run torchmar doctor as the user of the server"


def _effective(config: Properties, running: ServerRecord | None) -> Properties:
    """Return the running server's configuration, which options may have changed; without a server, the given one."""
    if running is None:
        return config
    try:
        return properties.read(Path(running.folder, "config.properties"))
    except TorchmarError:
        return config
