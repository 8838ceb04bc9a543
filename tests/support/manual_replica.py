"""The listener of a replica whose requests a test answers itself."""

from __future__ import annotations

import os

from torchmar.cluster.channel import Endpoint
from torchmar.cluster.listener import Listener
from torchmar.server.api_error import ApiError
from torchmar.server.workers.jobs import Job

NODE = "node"  # Ray's id of the replica's node


class ManualReplica:
    """A listener; a request with the id ``refused`` is refused, others wait for the test in ``jobs``."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.listener = Listener(self._submit, lambda: {"batches": [(1, [0.0], 0.5)], "metrics": []}, NODE)

    def _submit(self, job: Job) -> None:
        if job.request_id == "refused":
            raise ApiError(503, "ServiceUnavailableException", "no room")
        self.jobs.append(job)

    async def open(self) -> Endpoint:
        endpoint = await self.listener.open("127.0.0.1", os.environ)
        self.listener.set_ready(True)
        return endpoint
