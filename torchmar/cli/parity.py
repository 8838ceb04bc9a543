"""The command that compares the responses of two engines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.markup import escape

from torchmar.cli.options import AsJson, Head
from torchmar.cli.terminal import err, out, show_table, table
from torchmar.engines import EngineName

if TYPE_CHECKING:
    from torchmar.parity import Outcome

_WIDTH = 76  # columns of a response


def parity(
    archives: Annotated[
        list[Path] | None, typer.Argument(metavar="ARCHIVE", help="Archives whose samples are sent, too.")
    ] = None,
    engines: Annotated[
        str,
        typer.Option(
            metavar="A,B", help="The reference, and the server to compare with it: torchserve, builtin or ray."
        ),
    ] = "torchserve,builtin",
    head: Head = None,
    as_json: AsJson = False,
) -> None:
    """Send the same requests to two servers and show where responses differ.

    Both servers are started on free ports. The requests: the samples of every
    archive, invalid requests, special cases of the protocol, and all management
    calls. Exit code 1: there is a difference that is not documented.
    """
    from torchmar.parity import compare

    between = _between(engines)
    if head and "ray" not in between:
        raise typer.BadParameter("only the engine ray has a cluster: --engines builtin,ray", param_hint="--address")
    outcomes = []
    with err.status("starting") as status:
        for outcome in compare(archives or [], between, head=head, on_step=lambda text: status.update(escape(text))):
            outcomes.append(outcome)
            if not as_json:
                _show(outcome, between)
    if as_json:
        typer.echo(json.dumps([_document(outcome) for outcome in outcomes], indent=2, ensure_ascii=False))
    else:
        _sum_up(outcomes)
    raise typer.Exit(1 if any(outcome.different for outcome in outcomes) else 0)


def _between(text: str) -> tuple[EngineName, EngineName]:
    names = text.split(",")
    engines = get_args(EngineName)
    if len(names) != 2 or not set(names) <= set(engines):
        raise typer.BadParameter(
            f"{text}: name two of {', '.join(engines)}, with a comma between", param_hint="--engines"
        )
    return cast("tuple[EngineName, EngineName]", tuple(names))


def _show(outcome: Outcome, between: tuple[EngineName, EngineName]) -> None:
    width = max(map(len, between))
    for mismatch in outcome.different:
        out.print(f"[red]{escape(mismatch.case)}[/]: {escape(mismatch.aspect)}")
        for engine, value in zip(between, (mismatch.first, mismatch.second), strict=True):
            room = _WIDTH - width - 2
            shortened = value if len(value) <= room else f"{value[: room - 3]}..."
            out.print(f"  {engine:{width}}  {escape(shortened) or '[dim]none[/]'}")


def _sum_up(outcomes: list[Outcome]) -> None:
    if any(outcome.different for outcome in outcomes):
        out.print()
    headings = ("archive", "cases", "equal", "documented", "different")
    rows = [
        (
            outcome.name,
            str(outcome.cases),
            str(outcome.equal),
            str(outcome.documented),
            str(len({mismatch.case for mismatch in outcome.different})),
        )
        for outcome in outcomes
    ]
    show_table(table(headings, rows, right=headings[1:]))
    known_ids = sorted({id for outcome in outcomes for id in outcome.known})
    if known_ids:
        out.print("\ndocumented in docs/differences.md, and for ray in docs/how-to/ray.md:")
        out.print("\n".join(f"  {id}" for id in known_ids), markup=False)


def _document(outcome: Outcome) -> dict[str, object]:
    return {
        "name": outcome.name,
        "cases": outcome.cases,
        "equal": outcome.equal,
        "documented": {id: [asdict(mismatch) for mismatch in mismatches] for id, mismatches in outcome.known.items()},
        "different": [asdict(mismatch) for mismatch in outcome.different],
    }
