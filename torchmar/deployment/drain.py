"""Wait until versions without traffic have answered their last requests."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from torchmar.deployment.actions import Drained
from torchmar.errors import NotFoundError
from torchmar.management import ManagementClient

_PAUSE = 0.1
_PATIENCE = 3  # times as long as an answer takes without the queue getting shorter: others keep coming


def wait(client: ManagementClient, versions: Sequence[Drained]) -> dict[tuple[str, str], str]:
    """Wait for all of ``versions`` at once; return those that do not come to rest, and why.

    The server tells how many requests wait in a queue, but not what its workers are at. So a
    version has answered everything when its queue has been empty for as long as an answer may
    take at the most: what a worker took from the queue before is done by then, or the server
    itself has given it up.
    """
    begun = time.monotonic()
    quiet_since = dict.fromkeys(((one.model, one.version) for one in versions), begun)
    shortest = dict.fromkeys(quiet_since, (sys.maxsize, begun))
    waiting = list(versions)
    restless: dict[tuple[str, str], str] = {}
    while waiting:
        for one in list(waiting):
            key = (one.model, one.version)
            try:
                (state,) = client.describe(one.model, one.version)
            except NotFoundError:
                waiting.remove(one)
                continue
            now = time.monotonic()
            if not state.workers:
                # Without workers, requests in the queue are never answered.
                waiting.remove(one)
            elif state.job_queue.pending_requests:
                pending = state.job_queue.pending_requests
                quiet_since[key] = now
                if pending < shortest[key][0]:
                    shortest[key] = (pending, now)
                elif now - shortest[key][1] > max(_PATIENCE * one.seconds, 10):
                    restless[key] = f"requests that name the version keep coming; {pending} wait"
                    waiting.remove(one)
            elif now - quiet_since[key] >= one.seconds:
                waiting.remove(one)
        if waiting:
            time.sleep(_PAUSE)
    return restless
