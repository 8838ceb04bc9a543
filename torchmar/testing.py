"""Test an archive with pytest: a fixture that builds it and loads it in a worker process.

A test module beside ``archive.yaml`` imports the fixture::

    from torchmar.testing import ArchiveWorker, archive_worker

    def test_a_prediction(archive_worker: ArchiveWorker) -> None:
        assert archive_worker.predict({"values": [1, 2]}).json() == {"sum": 3.0}

A test module in another folder names the folder of the recipe, relative to itself: ``ARCHIVE = "../archives/digits"``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from torchmar import comparison, exchange
from torchmar.archive import Archive, build
from torchmar.sample_check import sample_requests
from torchmar.worker import Worker

__all__ = ["Answer", "ArchiveWorker", "archive_worker"]


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        status: HTTP status.
        body: body as bytes.
        content_type: content type without parameters; empty: there is none.
    """

    status: int
    body: bytes
    content_type: str

    def json(self) -> Any:
        """Return the body as JSON.

        Raises:
            ValueError: it is not JSON.
        """
        return json.loads(self.body)


class ArchiveWorker:
    """An archive in a worker process.

    Args:
        worker: process that has loaded the archive.
        archive: path of the ``.mar``.
    """

    def __init__(self, worker: Worker, archive: Path) -> None:
        self.worker, self.archive = worker, archive

    def predict(self, body: Any, content_type: str = "") -> Answer:
        """Return the prediction for one request.

        Args:
            body: bytes, a text, the path of a file, or a value that is sent as JSON.
            content_type: content type; default: that of the body's type, or of the file's suffix.
        """
        (answer,) = self._answers([_request(body, content_type)])
        return answer

    def explain(self, body: Any, content_type: str = "") -> Answer:
        """Return the explanation for one request; the arguments are those of `predict`."""
        (answer,) = self._answers([_request(body, content_type, explain=True)])
        return answer

    def predict_batch(self, bodies: Sequence[Any]) -> list[Answer]:
        """Return the predictions for requests that the handler gets as one batch, in their order."""
        return self._answers([_request(body) for body in bodies])

    def sample_problems(self) -> list[str]:
        """Return the differences between the answers to the archive's samples and their expectations."""
        with Archive(self.archive) as archive:
            samples, requests = archive.samples, sample_requests(archive)
        problems = []
        for sample, request in zip(samples, requests, strict=True):
            (response,) = self.worker.predict_batch([request])
            name = sample.input or json.dumps(sample.json_body, ensure_ascii=False)
            problems += [f"{name}: {difference}" for difference in comparison.differences(sample, response)]
        return problems

    def _answers(self, requests: Sequence[exchange.Request]) -> list[Answer]:
        responses = self.worker.predict_batch(requests)
        return [Answer(response.status, response.body, response.content_type) for response in responses]


@pytest.fixture(scope="module")
def archive_worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchiveWorker]:
    """Build the archive whose recipe is beside the test module, or in its ``ARCHIVE``; load it in a worker."""
    recipe = request.path.parent / getattr(request.module, "ARCHIVE", "")
    built = build(recipe, tmp_path_factory.mktemp("archive"))
    with Worker(built.path) as worker:
        yield ArchiveWorker(worker, built.path)


def _request(body: Any, content_type: str = "", *, explain: bool = False) -> exchange.Request:
    if isinstance(body, Path):
        request = exchange.read(body, explain=explain)
        return exchange.Request(request.body, content_type or request.content_type, explain)
    if isinstance(body, bytes | bytearray):
        return exchange.Request(bytes(body), content_type or "application/octet-stream", explain)
    if isinstance(body, str):
        return exchange.Request(body.encode(), content_type or "text/plain", explain)
    return exchange.Request(json.dumps(body).encode(), content_type or "application/json", explain)
