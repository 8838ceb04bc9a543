"""torchmar.cli.app lists the commands; their help fits into 80 columns."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from tests.support.command_tree import command_tree
from torchmar.cli.app import app, app_for


@pytest.mark.parametrize("words", [words for words, _ in command_tree()], ids=" ".join)
def test_no_word_of_help_is_cut_at_80_columns(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    # Rich cuts a flag that has no room, and marks the cut with an ellipsis.
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    result = CliRunner().invoke(app_for(words), [*words, "--help"])
    assert result.exit_code == 0
    assert "…" not in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_an_application_for_one_command_has_that_alone() -> None:
    every = typer.main.get_command(app).commands.keys()  # type: ignore[attr-defined]
    for words, names in (
        (["build", "--store", "x"], {"build"}),
        (["bench", "compare"], {"bench"}),
        (["--version"], every),
        (["biuld"], every),
        ([], every),
    ):
        built = typer.main.get_command(app_for(words)).commands  # type: ignore[attr-defined]
        assert built.keys() == names
    for words, names in ((["export", "ray-cluster"], {"ray-cluster"}), (["bench", "compare"], {"compare"})):
        built = typer.main.get_command(app_for(words)).commands[words[0]]  # type: ignore[attr-defined]
        assert built.commands.keys() == names
    for words in (["export", "--help"], ["export", "dokcer"]):
        built = typer.main.get_command(app_for(words)).commands["export"]  # type: ignore[attr-defined]
        assert {"docker", "kubernetes"} <= built.commands.keys()
    mistaken = CliRunner().invoke(app_for(["biuld"]), ["biuld"])
    assert mistaken.exit_code == 2
    assert "Did you mean 'build'?" in mistaken.output
