"""Run one step of an optimisation: ``python -m torchmar.optimizing.process STEP JOB RESULT``."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

from torchmar.conversion.process import Inapplicable
from torchmar.optimizing.process.jobs import NotApplicable
from torchmar.optimizing.process.offline import forbid_statistics, leave_network
from torchmar.worker.process import optional_imports, serving

STEPS = ("describe", "capture", "make", "run", "explain")
#: Steps that run the weights alone. A handler may need the network, for example for features from a database.
_OFFLINE = ("make", "run")


def main(step: str, job: str, result: str) -> None:
    """Run a step; its result is ``{"value": ...}``, ``{"not_applicable": reason}`` or ``{"failed": reason}``.

    Args:
        step: name of the step, one of `STEPS`.
        job: a JSON file with the arguments of the step's function.
        result: the JSON file that is written.
    """
    # The first entry of sys.path is the working folder; the archive's folder replaces it.
    sys.path[:] = [path for path in sys.path if path not in ("", str(Path.cwd()))]
    if step in _OFFLINE:
        leave_network()
    optional_imports.leave_out()
    forbid_statistics()
    serving.quiet_logging()
    arguments = json.loads(Path(job).read_bytes())
    try:
        # Imported here because a step needs only one module, and torch must not be imported before the environment is
        # set.
        function = getattr(importlib.import_module(f"torchmar.optimizing.process.{step}"), step)
        document = {"value": function(arguments)}
    except (NotApplicable, Inapplicable) as error:
        document = {"not_applicable": str(error)}
    except Exception as error:
        traceback.print_exc()
        document = {"failed": one_line(error)}
    Path(result).write_text(json.dumps(document), encoding="utf-8")


def one_line(error: BaseException) -> str:
    """Return the most useful line of an error: the last line of TorchScript's traceback, the first line of others."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Errors of OpenVINO begin with locations in its sources.
    lines = [line for line in lines if not line.startswith(("Exception from ", "Check '"))] or lines
    kind = type(error).__name__
    if not lines:
        return kind
    if lines[0].startswith("The following operation failed in the TorchScript interpreter"):
        return lines[-1].partition("Error: ")[2] or lines[-1]
    return lines[0] if kind in ("LoadError", "Rejected", "RuntimeError") else f"{kind}: {lines[0]}"


if __name__ == "__main__":
    main(*sys.argv[1:])
