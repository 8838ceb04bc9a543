"""torchmar.server.run_folder keeps a second server out of a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchmar.errors import EngineError
from torchmar.server.run_folder import locked


def test_a_folder_has_one_server_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(EngineError, match=f"{tmp_path}: another server runs in this folder"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
