"""torch-model-archiver's two functions that write an archive."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping

from torchmar.archive import BuiltArchive
from torchmar.archive.copying import MemberContent
from torchmar.checks import Composed, check_content
from torchmar.errors import TorchmarError
from torchmar.model_archiver.model_archiver_config import ModelArchiverConfig
from torchmar.model_archiver.model_archiver_error import ModelArchiverError
from torchmar.model_archiver.packaging import package

_LOG = logging.getLogger(__name__)


def package_model(config: ModelArchiverConfig | Namespace, manifest: str | None = None) -> BuiltArchive:
    """Write an archive; findings of the checks are logged.

    Args:
        config: the options; a Namespace may lack the optional ones.
        manifest: text of the manifest; None: it is made from the options.

    Returns:
        The written archive.

    Raises:
        ModelArchiverError: an option is wrong, a file is missing, the archive already exists, or no server could load
            it.
    """
    options = config if isinstance(config, Namespace) else Namespace(**vars(config))
    try:
        packed = package(options, manifest_text=manifest, inspect=_inspect)
    except ModelArchiverError:
        raise
    except TorchmarError as error:
        raise ModelArchiverError(error.message, hint=error.hint) from None
    _LOG.info("Successfully exported model %s to file %s", options.model_name, packed.path)
    return packed


def generate_model_archive(config: ModelArchiverConfig | Namespace) -> None:
    """Write an archive as `package_model` does; for the options of a command line there is ``torchmar-archiver``."""
    package_model(config)


def _inspect(members: Mapping[str, MemberContent]) -> None:
    findings = check_content(Composed(members))
    for finding in findings:
        _LOG.warning("%s: %s %s: %s", finding.severity, finding.code.name, finding.place, finding.cause)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        first = errors[0]
        raise ModelArchiverError(
            f"no server could load the archive: {first.code.name} {first.place}: {first.cause}", hint=first.remedy
        )
