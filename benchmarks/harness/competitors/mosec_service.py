"""The models behind mosec, without further layers: its Rust server, orjson in the worker; the limit of such servers."""

from typing import Any

import orjson
import torch
import work
from mosec import Server, Worker


class Model(Worker):
    """Answer a batch; JSON and images are decoded in the worker, as in mosec's examples."""

    def __init__(self) -> None:
        super().__init__()
        self.model = work.load()

    def deserialize(self, data: bytes) -> Any:
        return work.decode(data) if work.IMAGES else torch.tensor(orjson.loads(data))

    def serialize(self, data: Any) -> bytes:
        return orjson.dumps(data)

    def forward(self, data: list[torch.Tensor]) -> list[Any]:
        return work.predict(self.model, data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=work.WORKERS, max_batch_size=work.BATCH, max_wait_time=work.DELAY)
    server.run()
