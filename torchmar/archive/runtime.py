"""``MAR-INF/RUNTIME.json``: the environment that an archive requires, as a value."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import ValidationError

from torchmar.errors import ArchiveError
from torchmar.recipe import Runtime

FILE = "MAR-INF/RUNTIME.json"


def parse(data: bytes, members: Collection[str]) -> Runtime:
    """Return the environment in ``data``.

    Args:
        data: the content of the file.
        members: names of the archive's members, which must include the file names in the description.

    Raises:
        ArchiveError: it is no description of an environment, or names a file that the archive does not have.
    """
    try:
        runtime = Runtime.model_validate_json(data)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors()]
        raise ArchiveError(f"{FILE}: {'; '.join(problems)}") from None
    if "/" in runtime.requirements or runtime.requirements not in members:
        raise ArchiveError(f"{FILE} names {runtime.requirements}, which the archive does not have")
    if (wheels := runtime.wheels) and ("/" in wheels or not any(name.startswith(f"{wheels}/") for name in members)):
        raise ArchiveError(f"{FILE} names the folder {wheels}, which the archive does not have")
    return runtime
