"""The base of engines: start a server over a model store, watch it, and stop it with all its processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

from torchmar import properties
from torchmar.connection import KEY_FILE, RUN_FOLDER, Endpoint
from torchmar.engines import TITLES, EngineName, addresses, state, worker_log
from torchmar.engines.loading import Loader
from torchmar.engines.server_records import MARK, START_SECONDS, ServerRecord, new_mark, option
from torchmar.engines.start_lock import locked, signals_deferred
from torchmar.errors import (
    CertificateError,
    ConnectError,
    EngineError,
    ModelFailedError,
    ResponseTimeoutError,
    TorchmarError,
)
from torchmar.management import ManagementClient, ModelVersion
from torchmar.server.config.keys import PATH_KEYS

if TYPE_CHECKING:
    from typing_extensions import Self

_WATCH_SECONDS = 3.0
_DYING_SECONDS = 10.0  # limit of the time between the end of listening and the end of the process
# Values of keys that are not in the configuration.
_DEFAULTS = {
    **properties.DEFAULTS,
    "disable_token_authorization": "false",
    "metrics_mode": "prometheus",
    "model_metrics_auto_detect": "true",  # metrics of handlers
    # KServe's v2 protocol over gRPC, in addition to TorchServe's own; over REST it is always available.
    "ts_open_inference_protocol": "true",
}


class Engine(ABC):
    """A server that runs while the context is open.

    Args:
        config: the server's ``config.properties``; None: that of the working directory, if it exists.
        model_store: the folder with the archives.
        run_folder: the folder for the server's key file, logs and effective configuration. Each
            server needs its own run folder and its own ports.
        python: the interpreter of the workers, and of the built-in server.
        port: port of the inference API, in place of the configuration's; all other ports are shifted by the same
            distance.
        host: the inference API's host in place of the configuration's; the management API's host does not change.
        metrics_host: the metrics API's host in place of the configuration's.
        overrides: keys of ``config.properties`` in place of the configuration's.

    Raises:
        EngineError: a program or package is missing, a port is out of range, or the server did not start.
        BindError: an address is in use; no process was started.
    """

    name: ClassVar[EngineName]
    stopped: ClassVar[tuple[int, ...]]
    """The exit codes after a stop by signal."""
    start_seconds: ClassVar[float] = START_SECONDS
    """The longest time from a start to the first answer."""

    def __init__(
        self,
        config: Path | None,
        model_store: Path,
        run_folder: Path = RUN_FOLDER,
        *,
        python: str = sys.executable,
        port: int | None = None,
        host: str | None = None,
        metrics_host: str | None = None,
        overrides: Mapping[str, str] | None = None,
    ) -> None:
        configuration = properties.read_or_default(config)
        self.properties = replace(configuration, values={**configuration.values, **(overrides or {})})
        if port:
            self.properties = addresses.shift_ports(self.properties, port)
        if host or metrics_host:
            self.properties = addresses.listen(self.properties, host, metrics_host)
        self.model_store = model_store.resolve()
        self.folder = run_folder.resolve()
        self._python = python
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    @property
    def exit_code(self) -> int | None:
        """The exit code of the server; None while it runs."""
        return self._process.poll()

    @classmethod
    def own_keys(cls, command: str, head: str | None = None) -> dict[str, str]:
        """Return keys of ``config.properties`` for a server that a command starts for its own use.

        Args:
            command: name of the command.
            head: address of the head of a cluster; None: that of the configuration, or a cluster of this machine
                alone.
        """
        return {}

    @property
    @abstractmethod
    def described(self) -> str:
        """Name and version of the server, after its start."""

    @abstractmethod
    def find(self) -> None:
        """Find the programs and packages that the server needs.

        Raises:
            EngineError: a program or package is missing.
        """

    @abstractmethod
    def _command(self, config: Path, temporary: Path) -> list[str]:
        """Return the command line of the server; ``config`` follows ``-f``."""

    def _environment(self, temporary: Path) -> dict[str, str]:
        """Return the environment of the server; ``temporary`` is its own temporary folder."""
        return dict(os.environ)

    def load(self, archive: Path) -> ModelVersion:
        """Register an archive of the model store and wait until its workers answer.

        The newest version of a model becomes its default.

        Raises:
            ModelFailedError: a worker did not start; the error has its traceback, and the model is not registered.
            EngineError: the server has ended.
            ArchiveError: the file is no archive.
        """
        try:
            return self._loader.load(archive)
        except ConnectError as error:
            if isinstance(error, ResponseTimeoutError) or self._ended(_DYING_SECONDS) is None:
                raise
            raise self._death(f"while it loaded {archive.name}") from None

    def detach(self) -> None:
        """Keep the server running when the context closes; ``torchmar stop`` ends it."""
        self._cleanup.pop_all()

    def wait(self, on_failure: Callable[[ModelFailedError], None] | None = None) -> None:
        """Wait until the server is stopped.

        Args:
            on_failure: callback when the workers of a model begin to crash-loop, which the server itself only logs.

        Raises:
            EngineError: the server ended without a stop.
        """
        tracebacks: dict[tuple[str, str], str] = {}  # tracebacks of the reported failures
        while (code := self._ended(_WATCH_SECONDS)) is None:
            if on_failure:
                failures = self.failures()
                for key, failure in failures.items():
                    # A failure without a traceback is reported again when the log has one.
                    if key not in tracebacks or (failure.traceback and not tracebacks[key]):
                        on_failure(failure)
                tracebacks = {key: failure.traceback or tracebacks.get(key, "") for key, failure in failures.items()}
        if code not in self.stopped:
            raise self._death()

    def failures(self) -> dict[tuple[str, str], ModelFailedError]:
        """Return the models whose workers crash-loop, by name and version; none if the server does not answer."""
        return self._loader.failures()

    def worker_traceback(self, name: str, version: str) -> str:
        """Return the last traceback that a worker of a model has logged, as Python prints it; empty: none."""
        return worker_log.traceback_since(self.folder, name, version)

    def _start(self) -> None:
        self.find()
        if not self.model_store.is_dir():
            raise EngineError(f"the model store {self.model_store} is not a folder", hint="torchmar build creates one")
        self._check_not_running()
        for address in self.properties.addresses():
            addresses.check_free(address)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder):
                self._check_not_running()  # a server may have been started meanwhile
                self._launch()
        except OSError as error:
            with contextlib.suppress(OSError):
                (self.folder / "config.properties").unlink()  # it may be incomplete, on a full disk
            raise EngineError(
                f"nothing can be started in {self.folder}: {error.filename or self.folder}: {error.strerror}",
                hint="--run-folder names another folder",
            ) from None
        self.server = Endpoint.from_run_folder(self.folder)
        self.management = ManagementClient(self.server)
        model_api = self.properties.flag("enable_model_api")
        self._loader = Loader(self.server, self.folder, self.management, model_api=model_api)
        self._wait_until_healthy()

    def _check_not_running(self) -> None:
        if running := ServerRecord.find(self.folder):
            raise EngineError(
                f"a server runs in {self.folder} already (process {running.pid})",
                hint=f"torchmar stop{option(self.folder)} ends it; --run-folder and --port run another beside it",
            )

    def _launch(self) -> None:
        if killed := ServerRecord.killed(self.folder):
            killed.stop()  # its workers may still run
        # Files of an earlier server must not be mistaken for those of this server.
        (self.folder / KEY_FILE).unlink(missing_ok=True)
        logs = self.folder / "logs"
        for entry in logs.iterdir() if logs.is_dir() and not logs.is_symlink() else ():
            if entry.name != "config":  # snapshots of this or of earlier runs
                shutil.rmtree(entry, ignore_errors=True) if _is_folder(entry) else entry.unlink()
        # TorchServe names its workers' sockets only by port number: two servers in a shared folder would collide.
        temporary = Path(tempfile.mkdtemp(prefix="torchmar-"))
        self._cleanup.callback(shutil.rmtree, temporary, ignore_errors=True)
        config = self.folder / "config.properties"
        config.write_text(properties.show(self.configuration()), encoding="utf-8")
        mark = new_mark()
        with (self.folder / "console.log").open("wb") as console, signals_deferred():
            self._process = subprocess.Popen(
                self._command(config, temporary),
                cwd=self.folder,
                env={**self._environment(temporary), MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches only this process, which stops the server.
                start_new_session=True,
            )
            running = ServerRecord.of(self._process.pid, self.folder, temporary, self.name, mark=mark)
            self._cleanup.callback(self._process.wait)  # runs after the next: a child must be waited for
            self._cleanup.callback(running.stop)
            running.save()

    def configuration(self) -> dict[str, str]:
        """Return the configuration of the server: the user's, with defaults and absolute paths."""
        values = dict(self.properties.values)
        base = (self.properties.file or Path()).resolve().parent
        for key in PATH_KEYS:  # the server starts in its run folder
            if values.get(key):
                values[key] = str(base / values[key])
        values["model_store"] = str(self.model_store)
        for key, value in _DEFAULTS.items():
            values.setdefault(key, value)
        # Archives in the store are registered by file name; without this value, the server would fetch any URL.
        values.setdefault("allowed_urls", f"{self.model_store.as_uri()}/.*")
        return values

    def _ended(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + self.start_seconds
        while True:
            if self._process.poll() is not None:
                raise self._death("while starting")
            try:
                state.check_answers(self.server)
            except CertificateError:
                raise  # the server runs; another attempt would have the same result
            except TorchmarError:
                pass
            else:
                return
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{TITLES[self.name]} does not answer after {self.start_seconds:.0f} s", log=self._log_tail()
                )
            time.sleep(0.05)

    def _death(self, phase: str = "") -> EngineError:
        """Return the error for a server that has ended."""
        code, title = self._process.returncode, TITLES[self.name]
        if code in self.stopped:
            return EngineError(f"{title} was stopped {phase}".rstrip())
        cause = f"was killed by signal {-code}" if code < 0 else f"ended by itself with exit code {code}"
        return EngineError(f"{title} {cause} {phase}".rstrip(), log=self._log_tail())

    def _log_tail(self) -> str:
        lines = []
        for name in ("console.log", "logs/server.log"):
            file = self.folder / name
            if file.exists():
                lines += file.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(lines[-15:])
        if self.properties.file:  # the user's file, not the copy, which is removed with the server
            tail = tail.replace(f"error: {self.folder / 'config.properties'}: ", f"error: {self.properties.file}: ")
        return tail


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
