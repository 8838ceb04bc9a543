"""Packed contents from node to node: each front has an actor that reads its files for the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchmar.cluster import node_contents
from torchmar.errors import ArchiveError


class ContentReader:
    """The actor of a front, on its node; it ends with the front."""

    def read(self, path: str, offset: int) -> bytes:
        """Return a chunk of a packed content."""
        return node_contents.read_at(Path(path), offset)


def reader(directory: Any, digest: str) -> Callable[[int], bytes]:
    """Return what reads chunks of a content, from one front or another. Blocking.

    Args:
        directory: the actor.
        digest: of the content.
    """

    def read(offset: int) -> bytes:
        import ray

        failure: Exception | None = None
        for actor, path in ray.get(directory.sources.remote(digest)):
            try:
                chunk: bytes = ray.get(actor.read.remote(path, offset))
            except Exception as error:  # its front has ended, or its disk fails; others may have the content
                failure = getattr(error, "cause", None) or error  # without the traceback of its actor
            else:
                return chunk
        raise ArchiveError(f"no server of the cluster has the content {digest} any more: {failure or 'it was removed'}")

    return read
