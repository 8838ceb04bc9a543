"""The Pareto front as a picture: latency against throughput, with the memory of each setting."""

from __future__ import annotations

import math

from torchmar.load import svg, svg_style
from torchmar.load.svg_axis import Axis
from torchmar.tuning.completed import Tuning
from torchmar.tuning.explanation import pareto_front
from torchmar.tuning.prediction import Prediction
from torchmar.tuning.space import Setting
from torchmar.tuning.target import milliseconds

_LINES = 5  # largest number of settings
_SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.88, 0.94, 0.98)  # parts of the capacity at which latency is predicted
_TOO_LATE = 8  # factor of the target above which points are not drawn


def draw(tuning: Tuning) -> str:
    """Return the picture as SVG: latency against rate of the settings of the front, the trials and the target."""
    target, best = tuning.question.target, tuning.result.best
    lines = [
        svg.Line(
            _label(prediction),
            _points(tuning, prediction),
            colour=0 if best and prediction.setting == best.setting else 2 + index,
        )
        for index, prediction in enumerate(_chosen(tuning))
    ]
    measured = [
        svg.Point(trial.rate, trial.latency * 1000, f"{trial.setting}: {milliseconds(trial.latency)}")
        for trial in tuning.record.trials
        if trial.latency is not None and trial.latency < _TOO_LATE * target.seconds
    ]
    marks: list[svg.Mark] = [*lines]
    if measured:
        marks.append(svg.Points("measured", measured, colour=1, shape="cross"))
    if best and best.latency:
        point = svg.Point(best.rate, best.latency * 1000, str(best.setting))
        marks.append(svg.Points("chosen", [point], colour=1))
    marks.append(svg.Rule(target.seconds * 1000, str(target)))
    chart = svg.chart(
        marks,
        Axis("requests/s", low=0),
        Axis(f"{tuning.compared.name}, ms", log=True),
        title=f"{tuning.name} {tuning.version}: latency against rate, by workers x threads",
        description="Predicted latency against rate of the settings that no other exceeds in rate, latency and memory.",
        end_labels=False,
        width=640,
        height=380,
    )
    return svg_style.standalone(chart)


def _chosen(tuning: Tuning) -> list[Prediction]:
    """Return the chosen setting, and the best one of each other layout of workers and threads, first from the front."""
    best = tuning.result.best
    layouts: dict[object, Prediction] = {}
    throughput = tuning.question.rate is None

    def by_rate(prediction: Prediction) -> tuple[float, Setting]:
        return -(prediction.rate if throughput else prediction.capacity), prediction.setting

    front = pareto_front(tuning.result.predictions, throughput=throughput)
    of_best = [prediction for prediction in tuning.result.predictions if best and prediction.setting == best.setting]
    for prediction in [*of_best, *sorted(front, key=by_rate), *sorted(tuning.result.predictions, key=by_rate)]:
        layouts.setdefault(prediction.setting.layout, prediction)
    return list(layouts.values())[:_LINES]


def _points(tuning: Tuning, prediction: Prediction) -> list[tuple[float, float | None]]:
    points: list[tuple[float, float | None]] = []
    for share in _SHARES:
        rate = share * prediction.capacity
        latency = tuning.predictor.latency(prediction.setting, rate)
        if math.isfinite(latency) and latency < _TOO_LATE * tuning.question.target.seconds:
            points.append((rate, latency * 1000))
    return points


def _label(prediction: Prediction) -> str:
    setting: Setting = prediction.setting
    stages = f", stage {setting.preprocess}" if setting.preprocess else ""
    memory = prediction.memory / 2**20
    return f"{setting.workers} x {setting.threads}, batch {setting.batch_size}{stages}, {memory:,.0f} MiB"
