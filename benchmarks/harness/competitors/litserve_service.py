"""The models behind LitServe, a service as in its documentation of batching."""

from typing import Any

import litserve as ls
import torch
import work


class Model(ls.LitAPI):
    """Decode, predict a batch, encode: LitServe's own steps."""

    def setup(self, device: str) -> None:
        self.model = work.load()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # FastAPI takes an annotation for a schema
        return work.decode(request["image"].file.read()) if work.IMAGES else torch.tensor(request)

    def batch(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return inputs

    def predict(self, x: list[torch.Tensor]) -> list[Any]:
        return work.predict(self.model, x)

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    api = Model(max_batch_size=work.BATCH, batch_timeout=work.DELAY / 1000)
    ls.LitServer(api, accelerator="cpu", workers_per_device=work.WORKERS).run(
        host="127.0.0.1", port=work.PORT, generate_client_file=False
    )
