"""Options of Java with which TorchServe starts in a quarter of the CPU time."""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.servers import write_config
from torchmar.engines import java
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import TorchmarError

VARIABLE = "JDK_JAVA_OPTIONS"  # the variable of the program java
# Its servers run for seconds: too short for a gain from the second compiler and threads of a garbage collector.
_SHORT_RUN = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData"
# The names of the world's languages and months take a sixth of the start; later versions of Java warn of this option.
_FEW_LOCALES = "-Djava.locale.providers=COMPAT"
_LAST_WITH_FEW_LOCALES = 20


def java_options() -> str:
    """Return the options: the classes of TorchServe are in a file, which the first call on a machine writes."""
    try:
        installed = java.find()
    except TorchmarError:
        return ""
    options = f"{_SHORT_RUN} {_FEW_LOCALES}" if installed.version <= _LAST_WITH_FEW_LOCALES else _SHORT_RUN
    digest = hashlib.sha256(f"{installed.executable.resolve()} {installed.version}".encode()).hexdigest()[:12]
    classes = ROOT / ".cache" / "tests" / f"torchserve-{digest}.jsa"
    classes.parent.mkdir(parents=True, exist_ok=True)
    with classes.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes of pytest may begin at once
        if not classes.exists():
            _write(classes, options)
    return f"{options} -XX:SharedArchiveFile={classes}" if classes.stat().st_size else options


def _write(classes: Path, options: str) -> None:
    """Start and stop a server that writes its classes when it ends; write an empty file if this Java cannot."""
    with tempfile.TemporaryDirectory(prefix="torchmar-tests-") as name:
        folder, new_classes = Path(name), classes.with_suffix(".new")
        store = folder / "store"
        store.mkdir()
        config = write_config(folder, vmargs=f"{options} -XX:ArchiveClassesAtExit={new_classes}")
        with TorchServe(config, store, folder / "run") as server:
            list(server.management.names())
        new_classes.touch()
        new_classes.replace(classes)
