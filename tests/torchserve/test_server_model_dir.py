"""A registration has a model_dir, and packages of its own, on both engines."""

from __future__ import annotations

import importlib.metadata
import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.servers import ENGINES, on_both_engines, write_config
from torchmar.engines import EngineName
from torchmar.engines.engine import Engine
from torchmar.exchange import Request
from torchmar.inference import InferenceClient

pytestmark = [on_both_engines, pytest.mark.usefixtures("engine")]

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, engine: EngineName) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("model-dir")
    (folder / "store").mkdir()
    config = write_config(folder, install_py_dep_per_model="true")
    with ENGINES[engine](config, folder / "store", folder / "run") as server:
        yield server


def ask(engine: Engine, name: str) -> object:
    return json.loads(InferenceClient(engine.server).request(name, Request(b"x", "text/plain")).body)


UNZIPS = """
import os, zipfile

class Unzips:
    def initialize(self, context):
        self.folder = context.system_properties["model_dir"]
        path = os.path.join(self.folder, "deps.zip")
        with zipfile.ZipFile(path) as file:
            file.extractall(self.folder)
        os.remove(path)
        with open(os.path.join(self.folder, "owner.txt"), "w") as file:
            file.write(context.model_name)
        from words.inner import WORD
        self.word = WORD

    def handle(self, data, context):
        with open(os.path.join(self.folder, "owner.txt")) as file:
            return [{"word": self.word, "owner": file.read()}] * len(data)
"""


def test_handlers_of_one_archive_write_into_folders_of_their_own(running: Engine, make: Make) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("words/__init__.py", "")
        archive.writestr("words/inner.py", "WORD = 'x'")
    path = make(UNZIPS, name="unzips", disk={"deps.zip": packed.getvalue()}, files={"deps.zip": "deps.zip"},
                store=running.model_store)  # fmt: skip
    shutil.copy(path, running.model_store / "copy.mar")
    names = {"first": path.name, "second": path.name, "third": "copy.mar"}
    for name, url in names.items():
        running.management.register(url, model_name=name, initial_workers=1)
    assert [ask(running, name) for name in names] == [{"word": "x", "owner": name} for name in names]
    running.management.unregister("first")
    assert ask(running, "second") == {"word": "x", "owner": "second"}


# Packages that the server has, too. In the built-in server, one that is loaded before a handler must be replaced.
# TorchServe's worker starts with its packages; if it loads none of them itself, it is forked in tests.
PACKAGES = {"torchserve": "pluggy", "builtin": "packaging"}
VERSIONS = """
import os, sys
import PACKAGE

class Versions:
    def initialize(self, context):
        self.folder = context.system_properties["model_dir"]

    def handle(self, data, context):
        import subprocess
        child = "import PACKAGE; print(PACKAGE.__version__)"
        output = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout.strip()
        return [{"here": PACKAGE.__version__, "child": output}] * len(data)
"""


def wheel(package: str, version: str) -> bytes:
    """Return a wheel of a package that is installed, with another version."""
    content = io.BytesIO()
    info = f"{package}-{version}.dist-info"
    installed = importlib.metadata.files(package)
    assert installed
    with zipfile.ZipFile(content, "w") as archive:
        for file in installed:
            if file.suffix == ".py" and file.name != "__init__.py":
                archive.writestr(str(file), file.read_text())
        archive.writestr(f"{package}/__init__.py", f"__version__ = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return content.getvalue()


def test_installed_requirements_are_imported_before_the_servers_packages(
    running: Engine, engine: EngineName, make: Make
) -> None:
    package = PACKAGES[engine]
    here = importlib.metadata.version(package)
    assert here != "0.23.2"
    code, name = VERSIONS.replace("PACKAGE", package), f"{package}-0.23.2-py3-none-any.whl"
    disk: dict[str, str | bytes] = {name: wheel(package, "0.23.2"), "wanted.txt": f"--no-index\n./{name}\n"}
    pinned = make(code, name="pinned", disk=disk, requirements="wanted.txt", files={name: name},
                  store=running.model_store)  # fmt: skip
    plain = make(code, name="plain", store=running.model_store)
    running.management.register(pinned.name, initial_workers=1)
    running.management.register(plain.name, initial_workers=2)
    assert ask(running, "pinned") == {"here": "0.23.2", "child": "0.23.2"}
    for _ in range(3):
        assert ask(running, "plain") == {"here": here, "child": here}
    running.management.unregister("pinned")
    assert ask(running, "plain") == {"here": here, "child": here}
    if engine == "builtin":
        server = psutil.Process(json.loads((running.folder / "server.json").read_text())["pid"])
        while len(server.children()) > 1:  # the parent of all other workers
            time.sleep(0.05)
