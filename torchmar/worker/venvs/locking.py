"""Writing the lock file of a recipe's runtime with uv, and its wheels with pip."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from torchmar import atomic, recipe, strict_yaml, yaml_editing
from torchmar.checks import requirements as requirement_files
from torchmar.errors import TorchmarError
from torchmar.recipe import Runtime
from torchmar.worker.venvs import interpreters, uv

_EXTRA = "worker"
_YAML = "pyyaml"  # TorchServe imports it without requiring it
# With server_packages, these come from the server: an archive that needs another torch should lock all packages.
_SERVER = ("torch", "torchvision", "torchaudio")
_NEVER = "python_version < '0'"


@dataclass(frozen=True)
class Lock:
    """A written lock file.

    Attributes:
        path: path of the file.
        packages: number of packages in it.
        wheels: folder of its wheels; None: no wheels were downloaded.
        size: bytes of the wheels.
    """

    path: Path
    packages: int
    wheels: Path | None
    size: int


def lock(
    path: Path,
    *,
    requirements: Path | None = None,
    wheelhouse: bool = False,
    upgrade: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Lock:
    """Write the lock file that the runtime of a recipe names.

    Versions in an earlier lock file are kept if possible. Only wheels are locked, because a server must not build
    packages.

    Args:
        path: the recipe or its folder.
        requirements: requirements file to lock, in addition to ``requires`` of the recipe; default:
            ``requirements.txt`` beside the recipe, if there is one.
        wheelhouse: whether to also download the wheels for this platform; the recipe's ``wheels`` names their folder,
            and is added if it is missing.
        upgrade: whether to replace versions of an earlier lock file with the newest ones.
        log: called with each line of output.

    Raises:
        RecipeError: the recipe has a problem, or has no ``runtime``.
        TorchmarError: the packages cannot be resolved or downloaded; the lock file and the wheels are then unchanged.
    """
    file = recipe.file_of(path)
    text = strict_yaml.read(file, f"a recipe is a file called {recipe.FILE_NAME}, or the folder that holds one")
    runtime = recipe.parse(text, str(file)).runtime
    folder = file.parent
    if runtime is None:
        hint = 'add one: runtime: {python: "3.11", requirements: lock.txt}'
        raise TorchmarError(f"{file} has no runtime", hint=hint)
    target = folder / runtime.requirements
    source = requirements
    default = folder / "requirements.txt"
    if source is None and default.is_file() and default.resolve() != target.resolve():
        source = default
    wheels = folder / (runtime.wheels or "wheels") if wheelhouse or runtime.wheels else None
    if wheels and not runtime.wheels:
        text = yaml_editing.edit(text, {("runtime", "wheels"): wheels.name}, str(file))
    with tempfile.TemporaryDirectory(prefix="torchmar-lock-") as scratch:
        compiled = _compile(runtime, folder, source, target, Path(scratch), upgrade=upgrade, log=log)
        downloaded = Path(scratch) / "wheels"
        if wheels:
            _download(runtime, compiled, downloaded, log)
            index = f"--no-index\n--find-links {wheels.name}\n"
        content = (
            f"# Made by torchmar lock for Python {runtime.python}.\n{index if wheels else ''}{compiled.read_text()}"
        )
        if wheels:
            _replace_wheels(downloaded, wheels)
        atomic.write_text(content, target)
    if wheels and not runtime.wheels:
        atomic.write_text(text, file)
    packages = sum(1 for line in requirement_files.lines(content) if line.requirement)
    size = sum(wheel.stat().st_size for wheel in wheels.glob("*.whl")) if wheels else 0
    return Lock(target, packages, wheels, size)


def _compile(
    runtime: Runtime,
    folder: Path,
    source: Path | None,
    target: Path,
    scratch: Path,
    *,
    upgrade: bool,
    log: Callable[[str], None],
) -> Path:
    """Write a lock file to a temporary folder; return its path."""
    requirements_file = scratch / "requirements.in"
    requirements_file.write_text("".join(f"{line}\n" for line in _wanted(runtime)), encoding="utf-8")
    overrides = scratch / "overrides.txt"
    overrides.write_text("".join(f"{line}\n" for line in _overrides(runtime, source)), encoding="utf-8")
    compiled = scratch / "lock.txt"
    if target.is_file():
        # If it contained paths of wheels, uv would not find other wheels.
        old = [line for line in target.read_text(encoding="utf-8").splitlines(True) if not line.startswith("--")]
        compiled.write_text("".join(old), encoding="utf-8")
    command = ["pip", "compile", str(requirements_file), *([str(source.absolute())] if source else []), "--output-file"]
    command += [str(compiled), "--generate-hashes", "--universal", "--only-binary", ":all:", "--no-header", "--quiet"]
    command += ["--python-version", runtime.python, "--python", sys.executable, "--overrides", str(overrides)]
    command += ["--no-annotate", *uv.PYTHON_DOWNLOADS, *(["--upgrade"] if upgrade else [])]
    try:
        uv.run(command, log, folder=folder)
    except uv.UvError as error:
        raise TorchmarError(f"the packages of {target.name} cannot be resolved: {error}") from None
    return compiled


def _wanted(runtime: Runtime) -> list[str]:
    return [*runtime.requires, *(() if runtime.server_packages else _worker_requirements())]


def _worker_requirements() -> Iterator[str]:
    """Yield the packages that a worker process imports: the requirements of the extra ``worker``."""
    yield _YAML
    for text in importlib.metadata.requires("torchmar") or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and marker.evaluate({"extra": _EXTRA}) and not marker.evaluate({"extra": ""}):
            yield f"{requirement.name}{requirement.specifier}"


def _overrides(runtime: Runtime, source: Path | None) -> list[str]:
    """Return overrides that exclude the server's packages."""
    if not runtime.server_packages:
        return []
    lines = list(runtime.requires)
    if source:
        lines += [line.requirement for line in requirement_files.lines(requirement_files.decode(source.read_bytes()))]
    names = {canonicalize_name(match[0]) for line in lines if (match := re.match(r"[\w.-]+", line))}
    return [f"{name} ; {_NEVER}" for name in _SERVER if name not in names]


def _download(runtime: Runtime, compiled: Path, target: Path, log: Callable[[str], None]) -> None:
    python = interpreters.find(runtime.python).path
    command = [sys.executable, "-m", "pip", "--python", python, "download", "--dest", str(target), "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--no-input", "--no-color", "--progress-bar", "off"]
    command += ["--disable-pip-version-check", "-r", str(compiled)]
    for links in filter(None, os.environ.get("UV_FIND_LINKS", "").split(",")):
        command += ["--find-links", links]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=target.parent,
    ) as process:
        assert process.stdout
        last = ""
        for line in process.stdout:
            last = line.strip() or last
            log(line.rstrip())
    if process.returncode:
        raise TorchmarError(f"the wheels of the lock file cannot be downloaded: {last.removeprefix('ERROR: ')}")


def _replace_wheels(downloaded: Path, wheels: Path) -> None:
    """Move the wheels into their folder, and remove other wheels from it."""
    try:
        wheels.mkdir(parents=True, exist_ok=True)
        names = {file.name for file in downloaded.glob("*.whl")}
        for file in downloaded.glob("*.whl"):
            part = atomic.temporary_path(wheels / file.name)
            shutil.copyfile(file, part)
            os.replace(part, wheels / file.name)
        for file in wheels.glob("*.whl"):
            if file.name not in names and _is_wheel(file.name):
                file.unlink()
    except OSError as error:
        raise TorchmarError(f"{wheels} cannot be written: {error.strerror}") from None


def _is_wheel(name: str) -> bool:
    try:
        parse_wheel_filename(name)
    except InvalidWheelFilename:
        return False
    return True
