"""Archives that are slow, or do not load."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import yaml

from tests.support.servers import ECHO

SLOW_TO_LOAD = (
    "import time\nclass H:\n    def initialize(self, c): time.sleep(2)\n    def handle(self, d, c): return d\n"
)


SLOW = "import time\ndef handle(rows, context):\n    if rows: time.sleep(1)\n    return ['done'] * len(rows or [])\n"


BROKEN = "import no_such_module\n" + ECHO


def pack(
    store: Path, name: str, code: str = ECHO, version: str = "1.0", config: object = None, **model: object
) -> None:
    """Write an archive as torch-model-archiver does, with any manifest."""
    manifest = {"modelName": name, "modelVersion": version, "handler": "handler.py", **model}
    with zipfile.ZipFile(store / f"{name}-{version}.mar", "w") as archive:
        archive.writestr("handler.py", code)
        if config is not None:
            archive.writestr("model-config.yaml", yaml.safe_dump(config))
            manifest["configFile"] = "model-config.yaml"
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": manifest}))
