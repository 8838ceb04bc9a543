"""Packed contents that nodes read from each other: the actor of each front reads its files for the other nodes."""

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
    """Return a function that reads chunks of a content from any front that has it. Blocking.

    Args:
        directory: the directory of the cluster, an actor.
        digest: digest of the content.
    """

    def read(offset: int) -> bytes:
        import ray

        failure: Exception | None = None
        for actor, path in ray.get(directory.sources.remote(digest)):
            try:
                chunk: bytes = ray.get(actor.read.remote(path, offset))
            except Exception as error:  # the front has ended, or its disk fails; other fronts may have the content
                failure = getattr(error, "cause", None) or error  # the cause, without the traceback of the actor
            else:
                return chunk
        raise ArchiveError(f"no server of the cluster has the content {digest} any more: {failure or 'it was removed'}")

    return read
