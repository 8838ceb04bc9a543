"""Train the models of archives/ whose weights are missing or older than the script that makes them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import yaml

ARCHIVES = Path(__file__).parent.parent / "archives"


def main(names: list[str]) -> int:
    """Train what needs it, of ``names`` or of all; return the exit code.

    Without names, archives whose weights cannot be downloaded are left out: the others need no network.
    """
    known = sorted(file.parent.name for file in ARCHIVES.glob("*/archive.yaml"))
    for name in names:
        if name not in known:
            print(f"error: there is no archives/{name}; there are {', '.join(known)}", file=sys.stderr)
            return 2
    # One process at a time: parallel tests all call this, and wait here until the first has trained.
    with open(__file__, encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _train(names or known, needed=bool(names))


def _train(names: list[str], *, needed: bool) -> int:
    for name in names:
        recipe = yaml.safe_load((ARCHIVES / name / "archive.yaml").read_text(encoding="utf-8"))
        if "generated_by" not in recipe:
            continue  # its weights are another archive's
        if is_made(ARCHIVES / name, [recipe["weights"], *recipe.get("files", {}).values()]):
            continue
        print(f"training archives/{name}", flush=True)
        code = subprocess.run([sys.executable, ARCHIVES / name / recipe["generated_by"]]).returncode
        if code == os.EX_UNAVAILABLE and not needed:
            print(f"archives/{name} is left out", file=sys.stderr, flush=True)
        elif code:
            return code
    return 0


def is_made(folder: Path, files: list[str]) -> bool:
    """Return whether all files exist, and the first of them (the weights) is newer than the code beside it."""
    if not all((folder / file).exists() for file in files):
        return False
    return (folder / files[0]).stat().st_mtime >= max(
        script.stat().st_mtime for script in (*folder.glob("*.py"), *ARCHIVES.glob("*.py"))
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
