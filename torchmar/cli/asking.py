"""Commands that ask a running server for predictions and explanations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchmar.cli.options import Address, KeyFile, Name, RunFolder, Version
from torchmar.cli.terminal import complain
from torchmar.errors import Refused, TorchmarError

PANEL = "Requests"
Inputs = Annotated[list[Path], typer.Argument(metavar="INPUT", help="Files to ask with.", show_default=False)]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write the answer here.", show_default=False)]


def predict(
    name: Name,
    inputs: Inputs,
    version: Version = None,
    output: Output = None,
    run_folder: RunFolder = None,
    address: Address = None,
    key_file: KeyFile = None,
) -> None:
    """Ask for predictions: one answer as it is, several as lines of JSON."""
    _ask(name, inputs, version, False, output, run_folder, address, key_file)


def explain(
    name: Name,
    inputs: Inputs,
    version: Version = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write it here: a .png picture, or .json.", show_default=False),
    ] = None,
    run_folder: RunFolder = None,
    address: Address = None,
    key_file: KeyFile = None,
) -> None:
    """Ask what in the input speaks for the prediction."""
    _ask(name, inputs, version, True, output, run_folder, address, key_file)


def _ask(
    name: str,
    inputs: list[Path],
    version: str | None,
    explained: bool,
    output: Path | None,
    run_folder: Path | None,
    address: str | None,
    key_file: Path | None,
) -> None:
    from torchmar.cli import answers
    from torchmar.cli.options import server
    from torchmar.inference import InferenceClient

    client = InferenceClient(server(run_folder, key_file, inference=address))
    many, failed = answers.several(inputs, output), False
    for source in inputs:
        try:
            answer = client.ask(name, answers.request(source, explained, output), version)
            if many:
                typer.echo(answers.line(source, answer.status, answer.body))
            else:
                answers.show(answer, output)
        except TorchmarError as error:
            if not many:
                raise
            # One bad file of many is its own problem; no server at all is everybody's.
            complain(TorchmarError(f"{source}: {error.message}"))
            failed = True
            if not isinstance(error, Refused) and source.is_file():
                break
    raise typer.Exit(1 if failed else 0)
