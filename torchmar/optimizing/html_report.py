"""The report of an optimisation as one HTML file: a chart as inline SVG, without scripts and external resources."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import torchmar
from torchmar.load import html_page
from torchmar.load.html_tables import NOTHING, table
from torchmar.load.numbers import number
from torchmar.optimizing import picture
from torchmar.optimizing.results import Agreement, Report, Row, Verdict

_VERDICTS = {
    Verdict.BASELINE: "original",
    Verdict.CHOSEN: "chosen",
    Verdict.SLOWER: "agrees",
    Verdict.REJECTED: "rejected",
    Verdict.UNDECIDED: "too few inputs",
    Verdict.FAILED: "failed",
    Verdict.SKIPPED: "skipped",
}


def html(report: Report) -> str:
    """Return a report as the text of an HTML file without external resources."""
    title = f"Optimised weights of {report.name} {report.version}"
    until = f"measured until {escape(html_page.time(report.created.replace('+00:00', 'Z')))}"
    body = [
        "<header>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="about">{escape(report.machine.processor)}, {_count(report.threads, "thread")} · '
        f"{until} by torchmar {escape(torchmar.__version__)}</p>",
        "</header>",
        '<ul class="verdicts" aria-label="Verdict">',
        *_verdicts(report),
        "</ul>",
        "<h2>Times</h2>",
        '<div class="charts">',
        *(f"<figure>{picture.draw(report, size)}</figure>" for size in report.batch_sizes),
        "</div>",
        "<h2>Variants</h2>",
        f'<div class="scroll">{_variants(report)}</div>',
        "<p>Answers are compared first, and times decide among the variants that agree. Small figures are the ends of "
        "95 % confidence intervals; a batch is what the model computes, without decoding and HTTP.</p>",
        "<h2>Answers</h2>",
        f'<div class="scroll">{_agreements(report)}</div>',
        _reasons(report),
        "<h2>Measured</h2>",
        html_page.definitions(_measured(report)),
    ]
    return html_page.page(title, body)


def _verdicts(report: Report) -> Iterator[str]:
    if chosen := report.chosen:
        needs = f"; it needs {' and '.join(chosen.needs)}, without which the original is served" if chosen.needs else ""
        yield html_page.verdict("good", f"{chosen.title} is chosen: {chosen.reason}{needs}")
    else:
        yield html_page.verdict("note", f"The original stays: {report.baseline.reason.removeprefix('it stays: ')}")
    rejected = [row.title for row in report.rows if row.verdict is Verdict.REJECTED]
    if rejected:
        yield html_page.verdict("warn", f"Rejected, since the answers differ too much: {', '.join(rejected)}")
    if any(row.verdict is Verdict.UNDECIDED for row in report.rows):
        yield html_page.verdict(
            "warn", f"{_count(report.inputs, 'input')} cannot show that the requirements hold: give more with --data"
        )
    if report.disturbances:
        yield html_page.verdict("warn", "The times may be wrong", "\n".join(report.disturbances))


def _variants(report: Report) -> str:
    baseline = report.baseline
    headings = ["variant", "verdict"]
    for size in report.batch_sizes:
        headings += [f"batch of {size}, ms", "times as fast"]
    headings += ["size, MB", "load, s", "memory, MB"]
    rows = []
    for row in report.rows:
        if not row.timings:
            continue
        needs = f"<small>needs {escape(', '.join(row.needs)).replace('|', ' or ')}</small>" if row.needs else ""
        cells = [escape(row.title) + needs, _VERDICTS[row.verdict]]
        for size in report.batch_sizes:
            cells += _times(row, baseline, size)
        cells += [
            _megabytes(row.size),
            number(row.load_seconds, fixed=True) if row.load_seconds is not None else NOTHING,
            _megabytes(row.memory),
        ]
        rows.append(cells)
    return table(headings, rows, wide=True)


def _times(row: Row, baseline: Row, size: int) -> tuple[str, str]:
    timing, original = row.timing(size), baseline.timing(size)
    if timing is None:
        return NOTHING, NOTHING
    low, high = (number(end * 1000, fixed=True) for end in timing.interval)
    cell = f"{number(timing.seconds * 1000, fixed=True)}<small>{low} – {high}</small>"
    return cell, f"{original.seconds / timing.seconds:.2f}" if original and row is not baseline else NOTHING


def _agreements(report: Report) -> str:
    headings = ("variant", "same label", "least cosine", "largest relative error", "rank of attributions", "own check")
    rows = [
        [escape(row.title), *_of_agreement(row.agreement), escape(row.agreement.worst_input)]
        for row in report.rows
        if row.agreement and row is not report.baseline
    ]
    columns = [*headings, "worst input"]
    filled = [place for place in range(len(columns)) if any(row[place] != NOTHING for row in rows)]
    return table([columns[place] for place in filled], [[row[place] for place in filled] for row in rows])


def _of_agreement(agreement: Agreement) -> tuple[str, str, str, str, str]:
    def optional(value: float | None) -> str:
        return NOTHING if value is None else f"{value:.3f}"

    # A share just below 1 must not read as 100 %.
    share = agreement.labels
    labels = NOTHING if share is None else "100 %" if share == 1 else f"{min(share, 0.9999):.2%}".replace("%", " %")
    return (
        labels,
        f"{agreement.cosine:.6f}",
        f"{agreement.relative_error:.2g}",
        optional(agreement.explanations),
        optional(agreement.metric),
    )


def _reasons(report: Report) -> str:
    """Return the reasons why variants were rejected or not measured, each once for all its variants."""
    reasons: dict[str, list[str]] = {}
    for row in report.rows:
        if row.verdict not in (Verdict.BASELINE, Verdict.CHOSEN, Verdict.SLOWER):
            reasons.setdefault(f"{_VERDICTS[row.verdict]}: {row.reason}", []).append(row.variant)
    if not reasons:
        return ""
    items = "".join(
        f"<li><b>{escape(', '.join(names))}</b>: {escape(reason)}</li>" for reason, names in reasons.items()
    )
    return f"<h2>Why others were left out</h2>\n<ul>{items}</ul>"


def _measured(report: Report) -> list[tuple[str, str]]:
    machine = report.machine
    originals = ", ".join(f"{name} SHA-256 {digest}" for name, digest in report.original.items())
    return [
        ("Archive", f"{report.name} {report.version}, SHA-256 {report.archive}"),
        ("Original", originals),
        ("Required", " and ".join(report.requirements)),
        (
            "Inputs",
            f"{report.inputs} compared; {report.calibration_inputs} others for calibration",
        ),
        ("Machine", f"{machine.processor}, {machine.cores} cores, {' '.join(machine.flags)}"),
        ("System", f"{machine.system}, Python {machine.python}"),
        ("Packages", ", ".join(f"{name} {version}" for name, version in report.packages.items())),
        ("Took", f"{report.seconds:.0f} s"),
    ]


def _megabytes(count: int | None) -> str:
    return NOTHING if count is None else number(count / 1e6, fixed=True)


def _count(number_of: int, noun: str) -> str:
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"
