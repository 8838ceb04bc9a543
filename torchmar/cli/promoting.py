"""Commands that change the default version of a model: rollback and promote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.cli.endpoint import ServerOptions, with_server_options
from torchmar.cli.options import (
    Address,
    AsJson,
    InferenceAddress,
    ManagementAddress,
    Name,
    ServerModelStore,
    share,
)
from torchmar.cli.terminal import err, out, show_table, table, wrapped

if TYPE_CHECKING:
    from torchmar.deployment.ab_comparison import Comparison
    from torchmar.deployment.promotion import Promotion


@with_server_options
def rollback(
    name: Name,
    to: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Default: the newest older version with workers.", show_default=False),
    ] = None,
    address: Address = None,
    *,
    server: ServerOptions,
) -> None:
    """Make the previous version the default again, at once."""
    from torchmar.deployment import rollback as back
    from torchmar.management import ManagementClient

    with ManagementClient(server.endpoint("management", address)) as client:
        rolled = back.rollback(client, name, to)
        out.print(f"{name} is back at {rolled.after} (it was {rolled.before})", markup=False)
        if rolled.workers_after < rolled.workers_before:
            with err.status(f"starting {rolled.workers_before} workers in place of {rolled.workers_after}"):
                back.restore_workers(client, rolled)
            out.print(
                f"{name} {rolled.after} has {rolled.workers_before} workers, as {rolled.before} had", markup=False
            )
    _remind(rolled.before)


@with_server_options
def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="A registered version with workers.", show_default=False)],
    against_current: Annotated[
        bool, typer.Option("--against-current", help="Only if it is shown to be as good as the default version.")
    ] = False,
    requests: Annotated[
        Path | None,
        typer.Option(help="A folder of requests; default: the samples in the archive.", show_default=False),
    ] = None,
    max_regression: Annotated[
        str, typer.Option(metavar="SHARE", help="The permitted increase of the median response time.")
    ] = "5%",
    answers: Annotated[
        str,
        typer.Option(help="When two answers agree: exact, an absolute tolerance (0.01), or FILE.py:FUNCTION."),
    ] = "exact",
    max_differences: Annotated[
        str, typer.Option(metavar="SHARE", help="The permitted share of different answers.")
    ] = "0%",
    repeat: Annotated[
        int | None,
        typer.Option(
            min=1, help="Measured pairs of answers for each request; default: 200 pairs in all.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
    inference: InferenceAddress = None,
    management: ManagementAddress = None,
    model_store: ServerModelStore = None,
    *,
    server: ServerOptions,
) -> None:
    """Make a version the default if it passes its tests.

    The version has to answer its samples. With --against-current, it and the
    default version get the same requests in turn; it has to give the same
    answers, and its median time must be within the limit with 95 % confidence.
    If the version does not pass, nothing is changed.
    """
    from torchmar.deployment import ab_comparison, promotion
    from torchmar.deployment.context import local_model_store

    if requests and not against_current:
        raise typer.BadParameter("requests are for a comparison: add --against-current", param_hint="--requests")
    endpoint = server.endpoint("management", management)
    endpoint = replace(endpoint, inference=inference) if inference else endpoint
    bounds = promotion.Bounds(ab_comparison.agreement(answers), share(max_regression), share(max_differences), repeat)
    with err.status("") as status:
        result = promotion.promote(
            endpoint,
            name,
            version,
            model_store=model_store or local_model_store(server.run_folder),
            requests=requests,
            bounds=bounds if against_current else None,
            on_step=lambda text: status.update(escape(text)),
        )
    if as_json:
        typer.echo(json.dumps(_document(name, version, result), indent=2))
    else:
        out.print(f"{name} {version}: {result.smoke_test.show()}", markup=False)
        if result.comparison:
            _show(result.comparison)
        if result.passed:
            out.print(f"{name} {version} is the default now; torchmar rollback {name} restores {result.before}")
            _remind(result.before)
    raise typer.Exit(0 if result.passed else 1)


def _remind(before: str) -> None:
    err.print(f"deployment.yaml may still say {before}: change its default before the next apply", markup=False)


def _show(result: Comparison) -> None:
    from torchmar.deployment.ab_comparison import percentile

    rows = []
    for version, milliseconds in zip((result.old, result.new), result.milliseconds, strict=True):
        percentiles = [f"{percentile(milliseconds, share):.2f}" for share in (0.5, 0.9, 0.99)]
        rows.append((version, str(len(milliseconds)), *percentiles))
    headings = ("version", "answers", "median ms", "90 % ms", "99 % ms")
    show_table(table(headings, rows, right=headings[1:]))
    different = len(result.differences)
    out.print(f"answers    {result.requests - different} of {result.requests} requests agree", markup=False)
    for line in result.differences[:5]:
        out.print(wrapped(line, " " * 11, " " * 13), markup=False)
    if different > 5:
        out.print(f"           and {different - 5} more", markup=False)
    ratio = result.ratio
    out.print(
        f"median     {ratio.value:.3f} times that of {result.old} "
        f"({ratio.low:.3f} to {ratio.high:.3f} with 95 % confidence)",
        markup=False,
    )
    color = "green" if result.verdict == "pass" else "red"
    limit = 1 + result.max_regression
    reason = {
        "pass": f"at most {limit:.3f} times is allowed",
        "answers differ": f"{result.allowed} different answers are allowed",
        "slower": f"at most {limit:.3f} times is allowed",
        "undecided": f"the limit, {limit:.3f} times, is inside the interval; a larger --repeat makes it smaller",
    }[result.verdict]
    out.print(f"verdict    [{color}]{result.verdict}[/]: {escape(reason)}")


def _document(name: str, version: str, result: Promotion) -> dict[str, object]:
    document: dict[str, object] = {
        "model": name,
        "version": version,
        "before": result.before,
        "promoted": result.passed,
    }
    return document | (result.comparison.document() if result.comparison else {})
