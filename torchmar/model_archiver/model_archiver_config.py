"""The options of torch-model-archiver as a dataclass."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass, field, fields
from typing import Literal


@dataclass
class ModelArchiverConfig:
    """The content of an archive, and the place where it is written.

    Attributes:
        model_name: the model's name, and the archive's file name.
        handler: a handler of TorchServe or torchmar by name, or a file: ``h.py``, ``h:function``.
        version: the model's version.
        serialized_file: the weights.
        model_file: the Python file with the one class that a state dict fills.
        extra_files: more files and folders, separated by commas.
        runtime: ``python``, ``python3`` or ``LSP``.
        export_path: the folder that gets the archive.
        archive_format: ``default`` and ``zip-store`` write a ``.mar``, ``tgz`` a ``.tar.gz``, ``no-archive`` a folder.
        force: overwrite an archive that exists.
        requirements_file: packages that the server is to install.
        config_file: the model's configuration, YAML.
    """

    model_name: str
    handler: str
    version: str
    serialized_file: str | None = None
    model_file: str | None = None
    extra_files: str | None = None
    runtime: str = "python"
    export_path: str = field(default_factory=os.getcwd)
    archive_format: Literal["default", "zip-store", "tgz", "no-archive"] = "default"
    force: bool = False
    requirements_file: str | None = None
    config_file: str | None = None

    @classmethod
    def from_args(cls, args: Namespace) -> ModelArchiverConfig:
        """Return the options in what a command line was parsed to."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)})
