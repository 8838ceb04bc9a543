"""The evidence of a tuning, as JSON: machine, versions, curves, trials, and why the setting was chosen."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import torchmar
from torchmar.tuning.completed import Tuning
from torchmar.tuning.explanation import explain, pareto_front
from torchmar.tuning.service_model import fit
from torchmar.tuning.trials import SCHEMA

FILE_NAME = "tuning.json"


def document(tuning: Tuning) -> dict[str, Any]:
    """Return the evidence as values of JSON; times in seconds, memory in bytes."""
    question, result = tuning.question, tuning.result
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torchmar": torchmar.__version__,
        "torch": tuning.torch,
        "machine": asdict(tuning.machine),
        "model": tuning.name,
        "version": tuning.version,
        "archive": tuning.record.question["archive"],
        "engine": tuning.engine,
        "target": {"statistic": question.target.name, "seconds": question.target.seconds},
        "compared": tuning.compared.name,
        "objective": question.objective.value,
        "rate": question.rate,
        "memory": question.memory,
        "verdict": result.verdict.value,
        "within": result.within,
        "chosen": asdict(result.best) if result.best else None,
        "measured": asdict(result.chosen) if result.chosen else None,
        "equal": [asdict(entry) for entry in result.equal],
        "nearest": asdict(result.nearest) if result.nearest and not result.best else None,
        "noise": result.noise,
        "spread": result.spread,
        "reasons": explain(tuning),
        "curves": [
            {
                "threads": profile.threads,
                "gpu": profile.gpu,
                "fixed": curve.fixed,
                "per_request": curve.per_request,
                "misfit": curve.misfit,
                "batches": [
                    {
                        "size": times.size,
                        "count": len(times.seconds),
                        "mean": times.mean,
                        "smallest": min(times.seconds),
                        "largest": max(times.seconds),
                        "cores": times.cores,
                    }
                    for times in profile.times
                ],
                "memory": profile.memory,
                "load_seconds": profile.load_seconds,
                "others": profile.others,
                "drift": profile.drift,
            }
            for profile in tuning.record.profiles
            for curve in (fit(profile.times),)
        ],
        "trials": [
            {**asdict(trial), "verdict": trial.verdict(question.target).value} for trial in tuning.record.trials
        ],
        "predictions": [{**asdict(entry), "bound": entry.bound.value} for entry in result.predictions],
        "pareto_front": [
            str(entry.setting) for entry in pareto_front(result.predictions, throughput=question.rate is None)
        ],
    }


def text(tuning: Tuning) -> str:
    """Return the evidence as the text of a file."""
    return json.dumps(_rounded(document(tuning)), indent=1) + "\n"


def _rounded(value: Any) -> Any:
    """Return values with six significant digits; JSON has no infinite numbers, which become null."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return None if value in (float("inf"), float("-inf")) or value != value else float(f"{value:.6g}")
    return value
