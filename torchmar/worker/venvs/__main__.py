"""``python -m torchmar.worker.venvs``: build an environment for a server, which can end this process.

Arguments: the archive's folder, its runtime as JSON, and the folder of environments; ``use`` after them means that the
environment must be complete already. The last line of output is the result as JSON: the environment's folder, or an
error. The lines before it are for the log.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from torchmar.errors import TorchmarError
from torchmar.recipe import Runtime
from torchmar.worker.venvs import MISSING, building, folder, specification


def main(arguments: Sequence[str]) -> dict[str, str]:
    """Build the environment, or find it; return the result."""
    content, document, place, *only_use = arguments
    try:
        spec = specification.read(Runtime.model_validate_json(document), Path(content))
        venv = folder.use(Path(place) / spec.key) if only_use else building.build(spec, Path(place), _log)
    except TorchmarError as error:
        return {"error": error.message, "hint": error.hint}
    if venv is None:
        return {"error": MISSING, "hint": ""}
    venv.close()
    return {"folder": str(venv.folder)}


def _log(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _log(json.dumps(main(sys.argv[1:])))
