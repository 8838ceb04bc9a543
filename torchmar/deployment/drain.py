"""The wait until versions without traffic have answered their last requests."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from torchmar.deployment.actions import Drained
from torchmar.errors import NotFoundError
from torchmar.management import ManagementClient

_POLL_SECONDS = 0.1
# After so many response times without progress in the queue, and so many seconds, new requests must be the reason.
_PATIENCE, _PATIENCE_SECONDS = 3, 10.0


def wait(client: ManagementClient, versions: Sequence[Drained]) -> dict[tuple[str, str], str]:
    """Wait for all of ``versions`` at once; return the reasons, by model and version, why some are still busy.

    The server reports how many requests wait in a queue, but not whether its workers have one. Therefore a
    version has answered all requests when its queue has been empty for the longest time of one
    response: a request that a worker took from the queue before has then been answered, or has
    timed out on the server.
    """
    start = time.monotonic()
    quiet_since = dict.fromkeys(((version.model, version.version) for version in versions), start)
    shortest = dict.fromkeys(quiet_since, (sys.maxsize, start))
    waiting = list(versions)
    still_busy: dict[tuple[str, str], str] = {}
    while waiting:
        for version in list(waiting):
            key = (version.model, version.version)
            try:
                (state,) = client.describe(version.model, version.version)
            except NotFoundError:
                waiting.remove(version)
                continue
            now = time.monotonic()
            if not state.workers:
                # Without workers, requests in the queue are never answered.
                waiting.remove(version)
            elif state.job_queue.pending_requests:
                pending = state.job_queue.pending_requests
                quiet_since[key] = now
                if pending < shortest[key][0]:
                    shortest[key] = (pending, now)
                elif now - shortest[key][1] > max(_PATIENCE * version.seconds, _PATIENCE_SECONDS):
                    still_busy[key] = f"clients still send requests to this version; {pending} wait in its queue"
                    waiting.remove(version)
            elif now - quiet_since[key] >= version.seconds:
                waiting.remove(version)
        if waiting:
            time.sleep(_POLL_SECONDS)
    return still_busy
