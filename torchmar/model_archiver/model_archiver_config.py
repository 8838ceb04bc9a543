"""The options of torch-model-archiver as a dataclass."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass, field, fields
from typing import Literal


@dataclass
class ModelArchiverConfig:
    """The content of an archive, and the folder where it is written.

    Attributes:
        model_name: name of the model and of the archive's file.
        handler: a handler of TorchServe or torchmar by name, or a file: ``h.py``, ``h:function``.
        version: the model's version.
        serialized_file: file of the weights.
        model_file: Python file with the only class, for a state dict.
        extra_files: further files and folders, separated by commas.
        runtime: ``python``, ``python3`` or ``LSP``.
        export_path: folder for the archive.
        archive_format: ``default`` and ``zip-store`` write a ``.mar``, ``tgz`` a ``.tar.gz``, ``no-archive`` a folder.
        force: whether to overwrite an existing archive.
        requirements_file: file with packages that the server should install.
        config_file: configuration of the model, YAML.
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
        """Return the options from a parsed command line."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)})
