"""The Pareto front as a picture: latency against throughput, with the memory of each setting."""

from __future__ import annotations

import math

from torchmar.load import svg
from torchmar.tuning.explanation import pareto_front
from torchmar.tuning.prediction import Prediction
from torchmar.tuning.target import milliseconds
from torchmar.tuning.tuner import Tuning


def draw(tuning: Tuning) -> str:
    """Return the picture as SVG: all settings, the front, the measured trials and the target."""
    target = tuning.question.target
    throughput = tuning.question.rate is None
    x_label = "highest rate within the target, requests/s" if throughput else "capacity, requests/s"
    front = pareto_front(tuning.result.predictions)
    rest = [each for each in tuning.result.predictions if each not in front and _drawable(each)]

    def points(members: list[Prediction]) -> list[svg.Point]:
        return [
            svg.Point(_x(each, throughput), each.latency * 1000, _text(each)) for each in members if _drawable(each)
        ]

    marks: list[svg.Mark] = [
        svg.Points("predicted", points(rest), colour=7, shape="hollow"),
        svg.Points("no other is better in all of rate, latency and memory", points(front), colour=0),
        svg.Points(
            "measured",
            [
                svg.Point(trial.rate, trial.latency * 1000, f"{trial.setting}: {milliseconds(trial.latency)}")
                for trial in tuning.record.trials
                if trial.latency is not None and not trial.saturated
            ],
            colour=1,
            shape="cross",
        ),
        svg.Rule(target.seconds * 1000, str(target)),
    ]
    if best := tuning.result.best:
        assert best.latency
        label = f"{best.setting.workers} x {best.setting.threads}, batch {best.setting.batch_size}"
        marks.append(svg.Points("", [svg.Point(best.rate, best.latency * 1000, str(best.setting), label)], colour=2))
    title = f"{tuning.name} {tuning.version}: settings by rate and {target.name}"
    chart = svg.chart(
        [mark for mark in marks if not isinstance(mark, svg.Points) or mark.points],
        svg.Axis(x_label),
        svg.Axis(f"{target.name}, ms", log=True),
        title=title,
        width=640,
        height=360,
    )
    return svg.standalone(chart)


def _drawable(each: Prediction) -> bool:
    return each.rate > 0 and math.isfinite(each.latency)


def _x(each: Prediction, throughput: bool) -> float:
    return each.rate if throughput else each.capacity


def _text(each: Prediction) -> str:
    return (
        f"{each.setting}: {each.rate:,.0f} requests/s, {milliseconds(each.latency)}, {each.memory / 2**20:,.0f} MiB; "
        f"{each.bound.value}"
    )
