"""The check of Python and the packages that a worker imports."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator

from torchmar.diagnosis import worker_python
from torchmar.diagnosis.finding import Finding, error, ok, warning
from torchmar.engines import DEFAULT, EngineName
from torchmar.engines.torchserve import VERSION
from torchmar.package_versions import installed_version

_SECONDS = 120
_NEEDED_BY: dict[EngineName, tuple[str, ...]] = {
    "torchserve": ("torchserve", "torch"),
    "builtin": ("torchserve", "torch", "httptools", "python-multipart", "psutil"),  # workers use TorchServe's loader
    "ray": ("torchserve", "torch", "httptools", "python-multipart", "psutil", "ray"),
}
# The imports of ts/model_service_worker.py; in a separate process, because torchmar itself does not need torch.
_PROBE = "import torch, ts.model_loader, ts.service, ts.protocol.otf_message_handler"


def check(engine: EngineName = DEFAULT) -> Iterator[Finding]:
    """Yield the versions of Python, TorchServe and torch, or the reason why a worker cannot import them."""
    packages = _NEEDED_BY[engine]
    if missing := [name for name in packages if not installed_version(name)]:
        extra = "server" if engine == "builtin" else engine
        yield error("python", f"{sys.executable} has no {' and no '.join(missing)}", f"pip install 'torchmar[{extra}]'")
        return
    version, torch = installed_version("torchserve"), installed_version("torch")
    yield ok("python", f"Python {platform.python_version()}, TorchServe {version}, torch {torch} ({sys.prefix})")
    if version != VERSION:
        yield warning(
            "python", f"torchmar is made for TorchServe {VERSION}, not {version}", f"pip install torchserve=={VERSION}"
        )
    try:
        process = worker_python.run(_PROBE, _SECONDS)
    except subprocess.TimeoutExpired:
        yield error(
            "python", f"importing torch takes more than {_SECONDS} s", "check the speed of the disk, or of its network"
        )
        return
    if process.returncode:
        last = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        yield error("python", f"a worker could not start: {last}", "pip install --force-reinstall the named package")
