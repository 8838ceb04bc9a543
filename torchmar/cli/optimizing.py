"""The command that finds the fastest weights of an archive that give the original's answers."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchmar.atomic import write_text
from torchmar.cli.options import ArchiveOrRecipe, Budget, check_folder
from torchmar.cli.terminal import err

if TYPE_CHECKING:
    from torchmar.optimizing.results import Report
    from torchmar.optimizing.session import Optimization


def optimize(
    archive: ArchiveOrRecipe,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BOUND",
            help="The requirements: labels>=0.99, cos>=0.999, relative<=0.05, explanations>=0.9 or check<=0.01. May be "
            "repeated. Default of a classifier: labels>=0.99 and cos>=0.98; an embedding: cos>=0.999; a regression: "
            "relative<=0.02; others: cos>=0.999 and relative<=0.05.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Your own check: it gets the path of an archive, and its last line is a metric.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Inputs for calibration and for comparing answers, in addition to the archive's samples.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="SIZES", help="Batch sizes to measure, such as 1,8; the first decides.")
    ] = "1,8",
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=1024, help="Threads of the model; default: the handler's.", show_default=False
        ),
    ] = None,
    budget: Budget = "10m",
    variant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this variant. May be repeated; default: all.", show_default=False),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put the choice into the recipe, with its files and the report.")
    ] = False,
    version: Annotated[
        str | None,
        typer.Option(
            help="With --write and an archive: the version of the new archive, written beside it.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.", show_default=False)
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write the report as a page with charts.", show_default=False),
    ] = None,
) -> None:
    """Find the fastest weights that give the original's answers.

    Variants of the weights (bfloat16, TorchScript, ONNX Runtime, OpenVINO, int8
    and more) are made, each in a process of its own. Those whose answers differ
    from the original's by more than --keep allows are rejected, regardless of their
    speed; of the others the fastest is chosen. Exit code 1: the original stays.
    """
    from torchmar import recipe
    from torchmar.archive import build
    from torchmar.cli.optimizing_output import Display, show
    from torchmar.optimizing.session import Optimizer
    from torchmar.optimizing.settings import Settings
    from torchmar.tuning.target import parse_duration

    is_recipe = recipe.is_recipe(archive)
    _check_version(archive, version, is_recipe=is_recipe, write=write)
    for option, file in (("--json", json_file), ("--html", html_file)):
        check_folder(file, option)
    if write:
        check_folder((recipe.file_of(archive) if is_recipe else archive).with_suffix(".part"), "--write")
    settings = Settings(
        keep=tuple(keep or ()),
        check=check,
        data=data,
        batch_sizes=_sizes(batch),
        threads=threads,
        seconds=parse_duration(budget),
        variants=tuple(variant or ()),
    )
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torchmar-optimize-")))
        display = stack.enter_context(Display())
        path = archive
        if is_recipe:
            display.on_step("building the archive")
            path = build(archive, folder).path
        optimization = Optimizer(path, settings, folder, display).run()
        report = optimization.report
        display.on_step("")
        show(report)
        _write_reports(report, json_file, html_file)
        if write and not optimization.interrupted:
            if report.chosen:
                _write_choice(optimization, archive, version)
            elif is_recipe:
                _withdraw(report, archive)
    if optimization.interrupted:
        err.print("interrupted: only what is in the table was measured", markup=False)
        raise KeyboardInterrupt
    raise typer.Exit(0 if report.chosen else 1)


def _check_version(archive: Path, version: str | None, *, is_recipe: bool, write: bool) -> None:
    """Check that a version is given for a new archive, and only for a new archive.

    Raises:
        typer.BadParameter: the version is missing, has no use, or is that of the given archive.
    """
    from torchmar.archive import Archive

    if version is None:
        if write and not is_recipe:
            raise typer.BadParameter(f"{archive} is an archive: give the new one a --version", param_hint="--write")
        return
    if is_recipe or not write:
        raise typer.BadParameter("it is for --write with an archive; a recipe has its own", param_hint="--version")
    with Archive(archive) as opened:
        if opened.manifest.version == version:
            raise typer.BadParameter(f"{archive} is version {version} already", param_hint="--version")


def _write_reports(report: Report, json_file: Path | None, html_file: Path | None) -> None:
    """Write the report to the given files."""
    from torchmar.optimizing import html_report

    if json_file:
        report.write(json_file)
        err.print(f"wrote {json_file}", markup=False)
    if html_file:
        write_text(html_report.html(report), html_file)
        err.print(f"wrote {html_file}", markup=False)


def _write_choice(optimization: Optimization, archive: Path, version: str | None) -> None:
    """Write the chosen weights to a recipe, or to an archive of another version."""
    from torchmar.optimizing import picture, recipe_writing

    report, files = optimization.report, optimization.chosen_files
    drawing = picture.draw(report)
    if version is None:
        paths = recipe_writing.write(report, files, archive, picture=drawing)
    else:
        store = archive.parent
        paths = [recipe_writing.derive(report, files, archive, store, version=version, picture=drawing).path]
    for file in paths:
        err.print(f"wrote {file}", markup=False)


def _withdraw(report: Report, path: Path) -> None:
    """Remove an earlier choice from a recipe, if it was judged again and the original stays."""
    from torchmar.optimizing import recipe_writing
    from torchmar.optimizing.results import Verdict

    name = recipe_writing.variant_of(path)
    if name is None:
        return
    verdict = next((row.verdict for row in report.rows if row.variant == name), Verdict.SKIPPED)
    if verdict in (Verdict.SKIPPED, Verdict.UNDECIDED):
        text = f"{path} keeps the weights of an earlier optimisation ({name}), which was not judged this time"
        err.print(f"[yellow]warning:[/] {escape(text)}")
        return
    for file in recipe_writing.remove(path):
        err.print(f"{'wrote' if file.exists() else 'removed'} {file}", markup=False)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(f"{text!r} is no list of batch sizes: 1,8", param_hint="--batch")
    return sizes
