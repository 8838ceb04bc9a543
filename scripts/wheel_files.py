"""Files of a package on PyPI: from the installed package, or else from its wheel, which is not installed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".cache" / "wheels"


class WheelError(Exception):
    """The files are not available; the message has the remedy."""


def open_wheel(package: str, version: str, digest: str) -> zipfile.ZipFile:
    """Return a whole wheel, open for reading. It is downloaded once, and kept in ``.cache/wheels``.

    Args:
        package: name of the package on PyPI.
        version: the only accepted version.
        digest: SHA-256 of the wheel.

    Raises:
        WheelError: PyPI cannot be reached, or has another wheel.
    """
    path = CACHE / f"{digest}.whl"
    if not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            content = _download(f"{package}=={version}", folder).read_bytes()
        if (actual := hashlib.sha256(content).hexdigest()) != digest:
            raise WheelError(f"the wheel of {package} {version} is not the expected one: its SHA-256 is {actual}")
        CACHE.mkdir(parents=True, exist_ok=True)
        write(path, content)
    return zipfile.ZipFile(path)


def fetch(package: str, version: str, files: Mapping[str, str]) -> dict[str, bytes]:
    """Return the content of files of a package.

    Args:
        package: name of the package on PyPI.
        version: the only accepted version, because another may contain other weights.
        files: path in the wheel -> SHA-256 of the content.

    Raises:
        WheelError: PyPI cannot be reached, or a file is missing or has another content.
    """
    contents = _installed(package, version, files) or _downloaded(package, version, files)
    for name, digest in files.items():
        if name not in contents:
            raise WheelError(f"{package} {version} has no file {name}")
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise WheelError(f"{name} of {package} {version} is not the expected file: its SHA-256 is not {digest}")
    return contents


def write(path: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def _installed(package: str, version: str, files: Mapping[str, str]) -> dict[str, bytes]:
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return {}
    paths = {name: Path(str(distribution.locate_file(name))) for name in files}
    if distribution.version != version or not all(path.is_file() for path in paths.values()):
        return {}
    return {name: path.read_bytes() for name, path in paths.items()}


def _downloaded(package: str, version: str, files: Mapping[str, str]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = _download(f"{package}=={version}", folder)
        with zipfile.ZipFile(path) as wheel:
            members = set(wheel.namelist())
            return {name: wheel.read(name) for name in files if name in members}


def _download(requirement: str, folder: str) -> Path:
    """Return the wheel of a requirement, which pip has written into an empty folder."""
    options = ("--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet", "--dest", folder)
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    process = subprocess.run(command, capture_output=True, text=True)
    wheels = list(Path(folder).glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        lines = [line for line in process.stderr.splitlines() if line.startswith("ERROR")] or ["pip wrote no wheel"]
        raise WheelError(
            f"pip cannot download the package {requirement} ({lines[-1]}); where PyPI is reached, run `pip download "
            f"--no-deps {requirement}`, and here set PIP_FIND_LINKS to the folder of its wheel"
        )
    return wheels[0]
