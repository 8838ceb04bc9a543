"""Archives of a handler of one file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support.servers import ECHO
from torchmar import archive, recipe


def pack_handler(
    store: Path,
    code: str = ECHO,
    *,
    name: str = "made",
    version: str = "1.0",
    folder: Path | None = None,
    disk: Mapping[str, str | bytes] | None = None,
    **keys: object,
) -> Path:
    """Pack a handler of one file into a store; return the archive ``NAME-VERSION.mar``.

    Args:
        store: a folder, which need not exist.
        code: code of the handler.
        name: name of the model.
        version: version of the model.
        folder: folder of the recipe and the handler, with further files; None: a temporary folder.
        disk: further files of the recipe, by their paths.
        keys: further keys of the recipe.
    """
    with contextlib.ExitStack() as stack:
        source = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for path, text in {"handler.py": code, **(disk or {})}.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(text if isinstance(text, bytes) else text.encode())
        document = {"name": name, "version": version, "handler": "handler.py", **keys}
        members = archive.collect_members(recipe.Recipe.model_validate(document), source)
        return archive.pack(members, store / f"{name}-{version}.mar").path
