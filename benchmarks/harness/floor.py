"""Call a handler in a loop, without a server: the upper limit for any server.

    python floor.py ARCHIVE_FOLDER BATCH SECONDS FILE...

prints requests a second. ARCHIVE_FOLDER is an extracted archive; the FILEs are bodies, ``image/jpeg``.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import time
from pathlib import Path


def main(folder: str, batch: str, seconds: str, *files: str) -> None:
    """Load the handler as TorchServe's worker does, then pass full batches to it."""
    bodies = [bytearray(Path(file).read_bytes()) for file in files]
    sys.path[0] = folder  # the archive's own packages come first, as in a worker
    os.chdir(folder)
    logging.disable(logging.CRITICAL)
    import ts
    from ts.context import RequestProcessor
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
    from ts.model_loader import ModelLoaderFactory

    model = json.loads(Path("MAR-INF", "MANIFEST.json").read_text())["model"]
    metrics = MetricsCacheYamlImpl(str(Path(ts.__file__).parent / "configs" / "metrics.yaml"))
    metrics.initialize_cache()
    metrics.model_name = model["modelName"]
    service = ModelLoaderFactory.get_model_loader().load(
        model["modelName"], folder, model["handler"], None, int(batch), None, True, metrics
    )
    context, handle = service.context, service._entry_point
    context.request_processor = [RequestProcessor({"Content-Type": "image/jpeg"})] * int(batch)
    context.request_ids = metrics.request_ids = dict.fromkeys(range(int(batch)), "floor")
    turn = itertools.cycle(bodies)

    def answer(until: float) -> int:
        count = 0
        while time.perf_counter() < until:
            count += len(handle([{"body": next(turn)} for _ in range(int(batch))], context))
        return count

    answer(time.perf_counter() + 2)  # not counted
    started = time.perf_counter()
    print(answer(started + float(seconds)) / (time.perf_counter() - started))


if __name__ == "__main__":
    main(*sys.argv[1:])
