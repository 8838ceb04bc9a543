"""The style of charts: colours that follow the reader's ``prefers-color-scheme``; and a chart as a separate file."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARGIN = 12  # around the chart in a separate file
_LIGHT = ("#2368b5", "#c2570c", "#2c7d4f", "#8a4fb0", "#bf2f38", "#0f7f8f", "#8a6d00", "#64697a")
_DARK = ("#6db1ff", "#ff9f5a", "#6fcf97", "#cfa0f5", "#ff7b7b", "#5fd0df", "#e2c55c", "#a5abbc")
COLOURS = len(_LIGHT)


def _variables(colours: Sequence[str], text: str, muted: str, grid: str, span: str, paper: str) -> str:
    listed = "".join(f"--c{index}:{colour};" for index, colour in enumerate(colours))
    return f"{listed}--text:{text};--muted:{muted};--grid:{grid};--span:{span};--paper:{paper}"


_LIGHT_VARIABLES = _variables(_LIGHT, "#1c2030", "#565d70", "#e1e4ec", "#e3e6ee", "#ffffff")
_DARK_VARIABLES = _variables(_DARK, "#e8eaf2", "#a3aabd", "#343a4a", "#30364a", "#161922")
STYLE = "\n".join(
    [
        f":root{{color-scheme:light dark;{_LIGHT_VARIABLES}}}",
        f"@media(prefers-color-scheme:dark){{:root{{{_DARK_VARIABLES}}}}}",
        ".chart{font:12px system-ui,sans-serif;fill:var(--text)}",
        ".chart .title{font-weight:600;font-size:13px}",
        ".chart .axis{fill:var(--muted)}",
        ".chart .grid{stroke:var(--grid);stroke-width:1}",
        ".chart .base{stroke:var(--muted);stroke-width:1}",
        ".chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}",
        ".chart .thin{stroke-width:1.25}",
        ".chart .dashed{stroke-dasharray:5 4}",
        ".chart .band{opacity:.18;stroke:none}",
        ".chart .span{fill:var(--span)}",
        ".chart .hollow{fill:var(--paper);stroke-width:2}",
        ".chart .halo{stroke:var(--paper);stroke-width:3px;paint-order:stroke;stroke-linejoin:round}",
        *(f".chart .f{index}{{fill:var(--c{index})}}" for index in range(COLOURS)),
        *(f".chart .s{index}{{stroke:var(--c{index})}}" for index in range(COLOURS)),
    ]
)


def standalone(chart: str) -> str:
    """Return a chart as the text of an SVG file, with its style, a background and a margin."""
    head, _, rest = chart.partition(">")
    width, height = (float(number) for number in re.findall(r'viewBox="0 0 (\S+) (\S+)"', head)[0])
    box = f"-{_MARGIN} -{_MARGIN} {width + 2 * _MARGIN:g} {height + 2 * _MARGIN:g}"
    head = re.sub(r'viewBox="[^"]*"', f'viewBox="{box}"', head)
    background = f'<rect x="-{_MARGIN}" y="-{_MARGIN}" width="100%" height="100%" style="fill:var(--paper)"/>'
    return f"{head}>\n<style>{STYLE}</style>\n{background}{rest}\n"
