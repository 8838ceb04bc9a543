"""The page of a report: one HTML file with its style, without scripts and external resources."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from torchmar.load import svg_style
from torchmar.load.verdicts import Level

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
th{color:var(--muted);font-weight:600;white-space:normal;vertical-align:bottom}
tr:last-child>*{border-bottom:0}
th:first-child,td:first-child{text-align:left;padding-left:0}
td.text{text-align:left;white-space:normal;overflow-wrap:anywhere}
td small{display:block;color:var(--muted);font-size:.82em}
td:first-child small{white-space:normal;max-width:24ch}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:12px;align-items:start}
figure{margin:0;background:var(--paper);border-radius:6px;padding:12px;min-width:0}
.chart{display:block;width:100%;max-width:600px;margin:auto;height:auto}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:12px 24px}
body>figure{margin-bottom:12px}
figcaption{color:var(--muted);font-size:.88rem;margin-top:4px}
body>ul:not(.verdicts) li{overflow-wrap:anywhere;margin-bottom:4px}
details{margin-top:6px;font-size:.92rem}
summary{cursor:pointer;color:var(--muted)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;background:var(--paper);border-radius:6px;
padding:12px;margin:0}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
@media(max-width:500px){dl{grid-template-columns:1fr}dd{margin-bottom:6px}}
@media print{body{max-width:none}figure,.scroll,dl{break-inside:avoid}}
"""


def page(title: str, body: Iterable[str]) -> str:
    """Return the text of a file.

    Args:
        title: title of the page.
        body: parts of the body as HTML; empty parts are left out.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{escape(title)}</title>",
            f"<style>{svg_style.STYLE}{_STYLE}</style></head>",
            "<body>",
            *(part for part in body if part),
            "</body></html>",
            "",
        ]
    )


def verdict(level: Level, text: str, details: str = "") -> str:
    """Return an item for the list of verdicts at the top of a page."""
    small = f"<small>{escape(details)}</small>" if details else ""
    return f'<li class="{level}"><b>{_WORDS[level]}</b>{escape(text)}{small}</li>'


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """Return a list of names with texts."""
    return "<dl>" + "\n".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows) + "</dl>"


def time(created: str) -> str:
    """Return a UTC time of ISO 8601 in a readable form: ``2026-11-29 12:40 UTC``."""
    date, _, time = created.partition("T")
    return f"{date} {time[:5]} UTC" if created.endswith("Z") and time else created
