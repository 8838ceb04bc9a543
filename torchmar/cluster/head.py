"""Whether the head of the cluster answers: without it Ray places and restarts no process, and ends after a while."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

from torchmar.errors import EngineError
from torchmar.server.telemetry import logs

_LIMIT_VARIABLE, _LIMIT_SECONDS = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0  # Ray's, and its default
_EARLIER_SECONDS = 5.0  # this process ends so much before Ray's limit, since Ray would end it without a message
_CHECK_SECONDS = 1.0
_CONNECT_SECONDS = 5.0
_PATIENCE_SECONDS = 2.0  # silence of the head that is reported as a problem


class Head:
    """The head of a cluster, and the time since its last answer.

    Args:
        address: ``HOST:PORT``.
        environment: environment variables, including Ray's.

    Attributes:
        lost: set when the head has been silent for so long that Ray is about to end.
    """

    def __init__(self, address: str, environment: Mapping[str, str]) -> None:
        self.address, self.lost = address, asyncio.Event()
        limit = float(environment.get(_LIMIT_VARIABLE) or _LIMIT_SECONDS)
        self._limit = max(limit / 2, limit - _EARLIER_SECONDS)
        self._silent_since: float | None = None  # time by `time.monotonic`

    @property
    def problem(self) -> str:
        """The reason why models cannot be changed now; empty: the head answers."""
        if (seconds := self._silent_seconds) < _PATIENCE_SECONDS:
            return ""
        return (
            f"the head of the cluster at {self.address} has not answered for {seconds:.0f} s: until it does, models "
            "cannot be changed, and replicas that fail are not replaced"
        )

    @property
    def error(self) -> EngineError:
        """The error with which a front ends when the head is lost."""
        return EngineError(
            f"the head of the cluster at {self.address} has not answered for {self._silent_seconds:.0f} s, and Ray "
            "ends without it",
            hint="start Ray again on all nodes (ray stop, ray start), then this server with the same run folder: it "
            "loads the models that it has served",
        )

    @property
    def _silent_seconds(self) -> float:
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Probe the head until it is lost.

        Args:
            on_change: called when a problem begins or ends.
        """
        reported = False
        while not self.lost.is_set():
            if await self._answers():
                self._silent_since = None
            elif self._silent_since is None:
                self._silent_since = time.monotonic()
            if bool(self.problem) != reported:
                reported = not reported
                if reported:
                    logs.SERVER.error("%s", self.problem)
                else:
                    logs.SERVER.info("the head of the cluster at %s answers again", self.address)
                on_change()
            if self._silent_seconds > self._limit:
                self.lost.set()
            await asyncio.sleep(_CHECK_SECONDS)

    async def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), _CONNECT_SECONDS)
            writer.close()
            return True
        return False
