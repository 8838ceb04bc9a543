"""The messages between the server and the process of an operation of the console's rollout page.

That process, ``python -m torchmar.deployment.job``, is above the server in the layers: it is a client of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["overview", "plan", "apply", "promote", "rollback"]

STOP = b"stop\n"
"""The line on the standard input of the process that stops an operation; it then undoes what it can."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """An operation: the first line on the standard input of its process.

    Attributes:
        kind: ``overview``: the state as a deployment, and where each model can be rolled back to; ``plan``: how the
            server differs from a deployment; ``apply``, ``promote`` and ``rollback`` as the commands of these names.
        inference: the address of the server's inference API.
        management: the address of its management API.
        key_file: with its tokens; empty: it has none.
        model_store: its folder of archives.
        ignored_checks: codes of checks that it ignores.
        deployment: of plan and apply: the text of a ``deployment.yaml``.
        plan: of apply: the digest of the plan that was confirmed; another one is not carried out.
        model: of promote and rollback.
        version: of promote and rollback: that becomes the default.
        compare: of promote: whether the version must be shown to be as good as the default one.
        max_regression: of promote: the share by which its median latency may be larger.
        max_differences: of promote: the share of requests whose answers may differ.
        tolerance: of promote: the absolute tolerance of numbers in answers.
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
        """Return the line that the process reads."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes | str) -> Job:
        """Return the job of a line."""
        values: dict[str, Any] = json.loads(line)
        return cls(**{**values, "ignored_checks": tuple(values["ignored_checks"])})
