"""The samples that an archive carries, as requests."""

from __future__ import annotations

import json
from pathlib import Path

from torchmar_handlers.request import Request

_FILE = Path("MAR-INF", "SAMPLES.json")


def read(model_dir: str) -> list[Request]:
    """Return the samples of the archive that is extracted to ``model_dir``; none where it carries none."""
    file = Path(model_dir) / _FILE
    found = json.loads(file.read_bytes()) if file.is_file() else []
    requests = []
    for index, sample in enumerate(found):
        name = sample.get("input")
        body = (Path(model_dir) / name).read_bytes() if name else sample.get("json")
        requests.append(Request(index, {"body": body}, {"explain": str(bool(sample.get("explain")))}))
    return requests
