"""torch-model-archiver's helpers that tools call: the manifest of an archive."""

from __future__ import annotations

from argparse import Namespace

from torchmar.model_archiver.model_archiver_config import ModelArchiverConfig
from torchmar.model_archiver.packaging import manifest_of


class ModelExportUtils:
    """Functions that tools call before `package_model`."""

    @staticmethod
    def generate_manifest_json(config: ModelArchiverConfig | Namespace) -> str:
        """Return the text of the manifest for the options."""
        options = config if isinstance(config, Namespace) else Namespace(**vars(config))
        return manifest_of(options).to_json().decode()
