"""The models behind Ray Serve, a deployment as in its guide to dynamic batching."""

import os
import time
from typing import Any

import ray
import torch
import work
from ray import serve
from starlette.requests import Request

CPUS = int(os.environ.get("SERVE_CPUS", "0"))  # Ray lets torch use the same number of threads


@serve.deployment(num_replicas=work.WORKERS, max_ongoing_requests=128, ray_actor_options={"num_cpus": CPUS})
class Model:
    """Decode a request, then wait for the batch with it."""

    def __init__(self) -> None:
        self.model = work.load()

    @serve.batch(max_batch_size=work.BATCH, batch_wait_timeout_s=work.DELAY / 1000)
    async def predict(self, inputs: list[torch.Tensor]) -> list[Any]:
        return work.predict(self.model, inputs)

    async def __call__(self, request: Request) -> Any:
        return await self.predict(work.decode(await request.body()))


if __name__ == "__main__":
    ray.init(include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": work.PORT})
    serve.run(
        Model.bind(),  # type: ignore[attr-defined]  # serve.deployment adds it
        route_prefix="/predict",
    )
    while True:
        time.sleep(3600)
