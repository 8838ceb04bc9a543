"""torchmar.worker.process.rows joins and splits batches only where it is certain which value is whose."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest

from torchmar.worker.process import rows

Pair = namedtuple("Pair", "values lengths")
ARRAY = np.arange(6).reshape(3, 2)
LENGTHS = np.array([1, 2, 3])


@pytest.mark.parametrize(
    "batch",
    [
        ARRAY,
        {"values": ARRAY, "lengths": LENGTHS},
        (ARRAY, LENGTHS),
        Pair(ARRAY, LENGTHS),
        {"values": ARRAY, "columns": (ARRAY, LENGTHS)},
    ],
    ids=["array", "mapping", "tuple", "named tuple", "nested"],
)
def test_a_batch_that_is_split_and_joined_is_the_same(batch: Any) -> None:
    parts = rows.split(batch, 3)
    assert parts and len(parts) == 3
    assert {rows.batch_key(part) for part in parts} == {rows.batch_key(parts[0])}
    joined = rows.join(parts)
    assert type(joined) is type(batch)
    assert repr(joined) == repr(batch)


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ([{"score": 1}, {"score": 2}, {"score": 3}], [[{"score": 1}], [{"score": 2}], [{"score": 3}]]),
        (["a", "b", "c"], [["a"], ["b"], ["c"]]),
        ([1, "b", 3], None),
        (["a", "b"], None),
        ([ARRAY, ARRAY, ARRAY], None),
        ([ARRAY, LENGTHS[:2], LENGTHS[:1]], None),
        ((ARRAY, ARRAY, ARRAY), None),
        (("a", "b", "c"), None),
        ({"values": ARRAY, "texts": ["a", "b", "c"]}, None),
        ({"values": ARRAY, "count": 3}, None),
        (ARRAY.T, None),
        (np.float32(1), None),
        ({}, None),
        (None, None),
    ],
)
def test_an_output_is_split_only_where_each_part_has_one_owner(output: Any, parts: list[Any] | None) -> None:
    assert rows.split(output, 3) == parts


@pytest.mark.parametrize("output", [None, "text", (), ARRAY, {"count": 3}])
def test_the_output_of_one_request_is_not_changed(output: Any) -> None:
    (part,) = rows.split(output, 1) or ()
    assert part is output
