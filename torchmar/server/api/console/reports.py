"""Reports of `optimize`, `tune`, `bench` and `parity` on an archive, as tables for the console.

They are JSON inside the archive (the report of an optimisation), or JSON and HTML files beside it in the model store.
These have the name of the archive with an additional word: ``digits-1.0.bench.json`` belongs to ``digits-1.0.mar``. The
modules that write reports are above the server in the layers, so that this module only reads the keys that it shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torchmar.archive import Archive
from torchmar.errors import TorchmarError
from torchmar.optimized_section import PROOF
from torchmar.server.api_error import ApiError

_LARGEST = 16 << 20  # bytes of a report
_MOST = 50  # largest number of reports of an archive
_MOST_ROWS = 200
_LONGEST = 400  # largest number of characters in a cell
_FORMS = (".tar.gz", ".mar", ".model")
_NAME = re.compile(r"[A-Za-z][\w-]*\.(json|html)")
_UNKNOWN = "This file is no report that the console knows."

Table = tuple[str, list[str], Sequence[str], list[list[str]]]
"""Kind, sentences, headings and rows."""


def listed(path: Path) -> list[dict[str, Any]]:
    """Return the reports on an archive of a model store, by their names. Blocking.

    Args:
        path: path of the archive.

    Returns:
        For each, ``name``: of the file, empty if it is in the archive; ``kind`` (optimize, tune, bench, parity; empty:
        unknown), ``created``, ``machine``, ``sentences``, ``columns``, ``rows``, ``page`` (the HTML file with the same
        name, or empty) and ``error``.
    """
    reports = list(_of_archive(path))
    pages = {file.stem: file.name for file in _beside(path) if file.suffix == ".html"}
    for file in _beside(path):
        if file.suffix == ".json":
            reports.append(_report(file.name, _read(file), pages.pop(file.stem, "")))
    reports += [_report(name, None, name) for name in pages.values()]
    return reports[:_MOST]


def page(path: Path, name: str) -> bytes:
    """Return the HTML file of a report. Blocking.

    Raises:
        ApiError: 404, there is no such report.
    """
    file = next((file for file in _beside(path) if file.name == name and file.suffix == ".html"), None)
    try:
        if file and file.stat().st_size <= _LARGEST:
            return file.read_bytes()
    except OSError:
        pass
    raise ApiError(404, "ResourceNotFoundException", f"There is no report {name[:200]} on {path.name}.")


def _beside(path: Path) -> list[Path]:
    suffix = next((form for form in _FORMS if path.name.endswith(form)), "")
    prefix = f"{path.name.removesuffix(suffix)}."
    try:
        return sorted(
            file
            for file in path.parent.iterdir()
            if file.name.startswith(prefix) and _NAME.fullmatch(file.name[len(prefix) :]) and file.is_file()
        )
    except OSError:
        return []


def _of_archive(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with Archive(path) as archive:
            if PROOF in archive and archive.sizes[PROOF] <= _LARGEST:
                yield _report("", archive.read(PROOF), "")
    except (TorchmarError, OSError):
        return


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes() if file.stat().st_size <= _LARGEST else b""
    except OSError:
        return b""


def _report(name: str, content: bytes | None, html: str) -> dict[str, Any]:
    """Return the document of a report; ``content`` is None if there is only HTML."""
    document: dict[str, Any] = {
        "name": name,
        "kind": "",
        "created": "",
        "machine": "",
        "sentences": [],
        "columns": [],
        "rows": [],
        "page": html,
        "error": "",
    }
    if content is None:
        return document
    try:
        values = json.loads(content)
        schema = "parity" if isinstance(values, list) else values["schema"]
        kind, sentences, columns, rows = _TABLES[schema](values)
        machine = {} if isinstance(values, list) else values["machine"]
        return {
            **document,
            "kind": kind,
            "created": "" if isinstance(values, list) else str(values["created"])[:40],
            "machine": str(machine.get("processor", ""))[:_LONGEST],
            "sentences": [str(sentence)[: 2 * _LONGEST] for sentence in sentences[:_MOST_ROWS]],
            "columns": list(columns),
            "rows": [[str(cell)[:_LONGEST] for cell in row] for row in rows[:_MOST_ROWS]],
        }
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return {**document, "error": _UNKNOWN}


def _bench(values: Any) -> Table:
    rows = []
    for step in values["steps"]:
        load = f"{_number(step['rate'])}/s" if step["rate"] else _count(step["connections"], "connection")
        latency = step["latency_ms"] or {}
        failures = sum(failure["count"] for failure in step["errors"])
        state = "valid" if step["valid"] and step["stable"] else "; ".join(step["invalid_reasons"]) or "not steady"
        times = [_milliseconds(latency.get(name)) for name in ("p50", "p95", "p99")]
        rows.append([load, f"{_number(step['throughput'])}/s", *times, _number(failures), state])
    target = values["target"]
    sentences = [f"{target['model']} {target['model_version']} on {target['engine'] or 'a server'}."]
    if (limit := values.get("limit")) and limit["rate"]:
        sentences.append(f"It holds {_number(limit['rate'])} requests a second: {limit['reason']}.")
    return "bench", sentences, ("Load", "Answers", "p50", "p95", "p99", "Failed", "Measurement"), rows


def _optimization(values: Any) -> Table:
    baseline = next(row for row in values["rows"] if row["variant"] == "baseline")
    original = baseline["timings"][0]["seconds"] if baseline["timings"] else None
    rows = []
    for row in values["rows"]:
        seconds = row["timings"][0]["seconds"] if row["timings"] else None
        agreement = row["agreement"] or {}
        labels = agreement.get("labels")
        rows.append(
            [
                row["title"],
                row["verdict"],
                _milliseconds(seconds and seconds * 1000),
                f"{original / seconds:.2f} times" if original and seconds else "–",
                "–" if labels is None else f"{labels:.1%}",
                row["reason"],
            ]
        )
    chosen = next((row for row in values["rows"] if row["verdict"] == "chosen"), None)
    sentences = [f"{chosen['title']} is chosen: {chosen['reason']}." if chosen else "The original weights stay."]
    sentences += [f"{values['inputs']} inputs were compared.", *values["disturbances"]]
    batch = values["batch_sizes"][0]
    return "optimize", sentences, ("Weights", "Verdict", f"Batch of {batch}", "Speed", "Labels", "Reason"), rows


def _tuning(values: Any) -> Table:
    rows = [
        [
            _setting(trial["setting"]),
            f"{_number(trial['rate'])}/s",
            _milliseconds(trial["latency"] and trial["latency"] * 1000),
            f"{_number(trial['throughput'])}/s",
            f"{trial['failed']:.1%}",
        ]
        for trial in values["trials"]
    ]
    target = values["target"]
    goal = f"{target['statistic']} of at most {_milliseconds(target['seconds'] * 1000)}"
    chosen = values["chosen"]
    result = f"{_setting(chosen['setting'])} is chosen for a {goal}." if chosen else f"No setting keeps a {goal}."
    return "tune", [result, *values["reasons"]], ("Setting", "Load", target["statistic"], "Answers", "Failed"), rows


def _parity(values: Any) -> Table:
    rows = []
    for outcome in values:
        different = len({mismatch["case"] for mismatch in outcome["different"]})
        documented = len({mismatch["case"] for mismatches in outcome["documented"].values() for mismatch in mismatches})
        counts = (outcome["cases"], outcome["equal"], documented, different)
        rows.append([outcome["name"], *map(_number, counts)])
    total = sum(len(outcome["different"]) for outcome in values)
    result = "Every difference is documented." if not total else "There are differences that are not documented."
    return "parity", [result], ("Archive", "Cases", "Equal", "Documented", "Different"), rows


_TABLES: dict[str, Callable[[Any], Table]] = {
    "torchmar-bench/1": _bench,
    "torchmar-optimization/1": _optimization,
    "torchmar-tuning/1": _tuning,
    "parity": _parity,
}


def _setting(setting: Any) -> str:
    parts = [_count(setting[f"{noun}s"], noun) for noun in ("worker", "thread")]
    parts.append(f"batch of {setting['batch_size']}")
    parts += [f"{setting['delay_ms']} ms delay"] if setting["delay_ms"] else []
    parts += [f"{setting[stage]} for {stage}" for stage in ("preprocess", "postprocess") if setting[stage]]
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} ms" if abs(value) < 100 else f"{value:,.0f} ms"
