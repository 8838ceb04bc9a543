"""The fork servers of a server: a default one, and one for each folder or environment of other packages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from torchmar.server.workers.fork_server import ForkServer
from torchmar.worker.venvs.folder import Venv


class ForkServers:
    """Fork servers, counted by references. All methods are called in the server's loop.

    Args:
        default: fork server of models without packages of their own; the caller ends it.
    """

    def __init__(self, default: ForkServer) -> None:
        self._default = default
        self._others: dict[Path, ForkServer] = {}  # fork servers by the folder of their packages
        self._uses: Counter[ForkServer] = Counter()

    def acquire(self, packages: Path | None, venv: Venv | None) -> ForkServer:
        """Return the fork server of a model; `release` it when the model's workers have ended.

        Args:
            packages: folder with its packages; None: it has no packages of its own.
            venv: environment of its workers; None: the server's own.
        """
        folder = venv.folder if venv else packages
        if folder is None:
            return self._default
        if folder not in self._others:
            self._others[folder] = self._default.with_packages(str(packages or ""), venv)
        fork_server = self._others[folder]
        self._uses[fork_server] += 1
        return fork_server

    async def release(self, fork_server: ForkServer) -> None:
        """Drop a reference; end a fork server that no model uses, except the default one."""
        if fork_server is self._default:
            return
        self._uses[fork_server] -= 1
        if self._uses[fork_server] <= 0:
            del self._uses[fork_server]
            self._others = {folder: other for folder, other in self._others.items() if other is not fork_server}
            await fork_server.end()
