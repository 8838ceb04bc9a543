"""The check of a model store: its archives, and files that are no archives."""

from __future__ import annotations

import contextlib
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from torchmar import checks
from torchmar.archive import Archive
from torchmar.archive import store as stores
from torchmar.diagnosis.finding import Finding, error, ok, warning
from torchmar.engines import DEFAULT, EngineName
from torchmar.errors import TorchmarError


def check(folder: Path, engine: EngineName = DEFAULT) -> Iterator[Finding]:
    """Yield the findings of `torchmar.checks` for each archive, versions with several archives, and other files."""
    try:
        archives = stores.find(folder)
    except TorchmarError as problem:
        yield error("store", problem.message, problem.hint)
        return
    faulty = 0
    by_version: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in archives:
        try:
            findings = checks.check(path)
        except TorchmarError as problem:  # a broken link
            yield error("store", problem.message, problem.hint or f"remove {path}")
            faulty += 1
            continue
        with contextlib.suppress(TorchmarError), Archive(path, allow_flaws=True) as archive:
            by_version[archive.manifest.name, archive.manifest.version].append(path)
        faulty += any(finding.severity == "error" for finding in findings)
        for finding in findings:
            place = f"{path.name}!{finding.place}".rstrip("!")
            yield Finding(finding.severity, "store", f"{finding.code.name} {place}: {finding.cause}", finding.remedy)
    for (name, version), paths in by_version.items():
        if len(paths) > 1:
            yield error(
                "store",
                f"{name} {version} has {len(paths)} archives: {', '.join(path.name for path in paths)}",
                "the server loads the first and refuses the others (409): remove them, or give them other versions",
            )
    yield from _other_files(folder, archives, engine)
    if not archives:
        yield warning("store", f"{folder} has no archive", "torchmar build makes them")
    else:
        count = f"{len(archives)} archive{'' if len(archives) == 1 else 's'}"
        yield ok("store", f"{folder}: {count}, {len(archives) - faulty} of them without errors")


def _other_files(folder: Path, archives: list[Path], engine: EngineName) -> Iterator[Finding]:
    for path in sorted(folder.iterdir()):
        if path in archives or path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix == ".war":
            yield warning(
                "store",
                f"{path.name} is a workflow, which the built-in server does not run"
                if engine != "torchserve"
                else f"{path.name} is a workflow: a client with the management token can run its code",
                "remove it, unless it is used",
            )
        elif zipfile.is_zipfile(path) and _has_manifest(path):
            yield warning(
                "store",
                f"{path.name} is an archive, but its name does not end with .mar",
                f"mv {path} {path.with_suffix('.mar')}",
            )
        else:
            yield warning(
                "store", f"{path.name} is no archive", "move it elsewhere: a model store is for archives only"
            )


def _has_manifest(path: Path) -> bool:
    with zipfile.ZipFile(path) as content:
        return "MAR-INF/MANIFEST.json" in content.namelist()
