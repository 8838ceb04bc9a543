"""torchmar-archiver does the same as torch-model-archiver, without its faults."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from torchmar.archive import Archive, digests
from torchmar.manifest import PATH as MANIFEST

CLASS = "from ts.torch_handler.base_handler import BaseHandler\nclass Mine(BaseHandler): ...\n"


def archiver(arguments: str, folder: Path, *, theirs: bool = False) -> subprocess.CompletedProcess[str]:
    module = "model_archiver.model_packaging" if theirs else "torchmar.cli.archiver"
    # torch-model-archiver stages below the temporary folder: each call gets one of its own.
    with tempfile.TemporaryDirectory() as temporary:
        return subprocess.run(
            [sys.executable, "-m", module, *shlex.split(arguments)],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "TMPDIR": temporary},
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("project")
    model = torch.nn.Linear(2, 2)
    traced, state = io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 2)), traced)
    torch.save(model.state_dict(), state)
    files: dict[str, str | bytes] = {
        "model.pt": traced.getvalue(),
        "state.pth": state.getvalue(),
        "net.py": "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self): super().__init__(2, 2)\n",
        "h.py": CLASS,
        "src/deep.py": CLASS,
        "functions.py": "def handle(rows, context): return rows\ndef other(rows, context): return rows\n",
        "requirements.txt": "numpy>=1\n",
        "config.yaml": "batchSize: 4\nmaxBatchDelay: 5\nresponseTimeout: 60\n",
        "index_to_name.json": '{"0": "a"}',
        "data/one.txt": "1",
        "data/two.txt": "2",
        "data/sub/three.txt": "3",
        "data/sub/deeper/four.txt": "4",
        "data/__pycache__/five.pyc": "5",
        "data/.hidden/six.txt": "6",
        "data/.dotfile": "7",
        "with space/eight.txt": "8",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


TABLE = [
    "--handler image_classifier --serialized-file model.pt",
    "--handler h.py --serialized-file model.pt",
    "--handler h --serialized-file model.pt",
    "--handler src/deep.py",
    "--handler functions:other",
    "--handler functions",
    "--handler image_classifier --serialized-file state.pth --model-file net.py",
    "--handler h.py --serialized-file ./model.pt --extra-files index_to_name.json",
    "--handler h.py --extra-files index_to_name.json,data/one.txt",
    "--handler h.py --extra-files 'data/*.txt'",
    "--handler h.py --extra-files 'data/[ot]*.txt ,index_to_name.json'",
    "--handler h.py --extra-files data/t?o.txt",
    "--handler h.py --extra-files 'data/*.xyz'",
    "--handler h.py --extra-files data",
    "--handler h.py --extra-files data/",
    "--handler h.py --extra-files data,index_to_name.json",
    "--handler h.py --extra-files 'with space/eight.txt'",
    "--handler h.py --requirements-file requirements.txt",
    "--handler h.py -r requirements.txt -c config.yaml",
    "--handler h.py --config-file config.yaml --serialized-file model.pt --runtime python3",
    "--handler base_handler --serialized-file model.pt",
    "--handler text_classifier --serialized-file model.pt --extra-files index_to_name.json -c config.yaml",
]
FORMATS = {"default": ".mar", "zip-store": ".mar", "tgz": ".tar.gz", "no-archive": ""}


def content(path: Path) -> tuple[dict[str, bytes], dict[str, object]]:
    """Return the members of an archive, and its manifest without the tool and the time."""
    with Archive(path) as archive:
        members = {member.name: archive.read(member.name) for member in archive.members}
    members.pop(digests.PATH, None)
    manifest = json.loads(members.pop(MANIFEST))
    del manifest["createdOn"], manifest["archiverVersion"]
    return members, manifest


@pytest.mark.parametrize("flags", TABLE)
def test_a_worker_finds_the_same_files_and_manifest_as_with_torch_model_archiver(
    project: Path, tmp_path: Path, flags: str
) -> None:
    for theirs in (True, False):
        folder = tmp_path / str(theirs)
        folder.mkdir()
        ran = archiver(f"--model-name m --version 1.0 {flags} --export-path {folder}", project, theirs=theirs)
        assert ran.returncode == 0, ran.stderr
    assert content(tmp_path / "False" / "m.mar") == content(tmp_path / "True" / "m.mar")


@pytest.mark.parametrize(("form", "suffix"), FORMATS.items())
def test_every_format_has_the_same_content_in_the_same_place(
    project: Path, tmp_path: Path, form: str, suffix: str
) -> None:
    flags = "--handler h.py --serialized-file model.pt --extra-files data -c config.yaml"
    for theirs in (True, False):
        folder = tmp_path / str(theirs)
        folder.mkdir()
        arguments = f"--model-name m -v 1.0 {flags} --export-path {folder} --archive-format {form}"
        assert archiver(arguments, project, theirs=theirs).returncode == 0
        assert [path.name for path in folder.iterdir()] == [f"m{suffix}"]
    assert content(tmp_path / "False" / f"m{suffix}") == content(tmp_path / "True" / f"m{suffix}")


def test_an_existing_archive_is_overwritten_only_by_force(project: Path, tmp_path: Path) -> None:
    for form, suffix in FORMATS.items():
        arguments = f"--model-name m -v 1 --handler h.py --export-path {tmp_path} --archive-format {form}"
        assert archiver(f"{arguments} -f", project).returncode == 0
        before = content(tmp_path / f"m{suffix}")
        again = archiver(arguments.replace("h.py", "functions.py"), project)
        assert again.returncode == 1
        assert "exists already" in again.stderr
        assert "--force" in again.stderr
        assert content(tmp_path / f"m{suffix}") == before
        assert archiver(f"{arguments.replace('h.py', 'functions.py')} --force", project).returncode == 0
        assert content(tmp_path / f"m{suffix}") != before


def test_the_current_folder_is_the_default_export_path(project: Path, tmp_path: Path) -> None:
    assert archiver(f"--model-name m -v 1 --handler {project}/h.py", tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m.mar"]


def test_a_function_may_be_named_after_the_file_name_too(project: Path, tmp_path: Path) -> None:
    arguments = f"--model-name m -v 1 --handler functions.py:other --export-path {tmp_path}"
    assert archiver(arguments, project, theirs=True).returncode != 0
    assert archiver(arguments, project).returncode == 0
    assert content(tmp_path / "m.mar")[1]["model"]["handler"] == "functions:other"  # type: ignore[index]


def test_no_archive_into_the_temporary_folder_keeps_its_output(project: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        arguments = f"--model-name m -v 1 --handler h.py --archive-format no-archive --export-path {temporary}"
        subprocess.run(
            [sys.executable, "-m", "torchmar.cli.archiver", *shlex.split(arguments)],
            cwd=project,
            check=True,
            env={**os.environ, "TMPDIR": temporary},
        )
        assert (Path(temporary) / "m" / "h.py").exists()


def test_a_folder_in_the_temporary_folder_that_has_the_models_name_is_left_alone(project: Path, tmp_path: Path) -> None:
    users_folder = tmp_path / "tmp" / "m"
    users_folder.mkdir(parents=True)
    (users_folder / "precious.txt").write_text("x")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torchmar.cli.archiver",
            *shlex.split(f"--model-name m -v 1 --handler h.py --export-path {tmp_path}"),
        ],
        cwd=project,
        check=True,
        env={**os.environ, "TMPDIR": str(users_folder.parent)},
    )
    assert (users_folder / "precious.txt").exists()
    assert set(content(tmp_path / "m.mar")[0]) == {"h.py"}


WRONG = {
    "a name with a slash": ("--model-name a/b -v 1 --handler h.py", "cannot stand in a URL"),
    "an empty version": ("--model-name m -v '' --handler h.py", "--version is empty"),
    "no such handler": ("--model-name m -v 1 --handler nothing.py", "there is no file nothing.py"),
    "no such weights": ("--model-name m -v 1 --handler h.py --serialized-file x.pt", "there is no file x.pt"),
    "no such extra file": ("--model-name m -v 1 --handler h.py --extra-files x.txt", "x.txt does not exist"),
    "no such folder": ("--model-name m -v 1 --handler h.py --export-path nowhere", "nowhere is not a folder"),
    "two files of one name": (
        "--model-name m -v 1 --handler h.py --extra-files data/one.txt,other/one.txt",
        "would both be one.txt",
    ),
    "an extra file over the handler": (
        "--model-name m -v 1 --handler h.py --extra-files other/h.py",
        "would both be h.py",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_clear_error_and_leaves_nothing(
    project: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    for name in ("one.txt", "h.py"):
        (project / "other").mkdir(exist_ok=True)
        (project / "other" / name).write_text("other")
    arguments = arguments if "--export-path" in arguments else f"{arguments} --export-path {tmp_path}"
    ran = archiver(arguments, project)
    assert ran.returncode == 1
    assert ran.stderr.count("error: ") == 1
    assert message in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.stderr
    assert list(tmp_path.iterdir()) == []
    assert not (project / "m.mar").exists()


def test_an_archive_that_would_not_work_is_not_written_unless_requested(project: Path, tmp_path: Path) -> None:
    (project / "two.py").write_text("class A: ...\nclass B: ...\n")
    (project / "junk.pt").write_bytes(b"junk")
    for flags, code in (
        ("--handler two.py", "MAR301"),
        ("--handler image_classifier --serialized-file junk.pt", "MAR4"),
    ):
        arguments = f"--model-name m -v 1 {flags} --export-path {tmp_path}"
        ran = archiver(arguments, project)
        assert ran.returncode == 1
        assert code in ran.stderr
        assert "--no-check" in ran.stderr
        assert not (tmp_path / "m.mar").exists()
        assert archiver(f"{arguments} --no-check", project).returncode == 0
        (tmp_path / "m.mar").unlink()


WHOLE = """
import torch
class Whole:
    def initialize(self, context):
        folder, name = context.system_properties["model_dir"], context.manifest["model"]["serializedFile"]
        self.model = torch.load(f"{folder}/{name}", weights_only=False)["model"]
    def handle(self, data, context): return [1] * len(data)
"""


def test_a_handler_that_unpickles_a_whole_model_is_packed_with_a_warning(project: Path, tmp_path: Path) -> None:
    import torch

    (project / "whole.py").write_text(WHOLE)
    torch.save({"model": torch.nn.Linear(1, 1)}, project / "best.pt")
    (project / "empty.pt").touch()
    for weights, code in (("best.pt", "MAR601"), ("empty.pt", "MAR406")):
        arguments = f"--model-name m -v 1 --handler whole.py --serialized-file {weights} --export-path {tmp_path} -f"
        ran = archiver(arguments, project)
        assert ran.returncode == 0, ran.stderr
        assert f"warning: {code} {weights}" in ran.stderr
        assert code not in archiver(f"{arguments} --ignore {code.lower()}", project).stderr
        stock = archiver(arguments.replace("whole.py", "image_classifier"), project)
        assert (stock.returncode, "error: MAR4" in stock.stderr) == (1, True)


def test_an_ignored_error_does_not_stop_the_build(project: Path, tmp_path: Path) -> None:
    (project / "three.py").write_text("class A: ...\nclass B: ...\n")
    arguments = f"--model-name m -v 1 --handler three.py --export-path {tmp_path}"
    assert archiver(arguments, project).returncode == 1
    assert archiver(f"{arguments} --ignore MAR301", project).returncode == 0
    assert "no code is called" in archiver(f"{arguments} --ignore MAR9 -f", project).stderr


def test_one_file_may_be_named_by_two_flags(project: Path, tmp_path: Path) -> None:
    flags = "--handler data/h.py --serialized-file data/model.pt --extra-files data/,data/one.txt"
    for name in ("h.py", "model.pt"):
        (project / "data" / name).write_bytes((project / name).read_bytes())
    for theirs in (True, False):
        folder = tmp_path / str(theirs)
        folder.mkdir()
        ran = archiver(f"--model-name m -v 1 {flags} --export-path {folder}", project, theirs=theirs)
        assert ran.returncode == 0, ran.stderr
    assert content(tmp_path / "False" / "m.mar") == content(tmp_path / "True" / "m.mar")
    for name in ("h.py", "model.pt"):
        (project / "data" / name).unlink()


def test_a_saved_model_is_called_that(project: Path, tmp_path: Path) -> None:
    (tmp_path / "saved" / "variables").mkdir(parents=True)
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"\x08\x01")
    ran = archiver(f"--model-name m -v 1 --handler h.py --serialized-file {tmp_path}/saved", project)
    messages = " ".join(ran.stderr.split())
    assert ran.returncode == 1
    assert "is a TensorFlow SavedModel, a folder" in messages
    assert "torchmar build will convert it" in messages


TOOL = """
from argparse import Namespace
from PACKAGE.model_packaging import package_model
from PACKAGE.model_packaging_utils import ModelExportUtils
args = Namespace(model_file=None, serialized_file="model.pt", handler="h.py", model_name="m", version="1.0",
                 export_path="OUT", force=True, requirements_file=None, config_file=None, runtime="python",
                 archive_format="default", extra_files="index_to_name.json")
package_model(args, ModelExportUtils.generate_manifest_json(args))
"""
CONFIG = """
from PACKAGE.model_archiver import ModelArchiver
from PACKAGE.model_archiver_config import ModelArchiverConfig
config = ModelArchiverConfig(model_name="m", handler="h.py", version="1.0", serialized_file="model.pt",
                             export_path="OUT")
ModelArchiver.generate_model_archive(config)
"""


@pytest.mark.parametrize("tool", [TOOL, CONFIG])
def test_a_tool_that_packs_from_python_changes_its_imports_alone(project: Path, tmp_path: Path, tool: str) -> None:
    for package in ("model_archiver", "torchmar.model_archiver"):
        folder = tmp_path / package
        (folder / "tmp").mkdir(parents=True)
        code = tool.replace("PACKAGE", package).replace("OUT", str(folder))
        environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
        subprocess.run([sys.executable, "-c", code], cwd=project, check=True, env=environment)
    assert content(tmp_path / "model_archiver" / "m.mar") == content(tmp_path / "torchmar.model_archiver" / "m.mar")


def test_a_tool_that_packs_an_unloadable_archive_gets_an_error(project: Path, tmp_path: Path) -> None:
    from torchmar.model_archiver.model_archiver_config import ModelArchiverConfig
    from torchmar.model_archiver.model_archiver_error import ModelArchiverError
    from torchmar.model_archiver.model_packaging import package_model

    (tmp_path / "h.py").write_text("class A: ...\nclass B: ...\n")
    config = ModelArchiverConfig("m", str(tmp_path / "h.py"), "1.0", export_path=str(tmp_path))
    with pytest.raises(ModelArchiverError, match="MAR301"):
        package_model(config)
    assert not (tmp_path / "m.mar").exists()


def test_the_same_inputs_give_the_same_bytes_in_every_format(project: Path, tmp_path: Path) -> None:
    for form in ("default", "tgz"):
        digests_seen = set()
        for number in range(2):
            folder = tmp_path / f"{form}{number}"
            folder.mkdir()
            os.utime(project / "h.py", (1_000_000_000 + number, 1_000_000_000 + number))
            arguments = f"--model-name m -v 1 --handler h.py --extra-files data --export-path {folder}"
            archiver(f"{arguments} --archive-format {form}", project)
            digests_seen.add((folder / f"m{FORMATS[form]}").read_bytes())
        assert len(digests_seen) == 1


def test_every_flag_of_torch_model_archiver_is_taken() -> None:
    helps = [archiver("--help", Path.cwd(), theirs=theirs).stdout for theirs in (True, False)]
    theirs, ours = ({word.strip(",") for word in text.split() if word.startswith("--")} for text in helps)
    flags = {word for word in theirs if word.replace("-", "").isalpha()}
    assert len(flags) >= 12
    assert flags <= ours
