"""Tune three different archives by the command line, and write the reports for the documentation.

For each archive docs/examples/tune has NAME.txt, the output of the command; NAME.json, the same for other programs,
with the profiles, trials and predictions; and NAME.svg, the picture of all settings. Run it on a quiet machine.

    python benchmarks/tune_reports.py [--only digits iris imagenet]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "examples" / "tune"
TARGETS = {"digits": "p99<25ms", "iris": "p99<15ms", "imagenet": "p99<250ms"}
MOST_RUNS = 3  # largest number of runs of a tuning, each of which takes at most the budget


def main() -> int:
    """Tune and write; return 1 if no setting of an archive keeps its target."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    codes = []
    with tempfile.TemporaryDirectory(prefix="torchmar-tune-reports-") as home:  # the folder of the record of trials
        for name in options.only:
            command = [sys.executable, "-m", "torchmar", "tune", str(ROOT / "archives" / name), "--slo", TARGETS[name]]
            # A run that its budget has ended is continued, until the search ends by itself.
            for _ in range(MOST_RUNS):
                shown = subprocess.run(
                    command, cwd=home, env=os.environ | {"COLUMNS": "80"}, stdout=subprocess.PIPE, text=True
                )
                if "the time was used up" not in shown.stdout:
                    break
            (FOLDER / f"{name}.txt").write_text(
                f"$ torchmar tune archives/{name} --slo '{TARGETS[name]}'\n{shown.stdout}"
            )
            print(shown.stdout, flush=True)
            # This run measures nothing: it shows the recorded results.
            command += ["--json", "--picture", str(FOLDER / f"{name}.svg")]
            again = subprocess.run(command, cwd=home, stdout=subprocess.PIPE, text=True)
            (FOLDER / f"{name}.json").write_text(again.stdout)
            codes += [shown.returncode, again.returncode]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
