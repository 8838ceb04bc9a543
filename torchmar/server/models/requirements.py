"""Install the requirements of an archive with pip: into a folder, or into a virtual environment (``useVenv``)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from torchmar.server.models import commands
from torchmar.server.telemetry import logs
from torchmar.worker.venvs import building, specification
from torchmar.worker.venvs.folder import Venv

_LINE_LENGTH = 500  # characters of a line of pip's output that are logged or shown in errors
_PIP = [sys.executable, "-m", "pip"]
_OPTIONS = ["--no-input", "--no-color", "--progress-bar", "off", "--disable-pip-version-check"]


class InstallError(Exception):
    """pip failed.

    Attributes:
        lines: the last lines of its output.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        super().__init__()
        self.lines = tuple(lines)


async def install(
    requirements_file: str, target: Path, *, model_name: str, archive_folder: Path, environment: Mapping[str, str]
) -> None:
    """Install requirements into a folder; a cancellation ends pip.

    Args:
        requirements_file: path of the file in the archive.
        target: folder for the packages.
        model_name: name for the log, which gets pip's output.
        archive_folder: folder with the archive's content; requirements may be files of the archive.
        environment: environment variables of pip.

    Raises:
        InstallError: pip failed.
    """
    command = [*_PIP, "install", "--target", str(target), "-r", requirements_file, *_OPTIONS]
    await _run(command, model_name, archive_folder, environment)


async def install_in_venv(
    requirements_file: str, folder: Path, *, model_name: str, archive_folder: Path, environment: Mapping[str, str]
) -> None:
    """Make a virtual environment with access to the server's packages, and install requirements there, as TorchServe
    does.

    Packages that the server has in a matching version are not installed again. A cancellation ends pip.

    Args:
        requirements_file: path of the file in the archive.
        folder: folder of the environment.
        model_name: name for the log, which gets pip's output.
        archive_folder: folder with the archive's content; requirements may be files of the archive.
        environment: environment variables of pip.

    Raises:
        InstallError: pip failed.
    """
    venv = Venv(folder)
    create = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    await _run(create, model_name, Path("/"), environment)
    building.show_server_packages(folder, specification.server_packages())
    # These options are the same as TorchServe's.
    install = ["install", "-U", "--upgrade-strategy", "only-if-needed", "-r", requirements_file]
    command = [*_PIP, "--python", str(venv.python), *install, *_OPTIONS]
    await _run(command, model_name, archive_folder, environment)


async def _run(command: list[str], model_name: str, folder: Path, environment: Mapping[str, str]) -> None:
    def log(line: str) -> None:
        logs.SERVER.info("pip for %s: %s", model_name, line[:_LINE_LENGTH])

    code, lines = await commands.run(command, log, folder=folder, environment=environment)
    if code:
        raise InstallError(line[:_LINE_LENGTH] for line in lines)
