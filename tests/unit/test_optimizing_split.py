"""The split of inputs into those that calibrate and those that judge."""

from __future__ import annotations

import hashlib
import random

from torchmar.optimizing.split import split, total_for


def digests(count: int) -> list[str]:
    return [hashlib.sha256(str(each).encode()).hexdigest() for each in range(count)]


def test_each_input_is_on_one_side_whatever_the_order() -> None:
    inputs = digests(40)
    sides = split(inputs)
    assert (len(sides.calibration), len(sides.held_out)) == (10, 30)
    assert sorted(sides.calibration + sides.held_out) == list(range(40))
    shuffled = random.Random(0).sample(inputs, 40)
    other = split(shuffled)
    assert {shuffled[place] for place in other.calibration} == {inputs[place] for place in sides.calibration}


def test_equal_inputs_are_never_on_both_sides() -> None:
    inputs = digests(8) * 3
    sides = split(inputs)
    assert (len(sides.calibration), len(sides.held_out)) == (2, 6)
    assert not {inputs[place] for place in sides.calibration} & {inputs[place] for place in sides.held_out}


def test_few_inputs_all_judge_and_many_calibrate_no_more() -> None:
    assert split(digests(3)).calibration == ()
    assert split([]).held_out == ()
    assert len(split(digests(2000)).calibration) == 128


def test_the_total_for_a_number_of_held_out_inputs_is_the_least() -> None:
    for held_out in (1, 29, 59, 299, 1000):
        total = total_for(held_out)
        assert len(split(digests(total)).held_out) >= held_out > len(split(digests(total - 1)).held_out)
