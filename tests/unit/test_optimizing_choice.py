"""The choice among variants: the fastest of those that passed the gate, if it is certainly faster."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from torchmar.optimizing.choice import choose, speedup, timing
from torchmar.optimizing.results import Agreement, Row, Verdict


def row(name: str, milliseconds: float, verdict: Verdict = Verdict.SLOWER, *, spread: float = 0.01, **keys: Any) -> Row:
    source = random.Random(0)
    seconds = [milliseconds / 1000 * (1 + spread * source.uniform(-1, 1)) for _ in range(30)]
    return Row(variant=name, title=name, verdict=verdict, reason="", timings=(timing(1, seconds),), **keys)


BASELINE = row("baseline", 30, Verdict.BASELINE)


def verdicts(*rows: Row) -> dict[str, Verdict]:
    return {each.variant: each.verdict for each in choose((BASELINE, *rows), (1,))}


def test_the_fastest_that_passed_is_chosen() -> None:
    assert verdicts(row("a", 10), row("b", 5), row("c", 60)) == {
        "baseline": Verdict.BASELINE,
        "a": Verdict.SLOWER,
        "b": Verdict.CHOSEN,
        "c": Verdict.SLOWER,
    }


@pytest.mark.parametrize("verdict", [Verdict.REJECTED, Verdict.UNDECIDED])
def test_what_did_not_pass_is_never_chosen_whatever_its_speed(verdict: Verdict) -> None:
    assert verdicts(row("wrong", 1, verdict), row("right", 20)) == {
        "baseline": Verdict.BASELINE,
        "wrong": verdict,
        "right": Verdict.CHOSEN,
    }


def test_a_gain_that_may_be_chance_is_none() -> None:
    assert verdicts(row("noisy", 20, spread=0.9)) == {"baseline": Verdict.BASELINE, "noisy": Verdict.SLOWER}
    noisy = choose((BASELINE, row("noisy", 20, spread=0.9)), (1,))[1]
    assert "which may be chance" in noisy.reason
    assert verdicts(row("small", 29)) == {"baseline": Verdict.BASELINE, "small": Verdict.SLOWER}


def test_a_gain_within_the_drift_of_the_machine_is_none() -> None:
    begin, end = [0.030] * 30, [0.020] * 30
    drifting = dataclasses.replace(BASELINE, timings=(timing(1, begin, end),))
    assert drifting.timings[0].interval == (0.020, 0.030)
    original, variant = choose((drifting, row("late", 20), row("fast", 10, Verdict.REJECTED)), (1,))[:2]
    assert variant.verdict is Verdict.SLOWER
    assert "which may be chance" in variant.reason
    assert "nothing that agrees with it is certainly faster" in original.reason
    assert choose((drifting, row("fast", 10)), (1,))[1].verdict is Verdict.CHOSEN


def agreement(relative_error: float) -> Agreement:
    return Agreement(inputs=300, labels=1.0, cosine=1.0, relative_error=relative_error, worst_input="a.json")


def test_of_equally_fast_variants_that_with_the_nearest_answers_is_chosen() -> None:
    int8 = row("int8", 9.9, agreement=agreement(0.02))
    float32 = row("float32", 10, agreement=agreement(1e-6))
    half = row("half", 10.1, agreement=agreement(0.01))
    rows = {each.variant: each for each in choose((BASELINE, int8, float32, half), (1,))}
    assert rows["float32"].verdict is Verdict.CHOSEN
    assert rows["int8"].reason == "3.0 times as fast as the original; float32 is as fast, and nearer to its answers"
    assert rows["half"].reason == "3.0 times as fast as the original; float32 is faster"
    assert verdicts(row("int8", 9, agreement=agreement(0.02)), float32)["int8"] is Verdict.CHOSEN


def test_a_variant_without_times_is_not_chosen() -> None:
    untimed = Row(variant="a", title="a", verdict=Verdict.SLOWER, reason="")
    assert verdicts(untimed)["a"] is Verdict.SLOWER


def test_reasons_say_by_how_much() -> None:
    reasons = {each.variant: each.reason for each in choose((BASELINE, row("a", 10), row("b", 5), row("c", 60)), (1,))}
    assert reasons["a"] == "3.0 times as fast as the original; b is faster"
    assert reasons["b"] == "6.0 times as fast as the original"
    assert reasons["c"] == "0.50 times as fast as the original"


def stays_since(*rows: Row) -> str:
    return choose((BASELINE, *rows), (1,))[0].reason.removeprefix("it stays: ")


def test_what_may_be_faster_is_named_with_its_interval() -> None:
    assert stays_since(row("slow", 60)) == "nothing that agrees with it is faster"
    text = stays_since(row("slow", 60), row("noisy", 25, spread=0.5))
    assert text.startswith("nothing that agrees with it is certainly faster; the most promising is noisy, 1."), text
    assert text.endswith("with 95 % confidence)")


def test_why_the_original_stays_where_nothing_passed() -> None:
    assert stays_since(row("a", 1, Verdict.REJECTED)) == "nothing agrees with it"
    assert "too few inputs" in stays_since(row("a", 1, Verdict.REJECTED), row("b", 1, Verdict.UNDECIDED))
    assert stays_since() == "nothing else was measured"


def test_the_interval_of_a_speedup_contains_it() -> None:
    gain = speedup(row("a", 10), BASELINE, 1)
    assert gain is not None
    assert gain.value == pytest.approx(3)
    assert gain.low < 3 < gain.high
    assert speedup(row("a", 10), BASELINE, 8) is None
