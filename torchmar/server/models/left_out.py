"""Entries of watched folders that look like versions but are not served; each is reported once, with the reason."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from torchmar.archive import Archive
from torchmar.archive.store import is_archive
from torchmar.errors import TorchmarError
from torchmar.server.config import available_versions
from torchmar.server.config.available_versions import AvailableVersion

_UNCHANGED_S = 5.0  # time without a change after which an entry is not being copied


class LeftOut:
    """The entries that are not served, with the reasons."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], float]] = {}  # stamps, and times of the last change
        self._reported: dict[Path, tuple[int, ...]] = {}

    def report(self, folder: Path, available: Iterable[AvailableVersion], model: str | None = None) -> list[str]:
        """Return a message about each entry that is unchanged for some seconds; once, until it changes again.

        Args:
            folder: a model store or a base path.
            available: the complete archives in it.
            model: model of a base path, whose entries are numbers; None for a model store.
        """
        complete = list(available)
        paths, numbers = {version.path for version in complete}, {version.version for version in complete}
        messages = []
        for path in available_versions.entries(folder):
            number = available_versions.number(path) if model is not None else None
            if path in paths or number in numbers or not (number or is_archive(path)):
                continue
            try:
                stamp = available_versions.stamp(path)
            except OSError:
                continue  # it has been removed
            before, since = self._known.get(path, ((), 0.0))
            if stamp != before:
                self._known[path] = stamp, time.monotonic()
            elif self._reported.get(path) != stamp and time.monotonic() - since >= _UNCHANGED_S:
                self._reported[path] = stamp
                messages.append(f"not served: {_reason(path, model, number)}")
        return messages


def _reason(path: Path, model: str | None, number: str | None) -> str:
    if model is not None and number is None:
        return f"the name of {path} is no number of a version, such as 1.mar"
    if (path / "saved_model.pb").is_file():
        return (
            f"{path} is a SavedModel of TensorFlow: torchmar new {model} --from {path} writes a recipe, of which "
            "torchmar build makes an archive"
        )
    try:
        with Archive(path) as archive:
            _ = archive.manifest  # raises if it is none
            missing = available_versions.missing(archive)
    except (TorchmarError, OSError) as error:
        return str(error)
    return f"{path} is incomplete: {missing[0]} is missing" if missing else f"{path} changes while it is read"
