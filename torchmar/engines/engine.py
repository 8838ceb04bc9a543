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
_DYING_SECONDS = 10.0  # from when a server does not listen any more until its process has ended
# What the server gets unless the configuration says otherwise.
_DEFAULTS = {
    **properties.DEFAULTS,
    "disable_token_authorization": "false",
    "metrics_mode": "prometheus",
    "model_metrics_auto_detect": "true",  # what handlers measure themselves
    # KServe's v2 protocol over gRPC, beside TorchServe's own; over REST it is always there.
    "ts_open_inference_protocol": "true",
}


class Engine(ABC):
    """A server that runs while the context is open.

    Args:
        config: the ``config.properties`` to start from; None: the one of this folder, if there is one.
        model_store: the folder with the archives.
        run_folder: where the server's key file, logs and effective configuration go. Each
            server needs one of its own, and ports of its own.
        python: the interpreter of the workers, and of a server that is written in Python.
        port: of the inference API, in place of the configuration's; all other ports move by the same distance.
        host: where the inference API listens, in place of the configuration's; management stays where it is.
        metrics_host: where the metrics API listens, in place of the configuration's.
        overrides: keys of ``config.properties`` that go before the configuration's.

    Raises:
        EngineError: what the server needs is missing, a port is none, or the server did not start.
        BindError: one of its addresses is in use; nothing was started.
    """

    name: ClassVar[EngineName]
    stopped: ClassVar[tuple[int, ...]]
    """The exit codes of a server that was stopped."""

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
    @abstractmethod
    def described(self) -> str:
        """Which server of which version this is, and what runs it; once it was started."""

    @abstractmethod
    def _find(self) -> None:
        """Find what the server needs to run.

        Raises:
            EngineError: it is missing.
        """

    @abstractmethod
    def _command(self, config: Path, temporary: Path) -> list[str]:
        """Return the command line that starts the server from ``config``, ``-f`` before it."""

    def _environment(self, temporary: Path) -> dict[str, str]:
        """Return the environment of the server; ``temporary`` is a folder of its own."""
        return dict(os.environ)

    def load(self, archive: Path) -> ModelVersion:
        """Register an archive of the model store and wait until its workers answer.

        The newest version of a model that was loaded so is its default.

        Raises:
            ModelFailedError: a worker did not come up; it has the worker's traceback, and the model is not registered.
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
            # A configuration without workers leaves them to registration, whose default is none at all.
            workers = None if opened.number("minWorkers", 0) else 1
        mark = self._worker_log_size()
        try:
            self.management.register(archive.name, initial_workers=workers, timeout=startup + 30)
        except ConflictError as conflict:
            there = self.management.describe(name, version)[0].url
            if Path(there).name != archive.name:
                raise ConflictError(
                    f"{archive} is {name} {version}, and so is {there}, which is registered",
                    status=conflict.status,
                    hint="remove one, or give it another version",
                ) from None
            self._wait_for(name, version, startup)  # config.properties loads it by itself
        except ServerError as refusal:
            if not self.properties.flag("enable_model_api") and refusal.status == 405:
                self._wait_for(name, version, startup)
                return self.management.describe(name, version)[0]
            with contextlib.suppress(NotFoundError):
                self.management.unregister(name, version)
            raise ModelFailedError(
                f"{name} {version} did not start: {refusal.message}",
                traceback=self.worker_traceback(name, version, since=mark),
                hint=f"torchmar run {archive} shows the same without a server",
            ) from None
        default = self.management.describe(name)[0].version
        if order(version) > order(default):
            self.management.set_default(name, version)
        return self.management.describe(name, version)[0]

    def detach(self) -> None:
        """Let the server run on when the context closes; ``torchmar stop`` ends it."""
        self._cleanup.pop_all()

    def wait(self, tell: Callable[[ModelFailedError], None] | None = None) -> None:
        """Wait until the server is stopped.

        Args:
            tell: what is called when the workers of a model begin to crash-loop; the server says nothing of it.

        Raises:
            EngineError: it ended by itself.
        """
        message: dict[tuple[str, str], str] = {}  # and with which traceback
        while (code := self._ended(_WATCH_SECONDS)) is None:
            if tell:
                failed = self.failures()
                for key, failure in failed.items():
                    # The first that is heard of it may be a death without a word; the reason comes later.
                    if key not in message or (failure.traceback and not message[key]):
                        tell(failure)
                message = {key: failure.traceback or message.get(key, "") for key, failure in failed.items()}
        if code not in self.stopped:
            raise self._death()

    def failures(self) -> dict[tuple[str, str], ModelFailedError]:
        """Return the models whose workers crash-loop, by name and version; a server that does not answer has none."""
        if not worker_log.failures(self.folder):  # reads a file, and so leaves the server alone
            return {}
        with contextlib.suppress(TorchmarError):
            return {
                (one.model.name, one.model.version): state.failed(one)
                for one in state.versions_on(self.server, self.folder)
                if one.failure
            }
        return {}

    def worker_traceback(self, name: str, version: str, since: int = 0) -> str:
        """Return the last traceback that a worker of a model has logged, as Python prints it; empty if none."""
        return worker_log.last_traceback(self._worker_log(since), name, version)

    def _start(self) -> None:
        self._find()
        if not self.model_store.is_dir():
            raise EngineError(f"the model store {self.model_store} is not a folder", hint="torchmar build fills one")
        self._refuse_second()
        for address in self.properties.addresses():
            addresses.check_free(address)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder):
                self._refuse_second()  # one that was started meanwhile
                self._launch()
        except OSError as error:
            with contextlib.suppress(OSError):
                (self.folder / "config.properties").unlink()  # half of it, on a full disk
            raise EngineError(
                f"nothing can be started in {self.folder}: {error.filename or self.folder}: {error.strerror}",
                hint="--run-folder names another folder",
            ) from None
        self.server = Endpoint.from_run_folder(self.folder)
        self.management = ManagementClient(self.server)
        self._wait_until_healthy()

    def _refuse_second(self) -> None:
        if running := ServerRecord.find(self.folder):
            raise EngineError(
                f"a server runs in {self.folder} already (process {running.pid})",
                hint=f"torchmar stop{option(self.folder)} ends it; --run-folder and --port run another beside it",
            )

    def _launch(self) -> None:
        if killed := ServerRecord.killed(self.folder):
            killed.stop()  # what it left, workers among that
        # A key file or log that an earlier server left behind must not be taken for this one's.
        (self.folder / KEY_FILE).unlink(missing_ok=True)
        logs = self.folder / "logs"
        for entry in logs.iterdir() if logs.is_dir() and not logs.is_symlink() else ():
            if entry.name != "config":  # TorchServe's snapshots, of this or an earlier run
                shutil.rmtree(entry, ignore_errors=True) if _is_folder(entry) else entry.unlink()
        # TorchServe names its workers' sockets by port number alone: in a shared folder two servers would collide.
        temporary = Path(tempfile.mkdtemp(prefix="torchmar-"))
        self._cleanup.callback(shutil.rmtree, temporary, ignore_errors=True)
        config = self.folder / "config.properties"
        config.write_text(properties.show(self._effective()), encoding="utf-8")
        mark = new_mark()
        with (self.folder / "console.log").open("wb") as console, signals_deferred():
            self._process = subprocess.Popen(
                self._command(config, temporary),
                cwd=self.folder,
                env={**self._environment(temporary), MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us, and we end the server.
                start_new_session=True,
            )
            running = ServerRecord.of(self._process.pid, self.folder, temporary, self.name, mark=mark)
            self._cleanup.callback(self._process.wait)  # after the next: a child that is not waited for stays a zombie
            self._cleanup.callback(running.stop)
            running.save()

    def _effective(self) -> dict[str, str]:
        """Return the configuration that the server gets: the user's, with what depends on this machine."""
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
        """Wait until the workers of a version answer that the server loads by itself."""
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
            raise ModelFailedError(f"{name} {version} is not loaded: {error.message}", traceback="") from None
        except ServerError as refusal:
            if refusal.status != _UNAVAILABLE:  # the server has not come to it yet
                raise
            return False
        return model.ready >= model.min_workers

    def _ended(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self._process.poll() is not None:
                raise self._death("while starting")
            try:
                state.answers(self.server)
            except CertificateError:
                raise  # it answers, and will not answer otherwise
            except TorchmarError:
                pass
            else:
                return
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{TITLES[self.name]} does not answer after {START_SECONDS:.0f} s", log=self._log_tail()
                )
            time.sleep(0.05)

    def _death(self, when: str = "") -> EngineError:
        """Return the error for a server that has ended."""
        code, who = self._process.returncode, TITLES[self.name]
        if code in self.stopped:
            return EngineError(f"{who} was stopped {when}".rstrip())
        how = f"was killed by signal {-code}" if code < 0 else f"ended by itself with exit code {code}"
        return EngineError(f"{who} {how} {when}".rstrip(), log=self._log_tail())

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
        if self.properties.file:  # what a user corrects, and not what was made of it and is removed with the server
            tail = tail.replace(f"error: {self.folder / 'config.properties'}: ", f"error: {self.properties.file}: ")
        return tail


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
