"""An archive that does not load gets TorchServe's error, with and without checks of archives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import strange_archives
from tests.support.outcomes import mismatches
from torchmar.parity import EnginePair, engine_pair


@pytest.fixture(scope="module", params=["true", "false"])
def pair(request: pytest.FixtureRequest) -> Iterator[EnginePair]:
    with engine_pair(config={"torchmar_check_archives": request.param}) as running:
        yield running


@pytest.mark.parametrize("name", strange_archives.BROKEN)
def test_an_archive_that_does_not_load_gets_the_same_error(pair: EnginePair, name: str, tmp_path: Path) -> None:
    assert mismatches(pair.archive(strange_archives.broken(tmp_path, name), corners=False)) == []
