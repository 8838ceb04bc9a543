"""torch-model-archiver's class that writes an archive."""

from __future__ import annotations

from torchmar.model_archiver.model_archiver_config import ModelArchiverConfig
from torchmar.model_archiver.model_packaging import package_model


class ModelArchiver:
    """Write archives from Python."""

    @staticmethod
    def generate_model_archive(config: ModelArchiverConfig) -> None:
        """Write the archive of ``config``.

        Raises:
            ModelArchiverError: for the reasons of `package_model`.
        """
        package_model(config)
