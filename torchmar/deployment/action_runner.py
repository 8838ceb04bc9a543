"""Carry out single actions of a plan on the server, each with the function that undoes it."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from torchmar import archive
from torchmar.atomic import temporary_path
from torchmar.connection import Endpoint
from torchmar.deployment import actions, drain, smoke_test
from torchmar.deployment.actions import Action
from torchmar.deployment.target import SETTINGS
from torchmar.errors import ArchiveError, ConflictError, NotFoundError, ServerError, TorchmarError
from torchmar.management import ManagementClient, ModelVersion

_MARGIN = 60.0  # seconds in addition to the server's time limit for the start of a worker
_LATE = 3.0  # seconds until a registration is visible on the server if its response was not awaited


class ActionRunner:
    """Carries out actions one by one.

    Attributes:
        undos: functions that undo the actions so far, in order; each returns a text about its effect.
        still_busy: reasons why drained versions are not idle, by model and version.
    """

    def __init__(self, server: Endpoint, client: ManagementClient, ignored_checks: Sequence[str]) -> None:
        self._server, self._client, self._ignored_checks = server, client, ignored_checks
        self.undos: list[Callable[[], str]] = []
        self.still_busy: dict[tuple[str, str], str] = {}

    def run(self, action: Action) -> str:
        """Carry an action out; return a remark on its result, or an empty text.

        Raises:
            TorchmarError: the action failed.
        """
        match action:
            case actions.Copy():
                return self._copy(action)
            case actions.Derive():
                return self._derive(action)
            case actions.Register():
                return self._register(action)
            case actions.ScaleUp():
                return self._scale_up(action)
            case actions.Check():
                return self._check(action)
            case actions.Switch():
                return self._switch(action)
            case actions.SetRoute() | actions.RemoveRoute():
                return self._route(action)
            case actions.Drain():
                return self._drain(action)
            case actions.ScaleDown():
                return self._scale_down(action)
            case actions.Remove():
                return self._remove(action)

    def _copy(self, action: actions.Copy) -> str:
        part = temporary_path(action.destination)
        try:
            if action.source.is_dir():
                shutil.copytree(action.source, part)
            else:
                shutil.copyfile(action.source, part)
            self.undos.append(lambda: _delete(action.destination))
            part.rename(action.destination)
        except OSError as error:
            raise ArchiveError(f"{action.destination} cannot be written: {error.strerror or error}") from None
        finally:
            part.unlink(missing_ok=True) if part.is_file() else shutil.rmtree(part, ignore_errors=True)
        return ""

    def _derive(self, action: actions.Derive) -> str:
        archive.derive(action.source, action.destination.parent, version=action.version, config=action.config)
        self.undos.append(lambda: _delete(action.destination))
        return ""

    def _register(self, action: actions.Register) -> str:
        responded = False

        def undo() -> str:
            deadline = time.monotonic() + (0 if responded else _LATE)
            while True:
                try:
                    self._client.unregister(action.model, action.version)
                    return f"removed {action.model} {action.version}"
                except NotFoundError:
                    if time.monotonic() >= deadline:
                        return f"{action.model} {action.version} is not registered"
                time.sleep(_LATE / 10)

        # Before the call, because the server completes a registration even if this process is interrupted.
        self.undos.append(undo)
        start_timeout = (action.startup_timeout or 120) + _MARGIN
        try:
            self._client.register(
                action.url,
                model_name=action.model,
                initial_workers=action.min_workers,
                batch_size=action.batch_size,
                max_batch_delay=action.max_batch_delay,
                response_timeout=action.response_timeout,
                startup_timeout=action.startup_timeout,
                timeout=start_timeout,
                ignored_checks=self._ignored_checks,
                digest=action.digest,
            )
        except ConflictError as conflict:
            self.undos.pop()
            raise TorchmarError(
                f"another client has registered {action.model} {action.version} since the plan was made",
                hint="plan again",
            ) from conflict
        except ServerError as error:
            responded = True
            is_server_error = error.status >= 500
            hint = f"torchmar run on {action.url} shows the same without a server" if is_server_error else error.hint
            raise TorchmarError(f"{action.model} {action.version}: {error.message}", hint=hint) from error
        responded = True
        registered = self._describe(action.model, action.version)
        if (registered.min_workers, registered.max_workers) != (action.min_workers, action.max_workers):
            self._client.scale(
                action.model,
                action.version,
                min_worker=action.min_workers,
                max_worker=action.max_workers,
                timeout=start_timeout,
            )
            registered = self._describe(action.model, action.version)
        _compare(action, registered)
        return f"{registered.ready} of {action.min_workers} answer" if registered.ready < action.min_workers else ""

    def _scale_up(self, action: actions.ScaleUp) -> str:
        def undo() -> str:
            grew = self._describe(action.model, action.version).ready > before.ready
            if grew and before.ready and self._client.describe(action.model)[0].version == action.version:
                # The new workers may have requests by now, which a removal would lose.
                return f"{action.model} {action.version} keeps its {actions.workers(action.min_workers)}"
            self._client.scale(
                action.model, action.version, min_worker=before.min_workers, max_worker=before.max_workers
            )
            return f"{action.model} {action.version} has {actions.workers(before.min_workers)} again"

        before = self._describe(action.model, action.version)
        self.undos.append(undo)
        self._client.scale(
            action.model,
            action.version,
            min_worker=action.min_workers,
            max_worker=action.max_workers,
            timeout=before.startup_timeout + _MARGIN,
        )
        return ""

    def _check(self, action: actions.Check) -> str:
        probes = smoke_test.probes(action.archive if action.samples else None, action.requests)
        result = smoke_test.run(
            self._server,
            action.model,
            action.version,
            probes,
            warmup_requests=action.warmup_requests,
            at_once=action.at_once,
            max_latency=action.max_latency,
            timeout=self._describe(action.model, action.version).response_timeout + 5.0,
        )
        return result.show()

    def _switch(self, action: actions.Switch) -> str:
        def undo() -> str:
            self._client.set_default(action.model, action.before)
            # The next undo removes the new version; its requests are answered first.
            drain.wait(self._client, [actions.Drained(action.model, action.version, action.drain_seconds)])
            return f"{action.model} is back at {action.before}"

        if not action.parked and not self._describe(action.model, action.version).ready:
            raise TorchmarError(f"{action.model} {action.version} has no worker that answers")
        self.undos.append(undo)
        self._client.set_default(action.model, action.version)
        return ""

    def _route(self, action: actions.SetRoute | actions.RemoveRoute) -> str:
        before = self._client.routes().get(action.path)

        # Without a drain, because a server with routes completes the requests of a version before it removes it.
        def undo() -> str:
            if before is None:
                self._client.remove_route(action.path)
                return f"removed the route {action.path}"
            self._client.set_route(action.path, *before)
            return f"{action.path} leads to {before[0]} again"

        self.undos.append(undo)
        if isinstance(action, actions.RemoveRoute):
            self._client.remove_route(action.path)
        else:
            self._client.set_route(action.path, action.model, action.version)
        return ""

    def _drain(self, action: actions.Drain) -> str:
        self.still_busy = drain.wait(self._client, action.versions)
        return "; ".join(f"{model} {version}: {reason}" for (model, version), reason in self.still_busy.items())

    def _scale_down(self, action: actions.ScaleDown) -> str:
        self._client.scale(action.model, action.version, min_worker=action.min_workers, max_worker=action.max_workers)
        return ""

    def _remove(self, action: actions.Remove) -> str:
        with contextlib.suppress(NotFoundError):
            self._client.unregister(action.model, action.version)
        if action.file:
            _delete(action.file)
        return ""

    def _describe(self, model: str, version: str) -> ModelVersion:
        return self._client.describe(model, version)[0]


def _compare(action: actions.Register, registered: ModelVersion) -> None:
    """Raise TorchmarError if a registered version has other settings than the action gave."""
    expected = {name: value for name in SETTINGS if (value := getattr(action, name)) is not None}
    if action.devices is not None:
        expected["device_ids"] = action.devices
    for name, value in expected.items():
        actual = getattr(registered, name)
        if actual != value:
            hint = ""
            if name == "device_ids":
                hint = (
                    "the server ignores all device ids if it does not have one of the GPUs; "
                    "its number_of_gpu is how many it uses"
                )
            raise TorchmarError(f"the server set {name} to {actual!r}, not {value!r}, for {action.text}", hint=hint)


def _delete(path: Path) -> str:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be deleted: {error.strerror or error}") from None
    return f"deleted {path.name}"
