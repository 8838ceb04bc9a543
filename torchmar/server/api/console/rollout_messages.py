"""The messages between the server and the process of an operation of the console's rollout page.

This process, ``python -m torchmar.deployment.job``, is a client of the server, and above it in the layers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["overview", "plan", "apply", "promote", "rollback"]

STOP = b"stop\n"
"""The line on the standard input of the process that stops an operation; the process then undoes its steps."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """An operation: the first line on the standard input of its process.

    Attributes:
        kind: ``overview``: the state as a deployment, and the possible rollbacks; ``plan``: the differences of the
            server from a deployment; ``apply``, ``promote`` and ``rollback``: as the commands of these names.
        inference: address of the server's inference API.
        management: address of its management API.
        key_file: file with its tokens; empty: it has none.
        model_store: folder of its archives.
        ignored_checks: codes of checks that the server ignores.
        deployment: text of a ``deployment.yaml`` (plan, apply).
        plan: digest of the confirmed plan; another plan is not carried out (apply).
        model: name of the model (promote, rollback).
        version: new default version (promote, rollback).
        compare: whether the version must be shown to be as good as the default one (promote).
        max_regression: share by which its median latency may be larger (promote).
        max_differences: share of requests whose answers may differ (promote).
        tolerance: absolute tolerance of numbers in answers (promote).
    """

    kind: Kind
    inference: str
    management: str
    key_file: str
    model_store: str
    ignored_checks: tuple[str, ...] = ()
    deployment: str = ""
    plan: str = ""
    model: str = ""
    version: str = ""
    compare: bool = True
    max_regression: float = 0.05
    max_differences: float = 0.0
    tolerance: float = 0.0

    def to_line(self) -> bytes:
        """Return the job as a line for the process."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes | str) -> Job:
        """Return the job from a line."""
        values: dict[str, Any] = json.loads(line)
        return cls(**{**values, "ignored_checks": tuple(values["ignored_checks"])})
