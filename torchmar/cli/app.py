"""The commands, in the groups of ``torchmar --help``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import typer
from typer.main import get_command_name
from typer.models import CommandInfo

import torchmar
from torchmar.cli import (
    archives,
    bench_app,
    checking,
    console,
    creating,
    deploying,
    diagnosing,
    exporting,
    importing,
    models,
    operating,
    optimizing,
    parity,
    predicting,
    promoting,
    serving,
    tuning,
    venvs,
    watching,
    weights,
)

app = typer.Typer(
    name="torchmar",
    help="Build, test and serve TorchServe model archives (.mar).",
    epilog="A recipe, archives/NAME/archive.yaml, becomes model_store/NAME-VERSION.mar, which a server loads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: Mapping[str, Sequence[Callable[..., None]]] = {
    archives.PANEL: (
        creating.new,
        archives.build,
        archives.inspect,
        checking.check,
        archives.run,
        archives.extract,
        archives.derive,
        weights.export_weights,
        importing.import_,
        venvs.lock,
        archives.schema,
    ),
    serving.PANEL: (
        serving.serve,
        operating.status,
        operating.logs,
        console.console,
        watching.top,
        serving.stop,
        diagnosing.doctor,
        parity.parity,
        tuning.tune,
        optimizing.optimize,
    ),
    models.PANEL: (models.models, models.register, models.scale, models.set_default, models.unregister),
    deploying.PANEL: (
        deploying.plan,
        deploying.apply,
        promoting.rollback,
        promoting.promote,
        deploying.capture,
        deploying.startup,
        deploying.deployment_schema,
    ),
    predicting.PANEL: (predicting.predict, predicting.explain),
}
for _panel, _commands in _COMMANDS.items():
    for _command in _commands:
        _name = _command.__name__.strip("_").replace("_", "-")
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(venvs.app, name="venv", rich_help_panel=archives.PANEL)
app.add_typer(exporting.app, name="export", rich_help_panel=serving.PANEL)
app.add_typer(bench_app.app, name="bench", rich_help_panel=predicting.PANEL)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"torchmar {torchmar.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


def app_for(arguments: Sequence[str]) -> typer.Typer:
    """Return the application with only the command that arguments name; with all commands if they name none.

    typer evaluates the annotations of every command of an application before it runs one: a tenth of a second.

    Args:
        arguments: arguments of the command line, without the program.
    """
    return _narrowed(app, arguments)


def _narrowed(commands: typer.Typer, arguments: Sequence[str]) -> typer.Typer:
    first = arguments[0] if arguments else ""
    narrowed = copy.copy(commands)
    narrowed.registered_commands = [command for command in commands.registered_commands if _name_of(command) == first]
    narrowed.registered_groups = [copy.copy(group) for group in commands.registered_groups if group.name == first]
    for group in narrowed.registered_groups:
        if group.typer_instance:
            group.typer_instance = _narrowed(group.typer_instance, arguments[1:])
    return narrowed if narrowed.registered_commands or narrowed.registered_groups else commands


def _name_of(command: CommandInfo) -> str:
    """Return the name of a command, which typer derives from that of its function."""
    return command.name or (get_command_name(command.callback.__name__) if command.callback else "")
