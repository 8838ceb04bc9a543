"""A report of a load measurement as one HTML file: charts as inline SVG, no script, nothing from a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from html import escape
from typing import Literal

from torchmar.load import svg
from torchmar.load.histogram import Histogram
from torchmar.load.results import Bounds, Limit, Report, Step
from torchmar.load.step_label import step_label
from torchmar.load.svg import Axis, Band, Line, Mark, Point, Points, Span, Whiskers, number

Level = Literal["bad", "warn", "good", "note"]
_WORDS = {"bad": "Fault", "warn": "Caution", "good": "Good", "note": "Note"}
_PERCENTILES = (("p50", 0), ("p95", 1), ("p99", 4))
#: The least ratio of the largest to the smallest latency of a chart for which it is logarithmic.
_LOG_FROM = 15
#: The percents of the curve of percentiles, at equal distances on its axis.
_CURVE = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.995, 99.999)
_CURVE_TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
_MAX_CURVES = svg.COLOURS

_STYLE = """
*{box-sizing:border-box}
html{background:var(--page);-webkit-text-size-adjust:100%}
:root{--page:#f4f5f8;--bad:#b3202b;--warn:#8a5a00;--good:#1f6e41;--note:#3c5a96}
@media(prefers-color-scheme:dark){:root{--page:#0e1016;--bad:#ff8a8a;--warn:#f0c05a;--good:#7ad6a0;--note:#9dbcff}}
body{margin:0 auto;max-width:1180px;padding:16px 12px 48px;font:15px/1.5 system-ui,sans-serif;color:var(--text)}
h1{font-size:1.45rem;line-height:1.25;margin:.2em 0}
h2{font-size:1.1rem;margin:1.8em 0 .6em}
p{margin:.4em 0;max-width:75ch}
.about{color:var(--muted);max-width:none}
.verdicts{list-style:none;margin:1em 0;padding:0;display:grid;gap:8px}
.verdicts li{background:var(--paper);border-left:5px solid;border-radius:4px;padding:8px 12px;overflow-wrap:anywhere}
.verdicts b{margin-right:.4em}
.verdicts small{display:block;color:var(--muted);white-space:pre-wrap}
.bad{border-color:var(--bad)!important}.bad b{color:var(--bad)}
.warn{border-color:var(--warn)!important}.warn b{color:var(--warn)}
.good{border-color:var(--good)!important}.good b{color:var(--good)}
.note{border-color:var(--note)!important}.note b{color:var(--note)}
.scroll{overflow-x:auto;background:var(--paper);border-radius:6px;padding:4px 12px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
.wide{width:100%}
th,td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--grid);vertical-align:top;white-space:nowrap}
th{color:var(--muted);font-weight:600}
tr:last-child>*{border-bottom:0}
th:first-child,td:first-child{text-align:left;padding-left:0}
td.text{text-align:left;white-space:normal;overflow-wrap:anywhere}
td small{display:block;color:var(--muted);font-size:.82em}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:12px;align-items:start}
figure{margin:0;background:var(--paper);border-radius:6px;padding:12px;min-width:0}
.chart{display:block;width:100%;max-width:600px;margin:auto;height:auto}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:12px 24px}
body>figure{margin-bottom:12px}
figcaption{color:var(--muted);font-size:.88rem;margin-top:4px}
details{margin-top:6px;font-size:.92rem}
summary{cursor:pointer;color:var(--muted)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;background:var(--paper);border-radius:6px;
padding:12px;margin:0}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
@media(max-width:500px){dl{grid-template-columns:1fr}dd{margin-bottom:6px}}
@media print{body{max-width:none}figure,.scroll,dl{break-inside:avoid}}
"""


def html(report: Report) -> str:
    """Return a report as the text of an HTML file that loads nothing."""
    target = report.target
    model = f"{target.model} {target.model_version}".rstrip()
    engine = f" on {_ENGINES.get(target.engine, target.engine)}" if target.engine else ""
    body = [
        "<header>",
        f"<h1>Load on {escape(model)}{escape(engine)}</h1>",
        f'<p class="about">{escape(target.url)} · {escape(_PROTOCOLS[target.protocol])} · measured until '
        f"{escape(_time(report.created))} by torchmar {escape(report.torchmar)}</p>",
        "</header>",
        '<ul class="verdicts" aria-label="Verdict">',
        *(f'<li class="{level}"><b>{_WORDS[level]}</b>{text}</li>' for level, text in verdicts(report)),
        "</ul>",
        "<h2>Steps</h2>",
        f'<div class="scroll">{_summary(report)}</div>',
        _HOW_TO_READ,
        "<h2>Latency and load</h2>",
        *_figures(
            [
                *_latency_charts(report.steps),
                _percentile_curves(report.steps),
                _split(report.steps),
                _batches(report.steps),
            ]
        ),
        "<h2>Timelines</h2>",
        *(_timeline(step) for step in report.steps),
        "<p>Requests in flight that grow are a queue that grows: the rate is beyond the limit of the server.</p>",
        "<h2>Client and server</h2>",
        f'<div class="scroll">{_self_checks(report.steps)}</div>',
        "<p>Late sends, a busy client and other programs make latencies larger than the server's own: a step is not "
        "valid if one of them is beyond its bound.</p>",
        "<h2>Measured</h2>",
        _measured(report),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>Load on {escape(model)}</title>",
            f"<style>{svg.STYLE}{_STYLE}</style></head>",
            "<body>",
            *(part for part in body if part),
            "</body></html>",
            "",
        ]
    )


def _time(created: str) -> str:
    """Return a time of ISO 8601 in UTC as people read it: ``2026-11-29 12:40 UTC``."""
    date, _, time = created.partition("T")
    return f"{date} {time[:5]} UTC" if created.endswith("Z") and time else created


_ENGINES = {"builtin": "the built-in server", "torchserve": "TorchServe"}
_PROTOCOLS = {
    "torchserve": "TorchServe's API over HTTP",
    "kserve-v1": "KServe v1 over HTTP",
    "kserve-v2": "KServe v2 over HTTP",
    "grpc": "TorchServe's API over gRPC",
    "grpc-v2": "KServe v2 over gRPC",
}
_HOW_TO_READ = """<details><summary>How to read this</summary>
<p>In an open loop (a rate), latency counts from the moment when a request was to be sent, so that a stall of the server
is in the latency of every request that waited for it. In a closed loop (connections), each connection waits for its
answer before it sends again: a slow server gets fewer requests, and its latency looks better than users would find
it.</p>
<p>Small figures are the ends of 95 % confidence intervals. A step that is not valid has no figures, because they would
be those of the client or of other programs. A step that is not stable has figures of more than one state.</p>
</details>"""


def verdicts(report: Report) -> Iterator[tuple[Level, str]]:
    """Yield the statements at the top of a report, the worst first: level and HTML.

    Steps beyond a limit that was found have no cautions: that they fail and do not last is what was looked for.
    """
    steps = report.steps
    below = [step for step in steps if not report.saturated(step)]
    for step in steps:
        if step.wrong_answers:
            text = f"{_count(step.wrong_answers, 'wrong answer')} at {step_label(step)}, with the status of success."
            yield "bad", escape(text) + _small(_line(step.wrong_answer))
    invalid = [step for step in steps if not step.valid]
    if invalid:
        which = _some(invalid, steps, "valid")
        reasons = [(step, "; ".join(step.invalid_reasons)) for step in invalid]
        yield "bad", escape(f"{which}; there are no figures of {_them(invalid)}.") + _small(_each(reasons))
    for kind in dict.fromkeys(failure.kind for step in below for failure in step.errors):
        yield "warn", _failed(kind, below)
    unstable = [step for step in below if step.valid and not step.stable]
    if unstable:
        reasons = [(step, step.unstable_reason) for step in unstable]
        yield "warn", escape(f"{_some(unstable, steps, 'stable')}.") + _small(_each(reasons))
    for step in below:
        if not step.complete:
            yield "warn", escape(f"{step_label(step)} ended early, after {number(step.duration_s)} s.")
    if not report.complete:
        yield "warn", "The measurement was interrupted: steps are missing."
    if not steps:
        yield "warn", "There is no step."
    if report.limit:
        yield "note", _limit(report.limit)
    good = [step for step in below if step.valid and step.stable]
    if good:
        to_limit = " up to the limit" if len(below) < len(steps) else ""
        every = f"All {len(below)} steps{to_limit} are" if len(below) > 1 else f"The step{to_limit} is"
        which = every if len(good) == len(below) else f"{len(good)} of {len(below)} steps{to_limit} are"
        sent, failed = sum(step.sent for step in below), sum(step.failed for step in below)
        errors = f"{failed:,} failed" if failed else "none failed"
        yield "good", escape(f"{which} valid and stable; of {_count(sent, 'request')} {errors}.")
    if not report.requests.compared:
        yield "note", "Answers were not compared: no request has an expected answer."
    elif not any(step.wrong_answers for step in steps):
        yield (
            "good",
            escape(
                f"No wrong answer: those to {report.requests.compared} of {report.requests.count} requests were "
                "compared with the expected ones."
            ),
        )


def _some(chosen: Sequence[Step], steps: Sequence[Step], state: str) -> str:
    """Return ``200/s is not STATE``, ``2 of 5 steps are not STATE`` or ``none of 5 steps is STATE``."""
    if len(chosen) == 1:
        return f"{step_label(chosen[0])} is not {state}"
    if len(chosen) == len(steps):
        return f"None of {len(steps)} steps is {state}"
    return f"{len(chosen)} of {len(steps)} steps are not {state}"


def _them(steps: Sequence[Step]) -> str:
    return "it" if len(steps) == 1 else "them"


def _each(texts: Sequence[tuple[Step, str]]) -> str:
    """Return a line for each step, with its name if there are several."""
    return "\n".join(f"{step_label(step)}: {text}" if len(texts) > 1 else text for step, text in texts)


def _failed(kind: str, steps: Sequence[Step]) -> str:
    """Return the statement about the requests that failed in one way: how many of each step, and an example."""
    counts = [(step, failure) for step in steps for failure in step.errors if failure.kind == kind]
    parts = [
        f"{failure.count:,} of {step.sent:,} ({failure.count / max(1, step.sent):.2%}) at {step_label(step)}"
        for step, failure in counts
    ]
    return escape(f"Requests failed with {kind}: {', '.join(parts)}.") + _small(_line(counts[0][1].example))


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _limit(limit: Limit) -> str:
    if limit.rate is None:
        return escape(f"No limit was found: {limit.reason}.")
    if limit.interval is None:
        return escape(f"The server holds more than {number(limit.rate)} requests/s: {limit.reason}.")
    low, high = map(number, limit.interval)
    return escape(f"The server holds {low} requests/s, and not {high}: {limit.reason}.")


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


# Tables


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], wide: bool = False) -> str:
    """Return a table; cells are HTML."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table{' class=wide' if wide else ''}><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table>"


def _with_interval(value: float, interval: Bounds | None) -> str:
    ends = f"<small>{_figures_of(interval)}</small>" if interval else ""
    return number(value, fixed=True) + ends


def _figures_of(interval: Bounds) -> str:
    return " – ".join(number(end, fixed=True) for end in interval)


def _summary(report: Report) -> str:
    rows = []
    for step in report.steps:
        latency = step.latency_ms
        if not step.valid or latency is None:
            figures = ["–"] * 7
        else:
            figures = [
                _with_interval(step.throughput, step.throughput_interval),
                _with_interval(latency.p50, latency.p50_interval),
                number(latency.p90, fixed=True),
                _with_interval(latency.p95, latency.p95_interval),
                _with_interval(latency.p99, latency.p99_interval),
                number(latency.p999, fixed=True),
                number(latency.max, fixed=True),
            ]
        state = "stable" if step.stable else "not stable"
        if report.saturated(step):
            state = "saturated"
        if not step.valid:
            state = "not valid"
        failed = [f"{step.failed:,}", f"{step.wrong_answers:,}"]
        rows.append([escape(step_label(step)), state, f"{step.sent:,}", *figures, *failed])
    headings = ("step", "state", "sent", "answers/s", "p50 ms", "p90", "p95", "p99", "p99.9", "max", "failed", "wrong")
    return _table(headings, rows, wide=True)


def _self_checks(steps: Sequence[Step]) -> str:
    rows = []
    for step in steps:
        client, processes = step.client, step.processes
        other = number(client.other_load_cores) if client.other_load_cores is not None else "–"
        server = (
            [str(processes.count), number(processes.cpu_cores), f"{processes.memory_bytes / 2**20:,.0f}"]
            if processes
            else ["–"] * 3
        )
        rows.append(
            [
                escape(step_label(step)),
                number(client.send_delay_p99_ms),
                f"{client.busy_fraction:.0%}",
                other,
                *server,
                str(step.connections),
            ]
        )
    headings = (
        "step",
        "late sends p99 ms",
        "client busy",
        "other load cores",
        "server processes",
        "server cores",
        "server MiB",
        "connections",
    )
    return _table(headings, rows, wide=True)


def _measured(report: Report) -> str:
    machine, requests, target = report.machine, report.requests, report.target
    compared = f", {requests.compared} with expected answers" if requests.compared else ""
    rows = [
        ("Model", f"{target.model} {target.model_version}".rstrip()),
        ("Archive", f"SHA-256 {target.archive_digest}" if target.archive_digest else "not known"),
        ("Server", f"{target.url}, {'on the same machine' if target.local else 'on another machine'}"),
        ("Requests", f"{requests.source}: {requests.count}, {requests.bytes:,} bytes on average{compared}"),
        ("Machine", f"{machine.processor}, {machine.cores} cores, {' '.join(machine.flags)}"),
        ("System", f"{machine.system}, Python {machine.python}"),
    ]
    return "<dl>" + "\n".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows) + "</dl>"


# Charts


def _figures(figures: Iterable[str]) -> Iterator[str]:
    drawn = [figure for figure in figures if figure]
    yield f'<div class="charts">{"".join(drawn)}</div>' if drawn else "<p>There is nothing to draw.</p>"


def _figure(chart: str, caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    table = _table(headings, ([escape(cell) for cell in row] for row in rows))
    return (
        f"<figure>{chart}<figcaption>{escape(caption)}</figcaption>"
        f'<details><summary>Table</summary><div class="scroll">{table}</div></details></figure>\n'
    )


def _latency_axis(values: Iterable[float], label: str = "latency, ms") -> Axis:
    above = [value for value in values if value > 0]
    log = bool(above) and max(above) / min(above) >= _LOG_FROM
    return Axis(f"{label} (log)" if log else label, log=log)


def _latency_charts(steps: Sequence[Step]) -> Iterator[str]:
    kinds: tuple[tuple[str, Callable[[Step], float | None], str, str], ...] = (
        ("open", lambda step: step.rate, "requests/s", "Latency against rate"),
        ("closed", lambda step: float(step.connections), "connections", "Latency against connections"),
    )
    for kind, place, label, title in kinds:
        chosen = [(x, step) for step in steps if step.kind == kind and (x := place(step)) is not None]
        if len(chosen) > 1 and any(step.valid for _, step in chosen):
            yield _latency_chart(sorted(chosen, key=lambda pair: pair[0]), label, title, closed=kind == "closed")


def _latency_chart(steps: Sequence[tuple[float, Step]], label: str, title: str, closed: bool) -> str:
    usable = [(x, step.latency_ms) for x, step in steps if step.valid and step.latency_ms]
    marks: list[Mark] = []
    for name, colour in _PERCENTILES:
        intervals = [(x, *bounds) for x, latency in usable if (bounds := getattr(latency, f"{name}_interval"))]
        marks.append(Whiskers(intervals, colour) if len(intervals) < 3 else Band(intervals, colour))
    for name, colour in _PERCENTILES:
        marks.append(Line(name, [(x, getattr(latency, name)) for x, latency in usable], colour, markers=True))
    unsteady = [
        Point(x, getattr(step.latency_ms, name), f"{step_label(step)}: not stable")
        for x, step in steps
        for name, _ in _PERCENTILES
        if step.valid and not step.stable and step.latency_ms
    ]
    marks.append(Points("not stable", unsteady, 7, "hollow"))
    values = [value for _, latency in usable for value in (latency.p50, latency.p99)]
    axis = _latency_axis(values)
    bottom = min(values, default=1.0) if axis.log else 0.0
    spoiled = [(x, step) for x, step in steps if not step.valid]
    if spoiled:
        marks.append(
            Points("not valid", [Point(x, bottom, f"{step_label(step)}: not valid") for x, step in spoiled], 7, "cross")
        )
    xs = [x for x, _ in steps]
    ticks = [(x, number(x)) for x in xs] if len(xs) <= 8 else None
    rows = [
        [
            step_label(step),
            *(
                _range(getattr(step.latency_ms, name), getattr(step.latency_ms, f"{name}_interval"))
                if step.valid and step.latency_ms
                else "not valid"
                if not step.valid
                else "–"
                for name, _ in _PERCENTILES
            ),
        ]
        for _, step in steps
    ]
    loop = "Closed loop: a slow server gets fewer requests." if closed else "Open loop: requests are sent at the rate, "
    caption = loop if closed else loop + "however fast the answers are."
    chart = svg.chart(marks, Axis(label, ticks=ticks), axis, title=title, description=caption)
    return _figure(chart, f"{caption} Areas are 95 % intervals.", (label, "p50 ms", "p95 ms", "p99 ms"), rows)


def _range(value: float, interval: Bounds | None) -> str:
    return number(value, fixed=True) + (f" ({_figures_of(interval)})" if interval else "")


def _percentile_curves(steps: Sequence[Step]) -> str:
    valid = [step for step in steps if step.valid and step.histogram.count]
    drawn = _spread(sorted(valid, key=lambda step: (step.kind, step.rate or step.connections)), _MAX_CURVES)
    if not drawn:
        return ""
    marks, values, rows = [], [], []
    last = 0.0
    for colour, step in enumerate(drawn):
        histogram = Histogram.from_json(asdict(step.histogram))
        # A percentile beyond the number of values is the largest value again.
        percents = [percent for percent in _CURVE if percent <= 100 * (1 - 1 / histogram.count)] or [0.0]
        latencies = [value / 1000 for value in histogram.percentiles(percents)]
        last = max(last, percents[-1])
        values += latencies
        marks.append(
            Line(step_label(step), [(_nines(p), value) for p, value in zip(percents, latencies, strict=True)], colour)
        )
        by_percent = dict(zip(percents, latencies, strict=True))
        rows.append(
            [step_label(step), *(number(by_percent[p], fixed=True) if p in by_percent else "–" for p in _CURVE_TICKS)]
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
    """Return at most ``count`` steps, the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]


def _timeline(step: Step) -> str:
    """Return the windows of a step: latency and requests; of a step that is not valid only the requests."""
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
            row += ["–" if v is None else number(v, fixed=True) for v in (window.p50_ms, window.p99_ms)]
        state = "The windows are stable." if step.stable else f"Not stable: {step.unstable_reason}."
        caption = f"Latency by the time when requests were to be sent. {state}"
    else:
        caption = f"Not valid: {'; '.join(step.invalid_reasons)}."
    return _figure(f'<div class="pair">{"".join(charts)}</div>', caption, headings, rows)


def _latency_in_time(step: Step, warmup: Sequence[Span], x: Axis, middles: Sequence[float]) -> str:
    latencies = [value for window in step.windows for value in (window.p50_ms, window.p99_ms) if value]
    axis = _latency_axis(latencies)
    bottom = min(latencies, default=1.0) if axis.log else 0.0
    failed = [
        Point(middle, bottom, f"{_count(window.errors, 'error')} at {number(window.start_s)} s")
        for middle, window in zip(middles, step.windows, strict=True)
        if window.errors
    ]
    marks: list[Mark] = [
        *warmup,
        Line("p99", [(middle, w.p99_ms) for middle, w in zip(middles, step.windows, strict=True)], 4, thin=True),
        Line("p50", [(middle, w.p50_ms) for middle, w in zip(middles, step.windows, strict=True)], 0),
        Points("windows with errors", failed, 4, "cross"),
    ]
    return svg.chart(marks, x, axis, title=f"{step_label(step)}: latency")


def _split(steps: Sequence[Step]) -> str:
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
            *(number(value, fixed=True) if (value := _parts(step).get(name)) is not None else "–" for name in names),
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
    margin = 0.6 + max(0.0, (4 - len(steps)) / 2)  # few bars are not wide bars
    return Axis(label, low=-margin, high=len(steps) - 1 + margin, ticks=ticks)


def _batches(steps: Sequence[Step]) -> str:
    counted = [
        (step, step.server.batch_sizes) for step in steps if step.valid and step.server and step.server.batch_sizes
    ]
    if not counted:
        return ""
    # Size 0 is of batches larger than all buckets.
    sizes = sorted(
        {size for _, batches in counted for size, count in batches.items() if count}, key=lambda s: s or math.inf
    )
    names = {}
    for size in sizes:
        low = size // 2 + 1  # buckets end at powers of two
        names[size] = f"over {max(sizes)}" if not size else str(size) if low == size else f"{low}–{size}"
    shares = [{size: count / sum(batches.values()) for size, count in batches.items()} for _, batches in counted]
    parts = [
        (names[size], [100 * share.get(size, 0.0) for share in shares], index % svg.COLOURS)
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
