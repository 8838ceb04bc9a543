"""The samples that an archive carries, as requests."""

from __future__ import annotations

import contextlib
import json
import mimetypes
from pathlib import Path
from typing import Any

from torchmar_handlers.request import JSON, Request

_FILE = Path("MAR-INF", "SAMPLES.json")


def read(model_dir: str) -> list[Request]:
    """Return the samples of the archive that is extracted to ``model_dir``; none if it has none."""
    file = Path(model_dir) / _FILE
    listed = json.loads(file.read_bytes()) if file.is_file() else []
    return [_request(index, sample, Path(model_dir)) for index, sample in enumerate(listed)]


def _request(index: int, sample: dict[str, Any], folder: Path) -> Request:
    """Return a sample in the form of TorchServe's requests: JSON parsed, text decoded, other bodies as bytes."""
    name = sample.get("input")
    body: Any = (folder / name).read_bytes() if name else sample.get("json")
    content_type = (mimetypes.guess_type(name)[0] or "application/octet-stream") if name else JSON
    with contextlib.suppress(ValueError):
        if name and content_type == JSON:
            body = json.loads(body)
        elif name and content_type.startswith("text/"):
            body = body.decode()
    return Request(index, {"body": body}, {"content-type": content_type, "explain": str(bool(sample.get("explain")))})
