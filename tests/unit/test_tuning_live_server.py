"""How long a setting is measured."""

from __future__ import annotations

import pytest

from torchmar.tuning.live_server import trial_seconds
from torchmar.tuning.target import parse_target


@pytest.mark.parametrize(
    ("target", "rate", "longest", "seconds"),
    [
        ("p99<50ms", 500, 47, 10),
        ("p99<50ms", 80, 47, 13.75),  # 1,100 requests: ten are beyond the percentile, and some more
        ("p99<50ms", 25, 47, 44),
        ("p99<50ms", 6, 47, 47),  # the budget allows no more
        ("p999<50ms", 500, 47, 22),
        ("mean<50ms", 6, 47, 20),
        ("p50<50ms", 6, 12, 12),
    ],
)
def test_a_trial_is_as_long_as_the_percentile_needs_and_the_budget_allows(
    target: str, rate: float, longest: float, seconds: float
) -> None:
    assert trial_seconds(parse_target(target), rate, longest) == pytest.approx(seconds)
