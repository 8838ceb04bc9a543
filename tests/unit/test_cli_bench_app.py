"""``torchmar bench NAME`` is ``torchmar bench measure NAME``, and other commands keep their names."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from torchmar.cli.bench_app import _Group

app = typer.Typer(cls=_Group)


@app.command()
def measure(name: str, rate: float = 1) -> None:
    typer.echo(f"measure {name} {rate:g}")


@app.command()
def compare(old: str, new: str) -> None:
    typer.echo(f"compare {old} {new}")


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ("digits", "measure digits 1"),
        ("digits --rate 5", "measure digits 5"),
        ("--rate 5 digits", "measure digits 5"),
        ("measure compare", "measure compare 1"),
        ("compare a b", "compare a b"),
    ],
)
def test_a_first_argument_that_is_no_command_is_a_model(arguments: str, output: str) -> None:
    assert CliRunner().invoke(app, arguments.split()).output.strip() == output


def test_the_help_of_the_group_lists_its_commands() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    assert "measure" in text
    assert "compare" in text
