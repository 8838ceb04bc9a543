"""Findings about optimised weights: the section ``optimized`` of a handler's options, its files and their proof."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from torchmar.checks import formats
from torchmar.checks.finding import Content
from torchmar.manifest import Model
from torchmar.recipe import CARRIED_PACKAGE


def original_digests(content: Content, model: Model) -> dict[str, str]:
    """Return the SHA-256 of every file that decides what an archive's original weights answer, by its name.

    These are the weights, the files that keep their tensors, the model file, and the modules that it may import.
    Optimised weights belong to the original weights with these digests only.

    Args:
        content: the members of the archive.
        model: what the manifest says of it.
    """
    return {name: _sha256(content, name) for name in sorted(set(_original(content, model))) if name in content.sizes}


def _original(content: Content, model: Model) -> Iterator[str]:
    if name := model.serialized_file:
        yield name
        if name in content.sizes:
            with content.open(name) as stream:
                for external in formats.identify(stream, name).external:
                    yield str(PurePosixPath(name).parent / external)
        if name.endswith(".json"):  # the index of safetensors in several files
            yield from (other for other in content.sizes if other.endswith(".safetensors"))
    if model.model_file:
        yield model.model_file
        handler = f"{model.handler.partition(':')[0].removesuffix('.py')}.py"
        for name in content.sizes:
            if name.endswith(".py") and name != handler and not name.startswith(f"{CARRIED_PACKAGE}/"):
                yield name


def _sha256(content: Content, name: str) -> str:
    with content.open(name) as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
