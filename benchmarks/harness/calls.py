"""Run batches of small requests in a worker's code, without a server, and measure their CPU time.

    python calls.py ARCHIVE_FOLDER FILE...

loads an extracted archive. For each line ``SIZE COUNT`` of standard input it runs COUNT batches of SIZE requests, whose
bodies are the FILEs (JSON) in turn, and prints the CPU seconds of a batch and the answer to its first request.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from torchmar.worker.process import frames, loading
from torchmar.worker.process.batch_runner import BatchRunner, Parts
from torchmar.worker.process.handler_metrics import MetricsBuffer
from torchmar.worker.process.messages import ModelSpec

HEADERS = {"Host": "127.0.0.1:8080", "Content-Type": "application/json", "Content-Length": "400", "explain": "False"}


def main(folder: str, *files: str) -> None:
    """Load the handler as a worker does, and run the requested batches."""
    bodies = itertools.cycle([Path(file).read_bytes() for file in files])
    model = json.loads(Path(folder, "MAR-INF", "MANIFEST.json").read_text())["model"]
    loading.activate_archive(folder)
    logging.disable(logging.CRITICAL)
    metrics = MetricsBuffer()
    metrics.install()
    runner = BatchRunner(
        loading.load(ModelSpec(name=model["modelName"], model_dir=folder, handler=model["handler"])),
        Parts(_send),
        isolate=True,
    )
    for line in sys.stdin:
        size, count = map(int, line.split())
        batches: list[tuple[Any, list[memoryview]]] = []
        for _ in range(8):
            contents = [next(bodies) for _ in range(size)]
            document = [
                (str(index), HEADERS, [("body", "application/json", len(contents[index]))]) for index in range(size)
            ]
            batches.append((document, [memoryview(content) for content in contents]))
        turn = itertools.islice(itertools.cycle(batches), count)
        started = time.process_time()
        for document, views in turn:
            results, _ = runner.run(document, views)
            frames.encode(frames.RESPONSES, metrics.take(), [result[3] for result in results])
        seconds = (time.process_time() - started) / count
        print(json.dumps([seconds, json.loads(results[0][3])]), flush=True)


def _send(*_: object) -> None:
    raise AssertionError("nothing is streamed")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*sys.argv[1:])
