"""A report of a load measurement as one HTML file: charts as inline SVG, no script, nothing from a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from torchmar.engines import TITLES
from torchmar.load import report_charts, svg
from torchmar.load.html_tables import NOTHING, table, with_interval
from torchmar.load.kinds import PROTOCOL_TITLES
from torchmar.load.results import Report, Step
from torchmar.load.step_label import step_label
from torchmar.load.svg import number
from torchmar.load.verdicts import Verdict, verdicts

_WORDS = {"bad": "Fault", "warn": "Caution", "good": "Good", "note": "Note"}
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
    engine = f" on {_title(target.engine)}" if target.engine else ""
    body = [
        "<header>",
        f"<h1>Load on {escape(model)}{escape(engine)}</h1>",
        f'<p class="about">{escape(target.url)} · {escape(PROTOCOL_TITLES[target.protocol])} · measured until '
        f"{escape(_time(report.created))} by torchmar {escape(report.torchmar)}</p>",
        "</header>",
        '<ul class="verdicts" aria-label="Verdict">',
        *map(_verdict, verdicts(report)),
        "</ul>",
        "<h2>Steps</h2>",
        f'<div class="scroll">{_summary(report)}</div>',
        _HOW_TO_READ,
        "<h2>Latency and load</h2>",
        *_figures(
            [
                *report_charts.latency_charts(report.steps),
                report_charts.percentile_curves(report.steps),
                report_charts.server_split(report.steps),
                report_charts.batch_sizes(report.steps),
            ]
        ),
        "<h2>Timelines</h2>",
        *map(report_charts.timeline, report.steps),
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


def _title(engine: str) -> str:
    return next((title for name, title in TITLES.items() if name == engine), engine)


def _time(created: str) -> str:
    """Return a time of ISO 8601 in UTC as people read it: ``2026-11-29 12:40 UTC``."""
    date, _, time = created.partition("T")
    return f"{date} {time[:5]} UTC" if created.endswith("Z") and time else created


_HOW_TO_READ = """<details><summary>How to read this</summary>
<p>In an open loop (a rate), latency counts from the moment when a request was to be sent, so that a stall of the server
is in the latency of every request that waited for it. In a closed loop (connections), each connection waits for its
answer before it sends again: a slow server gets fewer requests, and its latency looks better than users would find
it.</p>
<p>Small figures are the ends of 95 % confidence intervals. A step that is not valid has no figures, because they would
be those of the client or of other programs. A step that is not stable has figures of more than one state.</p>
</details>"""


def _verdict(verdict: Verdict) -> str:
    details = f"<small>{escape(verdict.details)}</small>" if verdict.details else ""
    return f'<li class="{verdict.level}"><b>{_WORDS[verdict.level]}</b>{escape(verdict.text)}{details}</li>'


def _summary(report: Report) -> str:
    rows = []
    for step in report.steps:
        latency = step.latency_ms
        if not step.valid or latency is None:
            figures = [NOTHING] * 7
        else:
            figures = [
                with_interval(step.throughput, step.throughput_interval),
                with_interval(latency.p50, latency.p50_interval),
                number(latency.p90, fixed=True),
                with_interval(latency.p95, latency.p95_interval),
                with_interval(latency.p99, latency.p99_interval),
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
    return table(headings, rows, wide=True)


def _self_checks(steps: Sequence[Step]) -> str:
    rows = []
    for step in steps:
        client, processes = step.client, step.processes
        other = number(client.other_load_cores) if client.other_load_cores is not None else NOTHING
        server = (
            [str(processes.count), number(processes.cpu_cores), f"{processes.memory_bytes / 2**20:,.0f}"]
            if processes
            else [NOTHING] * 3
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
    return table(headings, rows, wide=True)


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


def _figures(figures: Iterable[str]) -> Iterator[str]:
    drawn = [figure for figure in figures if figure]
    yield f'<div class="charts">{"".join(drawn)}</div>' if drawn else "<p>There is nothing to draw.</p>"
