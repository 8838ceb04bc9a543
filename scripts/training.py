"""Train the models of archives/ whose weights are missing, or were made by other code than the current code."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import yaml

ARCHIVES = Path(__file__).parent.parent / "archives"
DIGEST = ".trained"  # in the folder of an archive: the digest of the code that made its weights


def main(names: list[str]) -> int:
    """Train the models of ``names``, or all, that need it; return the exit code.

    Without names, archives whose weights cannot be downloaded are skipped: the others need no network.
    """
    all_names = sorted(file.parent.name for file in ARCHIVES.glob("*/archive.yaml"))
    for name in names:
        if name not in all_names:
            print(f"error: there is no archives/{name}; there are {', '.join(all_names)}", file=sys.stderr)
            return 2
    # One process at a time: parallel tests all call this function, and wait here until the first has trained.
    with open(__file__, encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _train(names or all_names, needed=bool(names))


def _train(names: list[str], *, needed: bool) -> int:
    for name in names:
        recipe = yaml.safe_load((ARCHIVES / name / "archive.yaml").read_text(encoding="utf-8"))
        if "generated_by" not in recipe:
            continue  # its weights are another archive's
        digest = code_digest(ARCHIVES / name)
        if not is_made(ARCHIVES / name, [recipe["weights"], *recipe.get("files", {}).values()], digest):
            print(f"training archives/{name}", flush=True)
            command = [sys.executable, ARCHIVES / name / recipe["generated_by"]]
            # Some scripts run their model with ONNX Runtime, which sends statistics unless this is set.
            code = subprocess.run(command, env={"ORT_DISABLE_TELEMETRY": "1", **os.environ}).returncode
            if code == os.EX_UNAVAILABLE and not needed:
                print(f"archives/{name} is left out", file=sys.stderr, flush=True)
                continue
            if code:
                return code
        (ARCHIVES / name / DIGEST).write_text(digest, encoding="utf-8")
    return 0


def code_of(folder: Path) -> list[Path]:
    """Return the Python files on which the weights in ``folder`` may depend."""
    return sorted((*folder.glob("*.py"), *ARCHIVES.glob("*.py")))


def code_digest(folder: Path) -> str:
    """Return the SHA-256 of the code that makes the weights in ``folder``."""
    digest = hashlib.sha256()
    for file in code_of(folder):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(ARCHIVES).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def is_made(folder: Path, files: list[str], digest: str) -> bool:
    """Return whether all files exist, and the code of ``digest`` made them.

    Times do not show this: git sets them at a checkout, and a copied folder may have any times.
    They decide only if there is no digest, for weights that were made before digests were written.
    """
    if not all((folder / file).exists() for file in files):
        return False
    if (folder / DIGEST).exists():
        return (folder / DIGEST).read_text(encoding="utf-8") == digest
    return (folder / files[0]).stat().st_mtime >= max(script.stat().st_mtime for script in code_of(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
