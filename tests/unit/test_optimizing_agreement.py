"""The agreement of outputs and explanations."""

from __future__ import annotations

import numpy as np
import pytest

from torchmar.optimizing import agreement
from torchmar.optimizing.agreement import rank_agreement


def test_the_rows_of_a_call_are_inputs_of_their_own() -> None:
    calls = [{"out": np.arange(6.0).reshape(3, 2)}, {"out": np.zeros((5, 4))}]
    outputs, names = agreement.by_instance(calls, ["three.csv", "boxes.jpg"], [3, None])
    assert names == ["three.csv (row 1)", "three.csv (row 2)", "three.csv (row 3)", "boxes.jpg"]
    assert outputs[1]["out"].tolist() == [2.0, 3.0] and outputs[3]["out"].shape == (5, 4)


def test_the_rank_agreement_is_spearmans() -> None:
    values = np.array([[3.0, 1.0], [2.0, 5.0]])
    assert rank_agreement(values, np.exp(values)) == pytest.approx(1.0)
    assert rank_agreement(values, -values) == pytest.approx(-1.0)
    # scipy.stats.spearmanr([1, 2, 2, 3, 5], [2, 1, 4, 4, 3]).statistic
    tied = rank_agreement(np.array([1, 2, 2, 3, 5]), np.array([2, 1, 4, 4, 3]))
    assert tied == pytest.approx(0.39473684210526316)


def test_explanations_without_ranks_agree_only_with_their_like() -> None:
    flat, values = np.zeros(4), np.arange(4.0)
    assert rank_agreement(flat, flat) == 1.0
    assert rank_agreement(flat, values) == 0.0
    assert rank_agreement(values, np.full(4, np.nan)) == 0.0
    with pytest.raises(ValueError, match="shapes"):
        rank_agreement(values, np.arange(3.0))
