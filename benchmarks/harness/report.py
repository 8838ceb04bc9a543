"""The report of the measurements: tables, goals and a picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness.load import Figures
from harness.measures import Results
from harness.sides import Side
from torchmar.cli.terminal import show_table, table
from torchmar.load.results import Step
from torchmar.load.statistics import Interval, ratio_interval

_OURS, _SHIPPED, _BATCHES, _CEILING = "builtin", "torchserve", "torchserve-batches", "mosec"
_BASES = ("of as shipped", "of batches")
_WAYS = {"": _OURS, ", TorchServe's handler": "builtin-stock"}
_TITLES = {"tiny": "A perceptron of 64 features", "resnet": "ResNet-18 on 640x480 JPEGs", "digits": "Explanations"}


@dataclass(frozen=True)
class Goal:
    """A goal: ``found`` is compared with ``wanted``, both as text."""

    what: str
    found: str
    wanted: str
    met: bool


def show(results: Results, sides: Sequence[Side], models: Sequence[str], connections: Sequence[int]) -> None:
    """Print all tables with figures, then the goals, then the failures."""
    for model in models:
        for count in connections:
            _show_load(results, sides, model, count)
    _show_latency(results, sides)
    _show_busy(results, sides, models, connections)
    _show_memory(results, sides)
    _show_times(results, sides)
    reached = list(goals(results, connections))
    if reached:
        rows = [(goal.what, goal.found, goal.wanted, "yes" if goal.met else "NO") for goal in reached]
        _print("Goals", ("", "found", "wanted", "met"), rows)
    for failure in results.failures:
        print(f"\nfailed: {failure}")


def goals(results: Results, connections: Sequence[int]) -> Iterator[Goal]:
    """Yield the goals for which there are measurements."""
    for way, key in _WAYS.items():
        for count in connections:
            ours, shipped, ceiling = (results.load(side, "tiny", count) for side in (key, _SHIPPED, _CEILING))
            where = f"perceptron{way}, {_connections(count)}"
            if ours and shipped:
                yield _at_least(f"{where}: of TorchServe as shipped", ours.rate / shipped.rate, 6 if count == 1 else 10)
            if ours and ceiling:
                yield _at_least(f"{where}: of mosec", ours.rate / ceiling.rate, 1)
    for count in connections:
        ours, shipped = (results.load(side, "resnet", count) for side in (_OURS, _SHIPPED))
        where = f"ResNet-18, {_connections(count)}"
        if count == 1:
            continue  # one connection fills no batch
        if ours and shipped:
            yield _at_least(f"{where}: of TorchServe as shipped", ours.rate / shipped.rate, 8)
        if ours and results.floor:
            share = ours.rate / median(results.floor)
            yield Goal(f"{where}: of the handler alone", f"{share:.0%}", ">= 90%", share >= 0.9)
    yield from _busy_goals(results, connections)
    for model in ("resnet", "big"):
        ours_bytes, shipped_bytes = (results.bytes(side, model, 4) for side in (_OURS, _SHIPPED))
        if ours_bytes and shipped_bytes:
            ratio = ours_bytes / shipped_bytes
            yield _at_most(f"memory of four workers ({_title(model)}): of TorchServe's", ratio, 0.4)
    ours_seconds, shipped_seconds = (results.seconds(side, "scale") for side in (_OURS, _SHIPPED))
    if ours_seconds and shipped_seconds:
        yield _at_most("time from one worker to four: of TorchServe's", ours_seconds / shipped_seconds, 0.1)


_ROW, _LEFT, _BAR = 26, 260, 420  # pixels: the height of a bar, the space before it, the longest bar
_COLUMN = _LEFT + _BAR + 190


def draw(results: Results, sides: Sequence[Side], file: Path) -> None:
    """Write a PNG: a panel of bars for each measured quantity, each with its own scale, in two columns."""
    from PIL import Image, ImageDraw, ImageFont

    panels = list(_panels(results, sides))
    heights = [len(values) * _ROW + 44 for _, _, values in panels]
    half = next((count for count in range(len(panels)) if 2 * sum(heights[:count]) >= sum(heights)), len(panels))
    columns = [column for column in (panels[:half], panels[half:]) if column]
    height = 40 + max(sum(heights[:half]), sum(heights[half:]))
    page = Image.new("RGB", (_COLUMN * len(columns), height), (255, 255, 255))
    pen, font, bold = ImageDraw.Draw(page), ImageFont.load_default(15), ImageFont.load_default(18)
    for number, column in enumerate(columns):
        left, top = number * _COLUMN + _LEFT, 20
        for title, unit, values in column:
            pen.text((left - _LEFT + 20, top), title, (32, 33, 36), bold)
            top += 32
            longest = max(value for _, value in values)
            base = next((value for side, value in values if side.key == _SHIPPED), None)
            for side, value in values:
                width = max(2, round(_BAR * value / longest))
                pen.text((left - 12, top + _ROW / 2), side.title, (80, 83, 90), font, anchor="rm")
                pen.rectangle((left, top + 4, left + width, top + _ROW - 4), fill=_colour(side))
                ratio = f"   {value / base:.2g} x" if base and side.key != _SHIPPED else ""
                text = f"{_number(value)}{unit}{ratio}"
                pen.text((left + width + 8, top + _ROW / 2), text, (32, 33, 36), font, anchor="lm")
                top += _ROW
            top += 12
    page.save(file)


def _colour(side: Side) -> tuple[int, int, int]:
    if side.key.startswith(_OURS):
        return 178, 24, 43
    return (67, 110, 160) if side.managed else (150, 153, 158)


def _panels(results: Results, sides: Sequence[Side]) -> Iterator[tuple[str, str, list[tuple[Side, float]]]]:
    """Yield title, unit and bars of the quantities that have figures."""
    for model, count in (("tiny", 1), ("tiny", 16), ("tiny", 64), ("resnet", 16), ("digits", 8)):
        found = [(side, figures.rate) for side in sides if (figures := results.load(side.key, model, count))]
        if found:
            yield f"{_title(model)}, {_connections(count)}: requests a second", "", found
    for model in ("resnet", "big"):
        weights = [(side, size / 1e6) for side in sides if (size := results.bytes(side.key, model, 4))]
        if weights:
            yield f"Memory of four workers: {_title(model)}", " MB", weights
    for what, title in (("start", "From start to the first answer"), ("scale", "From one worker to four")):
        times = [(side, seconds) for side in sides if (seconds := results.seconds(side.key, what))]
        if times:
            yield title, " s", times


def _show_load(results: Results, sides: Sequence[Side], model: str, count: int) -> None:
    bases = [results.load(key, model, count) for key in (_SHIPPED, _BATCHES)]
    rows = []
    for side in sides:
        if figures := results.load(side.key, model, count):
            latencies = (f"{figures.p50 * 1000:.2f}", f"{figures.p99 * 1000:.2f}")
            ratios = _ratios(figures.rate, [base.rate if base else None for base in bases])
            spread = f"{results.spread(side.key, model, count):.0%}"
            rows.append((side.title, _number(figures.rate), spread, *ratios, *latencies, f"{figures.cpu:.2f}"))
    if not rows:
        return
    if model == "resnet" and results.floor:
        floor = median(results.floor)
        ratios = _ratios(floor, [base.rate if base else None for base in bases])
        rows.append(("torchmar's handler alone", _number(floor), "", *ratios, "", "", ""))
    head = ("", "requests/s", "spread", *_BASES, "p50 ms", "p99 ms", "CPU s / 1000")
    _print(f"{_title(model)}, {_connections(count)}", head, rows)


def _show_latency(results: Results, sides: Sequence[Side]) -> None:
    """Print latency at rates, with intervals of 95 % confidence, and the ratio of 99th percentiles to TorchServe's."""
    for model, rate in dict.fromkeys((model, rate) for _, model, rate in results.steps):
        base = _p99(results.step(_SHIPPED, model, rate))
        rows = []
        reasons: list[str] = []
        for side in sides:
            if not results.steps.get((side.key, model, rate)):
                continue
            step = results.step(side.key, model, rate)
            p99 = _p99(step)
            if step is None or step.latency_ms is None:
                rows.append((side.title, "invalid", "", "", ""))
                steps = results.steps[side.key, model, rate]
                reasons += sorted({f"{side.title}: {reason}" for step in steps for reason in step.invalid_reasons})
                continue
            if p99 is None:
                rows.append((side.title, f"{step.latency_ms.p50:.2f}", "too few requests", "", ""))
                continue
            ratio = ratio_interval(p99, base) if base and side.key != _SHIPPED else None
            rows.append(
                (
                    side.title,
                    f"{step.latency_ms.p50:.2f}",
                    f"{p99.value:.2f}",
                    f"{p99.low:.2f} to {p99.high:.2f}",
                    f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "",
                )
            )
        title = f"{_title(model)}, latency in ms at {rate:g} requests a second"
        _print(title, ("", "p50", "p99", "95 %", "p99 of as shipped"), rows)
        for reason in reasons:
            print(f"invalid: {reason}")


def _p99(step: Step | None) -> Interval | None:
    latency = step.latency_ms if step else None
    if latency is None or latency.p99_interval is None:
        return None
    return Interval(latency.p99, *latency.p99_interval)


def _show_busy(results: Results, sides: Sequence[Side], models: Sequence[str], connections: Sequence[int]) -> None:
    for neighbours in dict.fromkeys(key[0] for key in results.busy):
        for model, count in itertools.product(models, connections):
            rows = []
            for side in sides:
                if rounds := results.busy.get((neighbours, side.key, model, count)):
                    ceiling = results.busy.get((neighbours, _CEILING, model, count), [])
                    rates = [run.rate for run in rounds]
                    rate, p50, p99, cpu = (
                        median(getattr(run, name) for run in rounds) for name in ("rate", "p50", "p99", "cpu")
                    )
                    row = [side.title, _number(rate), f"{_number(min(rates))} to {_number(max(rates))}"]
                    row += [f"{_paired(rounds, ceiling, 'rate'):.2f} x" if ceiling else ""]
                    row += [f"{p50 * 1000:.2f}", f"{p99 * 1000:.2f}"]
                    row += [f"{_paired(rounds, ceiling, 'p99'):.2f} x" if ceiling else "", f"{cpu:.2f}"]
                    rows.append(row)
            if rows:
                head = ("", "requests/s", "from to", "of mosec", "p50 ms", "p99 ms", "of mosec", "CPU s / 1000")
                _print(f"{_title(model)}, {_connections(count)}, {_neighbours(neighbours)}", head, rows)


def _busy_goals(results: Results, connections: Sequence[int]) -> Iterator[Goal]:
    for neighbours, model in dict.fromkeys((key[0], key[2]) for key in results.busy):
        for count in connections:
            ours, ceiling = (results.busy.get((neighbours, side, model, count)) for side in (_OURS, _CEILING))
            if ours and ceiling:
                where = f"{_title(model)}, {_connections(count)}, {_neighbours(neighbours)}"
                yield _at_least(f"{where}: of mosec", _paired(ours, ceiling, "rate"), 0.9)
                yield _at_most(f"{where}: p99, of mosec's", _paired(ours, ceiling, "p99"), 1.0)


def _paired(ours: Sequence[Figures], others: Sequence[Figures], name: str) -> float:
    """Return the median of the rounds' ratios, each of two figures that were measured one directly after the other."""
    pairs = [(getattr(one, name), getattr(other, name)) for one, other in zip(ours, others, strict=False)]
    return median(one / other if other else float("inf") for one, other in pairs)


def _show_memory(results: Results, sides: Sequence[Side]) -> None:
    for model in dict.fromkeys(model for _, model, _ in results.memories):
        bases = [results.bytes(key, model, 4) for key in (_SHIPPED, _BATCHES)]
        rows = []
        for side in sides:
            one, four = (results.bytes(side.key, model, workers) for workers in (1, 4))
            if one and four:
                sizes = [f"{size / 1e6:.0f}" for size in (one, four, (four - one) / 3)]
                rows.append((side.title, *sizes, *_ratios(four, bases)))
        if rows:
            head = ("", "one worker MB", "four MB", "each further MB", *(f"four, {base}" for base in _BASES))
            _print(f"Memory of all processes at rest after load, shared pages once: {_title(model)}", head, rows)


def _ratios(value: float, bases: Sequence[float | None]) -> list[str]:
    """Return a figure relative to those of TorchServe, as shipped and with batches."""
    return [f"{value / base:.2f} x" if base else "" for base in bases]


def _show_times(results: Results, sides: Sequence[Side]) -> None:
    rows = []
    for side in sides:
        times = [results.seconds(side.key, what) for what in ("start", "register", "again", "scale")]
        if any(times):
            rows.append((side.title, *(f"{seconds:.2f}" if seconds else "" for seconds in times)))
    if rows:
        head = ("", "start to first answer", "registration to it", "the next", "one to four workers")
        _print("Times, seconds (the perceptron)", head, rows)


def _title(model: str) -> str:
    return _TITLES.get(model, "a large perceptron" if model == "big" else model)


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"


def _neighbours(count: int) -> str:
    return {0: "no neighbour", 1: "1 busy neighbour"}.get(count, f"{count} busy neighbours")


def _at_least(what: str, found: float, wanted: float) -> Goal:
    return Goal(what, f"{found:.2f} x", f">= {wanted:g} x", found >= wanted)


def _at_most(what: str, found: float, wanted: float) -> Goal:
    return Goal(what, f"{found:.0%}", f"<= {wanted:.0%}", found <= wanted)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _print(title: str, head: Sequence[str], rows: Sequence[Any]) -> None:
    print(f"\n{title}\n", flush=True)
    show_table(table(head, rows, right=head[1:]))
