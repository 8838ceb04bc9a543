"""Threads of OpenMP wait actively for a short time only, unless the user sets how long."""

from __future__ import annotations

import pytest

from torchmar import openmp


def test_threads_that_wait_give_their_core_away_soon() -> None:
    variables = openmp.short_wait({"PATH": "/bin"})
    assert int(variables["GOMP_SPINCOUNT"]) <= 5000
    assert variables["KMP_BLOCKTIME"] == "1"


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY"])
def test_the_users_wait_policy_is_kept(name: str) -> None:
    assert not openmp.short_wait({name: "7"})
