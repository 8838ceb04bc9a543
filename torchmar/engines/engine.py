"""The base of engines: start a server over a model store, load its models, stop it with all its processes."""

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
from torchmar.archive import Archive
from torchmar.archive.store import order
from torchmar.connection import KEY_FILE, RUN_FOLDER, Endpoint
from torchmar.engines import TITLES, EngineName, addresses, state, worker_log
from torchmar.engines.server_records import MARK, START_SECONDS, ServerRecord, new_mark, option
from torchmar.engines.start_lock import locked, signals_deferred
from torchmar.errors import (
    CertificateError,
    ConflictError,
    ConnectError,
    EngineError,
    ModelFailedError,
    NotFoundError,
    ResponseTimeoutError,
    ServerError,
    TorchmarError,
)
from torchmar.management import ManagementClient, ModelVersion
from torchmar.server.config.keys import PATH_KEYS

if TYPE_CHECKING:
    from typing_extensions import Self

_WATCH_SECONDS = 3.0
_UNAVAILABLE = 503
_DYING_SECONDS = 10.0  # from the end of listening until the process has ended
# Values of keys that the configuration does not have.
_DEFAULTS = {
    **properties.DEFAULTS,
    "disable_token_authorization": "false",
    "metrics_mode": "prometheus",
    "model_metrics_auto_detect": "true",  # metrics of handlers
    # KServe's v2 protocol over gRPC, beside TorchServe's own; over REST it is always on.
    "ts_open_inference_protocol": "true",
}


class Engine(ABC):
    """A server that runs while the context is open.

    Args:
        config: the server's ``config.properties``; None: the one of the working directory, if there is one.
        model_store: the folder with the archives.
        run_folder: the folder for the server's key file, logs and effective configuration. Each
            server needs its own run folder and its own ports.
        python: the interpreter of the workers, and of the built-in server.
        port: the inference API's port in place of the configuration's; all other ports are shifted by the same
            distance.
        host: the inference API's host in place of the configuration's; the management API's host does not change.
        metrics_host: the metrics API's host in place of the configuration's.
        overrides: keys of ``config.properties`` in place of the configuration's.

    Raises:
        EngineError: a program or package is missing, a port is out of range, or the server did not start.
        BindError: an address is in use; nothing was started.
    """

    name: ClassVar[EngineName]
    stopped: ClassVar[tuple[int, ...]]
    """The exit codes after a stop by signal."""
    start_seconds: ClassVar[float] = START_SECONDS
    """The longest time from its start to its first answer."""

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
        given = properties.read_or_default(config)
        self.properties = replace(given, values={**given.values, **(overrides or {})})
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
        """Return keys of ``config.properties`` for a server that a command starts for itself.

        Args:
            command: its name.
            head: the address of the head of a cluster; None: that of the configuration, or a cluster of this machine
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
            EngineError: one is missing.
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
            return self._load(archive)
        except ConnectError as error:
            if isinstance(error, ResponseTimeoutError) or self._ended(_DYING_SECONDS) is None:
                raise
            raise self._death(f"while it loaded {archive.name}") from None

    def _load(self, archive: Path) -> ModelVersion:
        with Archive(archive) as opened:
            name, version = opened.manifest.name, opened.manifest.version
            startup = opened.number("startupTimeout", 120)
            # If the configuration has no number of workers, the registration's counts, whose default is 0.
            workers = None if opened.number("minWorkers", 0) else 1
        offset = self._worker_log_size()
        try:
            self.management.register(archive.name, initial_workers=workers, timeout=startup + 30)
        except ConflictError as conflict:
            registered = self.management.describe(name, version)[0].url
            if Path(registered).name != archive.name:
                raise ConflictError(
                    f"{archive} is {name} {version}, and so is {registered}, which is registered",
                    status=conflict.status,
                    hint="remove one, or give it another version",
                ) from None
            self._wait_for(name, version, startup)  # the server loads it because of config.properties
        except ServerError as error:
            if not self.properties.flag("enable_model_api") and error.status == 405:
                self._wait_for(name, version, startup)
                return self.management.describe(name, version)[0]
            with contextlib.suppress(NotFoundError):
                self.management.unregister(name, version)
            raise ModelFailedError(
                f"{name} {version} did not start: {error.message}",
                traceback=self.worker_traceback(name, version, since=offset),
                hint=f"torchmar run {archive} shows the same without a server",
            ) from None
        default = self.management.describe(name)[0].version
        if order(version) > order(default):
            self.management.set_default(name, version)
        return self.management.describe(name, version)[0]

    def detach(self) -> None:
        """Keep the server running when the context closes; ``torchmar stop`` ends it."""
        self._cleanup.pop_all()

    def wait(self, on_failure: Callable[[ModelFailedError], None] | None = None) -> None:
        """Wait until the server is stopped.

        Args:
            on_failure: called when the workers of a model begin to crash-loop, which the server itself only logs.

        Raises:
            EngineError: the server ended by itself.
        """
        tracebacks: dict[tuple[str, str], str] = {}  # of the reported failures
        while (code := self._ended(_WATCH_SECONDS)) is None:
            if on_failure:
                failures = self.failures()
                for key, failure in failures.items():
                    # A failure without a traceback is reported again once the log has one.
                    if key not in tracebacks or (failure.traceback and not tracebacks[key]):
                        on_failure(failure)
                tracebacks = {key: failure.traceback or tracebacks.get(key, "") for key, failure in failures.items()}
        if code not in self.stopped:
            raise self._death()

    def failures(self) -> dict[tuple[str, str], ModelFailedError]:
        """Return the models whose workers crash-loop, by name and version; none if the server does not answer."""
        if not worker_log.failures(self.folder):  # a file, so that the server gets no requests in the usual case
            return {}
        with contextlib.suppress(TorchmarError):
            return {
                (version.model.name, version.model.version): state.failed(version)
                for version in state.versions_on(self.server, self.folder)
                if version.failure
            }
        return {}

    def worker_traceback(self, name: str, version: str, since: int = 0) -> str:
        """Return the last traceback that a worker of a model has logged, as Python prints it; empty if none."""
        return worker_log.last_traceback(self._worker_log(since), name, version)

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
                self._check_not_running()  # it may have been started since
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
        # Files of an earlier server must not be taken for this one's.
        (self.folder / KEY_FILE).unlink(missing_ok=True)
        logs = self.folder / "logs"
        for entry in logs.iterdir() if logs.is_dir() and not logs.is_symlink() else ():
            if entry.name != "config":  # snapshots of this or of earlier runs
                shutil.rmtree(entry, ignore_errors=True) if _is_folder(entry) else entry.unlink()
        # TorchServe names its workers' sockets by port number alone: in a shared folder two servers would collide.
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
                # Ctrl-C reaches this process only, which stops the server.
                start_new_session=True,
            )
            running = ServerRecord.of(self._process.pid, self.folder, temporary, self.name, mark=mark)
            self._cleanup.callback(self._process.wait)  # runs after the next one: a child must be waited for
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
        # Archives in the store are registered by file name; without this the server would fetch any URL.
        values.setdefault("allowed_urls", f"{self.model_store.as_uri()}/.*")
        return values

    def _wait_for(self, name: str, version: str, seconds: float) -> None:
        """Wait until the workers of a version answer, which the server loads at its start."""
        deadline = time.monotonic() + seconds
        while not self._is_ready(name, version):
            if failed := self.failures().get((name, version)):
                raise failed
            if time.monotonic() > deadline:
                raise ModelFailedError(
                    f"{name} {version} does not answer after {seconds:.0f} s",
                    traceback=self.worker_traceback(name, version),
                )
            time.sleep(0.1)

    def _is_ready(self, name: str, version: str) -> bool:
        try:
            model = self.management.describe(name, version)[0]
        except NotFoundError as error:
            hint = ""
            if not self.properties.flag("enable_model_api"):
                hint = "set enable_model_api=true in config.properties, or name the archive in load_models"
            raise ModelFailedError(
                f"{name} {version} is not loaded: {error.message}", traceback="", hint=hint
            ) from None
        except ServerError as error:
            if error.status != _UNAVAILABLE:  # the server has not loaded it yet
                raise
            return False
        return model.ready >= model.min_workers

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

    def _death(self, when: str = "") -> EngineError:
        """Return the error for a server that has ended."""
        code, title = self._process.returncode, TITLES[self.name]
        if code in self.stopped:
            return EngineError(f"{title} was stopped {when}".rstrip())
        how = f"was killed by signal {-code}" if code < 0 else f"ended by itself with exit code {code}"
        return EngineError(f"{title} {how} {when}".rstrip(), log=self._log_tail())

    def _worker_log_size(self) -> int:
        file = self.folder / "logs" / "workers.log"
        return file.stat().st_size if file.exists() else 0

    def _worker_log(self, since: int) -> str:
        file = self.folder / "logs" / "workers.log"
        if not file.exists():
            return ""
        with file.open("rb") as stream:
            stream.seek(since)
            return stream.read().decode("utf-8", "replace")

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
