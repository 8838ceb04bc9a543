"""Configurations and engines for tests of servers."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import pytest

from tests.support.paths import ROOT
from torchmar import properties
from torchmar.engines.addresses import free_addresses
from torchmar.engines.builtin import Builtin
from torchmar.engines.torchserve import TorchServe

ECHO = """
def handle(rows, context):
    return None if rows is None else [dict(row) for row in rows]
"""


def write_config(folder: Path, **more: str) -> Path:
    """Write the project's own configuration with free ports into ``folder``; return the file."""
    values = dict(properties.read(ROOT / "config.properties").values)
    values |= {**free_addresses(), **more}
    file = folder / "config.properties"
    file.write_text(properties.show(values))
    return file


class KilledTorchServe(TorchServe):
    """TorchServe that is killed when the context closes: its own end waits two seconds for further requests."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        super().__exit__(kind, error, trace)


#: The engines for tests of clients and of deployments, by name.
ENGINES = {engine.name: engine for engine in (KilledTorchServe, Builtin)}


on_both_engines = pytest.mark.parametrize("engine", ENGINES, scope="module")
