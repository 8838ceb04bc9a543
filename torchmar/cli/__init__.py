"""The command line: commands parse, call and print; what they do is in the library.

Results go to stdout, talk to stderr. Exit codes: 0 done, 1 an error or a refusal, 2 wrong
usage, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

import torchmar
from torchmar.cli import archives, asking, models, serving
from torchmar.cli.terminal import complain
from torchmar.errors import TorchmarError

app = typer.Typer(
    name="torchmar",
    help="Build, prove and serve TorchServe model archives (.mar).",
    epilog="A recipe (archives/NAME/archive.yaml) becomes model_store/NAME-VERSION.mar; a server answers for it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"torchmar {torchmar.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


for _module, _commands in {
    archives: (
        archives.build,
        archives.inspect,
        archives.extract,
        archives.run,
        archives.derive,
        archives.import_,
        archives.schema,
    ),
    serving: (serving.serve, serving.stop),
    models: (models.models, models.register, models.scale, models.set_default, models.unregister),
    asking: (asking.predict, asking.explain),
}.items():
    for _command in _commands:
        _name = _command.__name__.strip("_").replace("_", "-")
        app.command(_name, rich_help_panel=_module.PANEL)(_command)


def main() -> None:
    """Run the command line and exit."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        app()
    except TorchmarError as error:
        complain(error)
        sys.exit(1)


def _stop(number: int, frame: FrameType | None) -> None:
    # Like Ctrl-C, so that whatever runs below is cleaned up; the exit code names the signal.
    sys.exit(128 + number)
