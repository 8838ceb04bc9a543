"""The charts of a report as HTML figures, each with a table of its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape

from torchmar.load import svg, svg_style
from torchmar.load.histogram import Histogram
from torchmar.load.html_tables import NOTHING, table, with_range
from torchmar.load.numbers import number
from torchmar.load.results import Latency, Step
from torchmar.load.step_label import step_label
from torchmar.load.svg import Band, Line, Mark, Point, Points, Span, Whiskers
from torchmar.load.svg_axis import Axis
from torchmar.load.verdicts import counted

_PERCENTILES = (("p50", 0), ("p95", 1), ("p99", 4))
#: The ratio of the largest to the smallest latency from which a chart is logarithmic.
_LOG_FROM = 15
#: The percentages of the curve of percentiles, at equal distances on its axis.
_CURVE = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.995, 99.999)
_CURVE_TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
_MAX_CURVES = svg_style.COLOURS


def _figure(chart: str, caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = table(headings, ([escape(cell) for cell in row] for row in rows))
    return (
        f"<figure>{chart}<figcaption>{escape(caption)}</figcaption>"
        f'<details><summary>Table</summary><div class="scroll">{cells}</div></details></figure>\n'
    )


def _latency_axis(values: Iterable[float], label: str = "latency, ms") -> Axis:
    above = [value for value in values if value > 0]
    log = bool(above) and max(above) / min(above) >= _LOG_FROM
    return Axis(f"{label} (log)" if log else label, log=log)


def latency_charts(steps: Sequence[Step]) -> Iterator[str]:
    """Yield latency against the rate of open loops, and against the connections of closed loops."""
    kinds: tuple[tuple[str, Callable[[Step], float | None], str, str], ...] = (
        ("open", lambda step: step.rate, "requests/s", "Latency against rate"),
        ("closed", lambda step: float(step.connections), "connections", "Latency against connections"),
    )
    for kind, place, label, title in kinds:
        points = [(x, step) for step in steps if step.kind == kind and (x := place(step)) is not None]
        if len(points) > 1 and any(step.valid for _, step in points):
            yield _latency_chart(sorted(points, key=lambda pair: pair[0]), label, title, closed=kind == "closed")


def _latency_chart(steps: Sequence[tuple[float, Step]], label: str, title: str, closed: bool) -> str:
    usable = [(x, step.latency_ms) for x, step in steps if step.valid and step.latency_ms]
    values = [value for _, latency in usable for value in (latency.p50, latency.p99)]
    axis = _latency_axis(values)
    bottom = min(values, default=1.0) if axis.log else 0.0
    marks = [*_percentile_marks(usable), *_doubtful_marks(steps, bottom)]
    xs = [x for x, _ in steps]
    ticks = [(x, number(x)) for x in xs] if len(xs) <= 8 else None
    rows = [[step_label(step), *(_percentile_cell(step, name) for name, _ in _PERCENTILES)] for _, step in steps]
    loop = "Closed loop: a slow server gets fewer requests." if closed else "Open loop: requests are sent at the rate, "
    caption = loop if closed else loop + "however fast the answers are."
    chart = svg.chart(marks, Axis(label, ticks=ticks), axis, title=title, description=caption)
    return _figure(chart, f"{caption} Areas are 95 % intervals.", (label, "p50 ms", "p95 ms", "p99 ms"), rows)


def _percentile_marks(usable: Sequence[tuple[float, Latency]]) -> Iterator[Mark]:
    """Yield the intervals of percentiles, and their lines above them."""
    for name, colour in _PERCENTILES:
        intervals = [(x, *bounds) for x, latency in usable if (bounds := getattr(latency, f"{name}_interval"))]
        yield Whiskers(intervals, colour) if len(intervals) < 3 else Band(intervals, colour)
    for name, colour in _PERCENTILES:
        yield Line(name, [(x, getattr(latency, name)) for x, latency in usable], colour, markers=True)


def _doubtful_marks(steps: Sequence[tuple[float, Step]], bottom: float) -> Iterator[Mark]:
    """Yield the points of steps that are not stable, and at the bottom those of steps that are not valid."""
    unsteady = [
        Point(x, getattr(step.latency_ms, name), f"{step_label(step)}: not stable")
        for x, step in steps
        for name, _ in _PERCENTILES
        if step.valid and not step.stable and step.latency_ms
    ]
    yield Points("not stable", unsteady, 7, "hollow")
    invalid = [Point(x, bottom, f"{step_label(step)}: not valid") for x, step in steps if not step.valid]
    if invalid:
        yield Points("not valid", invalid, 7, "cross")


def _percentile_cell(step: Step, name: str) -> str:
    if not step.valid:
        return "not valid"
    latency = step.latency_ms
    return with_range(getattr(latency, name), getattr(latency, f"{name}_interval")) if latency else NOTHING


def percentile_curves(steps: Sequence[Step]) -> str:
    """Return the percentiles of latency of each step; empty without a valid step."""
    valid = [step for step in steps if step.valid and step.histogram.count]
    drawn = _spread(sorted(valid, key=lambda step: (step.kind, step.rate or step.connections)), _MAX_CURVES)
    if not drawn:
        return ""
    marks, values, rows = [], [], []
    last = 0.0
    for colour, step in enumerate(drawn):
        histogram = Histogram.from_json(vars(step.histogram))
        # If there are too few values, a high percentile is their maximum again.
        percents = [percent for percent in _CURVE if percent <= 100 * (1 - 1 / histogram.count)] or [0.0]
        latencies = [value / 1000 for value in histogram.percentiles(percents)]
        last = max(last, percents[-1])
        values += latencies
        marks.append(
            Line(step_label(step), [(_nines(p), value) for p, value in zip(percents, latencies, strict=True)], colour)
        )
        by_percent = dict(zip(percents, latencies, strict=True))
        rows.append(
            [
                step_label(step),
                *(number(by_percent[p], fixed=True) if p in by_percent else NOTHING for p in _CURVE_TICKS),
            ]
        )
    axis = _latency_axis(values)
    ticks = [(_nines(percent), _percent(percent)) for percent in _CURVE_TICKS if percent <= last]
    chart = svg.chart(marks, Axis("percentile", ticks=ticks), axis, title="Percentiles of latency")
    caption = "The share of requests that were answered within a time; from 99 on, each tick is a tenth as many."
    headings = ("step", *(f"{_percent(percent)} %" for percent in _CURVE_TICKS))
    return _figure(chart, caption, headings, rows)


def _nines(percent: float) -> float:
    return math.log10(100 / (100 - percent))


def _percent(percent: float) -> str:
    return f"{percent:.6g}"


def _spread(steps: Sequence[Step], count: int) -> list[Step]:
    """Return at most ``count`` steps, including the first and the last."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]


def timeline(step: Step) -> str:
    """Return the windows of a step: latency and requests; only requests if the step is not valid."""
    windows = step.windows
    if not windows:
        return ""
    middles = [window.start_s + window.duration_s / 2 for window in windows]
    warmup = [Span("warm-up, not counted", -step.warmup_s, 0.0)] if step.warmup_s else []
    x = Axis("seconds", low=-step.warmup_s, high=windows[-1].start_s + windows[-1].duration_s)
    marks: list[Mark] = [
        *warmup,
        Line("in flight", [(w.start_s + w.duration_s, float(w.in_flight)) for w in windows], 3, thin=True),
        Line("sent/s", [(m, w.sent / w.duration_s) for m, w in zip(middles, windows, strict=True)], 7),
        Line("answered/s", [(m, w.completed / w.duration_s) for m, w in zip(middles, windows, strict=True)], 2),
    ]
    charts = [svg.chart(marks, x, Axis("requests"), title=f"{step_label(step)}: requests", end_labels=False)]
    headings = ["from s", "sent", "answered", "failed", "in flight"]
    rows = [
        [number(w.start_s), f"{w.sent:,}", f"{w.completed:,}", f"{w.errors:,}", f"{w.in_flight:,}"] for w in windows
    ]
    if step.valid:
        charts.insert(0, _latency_in_time(step, warmup, x, middles))
        headings += ["p50 ms", "p99 ms"]
        for row, window in zip(rows, windows, strict=True):
            row += [NOTHING if v is None else number(v, fixed=True) for v in (window.p50_ms, window.p99_ms)]
        state = "The windows are stable." if step.stable else f"Not stable: {step.unstable_reason}."
        caption = f"Latency by the time when requests were to be sent. {state}"
    else:
        caption = f"Not valid: {'; '.join(step.invalid_reasons)}."
    return _figure(f'<div class="pair">{"".join(charts)}</div>', caption, headings, rows)


def _latency_in_time(step: Step, warmup: Sequence[Span], x: Axis, middles: Sequence[float]) -> str:
    latencies = [value for window in step.windows for value in (window.p50_ms, window.p99_ms) if value]
    axis = _latency_axis(latencies)
    bottom = min(latencies, default=1.0) if axis.log else 0.0
    failures = [
        Point(middle, bottom, f"{counted(window.errors, 'error')} at {number(window.start_s)} s")
        for middle, window in zip(middles, step.windows, strict=True)
        if window.errors
    ]
    marks: list[Mark] = [
        *warmup,
        Line("p99", [(middle, w.p99_ms) for middle, w in zip(middles, step.windows, strict=True)], 4, thin=True),
        Line("p50", [(middle, w.p50_ms) for middle, w in zip(middles, step.windows, strict=True)], 0),
        Points("windows with errors", failures, 4, "cross"),
    ]
    return svg.chart(marks, x, axis, title=f"{step_label(step)}: latency")


def server_split(steps: Sequence[Step]) -> str:
    """Return the mean times in the server for each step; empty without its metrics."""
    drawn = [step for step in steps if step.valid and step.server and _parts(step)]
    if not drawn:
        return ""
    names = [name for name in _PART_COLOURS if any(name in _parts(step) for step in drawn)]
    parts = [(name, [_parts(step).get(name) for step in drawn], _PART_COLOURS[name]) for name in names]
    chart = svg.chart(
        svg.stacked(parts, " ms"),
        _categories("step", drawn),
        Axis("mean, ms"),
        title="Time in the server",
        end_labels=False,
    )
    rows = [
        [
            step_label(step),
            *(
                number(value, fixed=True) if (value := _parts(step).get(name)) is not None else NOTHING
                for name in names
            ),
        ]
        for step in drawn
    ]
    caption = "Means from the server's metrics. The rest of the latency is the network, the client, and late sends."
    return _figure(chart, caption, ("step", *(f"{name} ms" for name in names)), rows)


_PART_COLOURS = {"queue": 1, "preprocess": 2, "inference": 0, "postprocess": 3, "other": 7}


def _parts(step: Step) -> dict[str, float]:
    split = step.server
    if split is None:
        return {}
    values = {
        "queue": split.queue_ms,
        "preprocess": split.preprocess_ms,
        "inference": split.inference_ms,
        "postprocess": split.postprocess_ms,
    }
    parts = {name: value for name, value in values.items() if value is not None}
    if split.total_ms is not None:
        parts["other"] = max(0.0, split.total_ms - sum(parts.values()))
    return parts


def _categories(label: str, steps: Sequence[Step]) -> Axis:
    ticks = [(float(index), step_label(step)) for index, step in enumerate(steps)]
    margin = 0.6 + max(0.0, (4 - len(steps)) / 2)  # so that few bars are not too wide
    return Axis(label, low=-margin, high=len(steps) - 1 + margin, ticks=ticks)


def batch_sizes(steps: Sequence[Step]) -> str:
    """Return the shares of batch sizes for each step; empty without the server's metrics."""
    counted = [
        (step, step.server.batch_sizes) for step in steps if step.valid and step.server and step.server.batch_sizes
    ]
    if not counted:
        return ""
    # Size 0 stands for batches larger than all buckets.
    sizes = sorted(
        {size for _, batches in counted for size, count in batches.items() if count}, key=lambda s: s or math.inf
    )
    names = {}
    for size in sizes:
        low = size // 2 + 1  # buckets end at powers of two
        names[size] = f"over {max(sizes)}" if not size else str(size) if low == size else f"{low}–{size}"
    shares = [{size: count / sum(batches.values()) for size, count in batches.items()} for _, batches in counted]
    parts = [
        (names[size], [100 * share.get(size, 0.0) for share in shares], index % svg_style.COLOURS)
        for index, size in enumerate(sizes)
    ]
    drawn = [step for step, _ in counted]
    chart = svg.chart(
        svg.stacked(parts, " % of batches"),
        _categories("step", drawn),
        Axis("share of batches, %", high=100),
        title="Batch sizes",
        end_labels=False,
    )
    rows = [[step_label(step), *(f"{batches.get(size, 0):,}" for size in sizes)] for step, batches in counted]
    return _figure(chart, "How many requests the server ran at once.", ("step", *names.values()), rows)
