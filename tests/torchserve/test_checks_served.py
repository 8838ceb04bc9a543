"""Archives with warnings are served, by TorchServe and by the built-in server; an error is where they are not."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.servers import on_both_engines
from torchmar import archive, checks, manifest
from torchmar.engines.engine import Engine
from torchmar.errors import ServerError
from torchmar.exchange import Request
from torchmar.inference import InferenceClient

OWN = b"def handle(rows, context):\n    return [1] * len(rows or [])\n"
WHOLE = b"""
import torch
class Whole:
    def initialize(self, context):
        folder, name = context.system_properties["model_dir"], context.manifest["model"]["serializedFile"]
        self.model = torch.load(f"{folder}/{name}", weights_only=False)["model"]
    def handle(self, data, context): return [list(self.model(torch.ones(1, 2)).shape)] * len(data)
"""
NET = b"""
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.l = torch.nn.Linear(2, 1)
    def forward(self, x): return self.l(x)
"""


def pack(store: Path, name: str, members: dict[str, bytes], **model: str) -> Path:
    named = manifest.Model(model_name=name, model_version="1.0", handler="h.py", **model)
    members = {**members, manifest.PATH: manifest.Manifest(model=named).to_json()}
    return archive.pack(members, store / f"{name}.mar").path


@pytest.fixture(scope="module")
def whole() -> bytes:
    """Return a whole model that was pickled with its class."""
    import torch

    stream, module = io.BytesIO(), ModuleType("tinynet")
    exec(NET, module.__dict__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tinynet", module)
        torch.save({"model": module.Net(), "epoch": 3}, stream)
    return stream.getvalue()


WARNED: dict[str, tuple[dict[str, bytes], dict[str, str], str]] = {
    "an empty file that is not read": ({"h.py": OWN, "model.pt": b""}, {"serialized_file": "model.pt"}, "MAR406"),
    "weights that are not there": ({"h.py": OWN}, {"serialized_file": "model.pt"}, "MAR204"),
    "a web page as weights": ({"h.py": OWN, "m.pt": b"<html>"}, {"serialized_file": "m.pt"}, "MAR401"),
    "a section with numbers for keys": (
        {"h.py": OWN, "c.yaml": b"responseTimeout: 60\nhandler: {0: cat}\n"},
        {"config_file": "c.yaml"},
        "",
    ),
    "a wrong value and a key twice": (
        {"h.py": OWN, "c.yaml": b"batchSize: '8'\nmaxBatchDelay: 1\nmaxBatchDelay: 2\n"},
        {"config_file": "c.yaml"},
        "MAR503",
    ),
    "requirements that pip cannot read": (
        {"h.py": OWN, "r.txt": b"what is this\n"},
        {"requirements_file": "r.txt"},
        "MAR509",
    ),
    "a module with the name of one of Python's": ({"h.py": b"import sched\n" + OWN, "sched.py": b""}, {}, "MAR304"),
    "names that differ in case": ({"h.py": OWN, "A.txt": b"", "a.txt": b""}, {}, "MAR105"),
}


@on_both_engines
@pytest.mark.parametrize(("members", "model", "code"), WARNED.values(), ids=WARNED)
def test_an_archive_with_a_warning_answers(
    server: Engine, members: dict[str, bytes], model: dict[str, str], code: str
) -> None:
    path = pack(server.model_store, "warned", members, **model)
    findings = checks.check(path)
    assert [finding for finding in findings if finding.severity == "error"] == []
    assert not code or code in [finding.code.name for finding in findings]
    server.management.register(path.name, initial_workers=1)
    try:
        assert InferenceClient(server.server).request("warned", Request(b"1")).body == b"1"
    finally:
        server.management.unregister("warned")
        path.unlink()


@on_both_engines
def test_a_whole_model_is_served(server: Engine, whole: bytes) -> None:
    members = {"h.py": WHOLE, "tinynet.py": NET, "best.pt": whole}
    path = pack(server.model_store, "whole", members, serialized_file="best.pt")
    assert {finding.code.name for finding in checks.check(path) if finding.works} == {"MAR601"}
    server.management.register(path.name, initial_workers=1)
    try:
        assert InferenceClient(server.server).predict("whole", b"1") == [1, 1]
    finally:
        server.management.unregister("whole")
        path.unlink()


def run(folder: Path, *arguments: str, code: int) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "torchmar", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "300"},
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.parametrize("engine", ["builtin"], scope="module")
def test_a_rejected_archive_is_loaded_if_its_code_is_ignored(server: Engine, tmp_path: Path) -> None:
    # As after an edit of the archive: the handler has another digest than is listed.
    path = pack(server.model_store, "refused", {"h.py": OWN})
    with zipfile.ZipFile(path) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w") as edited:
        for name, content in members.items():
            edited.writestr(name, content + b"# edited\n" if name == "h.py" else content)
    run_folder = str(server.folder)
    register = ("register", path.name, "--run-folder", run_folder)
    assert "MAR108" in run(tmp_path, *register, code=1)
    with pytest.raises(ServerError, match="MAR108"):
        server.management.register(path.name, initial_workers=1)
    for flags in (("--ignore", "MAR108"), ("--ignore", "mar1"), ("--no-check",)):
        run(tmp_path, *register, *flags, code=0)
        assert InferenceClient(server.server).request("refused", Request(b"1")).body == b"1"
        server.management.unregister("refused")
    path.unlink()


RECIPE = 'name: m\nversion: "1"\nhandler: h.py\nweights: w.pt\n'


def test_a_build_prints_the_findings_of_check_even_if_it_is_up_to_date(tmp_path: Path) -> None:
    (tmp_path / "h.py").write_bytes(OWN)
    (tmp_path / "w.pt").touch()
    (tmp_path / "archive.yaml").write_text(RECIPE)
    for _ in range(2):
        assert "warning: MAR406 w.pt: w.pt is empty" in run(tmp_path, "build", ".", code=0)
    assert "MAR406" not in run(tmp_path, "build", ".", "--ignore", "MAR4", code=0)
    assert "MAR406" in run(tmp_path, "check", ".", code=0)
    assert "MAR406" in run(tmp_path, "check", ".", "--strict", code=1)
    (tmp_path / "h.py").write_text("class A: ...\nclass B: ...\n")
    output = run(tmp_path, "build", ".", code=1)
    assert "error: MAR301" in output
    assert "nothing is written" in output
    run(tmp_path, "build", ".", "--ignore", "MAR301", code=0)
    assert "error: MAR301" in run(tmp_path, "build", ".", code=1)  # the archive is there, and as bad as before
    run(tmp_path, "build", ".", "--no-check", code=0)


def test_a_state_dict_is_no_whole_model(tmp_path: Path) -> None:
    import torch

    stream = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2).state_dict(), stream)
    path = pack(tmp_path, "m", {"h.py": OWN, "w.pt": stream.getvalue()}, serialized_file="w.pt")
    assert [finding.code.name for finding in checks.check(path)] == []
