"""Commands that change the default version of a model: rollback and promote."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.cli.connection_options import CaFile, PlainHttp
from torchmar.cli.options import WHERE, Address, AsJson, KeyFile, Name, RunFolder
from torchmar.cli.terminal import err, out, show_table, table, wrapped

if TYPE_CHECKING:
    from torchmar.deployment.ab_comparison import Evidence
    from torchmar.deployment.promotion import Promotion


def rollback(
    name: Name,
    to: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Default: the newest that is older and has workers.", show_default=False),
    ] = None,
    run_folder: RunFolder = None,
    address: Address = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    allow_plain_http: PlainHttp = False,
) -> None:
    """Make the version before the default again, at once."""
    from torchmar.cli.connection_options import server
    from torchmar.deployment import rollback as back
    from torchmar.management import ManagementClient

    where = server("management", address, run_folder, key_file, ca_file, allow_plain_http)
    with ManagementClient(where) as client:
        done = back.rollback(client, name, to)
        out.print(f"{name} is back at {done.after} (it was {done.before})", markup=False)
        if done.workers_after < done.workers_before:
            with err.status(f"starting {done.workers_before} workers in place of {done.workers_after}"):
                back.restore_workers(client, done)
            out.print(f"{name} {done.after} has {done.workers_before} workers, as {done.before} had", markup=False)
    _remind(done.before)


def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="A registered version with workers.", show_default=False)],
    against_current: Annotated[
        bool, typer.Option("--against-current", help="Only if it is shown to be as good as the default one.")
    ] = False,
    requests: Annotated[
        Path | None,
        typer.Option(help="A folder of requests; default: the samples in the archive.", show_default=False),
    ] = None,
    max_regression: Annotated[
        str, typer.Option(metavar="SHARE", help="How much slower its median answer may be.")
    ] = "5%",
    answers: Annotated[
        str,
        typer.Option(help="What is the same answer: exact, an absolute tolerance (0.01), or FILE.py:FUNCTION."),
    ] = "exact",
    max_differences: Annotated[
        str, typer.Option(metavar="SHARE", help="How many requests may be answered otherwise.")
    ] = "0%",
    repeat: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs of timed answers for each request; default: 200 in all.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    run_folder: RunFolder = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    allow_plain_http: PlainHttp = False,
    inference: Annotated[
        str | None, typer.Option(metavar="URL", help="The API's address.", show_default=False, rich_help_panel=WHERE)
    ] = None,
    management: Annotated[
        str | None, typer.Option(metavar="URL", help="The API's address.", show_default=False, rich_help_panel=WHERE)
    ] = None,
    model_store: Annotated[
        Path | None,
        typer.Option(help="Where the archive lies; default: what the run folder says.", show_default=False),
    ] = None,
) -> None:
    """Make a version the default if it does what it should.

    It has to answer its samples. With --against-current it and the default
    version get the same requests in turn: it has to answer alike, and its
    median must not be slower than allowed, with 95 % confidence. Anything but
    a pass changes nothing.
    """
    from torchmar.cli.connection_options import server
    from torchmar.deployment import ab_comparison, planning, promotion
    from torchmar.deployment.desired import ServerPlace

    if requests and not against_current:
        raise typer.BadParameter("they are what versions are compared by: --against-current", param_hint="--requests")
    where = server("management", management, run_folder, key_file, ca_file, allow_plain_http)
    where = replace(where, inference=inference) if inference else where
    bounds = promotion.Bounds(ab_comparison.agreement(answers), _share(max_regression), _share(max_differences), repeat)
    with err.status("") as status:
        made = promotion.promote(
            where,
            name,
            version,
            model_store=model_store or planning.model_store(ServerPlace(), Path(), run_folder),
            requests=requests,
            bounds=bounds if against_current else None,
            watch=lambda what: status.update(escape(what)),
        )
    if as_json:
        typer.echo(json.dumps(_document(name, version, made), indent=2))
    else:
        out.print(f"{name} {version}: {made.tried.show()}", markup=False)
        if made.found:
            _show(made.found)
        if made.passed:
            out.print(f"{name} {version} is the default now; torchmar rollback {name} goes back to {made.before}")
            _remind(made.before)
    raise typer.Exit(0 if made.passed else 1)


def _remind(before: str) -> None:
    err.print(f"deployment.yaml may still say {before}: change its default before the next apply", markup=False)


def _show(found: Evidence) -> None:
    from torchmar.deployment.ab_comparison import percentile

    rows = []
    for version, took in zip((found.old, found.new), found.milliseconds, strict=True):
        shares = [f"{percentile(took, share):.2f}" for share in (0.5, 0.9, 0.99)]
        rows.append((version, str(len(took)), *shares))
    headings = ("version", "answers", "median ms", "90 % ms", "99 % ms")
    show_table(table(headings, rows, right=headings[1:]))
    different = len(found.differences)
    out.print(f"answers    {found.asked - different} of {found.asked} requests agree", markup=False)
    for line in found.differences[:5]:
        out.print(wrapped(line, " " * 11, " " * 13), markup=False)
    if different > 5:
        out.print(f"           and {different - 5} more", markup=False)
    quotient = found.quotient
    out.print(
        f"median     {quotient.value:.3f} times that of {found.old} "
        f"({quotient.low:.3f} to {quotient.high:.3f} with 95 % confidence)",
        markup=False,
    )
    color = "green" if found.verdict == "pass" else "red"
    why = {
        "pass": f"at the most {1 + found.max_regression:.3f} times is allowed",
        "answers differ": f"{found.allowed} different answers are allowed",
        "slower": f"at the most {1 + found.max_regression:.3f} times is allowed",
        "undecided": f"{1 + found.max_regression:.3f} times is inside; more --repeat tells more",
    }[found.verdict]
    out.print(f"verdict    [{color}]{found.verdict}[/]: {escape(why)}")


def _document(name: str, version: str, made: Promotion) -> dict[str, object]:
    document: dict[str, object] = {
        "model": name,
        "version": version,
        "before": made.before,
        "promoted": made.passed,
    }
    if found := made.found:
        document |= {
            "verdict": found.verdict,
            "asked": found.asked,
            "differences": list(found.differences),
            "quotient_of_medians": asdict(found.quotient),
            "milliseconds": {found.old: found.milliseconds[0], found.new: found.milliseconds[1]},
        }
    return document


def _share(text: str) -> float:
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"{text!r} is no share: 5%, or 0.05")
    return value
