"""The models behind BentoML, a service as in its guide to adaptive batching; every request is itself a batch."""

import bentoml
import torch
import work
from PIL.Image import Image


@bentoml.service(workers=work.WORKERS, traffic={"timeout": 60})
class Model:
    """Two methods with typed inputs; the served model uses one of them."""

    def __init__(self) -> None:
        self.model = work.load()

    @bentoml.api(batchable=True, max_batch_size=work.BATCH)
    def predict(self, rows: list[list[float]]) -> list[list[float]]:
        return work.predict(self.model, [torch.tensor(row) for row in rows])

    @bentoml.api(batchable=True, max_batch_size=work.BATCH)
    def classify(self, images: list[Image]) -> list[dict[str, float]]:
        return work.predict(self.model, [work.picture(image) for image in images])
