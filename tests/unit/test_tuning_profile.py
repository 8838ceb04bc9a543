"""What profiles show about the machine."""

from __future__ import annotations

import pytest

from torchmar.tuning.profile import drift


def test_drift_is_the_change_from_the_first_round_to_the_last_in_spite_of_a_stall() -> None:
    steady = [[0.010, 0.010, 0.500], [0.012, 0.012, 0.012]]
    faster = [[0.10, 0.10], [0.10], [0.12]]
    assert drift([steady, faster]) == pytest.approx(0.2)


def test_one_round_has_no_drift() -> None:
    assert drift([[[0.01]]]) == 0
