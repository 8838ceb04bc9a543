"""``torchmar-archiver``: torch-model-archiver's flags, one word to change in a CI script.

The flags, their defaults and what a worker finds after extraction are those of
torch-model-archiver 0.12.0. What differs: nothing is staged in a shared folder and nothing
is deleted, files that would overwrite one another are refused, the same inputs give the same
bytes, ``h.py:fn`` works like ``h:fn``, the content is checked, and a ``.mar`` is always stored.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.markup import escape

from torchmar import manifest
from torchmar.archive import Packed, pack, pack_folder, pack_tgz
from torchmar.archive.contents import add, carried, carries, refuse_clashes
from torchmar.archive.copying import Progress, Source, size_of
from torchmar.checks.finding import unknown
from torchmar.cli.findings import inspect
from torchmar.cli.progress import Bar
from torchmar.cli.terminal import complain, err
from torchmar.errors import ArchiveError, TorchmarError
from torchmar.recipe import CARRIED_PACKAGE

# The names that torch-model-archiver takes for handlers of TorchServe; anything else is a file.
BUILT_IN = (
    "base_handler",
    "text_classifier",
    "image_classifier",
    "object_detector",
    "image_segmenter",
    "dali_image_classifier",
    "vllm_handler",
    "trt_llm_handler",
)
BUILT_IN_LSP = ("BaseHandler", "TorchScriptHandler")
_LEFT_OUT = ("__MACOSX", "__pycache__")

Write = Callable[[Mapping[str, Source], Path, Progress], Packed]


def main() -> None:
    """Run the command and exit: 0 done, 1 an error, 2 wrong usage, 130 interrupted."""
    try:
        archive(_parser().parse_args())
    except TorchmarError as error:
        complain(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def archive(options: argparse.Namespace) -> Packed:
    """Write the archive that the flags ask for.

    Raises:
        ArchiveError: a flag is wrong, a file is missing, or the archive is there already.
    """
    name, folder = options.model_name, Path(options.export_path)
    if not manifest.is_name(name):
        hint = "letters, digits, '.', '_' and '-', a letter or digit first"
        raise ArchiveError(f"--model-name {name!r} cannot stand in a URL", hint=hint)
    if not options.version.strip():
        raise ArchiveError("--version is empty", hint="give one, such as 1.0")
    if not folder.is_dir():
        raise ArchiveError(f"--export-path {folder} is not a folder", hint="make it first")
    suffix, write = _form(options.archive_format, name)
    target = folder / f"{name}{suffix}"
    if target.exists() and not options.force:
        raise ArchiveError(f"{target} exists already", hint="--force overwrites it")
    members = compose(options)
    if strangers := unknown(options.ignore):
        raise ArchiveError(f"--ignore {strangers[0]}: no code is called or starts so", hint="docs/checks.md has all")
    if options.check:
        inspect(members, options.ignore)
    with Bar() as bar:
        packed = write(members, target, bar.begin(target.name, sum(map(size_of, members.values()))))
    err.print(f"wrote {packed.path}", markup=False)
    return packed


def compose(options: argparse.Namespace) -> dict[str, Source]:
    """Return the members that the flags ask for, by path in the archive."""
    members: dict[str, Source] = {}
    handler, file = _handler(options.handler, options.runtime)
    named = {name: given for name, given in vars(options).items() if name.endswith("_file")}
    for name, given in {**named, "handler": file}.items():
        if given:
            path = Path(given)
            if not path.is_file():
                raise ArchiveError(f"--{name.replace('_', '-')}: there is no file {given}")
            add(members, path.name, path)
    for path in _extra_files(options.extra_files or ""):
        if path.is_file():
            add(members, path.name, path)
        for inside, below in _below(path):
            add(members, inside, below)
    if carries(handler, members) and not any(path.startswith(f"{CARRIED_PACKAGE}/") for path in members):
        members |= carried()
    files = {name: Path(given).name if given else None for name, given in named.items()}
    model = manifest.Model(model_name=options.model_name, model_version=options.version, handler=handler, **files)
    add(members, manifest.PATH, manifest.Manifest(model=model, runtime=options.runtime).to_json())
    refuse_clashes(members)
    return members


def _handler(given: str, runtime: str) -> tuple[str, str | None]:
    """Return what the manifest says of the handler, and its file if it is not one of TorchServe's."""
    built_in = BUILT_IN_LSP if runtime == "LSP" else BUILT_IN
    if given in built_in or given.startswith(f"{CARRIED_PACKAGE}."):
        return given, None
    file, _, function = given.partition(":")
    if runtime == "LSP":
        ending = ".dylib" if sys.platform == "darwin" else ".so"
        return Path(given).name, f"{file}{ending}"
    file = file if file.endswith(".py") else f"{file}.py"
    # TorchServe's loader takes a function after the module's name, and a class after the file's.
    return (f"{Path(file).stem}:{function}" if function else Path(given).name), file


def _extra_files(given: str) -> Iterator[Path]:
    for pattern in filter(None, map(str.strip, given.split(","))):
        found = sorted(glob.glob(pattern))
        if not found and not glob.has_magic(pattern):
            raise ArchiveError(f"--extra-files: {pattern} does not exist")
        if not found:  # no error there, so none here: a script may rely on it
            err.print(f"[yellow]warning:[/] --extra-files: {escape(pattern)} matches no file")
        yield from map(Path, found)


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder, with their paths relative to it: that is where they go in the archive."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and not name.startswith("."))
        for name in sorted(files):
            file = Path(place, name)
            yield file.relative_to(folder).as_posix(), file


def _form(asked: str, name: str) -> tuple[str, Write]:
    if asked == "tgz":
        return ".tar.gz", lambda members, target, progress: pack_tgz(members, target, name, progress)
    if asked == "no-archive":
        return "", pack_folder
    return ".mar", pack


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchmar-archiver",
        description="Package a model for TorchServe, with the flags of torch-model-archiver.",
        epilog="torchmar import ARCHIVE turns an archive into a recipe, which says the same in a file.",
    )
    add_argument = parser.add_argument
    add_argument("--model-name", required=True, help="the model's name, and the archive's file name")
    add_argument("--serialized-file", help="the weights: TorchScript, a state dict (with --model-file) or ONNX")
    add_argument("--model-file", help="the Python file with the one class that a state dict fills")
    add_argument("--handler", required=True, help="a handler of TorchServe by name, or a file: h.py, h:function")
    add_argument(
        "--extra-files", help="more files, separated by commas; patterns such as data/*.txt; a folder's content"
    )
    add_argument("--runtime", default="python", choices=["python", "python3", "LSP"], help="default: python")
    add_argument("--export-path", default=".", help="the folder that gets the archive; default: the current one")
    add_argument(
        "--archive-format",
        default="default",
        choices=["tgz", "no-archive", "zip-store", "default"],
        help="a .mar (default and zip-store, both stored), a .tar.gz, or a folder",
    )
    add_argument("-f", "--force", action="store_true", help="overwrite an archive that is there")
    add_argument("-v", "--version", required=True, help="the model's version")
    add_argument("-r", "--requirements-file", help="packages that the server is to install for this model")
    add_argument("-c", "--config-file", help="the model's configuration, YAML")
    add_argument("--no-check", dest="check", action="store_false", help="write it whatever torchmar check would find")
    add_argument(
        "--ignore",
        metavar="CODE",
        action="append",
        default=[],
        help="ignore findings of this code, or of all that start so: MAR3; may be repeated",
    )
    return parser


if __name__ == "__main__":
    main()
