"""``MAR-INF/MANIFEST.json``: TorchServe's description of an archive, as a value.

The schema is that of torch-model-archiver 0.12.0 and of TorchServe's
frontend reads (``createdOn``, ``runtime``, ``model``, ``archiverVersion``).
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from torchmar.errors import ManifestError

PATH = "MAR-INF/MANIFEST.json"

# torch-model-archiver's rule. TorchServe registers other names too, but then no URL addresses the model: the name is
# part of the path.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_\-.]*$"

# The time and the tool are constants, so that the same inputs give the same bytes
# at any time and with any release. The time is the earliest of the zip format.
CREATED_ON = "01/01/1980 00:00:00"
ARCHIVER_VERSION = "torchmar/1"


def _text(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


# TorchServe's reader takes a number or a flag as text.
Text = Annotated[str, BeforeValidator(_text)]
OptionalText = Annotated[str | None, BeforeValidator(_text)]


class _Record(BaseModel):
    # Unknown keys are kept: older and newer archivers write keys that torchmar does not use.
    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True, protected_namespaces=()
    )


class Model(_Record):
    """The ``model`` section; file names are relative to the archive's root."""

    model_name: Annotated[str, Field(pattern=NAME_PATTERN), BeforeValidator(_text)]
    handler: Annotated[str, Field(min_length=1)]
    model_version: OptionalText = None
    serialized_file: str | None = None
    model_file: str | None = None
    requirements_file: str | None = None
    config_file: str | None = None
    extensions: Any = None
    description: OptionalText = None
    envelope: OptionalText = None


class Manifest(_Record):
    """A whole manifest."""

    model: Model
    created_on: OptionalText = CREATED_ON
    runtime: str = "python"
    archiver_version: OptionalText = ARCHIVER_VERSION

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.model_name

    @property
    def version(self) -> str:
        """The model's version; TorchServe takes ``1.0`` for an archive without one."""
        return self.model.model_version or "1.0"

    def to_json(self) -> bytes:
        """Return the manifest as an archive contains it: TorchServe's keys, sorted."""
        document = self.model_dump(by_alias=True, exclude_none=True)
        return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def parse(text: bytes | str) -> Manifest:
    """Return the manifest in ``text``.

    Raises:
        ManifestError: the text is no JSON, or not in TorchServe's schema; every problem is named.
    """
    try:
        # As TorchServe's readers decode it: UTF-8, without a byte order mark.
        return Manifest.model_validate(json.loads(text.decode() if isinstance(text, bytes) else text))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            problems = [f"{'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in error.errors()]
            raise ManifestError(f"{PATH}: {'; '.join(problems)}") from None
        raise ManifestError(f"{PATH} is not JSON: {error}") from None


def is_name(text: str) -> bool:
    """Return whether ``text`` may be a model's name."""
    return re.fullmatch(NAME_PATTERN, text) is not None
