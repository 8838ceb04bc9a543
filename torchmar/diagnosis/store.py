"""Whether a model store holds what a server can load."""

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
    """Yield what `torchmar.checks` says of each archive, which are there twice, and what is none."""
    try:
        archives = stores.find(folder)
    except TorchmarError as problem:
        yield error("store", problem.message, problem.hint)
        return
    flawed = 0
    same: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in archives:
        try:
            findings = checks.check(path)
        except TorchmarError as problem:  # a link to nothing
            yield error("store", problem.message, problem.hint or f"remove {path}")
            flawed += 1
            continue
        with contextlib.suppress(TorchmarError), Archive(path, allow_flaws=True) as archive:
            same[archive.manifest.name, archive.manifest.version].append(path)
        flawed += any(finding.severity == "error" for finding in findings)
        for finding in findings:
            place = f"{path.name}!{finding.place}".rstrip("!")
            yield Finding(finding.severity, "store", f"{finding.code.name} {place}: {finding.cause}", finding.remedy)
    for (name, version), paths in same.items():
        if len(paths) > 1:
            yield error(
                "store",
                f"{name} {version} is there {len(paths)} times: {', '.join(path.name for path in paths)}",
                "the server loads the first and refuses the others (409): remove them, or give them other versions",
            )
    yield from _strangers(folder, archives, engine)
    if not archives:
        yield warning("store", f"{folder} has no archive", "torchmar build makes them")
    else:
        count = f"{len(archives)} archive{'' if len(archives) == 1 else 's'}"
        yield ok("store", f"{folder}: {count}, {len(archives) - flawed} of them without an error")


def _strangers(folder: Path, archives: list[Path], engine: EngineName) -> Iterator[Finding]:
    for path in sorted(folder.iterdir()):
        if path in archives or path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix == ".war":
            yield warning(
                "store",
                f"{path.name} is a workflow, which the built-in server does not run"
                if engine == "builtin"
                else f"{path.name} is a workflow: whoever has the token of the management API can have it run code",
                "remove it, unless it is used",
            )
        elif zipfile.is_zipfile(path) and _has_manifest(path):
            yield warning(
                "store",
                f"{path.name} is an archive by another name; TorchServe takes .mar",
                f"mv {path} {path.with_suffix('.mar')}",
            )
        else:
            yield warning(
                "store", f"{path.name} is no archive", "move it elsewhere: nothing here is for people to read"
            )


def _has_manifest(path: Path) -> bool:
    with zipfile.ZipFile(path) as content:
        return "MAR-INF/MANIFEST.json" in content.namelist()
