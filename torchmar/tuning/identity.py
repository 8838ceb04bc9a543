"""The identity of a tuning: an interrupted tuning continues only if its identity is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torchmar
from torchmar import properties
from torchmar.exchange import Request
from torchmar.load.results import Machine
from torchmar.package_versions import installed_version
from torchmar.tuning.options import TuningOptions
from torchmar.tuning.target import Question
from torchmar.tuning.tuned_archive import TunedArchive

_HEAD_KEY = "torchmar_ray_address"


def identity(
    archive: TunedArchive, requests: Sequence[Request], question: Question, options: TuningOptions, machine: Machine
) -> dict[str, Any]:
    """Return all values that the result of a tuning depends on, as values of JSON.

    Args:
        archive: the archive.
        requests: requests that are sent to the server.
        question: goal of the search.
        options: engine and cluster.
        machine: description of this machine.
    """
    values = {
        "name": archive.name,
        "version": archive.version,
        "archive": archive.digest,
        "engine": options.engine,
        "target": asdict(question.target),
        "objective": question.objective.value,
        "rate": question.rate,
        "memory": question.memory,
        "requests": _digest(requests),
        "machine": asdict(machine),
        "torch": installed_version("torch"),
        "torchmar": torchmar.__version__,
    }
    if options.on_cluster:
        values["cluster"] = options.head or properties.read_or_default(None).get(_HEAD_KEY)
    return values


def _digest(requests: Sequence[Request]) -> str:
    digest = hashlib.sha256()
    for request in requests:
        for part in (request.content_type.encode(), request.body):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
