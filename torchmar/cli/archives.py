"""Commands on recipes and archives; none needs a server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.archive.built_archive import show_size
from torchmar.cli.options import AsJson, Baseline, Ignore, Method, Steps, Target, explain_headers
from torchmar.cli.progress import Bar
from torchmar.cli.terminal import complain, err, out, show_table, table
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.archive import Archive
    from torchmar.archive.built_archive import Note
    from torchmar.archive.copying import MemberContent
    from torchmar.recipe import Runtime

PANEL = "Archives"


class Form(str, Enum):
    """The forms that build writes."""

    mar = "mar"
    folder = "folder"


ArchivePath = Annotated[Path, typer.Argument(metavar="ARCHIVE", help="A .mar file.", show_default=False)]


def build(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RECIPE", help="Recipes, or their folders; default: archives/*/archive.yaml."),
    ] = None,
    store: Annotated[Path, typer.Option(help="The folder for the archives.")] = Path("model_store"),
    form: Annotated[Form, typer.Option(help="A .mar, or a folder, which a server need not extract.")] = Form.mar,
    force: Annotated[bool, typer.Option("--force", "-f", help="Read all inputs, even if nothing has changed.")] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Write only archives in which torchmar check finds no error.")
    ] = True,
    ignore: Ignore = None,
) -> None:
    """Pack recipes into STORE/NAME-VERSION.mar.

    Prints the findings of torchmar check; an archive with an error is not
    written. An archive is up to date if its inputs have the same sizes, times
    and inodes. With --force, or after a week, the inputs are read again.
    """
    from torchmar.archive.building import build as build_archive
    from torchmar.archive.building import recipes_here
    from torchmar.cli import findings

    ignored = ignore or []

    def inspect(members: Mapping[str, MemberContent]) -> tuple[Note, ...]:
        return findings.inspect(members, ignored)

    paths = recipes or recipes_here()
    if not paths:
        raise TorchmarError("there is no recipe here", hint="name one, or change to the folder with archives/")
    failed = False
    for recipe in paths:
        try:
            with Bar() as bar:
                packed = build_archive(
                    recipe,
                    store,
                    form=form.value,
                    force=force,
                    begin=bar.begin,
                    inspect=inspect if check else None,
                )
        except TorchmarError as error:
            complain(error)
            failed = True
            continue
        if check and packed.unchanged:
            findings.show(packed.notes or (), ignored)
            failed |= findings.has_errors(packed.notes or (), ignored)
        out.print(packed.show(), markup=False)
    raise typer.Exit(1 if failed else 0)


def inspect(path: ArchivePath, as_json: AsJson = False) -> None:
    """Show the content of an archive, without running any of it."""
    from torchmar.archive import Archive, file_digest
    from torchmar.checks import optimized
    from torchmar.checks.formats import identify

    with Archive(path) as archive:
        manifest, members, digest = archive.manifest, archive.members, archive.digest
        config, samples, runtime = archive.config_text, archive.samples, archive.runtime
        name, weights = manifest.model.serialized_file, None
        if name and name in archive:
            with archive.open(name) as stream:
                weights = identify(stream, name)
        faster = optimized.describe(archive, manifest.model)
        proof = _proof(archive)
    of_file = None
    if path.is_file():
        with err.status(f"reading {path.name}"):
            of_file = file_digest.show(file_digest.of(path))
    if as_json:
        document = {
            "archive": str(path),
            "digest": f"sha256:{digest}",
            "file_digest": of_file,
            "manifest": manifest.model_dump(by_alias=True, exclude_none=True),
            "config": config,
            "optimized": faster,
            "runtime": runtime.document() if runtime else None,
            "samples": len(samples),
            "members": [{"name": member.name, "size": member.size} for member in members],
        }
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    model = manifest.model
    facts = {
        "model": f"{manifest.name} {manifest.version}",
        "": model.description,
        "handler": model.handler,
        "weights": f"{name}, {weights.description}" if weights else name,
        "optimized": "\n             ".join(faster),
        "proof": proof,
        "model file": model.model_file,
        "requirements": None if runtime else model.requirements_file,
        "runtime": _show_runtime(runtime) if runtime else None,
        "samples": str(len(samples)) if samples else None,
        "digest": f"sha256:{digest} (of the content)",
        "file": f"{of_file} (as sha256sum)" if of_file else None,
    }
    for name, value in facts.items():
        if value:
            out.print(f"[bold]{name:<13}[/]", value, markup=True, sep="")
    if config.strip():
        out.print(f"\n[bold]{model.config_file or 'configuration'}[/]")
        out.print("".join(f"  {line}\n" for line in config.splitlines()), end="", markup=False)
    out.print()
    total = sum(member.size for member in members)
    rows = [(show_size(member.size), member.name) for member in members]
    show_table(table(("size", "member"), [*rows, (show_size(total), f"{len(members)} members")], right=("size",)))


def _show_runtime(runtime: Runtime) -> str:
    facts = [f"Python {runtime.python}", f"the packages of {runtime.requirements}"]
    facts += ["the server's packages behind them"] if runtime.server_packages else []
    facts += [f"wheels in {runtime.wheels}/"] if runtime.wheels else []
    return ", ".join(facts)


def _proof(archive: Archive) -> str | None:
    """Return the summary of an optimisation's report in an archive; None: there is no report."""
    from torchmar.optimized_section import PROOF
    from torchmar.optimizing import results

    if PROOF not in archive:
        return None
    try:
        with archive.open(PROOF) as stream:
            report = results.parse(stream.read(), PROOF)
    except TorchmarError as error:
        return error.message
    if (chosen := report.chosen) is None:
        return "the original weights were as good as any other"
    facts = [f"{chosen.title}, {chosen.reason}"]
    if (agreement := chosen.agreement) is not None:
        labels = "" if agreement.labels is None else f", labels equal for {agreement.labels:.1%}"
        facts.append(f"least cosine {agreement.cosine:.4f}{labels} of {agreement.inputs} inputs")
    return "; ".join([*facts, f"{report.machine.processor}, {report.created[:10]}"])


def extract(
    path: ArchivePath,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
) -> None:
    """Write the content of an archive to a folder."""
    from torchmar.archive import Archive

    with Archive(path) as archive:
        archive.extract(folder)
        out.print(f"{folder}  {len(archive.members)} members")


def schema() -> None:
    """Print the JSON Schema of archive.yaml, for editors."""
    from torchmar import recipe

    typer.echo(json.dumps(recipe.schema(), indent=2))


def run(
    path: ArchivePath,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="The file to send; - is stdin.", show_default=False)],
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Request an explanation and write it: .png for a picture, .json or .npy.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file for the prediction; default: stdout.", show_default=False),
    ] = None,
    method: Method = None,
    target: Target = None,
    n_steps: Steps = None,
    baseline: Baseline = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the output of the handler.")] = False,
) -> None:
    """Run an archive once, in a worker process, without a server."""
    from torchmar.cli import responses
    from torchmar.worker import Worker

    if explain and output:
        raise typer.BadParameter("is for predictions; --explain FILE writes an explanation", param_hint="--output")
    headers = explain_headers(method, target, n_steps, baseline)
    if headers and not explain:
        raise typer.BadParameter("needs --explain FILE", param_hint="--method, --target, --n-steps, --baseline")
    request = responses.request(source, explain is not None, explain or output, headers)
    with (
        err.status("loading the archive") as status,
        Worker(path, on_build=lambda line: status.update(f"building the environment: {escape(line[:50])}")) as worker,
    ):
        response = worker.predict_batch([request])[0]
        log = worker.log()
    if verbose or response.status >= 500:
        err.print(log.rstrip(), style="dim", markup=False)
    responses.show(response, explain or output)


def derive(
    path: ArchivePath,
    version: Annotated[str, typer.Option(help="The version of the new archive.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the server configuration; KEY= removes it."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A configuration file in place of the archive's.", show_default=False)
    ] = None,
    handler: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="A handler in place of the archive's: a file, or torchmar_handlers.image_classifier.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[Path, typer.Option(help="The folder for the new archive.")] = Path("model_store"),
) -> None:
    """Make a new version of an archive with another configuration or handler.

    The weights are copied unchanged.

    torchmar derive digits-1.0.mar --version 1.0+b16 --set batchSize=16
    torchmar derive resnet-1.0.mar --version 1.1 --handler torchmar_handlers.image_classifier
    """
    from torchmar.archive import derive as derive_archive

    changes = dict(map(_setting, settings or []))
    with Bar() as bar:
        packed = derive_archive(
            path, store, version=version, config=changes, config_file=config, handler=handler, begin=bar.begin
        )
    out.print(packed.show(), markup=False)


def _setting(text: str) -> tuple[str, object]:
    import yaml

    key, separator, value = text.partition("=")
    if not separator or not key:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE, such as batchSize=16", param_hint="--set")
    try:
        return key, yaml.safe_load(value) if value else None
    except (yaml.YAMLError, ValueError):
        raise typer.BadParameter(f"{value!r} is not a YAML value", param_hint="--set") from None
