"""torchmar.optimizing.recipe_writing puts a variant and its proof into a recipe or an archive, or changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from torchmar import archive, checks, recipe
from torchmar.checks import manifest as manifests
from torchmar.checks import optimized
from torchmar.cli.app import app
from torchmar.errors import TorchmarError
from torchmar.load.results import Machine
from torchmar.optimizing import recipe_writing, results, trial_archive
from torchmar.optimizing.results import Report, Row, Verdict

XML = b'<?xml version="1.0"?>\n<net name="m"></net>\n'
ONNX = b"\x08\x08\x12\x00:\x00"
PLAIN = """\
# The model of the tests.
name: net
version: "1.0"  # of today
handler: torchmar_handlers.image_classifier
weights: net.onnx
"""
MACHINE = Machine(processor="a processor", cores=2, flags=(), system="Linux", python="3.11")
OPTIONS = {"weights": "optimized/model.xml", "dtype": "bfloat16"}
FASTER = "5 times as fast as the original"
NEEDS = ("amx_bf16|avx512_bf16",)


def report(options: dict[str, Any] | None = OPTIONS, needs: tuple[str, ...] = NEEDS, **original: str) -> Report:
    rows = [Row(variant="baseline", title="original", verdict=Verdict.BASELINE, reason="")]
    if options is not None:
        chosen = Row(variant="x", title="X", verdict=Verdict.CHOSEN, reason=FASTER, options=options, needs=needs)
        rows.append(chosen)
    return Report(
        name="net",
        version="1.0",
        archive="0" * 64,
        original=original,
        created="2026-11-29T12:00:00Z",
        machine=MACHINE,
        threads=1,
        batch_sizes=(1,),
        requirements=(),
        inputs=8,
        calibration_inputs=0,
        rows=tuple(rows),
        packages={},
        seconds=1.0,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return the folder of a recipe without a configuration."""
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "archive.yaml").write_text(PLAIN)
    (folder / "net.onnx").write_bytes(ONNX)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = tmp_path / "made.xml"
    made.write_bytes(XML)
    return {"optimized/model.xml": made}


def digests(project: Path) -> dict[str, str]:
    read, folder = recipe.read(project)
    members = checks.Composed(archive.collect_members(read, folder))
    model = manifests.read(members)[0]
    assert model
    return optimized.original_digests(members, model.model)


def errors(path: Path) -> list[str]:
    return [finding.code.name for finding in checks.check(path) if finding.severity == "error"]


def test_a_recipe_without_a_configuration_gets_one_and_keeps_its_comments(
    project: Path, files: dict[str, Path]
) -> None:
    written = recipe_writing.write(report(**digests(project)), files, project, picture="<svg/>")
    assert written == [project / "optimized", project / "archive.yaml"]
    text = (project / "archive.yaml").read_text()
    assert text.startswith(PLAIN)
    assert yaml.safe_load(text)["config"] == {"handler": {"optimized": {**OPTIONS, "needs": list(NEEDS)}}}
    assert yaml.safe_load(text)["files"] == {"optimized": "optimized"}
    assert {file.name for file in (project / "optimized").iterdir()} == {"model.xml", "proof.json", "proof.svg"}
    assert results.read(project / "optimized" / "proof.json") == report(**digests(project))
    assert errors(project) == []
    built = archive.build(project, project / "store")
    with archive.Archive(built.path) as packed:
        assert {"optimized/model.xml", "optimized/proof.json"} <= {member.name for member in packed.members}
    # The model is trained again: what was optimised is another one.
    (project / "net.onnx").write_bytes(ONNX + b"\x12\x00")
    assert errors(project) == ["MAR410"]


def test_a_second_variant_replaces_the_first(project: Path, files: dict[str, Path]) -> None:
    original = digests(project)
    recipe_writing.write(report(**original), files, project, picture="<svg/>")
    recipe_writing.write(report({"dtype": "bfloat16"}, (), **original), {}, project)
    assert yaml.safe_load((project / "archive.yaml").read_text())["config"] == {
        "handler": {"optimized": {"dtype": "bfloat16"}}
    }
    assert [file.name for file in (project / "optimized").iterdir()] == ["proof.json"]
    assert [path.name for path in project.iterdir() if path.name.startswith(".")] == []
    assert errors(project) == []


@pytest.mark.parametrize("configuration", ["", "config: config.yaml\n", "config:\n  handler:\n    mode: L\n"])
def test_an_earlier_variant_is_removed_without_a_trace(
    project: Path, files: dict[str, Path], configuration: str
) -> None:
    (project / "config.yaml").write_text("responseTimeout: 60\n")
    (project / "archive.yaml").write_text(PLAIN + configuration)
    before, _ = recipe.read(project)
    assert recipe_writing.variant_of(project) is None
    recipe_writing.write(report(**digests(project)), files, project)
    assert recipe_writing.variant_of(project) == "x"
    removed = recipe_writing.remove(project)
    assert {path.name for path in removed} >= {"archive.yaml", "optimized"}
    assert recipe_writing.variant_of(project) is None
    assert not (project / "optimized").exists()
    after, _ = recipe.read(project)
    assert (after.files, after.weights) == (before.files, before.weights)
    assert errors(project) == []


def test_the_file_of_the_configuration_is_edited_and_named(project: Path, files: dict[str, Path]) -> None:
    (project / "config.yaml").write_text("responseTimeout: 60\nhandler: {mode: L}\n")
    (project / "archive.yaml").write_text(
        PLAIN + "config: config.yaml\nfiles: {optimized/model.xml: net.onnx, a: net.onnx}\n"
    )
    with pytest.raises(TorchmarError, match="cannot be edited"):  # a key of a mapping on one line is not removed
        recipe_writing.write(report(), files, project)
    assert not (project / "optimized").exists()
    (project / "archive.yaml").write_text(PLAIN + "config: config.yaml\n")
    written = recipe_writing.write(report(), files, project)
    assert written == [project / "optimized", project / "config.yaml", project / "archive.yaml"]
    config = yaml.safe_load((project / "config.yaml").read_text())
    assert config["handler"] == {"mode": "L", "optimized": {**OPTIONS, "needs": list(NEEDS)}}


def test_nothing_changes_where_something_is_in_the_way(project: Path, files: dict[str, Path]) -> None:
    with pytest.raises(TorchmarError, match="the original weights stay"):
        recipe_writing.write(report(None), {}, project)
    with pytest.raises(ValueError, match="as its weights, and has no file"):
        recipe_writing.write(report(), {}, project)
    (project / "optimized").mkdir()
    with pytest.raises(TorchmarError, match="optimized exists, and torchmar optimize has not made it"):
        recipe_writing.write(report(), files, project)
    (project / "optimized").rmdir()
    (project / "archive.yaml").write_text(PLAIN.replace("torchmar_handlers.", ""))
    with pytest.raises(TorchmarError, match="the handler image_classifier does not read the section optimized"):
        recipe_writing.write(report(), files, project)
    (project / "archive.yaml").write_text(PLAIN + "files: {torchmar_handlers/base.py: net.onnx}\n")
    with pytest.raises(TorchmarError, match="packs handlers of its own"):
        recipe_writing.write(report(), files, project)
    (project / "archive.yaml").write_text(PLAIN)
    recipe_writing.write(report(), files, project)
    before = {file: file.read_bytes() for file in project.rglob("*") if file.is_file()}
    (project / "net.onnx").rename(project / "away")
    with pytest.raises(TorchmarError):
        recipe_writing.write(report({"dtype": "bfloat16"}), {}, project)
    (project / "away").rename(project / "net.onnx")
    assert {file: file.read_bytes() for file in project.rglob("*") if file.is_file()} == before


def test_a_version_of_an_archive_has_the_variant_and_the_handlers_that_know_it(
    project: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    original = digests(project)
    store = tmp_path / "store"
    first = archive.build(project, store).path
    derived = recipe_writing.derive(report(**original), files, first, store, version="1.1", picture="<svg/>").path
    again = recipe_writing.derive(report({"dtype": "bfloat16"}, (), **original), {}, derived, store, version="1.2").path
    assert errors(derived) == errors(again) == []
    with archive.Archive(derived) as packed, archive.Archive(again) as second:
        assert yaml.safe_load(packed.config_text)["handler"] == {"optimized": {**OPTIONS, "needs": list(NEEDS)}}
        assert yaml.safe_load(second.config_text)["handler"] == {"optimized": {"dtype": "bfloat16"}}
        names = {member.name for member in packed.members}
        assert {"net.onnx", "optimized/model.xml", "optimized/proof.json", "optimized/proof.svg"} <= names
        assert names - {member.name for member in second.members} == {"optimized/model.xml", "optimized/proof.svg"}
    plain = trial_archive.original(derived, tmp_path)
    with archive.Archive(plain) as packed:
        assert "optimized" not in packed.config_text
        assert "optimized/model.xml" not in packed
    assert trial_archive.original(plain, tmp_path) == plain
    shown = CliRunner().invoke(app, ["inspect", str(derived)]).output
    assert "optimized    optimized/model.xml, an OpenVINO model, dtype bfloat16, needs amx_bf16|avx512_bf16" in shown
    assert "proof        X, 5 times as fast as the original; a processor, 2026-11-29" in shown
