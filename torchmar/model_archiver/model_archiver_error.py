"""The error of torch-model-archiver's Python interface."""

from __future__ import annotations

from torchmar.errors import ArchiveError


class ModelArchiverError(ArchiveError):
    """An archive cannot be packed."""
