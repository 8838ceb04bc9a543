"""``torchmar bench``: a group of commands, of which ``measure`` is the default: ``torchmar bench NAME`` runs it."""

from __future__ import annotations

import typer
from typer.core import TyperGroup

from torchmar.cli import bench_compare, bench_measure

_DEFAULT = "measure"


class _Group(TyperGroup):
    """A group that passes arguments without the name of a command to the default command."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if _DEFAULT in self.commands and args and args[0] not in {*self.commands, "-h", "--help"}:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    help="Measure a server under load; compare two measurements. torchmar bench NAME is torchmar bench measure NAME.",
)
app.command()(bench_measure.measure)
app.command()(bench_compare.compare)
