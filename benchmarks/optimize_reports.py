"""Optimise four archives, and write the reports that the documentation shows.

Inputs: the digits that were not used in the training; all tumours; sentences of the documentation; the photographs of
Debian's package ``tuxpaint-stamps-default`` on plain grounds, or those of --photographs. The reports are
docs/examples/optimize/NAME.html and NAME.json; the picture is that of one of them, and needs Chromium or Chrome.

    python benchmarks/optimize_reports.py [--only imagenet sentences digits tumours] [--budget 15m] [--draw]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from explanations import module
from load_report import draw
from optimizing import ROOT, sentences

FOLDER = ROOT / "docs" / "examples" / "optimize"
PICTURE, SHOWN = ROOT / "docs" / "optimize-report.png", "digits"
STAMPS = Path("/usr/share/tuxpaint/stamps")
DRAWN = {"symbols", "cartoon", "roadsigns", "flags"}  # names of stamps that are no photographs
GROUNDS = ((255, 255, 255), (128, 140, 120), (200, 190, 170), (90, 110, 140))


def main() -> int:
    """Optimise and draw; return 1 if an optimisation failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--budget", default="15m", help="of each optimisation")
    parser.add_argument("--photographs", type=Path, help="a folder")
    parser.add_argument("--draw", action="store_true", help="draw the picture only, without measuring")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="torchmar-reports-") as home:
        for name in () if options.draw else options.only:
            folder = Path(home, name)
            folder.mkdir()
            data = options.photographs if name == "imagenet" and options.photographs else DATA[name](folder)
            command = [sys.executable, "-m", "torchmar", "optimize", f"archives/{name}", "--threads", "1"]
            command += ["--data", str(data), "--budget", options.budget]
            for suffix in ("html", "json"):
                command += [f"--{suffix}", str(FOLDER / f"{name}.{suffix}")]
            if subprocess.run(command, cwd=ROOT).returncode not in (0, 1):  # 1: the original stays
                return 1
    draw((FOLDER / f"{SHOWN}.html").read_text(encoding="utf-8"), PICTURE, 1000)
    return 0


def photographs(folder: Path) -> Path:
    """Write the photographs of Tux Paint, each 480 pixels wide and high."""
    from PIL import Image

    if not STAMPS.is_dir():
        sys.exit(f"{STAMPS} does not exist: apt-get install tuxpaint-stamps-default, or name another --photographs")
    files = [file for file in sorted(STAMPS.rglob("*.png")) if not DRAWN & set(file.relative_to(STAMPS).parts)]
    for number, file in enumerate(files):
        stamp = Image.open(file).convert("RGBA")
        scale = 400 / max(stamp.size)
        stamp = stamp.resize((max(1, round(stamp.width * scale)), max(1, round(stamp.height * scale))))
        picture = Image.new("RGB", (480, 480), GROUNDS[number % len(GROUNDS)])
        picture.paste(stamp, ((480 - stamp.width) // 2, (480 - stamp.height) // 2), stamp)
        picture.save(folder / ("-".join(file.relative_to(STAMPS).with_suffix("").parts) + ".jpg"), quality=88)
    return folder


def digits(folder: Path) -> Path:
    """Write the scans that were not used in the training, in the form of the archive's inputs."""
    train: Any = module("digits", "train.py")
    data = train.load_digits()
    rows = train.np.arange(len(data.data))
    _, held_out = train.train_test_split(rows, test_size=0.25, random_state=0, stratify=data.target)
    for row in held_out:
        train.enlarge(data.data[row]).save(folder / f"scan-{row:04}.png")
    return folder


def tumours(folder: Path) -> Path:
    """Write all tumours: only a quarter was not used in the training, which is too few for a decision."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    names = data.feature_names.tolist()
    for number, row in enumerate(data.data.tolist()):
        (folder / f"{number:03}.json").write_text(json.dumps(dict(zip(names, row, strict=True))))
    return folder


DATA: dict[str, Callable[[Path], Path]] = {
    "tumours": tumours,
    "digits": digits,
    "sentences": sentences,
    "imagenet": photographs,
}


if __name__ == "__main__":
    sys.exit(main())
