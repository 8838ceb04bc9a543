"""Deployments of small models."""

from __future__ import annotations

from torchmar.deployment.context import DeploymentContext
from torchmar.engines.engine import Engine

# Returns its version after SECONDS; with FAIL its workers are broken, with WRONG its answers are wrong.
MODEL = """
import time

class Model:
    def initialize(self, context):
        FAIL
        self.version = context.manifest["model"]["modelVersion"]

    def handle(self, rows, context):
        time.sleep(SECONDS)
        return [{"version": self.version.split("+")[0], "right": RIGHT} for _ in rows]
"""


def code(seconds: float = 0.02, *, right: bool = True, fails: bool = False) -> str:
    fail = 'raise ValueError("this model is broken")' if fails else "pass"
    return MODEL.replace("SECONDS", str(seconds)).replace("RIGHT", str(right)).replace("FAIL", fail)


SAMPLES = [{"json": 1, "expect": {"right": True}}]


def context_of(server: Engine) -> DeploymentContext:
    """Return the context of deployments with files in the run folder of a test's server."""
    return DeploymentContext(
        endpoint=server.server, run_folder=server.folder, model_store=server.model_store, folder=server.folder
    )
