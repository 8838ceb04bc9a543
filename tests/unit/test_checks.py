"""torchmar.checks finds failures before an archive is on a server, each with its code, place, cause and remedy."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import torchmar_here
from tests.support.paths import DIGITS
from torchmar import checks
from torchmar.archive import pack, pack_folder, pack_tgz
from torchmar.checks import Code, Composed, configuration, requirements
from torchmar.checks import manifest as manifests

Make = Callable[..., Path]


def manifest(**model: Any) -> bytes:
    model = {"modelName": "m", "handler": "h.py", "modelVersion": "1.0", **model}
    return json.dumps({"model": {key: value for key, value in model.items() if value is not None}}).encode()


@pytest.mark.parametrize(
    ("members", "code", "cause"),
    [
        ({}, "MAR201", "without a manifest"),
        ({"MAR-INF/MANIFEST.json": b"{"}, "MAR202", "not JSON"),
        ({"MAR-INF/MANIFEST.json": b'{"model": {}}'}, "MAR202", "modelName"),
        ({"MAR-INF/MANIFEST.json": manifest(modelName="a b")}, "MAR203", "modelName"),
        ({"MAR-INF/MANIFEST.json": manifest(modelVersion="")}, "MAR203", "''"),
        ({"MAR-INF/MANIFEST.json": manifest(modelVersion="1/2")}, "MAR203", "'1/2'"),
        ({"MAR-INF/MANIFEST.json": manifest(modelVersion=None)}, "MAR205", "1.0"),
        ({"MAR-INF/MANIFEST.json": manifest(serializedFile="w.pt")}, "MAR204", "serialized file is 'w.pt'"),
        ({"MAR-INF/MANIFEST.json": manifest(configFile="c.yaml")}, "MAR204", "config file is 'c.yaml'"),
        ({"MAR-INF/MANIFEST.json": manifest(), "h.py": b""}, "", ""),
    ],
)
def test_the_manifest_is_judged_as_the_server_reads_it(members: dict[str, bytes], code: str, cause: str) -> None:
    _, findings = manifests.read(Composed(members))
    assert [finding.code.name for finding in findings] == [code] * bool(code)
    assert not code or cause in findings[0].cause
    assert all(finding.remedy for finding in findings)


def test_a_file_in_a_deeper_folder_than_in_the_manifest_is_named() -> None:
    members = {"MAR-INF/MANIFEST.json": manifest(serializedFile="w.pt"), "weights/w.pt": b"x"}
    _, (finding,) = manifests.read(Composed(members))
    assert finding.remedy == "move weights/w.pt to the top"


def test_an_unknown_runtime_is_an_error() -> None:
    document = json.loads(manifest())
    document["runtime"] = "ruby"
    _, (finding,) = manifests.read(Composed({"MAR-INF/MANIFEST.json": json.dumps(document).encode()}))
    assert finding.code is Code.MAR206


GOOD = "responseTimeout: 60\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, {}),
        ("", {"MAR501": "c.yaml"}),
        ("# nothing\n", {"MAR501": "c.yaml"}),
        (GOOD + "7: x\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "deviceType: GPU\n", {}),
        (GOOD + "minWorkers: 0\nmaxWorkers: 0\n", {"MAR503": "c.yaml:3"}),
        (GOOD + "batchSize: 3000000000\n", {"MAR503": "c.yaml:2"}),
        ("batchSize: 8\n", {"MAR504": "c.yaml"}),
        (GOOD + "batch_size: 8\n", {"MAR502": "c.yaml:2"}),
        (GOOD + "threshold: 0.5\n", {"MAR510": "c.yaml:2"}),
        (GOOD + "mine: {threshold: 0.5}\n", {}),
        (GOOD + "batchSize: '8'\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "stages: {preprocess: 2, inference: 1}\n", {}),
        (GOOD + "stages: {preprocess: 1, inference: 2, postprocess: 1}\n", {}),
        (GOOD + "stages: {inference: 2, postprocess: 1}\n", {}),
        (GOOD + "stages: {inference: 2}\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "stages: {preprocess: 1, postprocess: 0}\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "stages: {preprocess: 0}\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "stages: {preproces: 2}\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "stages: [{name: of the handler's own}]\n", {}),
        (GOOD + "torchmar: {fork: false}\n", {}),
        (GOOD + "torchmar: {fork: 1}\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "torchmar: {forks: true}\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "torchmar: {replica: {cpus: 0.5, gpus: 2, memory: 4GiB, resources: {ssd: 1}}}\n", {}),
        (GOOD + "torchmar: {replica: {gpus: 1.5}}\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "torchmar: {replica: {memory: 4 gigs}}\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "torchmar: {replica: {resources: {CPU: 1}}}\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "torchmar: true\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "batchSize: -1\nmaxBatchDelay: x\n", {"MAR503": "c.yaml:3"}),
        (GOOD + "deviceType: tpu\n", {"MAR503": "c.yaml:2"}),
        (GOOD + "minWorkers: 1\n", {"MAR505": "c.yaml:2"}),
        (GOOD + "minWorkers: 3\nmaxWorkers: 2\n", {"MAR505": "c.yaml:2"}),
        (GOOD + "maxBatchDelay: 50\n", {"MAR507": "c.yaml:2"}),
        (GOOD + "batchSize: 1\nmaxBatchDelay: 50\n", {"MAR507": "c.yaml:3"}),
        (GOOD + "batchSize: 2\nmaxBatchDelay: 50\n", {}),
        (GOOD + "deviceIds: [0, 4]\n", {"MAR506": "c.yaml:2"}),
        (GOOD + "deviceIds: [0, 1]\n", {}),
        (GOOD + "deviceType: cpu\ndeviceIds: [0]\n", {"MAR506": "c.yaml:3"}),
        ("a: [\n", {"MAR501": "c.yaml:2"}),
        ("- a\n", {"MAR501": "c.yaml"}),
        ("a: \0\n", {"MAR501": "c.yaml"}),
        ("[\n" * 1500, {"MAR501": "c.yaml"}),
        ("when: 2026-13-45\n", {"MAR501": "c.yaml"}),
    ],
)
def test_the_configuration_is_judged_with_its_lines(text: str, expected: dict[str, str]) -> None:
    findings = list(configuration.check(Composed({"c.yaml": text.encode()}), "c.yaml", gpus=2))
    assert {finding.code.name: finding.place for finding in findings} == expected
    assert all(finding.remedy and finding.cause for finding in findings)


def test_a_configuration_that_is_no_text_is_a_finding() -> None:
    for content in (b"\xff\xfe\x00", b"x" * (64 << 10)):
        (finding,) = configuration.check(Composed({"c": content}), "c")
        assert finding.code is Code.MAR501


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("numpy==1.26.4", ""),
        ("numpy[extra]==1.26.4 ; python_version > '3.9'", ""),
        ("numpy", "MAR508"),
        ("numpy>=1", "MAR508"),
        ("numpy ~= 1.0  # why", "MAR508"),
        ("# a comment", ""),
        ("", ""),
        ("--index-url https://example.com/simple", ""),
        ("mine @ https://example.com/mine.whl", ""),
        ("what is this", "MAR509"),
        ("==1.0", "MAR509"),
        ("numpy==", "MAR509"),
        ("./mine-1.0-py3-none-any.whl", ""),
        ("mine-1.0-py3-none-any.whl", ""),
        ("./wheels/other-1.0.tar.gz", ""),
        ("./wheels/other-1.0.tar.gz[extra] ; python_version > '3.9'", ""),
        ("./wheels", "MAR509"),  # a folder that is no project: pip does not install it
        ("/opt/wheels/mine-1.0-py3-none-any.whl", ""),
        ("./missing-1.0-py3-none-any.whl", "MAR509"),
        ("missing-1.0-py3-none-any.whl", "MAR509"),
        ("../mine-1.0-py3-none-any.whl", "MAR509"),
    ],
)
def test_requirements_that_are_neither_pinned_nor_carried_are_findings(line: str, code: str) -> None:
    members = {"r.txt": f"# first\n{line}\n".encode(), "mine-1.0-py3-none-any.whl": b"", "wheels/other-1.0.tar.gz": b""}
    findings = list(requirements.check(Composed(members), "r.txt"))
    assert [(finding.code.name, finding.place) for finding in findings] == [(code, "r.txt:2")] * bool(code)


def test_the_digits_have_no_finding_as_recipe_archive_folder_or_tar(digits: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(digits) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith("SHA256SUMS")}
    folder = pack_folder(members, tmp_path / "digits").path
    tar = pack_tgz(members, tmp_path / "digits.tar.gz", "digits").path
    for path in (DIGITS, DIGITS / "archive.yaml", digits, folder, tar):
        assert checks.check(path) == []


@pytest.mark.parametrize(("form", "name"), [("tgz", "a.mar"), ("zip", "a.tar.gz"), ("flat", "b.tar.gz")])
def test_a_file_with_another_name_than_torchserve_reads_is_a_finding(
    digits: Path, tmp_path: Path, form: str, name: str
) -> None:
    with zipfile.ZipFile(digits) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith("SHA256SUMS")}
    if form == "zip":
        pack(members, tmp_path / name)
    elif form == "tgz":
        pack_tgz(members, tmp_path / name, "digits")
    else:
        with tarfile.open(tmp_path / name, "w:gz") as flat:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                flat.addfile(info, io.BytesIO(content))
    assert [finding.code for finding in checks.check(tmp_path / name)] == [Code.MAR101]


def test_a_numeric_version_is_read_as_text() -> None:
    parsed, findings = manifests.read(Composed({"MAR-INF/MANIFEST.json": manifest(modelVersion=2)}))
    assert (parsed and parsed.version, findings) == ("2", [])


def test_a_deflated_archive_is_a_warning_and_reads_the_same(digits: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(digits) as old, zipfile.ZipFile(tmp_path / "a.mar", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert [finding.code for finding in checks.check(tmp_path / "a.mar")] == [Code.MAR111]


def test_findings_of_all_groups_are_listed_at_once_errors_first(tmp_path: Path) -> None:
    members: Mapping[str, bytes] = {
        "MAR-INF/MANIFEST.json": manifest(serializedFile="w.pt", modelFile="gone.py", configFile="c.yaml"),
        "h.py": b"class A: ...\nclass B: ...\n",
        "w.pt": b"junk",
        "c.yaml": b"batchsize: 8\n",
    }
    findings = checks.check(pack(members, tmp_path / "a.mar").path)
    codes = [finding.code.name for finding in findings]
    assert {"MAR204", "MAR301", "MAR401", "MAR502", "MAR504"} <= set(codes)
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities)


def test_problems_of_a_recipe_are_findings_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "archive.yaml").write_text('name: m\nversion: "1"\nhandler: h.py\nwieghts: x\n')
    findings = checks.check(tmp_path)
    assert [(finding.code, finding.place.rpartition(":")[2]) for finding in findings] == [
        (Code.MAR207, "3"),
        (Code.MAR207, "4"),
    ]


def torchmar(*arguments: object, code: int) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "torchmar", "check", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stdout + ran.stderr


def test_the_command_prints_codes_and_hints_and_fails_on_errors_only(make: Make, tmp_path: Path) -> None:
    bad = make("class A: ...\nclass B: ...\n", config={"batchSize": 8})

    def check(*arguments: object, code: int) -> str:
        ran = torchmar_here("check", *arguments, cwd=tmp_path, code=code)
        return ran.stdout + ran.stderr

    output = check(bad, code=1)
    assert "MAR301" in output
    assert "hint:" in output
    assert "MAR504" not in check(bad, "--select", "MAR3", code=1)
    assert "MAR301" not in check(bad, "--ignore", "MAR301", "--ignore", "mar306", code=0)
    (document,) = json.loads(check(bad, "--json", code=1))
    assert {"MAR301", "MAR504"} <= {finding["code"] for finding in document["findings"]}
    assert {finding["severity"] for finding in document["findings"]} == {"error", "warning"}
    assert "no code is called" in check(bad, "--select", "XYZ", code=2)
    assert "does not exist" in check(tmp_path / "nowhere", code=1)


def test_the_command_runs_the_samples_of_an_archive_or_a_recipe(digits: Path, make: Make) -> None:
    for path in (digits, DIGITS):
        output = torchmar(path, "--run", code=0)
        assert "samples/seven.png (explained)" in output
        assert "kept" in output
    (document,) = json.loads(torchmar(digits, "--run", "--json", code=0))
    assert document["run"]["problems"] == []
    broken = make("def handle(rows, context):\n    return rows and [3]", samples=[{"json": 1, "expect": 2}])
    assert "the answer is 3, not 2" in torchmar(broken, "--run", code=1)


@pytest.mark.process
def test_a_pickle_that_would_run_code_is_found_and_not_run(tmp_path: Path) -> None:
    import torch

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    stream = io.BytesIO()
    torch.save({"weight": Evil()}, stream)
    members = {
        "MAR-INF/MANIFEST.json": manifest(handler="image_classifier", serializedFile="w.pt", modelFile="net.py"),
        "net.py": b"import torch\nclass Net(torch.nn.Module): ...\n",
        "w.pt": stream.getvalue(),
    }
    findings = checks.check(pack(members, tmp_path / "a.mar").path)
    (finding_of_code,) = [finding for finding in findings if finding.code is Code.MAR601]
    assert "posix.system" in finding_of_code.cause
    assert not (tmp_path / "ran").exists()
