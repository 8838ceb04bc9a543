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
#: Steps that run the weights alone; a handler may need the network, such as for features of a database.
_OFFLINE = ("make", "run")


def main(step: str, job: str, result: str) -> None:
    """Run a step; its result is ``{"value": ...}``, ``{"not_applicable": reason}`` or ``{"failed": reason}``.

    Args:
        step: one of `STEPS`.
        job: a JSON file with the arguments of the step's function.
        result: the JSON file that is written.
    """
    # The first place of modules is the working folder, which the archive's takes.
    sys.path[:] = [path for path in sys.path if path not in ("", str(Path.cwd()))]
    if step in _OFFLINE:
        leave_network()
    optional_imports.leave_out()
    forbid_statistics()
    serving.quiet_logging()
    arguments = json.loads(Path(job).read_bytes())
    try:
        # Here, and not above: only one of them, and no torch before the environment of the process is complete.
        function = getattr(importlib.import_module(f"torchmar.optimizing.process.{step}"), step)
        document = {"value": function(arguments)}
    except (NotApplicable, Inapplicable) as error:
        document = {"not_applicable": str(error)}
    except Exception as error:
        traceback.print_exc()
        document = {"failed": one_line(error)}
    Path(result).write_text(json.dumps(document), encoding="utf-8")


def one_line(error: BaseException) -> str:
    """Return the line of an error that says most: of the traceback of TorchScript the last, of others the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO's begin with places in its sources.
    lines = [line for line in lines if not line.startswith(("Exception from ", "Check '"))] or lines
    kind = type(error).__name__
    if not lines:
        return kind
    if lines[0].startswith("The following operation failed in the TorchScript interpreter"):
        return lines[-1].partition("Error: ")[2] or lines[-1]
    return lines[0] if kind in ("LoadError", "Rejected", "RuntimeError") else f"{kind}: {lines[0]}"


if __name__ == "__main__":
    main(*sys.argv[1:])
