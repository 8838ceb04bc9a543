"""The documents are complete, and their examples are correct: files parse, commands print the shown output."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest

import torchmar
from scripts import reference
from tests.support import documents
from tests.support.documents import Block
from tests.support.paths import ROOT
from torchmar import recipe, server_config, strict_yaml
from torchmar.deployment import desired
from torchmar.parity import differences
from torchmar.server.config import key_descriptions, keys

#: The public names whose examples need neither torch nor a server.
UNIT_EXAMPLES = ("Archive", "Endpoint", "Tensor", "build", "check", "derive", "import_archive")
BLOCKS = [block for file in documents.FILES for block in documents.blocks(file)]


def shown(*titles: str) -> pytest.MarkDecorator:
    """Parametrize a test with the blocks that show a file of one of these names."""
    chosen = [block for block in BLOCKS if Path(block.title).name in titles]
    assert chosen
    return pytest.mark.parametrize("block", chosen, ids=str)


@shown("archive.yaml")
def test_recipes_are_valid(block: Block) -> None:
    recipe.parse(block.code, str(block))


@shown("deployment.yaml")
def test_deployments_are_valid(block: Block) -> None:
    desired.parse(block.code, str(block))


@shown("model-config.yaml")
def test_configurations_of_models_are_valid(block: Block) -> None:
    server_config.ServerConfig.model_validate(strict_yaml.parse(block.code, str(block), "").data)


@shown("config.properties")
def test_configurations_of_servers_have_supported_keys_with_valid_values(block: Block) -> None:
    for line in block.code.splitlines():
        key, _, value = line.partition("=")
        keys.SUPPORTED_KEYS[key].read(value)


@shown("handler.py")
def test_handlers_have_no_errors(block: Block, tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text(block.code)
    (tmp_path / "archive.yaml").write_text('{name: shown, version: "1", handler: handler.py}')
    assert not [finding for finding in torchmar.check(tmp_path) if finding.severity == "error"]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_code_compiles(block: Block) -> None:
    compile(block.code, str(block), "exec")


@pytest.mark.process
@pytest.mark.parametrize(
    "file",
    [file for file in documents.FILES if any(block.marks == {"run"} for block in documents.blocks(file))],
    ids=lambda file: file.stem,
)
def test_commands_print_the_shown_output(file: Path, tmp_path: Path) -> None:
    documents.write_project(tmp_path)
    for block in documents.blocks(file):
        if block.marks == {"run"}:
            documents.run(block, tmp_path)


def test_links_between_documents_lead_to_files_and_headings() -> None:
    pages = {file: file.read_text(encoding="utf-8") for file in documents.FILES}
    problems = []
    for file, text in pages.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", prose):
            path, _, anchor = link.partition("#")
            if ":" in path or "reference/" in path or "project/" in path:
                continue  # other sites, and generated pages, which the build of the site checks
            target = (file.parent / path).resolve() if path else file
            headings = re.findall(r"^#+ (.*)$", pages.get(target, ""), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
            if not target.exists() or (anchor and anchor not in anchors):
                problems.append(f"{file.relative_to(ROOT)}: {link}")
    assert not problems


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    written = {file.relative_to(ROOT / "docs").as_posix() for file in documents.FILES if ROOT / "docs" in file.parents}
    assert listed == written | set(reference.PAGES)


def test_every_supported_key_is_described() -> None:
    assert set(key_descriptions.DESCRIPTIONS) == set(keys.SUPPORTED_KEYS)
    assert {description.group for description in key_descriptions.DESCRIPTIONS.values()} == set(key_descriptions.GROUPS)


def test_the_table_of_differences_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "differences.md").read_text()
    rows = "".join(line for line in text.splitlines(keepends=True) if line.startswith("|"))
    assert rows == differences.markdown(), "torchmar.parity.differences.markdown() is what should stand there"
    ids = [difference.id for difference in differences.DIFFERENCES]
    assert len(ids) == len(set(ids))


def test_the_documented_python_api_is_the_public_one() -> None:
    documented = {name for names in reference.PUBLIC_NAMES.values() for name in names}
    public = {f"torchmar.{name}" for name in torchmar.__all__} - {"torchmar.__version__", "torchmar.TorchmarError"}
    assert {name for name in documented if name.count(".") == 1} == public
    grpc = importlib.import_module("torchmar.grpc")
    assert {name for name in documented if name.startswith("torchmar.grpc.")} == {
        f"torchmar.grpc.{name}" for name in grpc.__all__
    }


@pytest.mark.parametrize("name", torchmar.__all__)
def test_public_names_can_be_imported_and_have_docstrings(name: str) -> None:
    if name in ("Worker", "SampleReport", "SampleResult", "run_samples"):
        pytest.importorskip("psutil")
    assert name == "__version__" or getattr(torchmar, name).__doc__


def test_importing_torchmar_imports_none_of_its_modules() -> None:
    code = "import sys, torchmar; print(*(name for name in sys.modules if name.startswith('torchmar.')))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert not ran.stdout.strip()


@pytest.mark.parametrize("name", ["", *UNIT_EXAMPLES])
def test_examples_of_docstrings_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents.write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert documents.run_examples(getattr(torchmar, name) if name else torchmar, f"torchmar.{name}")


def test_every_function_and_client_of_the_public_api_has_an_example() -> None:
    callables = {name for name in torchmar.__all__ if not name.startswith("__") and _needs_example(name)}
    assert callables == {*UNIT_EXAMPLES, *documents.SERVER_EXAMPLES, *documents.PROCESS_EXAMPLES}


def _needs_example(name: str) -> bool:
    value = getattr(torchmar, name)
    is_record = dataclasses.is_dataclass(value) or (
        isinstance(value, type) and issubclass(value, Enum | Exception | tuple)
    )
    return not is_record or name in ("Tensor", "Endpoint")
