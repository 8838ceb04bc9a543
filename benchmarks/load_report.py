"""Measure the digits archive on the built-in server, and draw the report for the documentation.

The picture is the upper part of the report as HTML; it needs Chromium or Chrome. It is drawn only if every step is
valid, which is not the case on a machine with other load.

    python benchmarks/load_report.py [--rates 50,100,200] [--duration 20] [--draw REPORT.json]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from torchmar import archive
from torchmar.load import html_report, results

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "bench-report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def main() -> int:
    """Measure and draw; return 1 if a step is not valid."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rates", default="50,100,200,400,600", help="requests a second")
    parser.add_argument("--duration", type=float, default=20, help="seconds of a step")
    parser.add_argument("--draw", type=Path, metavar="REPORT.json", help="draw this report, measure nothing")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="the picture to write")
    parser.add_argument("--height", type=int, default=1240, help="height of the picture in pixels")
    arguments = parser.parse_args()
    report = results.read(arguments.draw) if arguments.draw else measure(arguments.rates, arguments.duration)
    if not arguments.draw and not all(step.valid for step in report.steps):
        print("nothing is drawn: a step is not valid", file=sys.stderr)
        return 1
    draw(html_report.html(report), arguments.picture, arguments.height)
    print(f"wrote {arguments.picture}")
    return 0


def measure(rates: str, duration: float) -> results.Report:
    """Measure with the command line; return its report."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.json")
        built = archive.build(ROOT / "archives" / "digits", Path(folder))
        command = [sys.executable, "-m", "torchmar", "bench", "--engine", "builtin", "--archive", built.path]
        command += ["--requests", "archives/digits", "--rate", rates, "--duration", duration, "--output", file]
        # 1: a step is not valid; its report is written all the same
        if subprocess.run(list(map(str, command)), cwd=ROOT).returncode not in (0, 1):
            sys.exit("the measurement failed")
        return results.read(file)


def draw(text: str, picture: Path, height: int) -> None:
    """Write the upper part of a page as a picture."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        page.write_text(text, encoding="utf-8")
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/b",
        ]
        options += [f"--window-size=1180,{height}", f"--screenshot={picture.resolve()}", page.as_uri()]
        subprocess.run([browser, *options], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    sys.exit(main())
