"""A report of a load measurement as one HTML file: charts as inline SVG, without scripts and external resources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from torchmar.engines import TITLES
from torchmar.load import html_page, report_charts
from torchmar.load.few_answers import MARK
from torchmar.load.html_tables import NOTHING, table, with_interval
from torchmar.load.kinds import PROTOCOL_TITLES
from torchmar.load.numbers import number
from torchmar.load.results import Report, Step
from torchmar.load.step_label import step_label
from torchmar.load.verdicts import Verdict, verdicts


def html(report: Report) -> str:
    """Return a report as the text of an HTML file without external resources."""
    target = report.target
    model = f"{target.model} {target.model_version}".rstrip()
    engine = f" on {_title(target.engine)}" if target.engine else ""
    body = [
        "<header>",
        f"<h1>Load on {escape(model)}{escape(engine)}</h1>",
        f'<p class="about">{escape(target.url)} · {escape(PROTOCOL_TITLES[target.protocol])} · measured until '
        f"{escape(html_page.time(report.created))} by torchmar {escape(report.torchmar)}</p>",
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
    return html_page.page(f"Load on {model}", body)


def _title(engine: str) -> str:
    return next((title for name, title in TITLES.items() if name == engine), engine)


_HOW_TO_READ = """<details><summary>How to read this</summary>
<p>In an open loop (a rate), latency counts from the moment when a request was to be sent, so that a stall of the server
is in the latency of every request that waited for it. In a closed loop (connections), each connection waits for its
answer before it sends again: a slow server gets fewer requests, and its latency looks better than users would find
it.</p>
<p>Small figures are the ends of 95 % confidence intervals. A step that is not valid has no figures, because they would
be those of the client or of other programs. A step that is not stable has figures of more than one state. A percentile
with a question mark has fewer than ten answers beyond it: chance decides it.</p>
</details>"""


def _verdict(verdict: Verdict) -> str:
    return html_page.verdict(verdict.level, verdict.text, verdict.details)


def _summary(report: Report) -> str:
    rows = []
    for step in report.steps:
        latency = step.latency_ms
        if not step.valid or latency is None:
            figures = [NOTHING] * 7
        else:
            figures = [
                with_interval(step.throughput, step.throughput_interval),
                *(
                    with_interval(value, bounds, MARK if name in latency.uncertain else "")
                    for name, value, bounds in (
                        ("p50", latency.p50, latency.p50_interval),
                        ("p90", latency.p90, None),
                        ("p95", latency.p95, latency.p95_interval),
                        ("p99", latency.p99, latency.p99_interval),
                        ("p999", latency.p999, None),
                    )
                ),
                number(latency.max, fixed=True),
            ]
        state = "stable" if step.stable else "not stable"
        if report.saturated(step):
            state = "saturated"
        if not step.valid:
            state = "not valid"
        failures = [f"{step.failed:,}", f"{step.wrong_answers:,}"]
        rows.append([escape(step_label(step)), state, f"{step.sent:,}", *figures, *failures])
    headings = ("step", "state", "sent", "answers/s", "p50 ms", "p90", "p95", "p99", "p99.9", "max", "failed", "wrong")
    return table(headings, rows, wide=True)


def _self_checks(steps: Sequence[Step]) -> str:
    rows = []
    for step in steps:
        client, processes = step.client, step.processes
        other = number(client.other_load_cores) if client.other_load_cores is not None else NOTHING
        others = (
            f" + {processes.replicas_elsewhere} replicas elsewhere"
            if processes and processes.replicas_elsewhere
            else ""
        )
        server = (
            [f"{processes.count}{others}", number(processes.cpu_cores), f"{processes.memory_bytes / 2**20:,.0f}"]
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
    return html_page.definitions(rows)


def _figures(figures: Iterable[str]) -> Iterator[str]:
    charts = [figure for figure in figures if figure]
    yield f'<div class="charts">{"".join(charts)}</div>' if charts else "<p>There is nothing to draw.</p>"
