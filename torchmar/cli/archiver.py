"""``torchmar-archiver``: torch-model-archiver's flags, one word to change in a CI script.

The flags, their defaults and the extracted content are those of torch-model-archiver 0.12.0.
Differences: no file is copied to a shared folder, no file is deleted, files that would overwrite one
another are rejected, the same inputs give the same bytes, ``h.py:fn`` works like ``h:fn``, the content
is checked, and a ``.mar`` is always stored, never compressed.
"""

from __future__ import annotations

import argparse
import logging
import sys

from torchmar.archive import BuiltArchive
from torchmar.checks.finding import unknown
from torchmar.cli.findings import inspect
from torchmar.cli.progress import Bar
from torchmar.cli.terminal import complain, err
from torchmar.errors import ArchiveError, TorchmarError
from torchmar.model_archiver.packaging import package


def main() -> None:
    """Run the command and exit: 0 done, 1 an error, 2 wrong usage, 130 interrupted."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        archive(argument_parser().parse_args())
    except TorchmarError as error:
        complain(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def archive(options: argparse.Namespace) -> BuiltArchive:
    """Write the archive that the flags describe.

    Raises:
        ArchiveError: a flag is wrong, a file is missing, or the archive exists already or has an error.
    """
    if strangers := unknown(options.ignore):
        raise ArchiveError(
            f"--ignore: no code is called {strangers[0]}, and none starts with it", hint="docs/checks.md lists all"
        )
    with Bar() as bar:
        packed = package(
            options,
            begin=bar.begin,
            inspect=(lambda members: inspect(members, options.ignore)) if options.check else None,
        )
    err.print(f"wrote {packed.path}", markup=False)
    return packed


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="torchmar-archiver",
        description="Package a model for TorchServe, with the flags of torch-model-archiver.",
        epilog="torchmar import ARCHIVE turns an archive into a recipe, a file with the same content.",
    )
    add_argument = parser.add_argument
    add_argument("--model-name", required=True, help="the model's name, and the archive's file name")
    add_argument(
        "--serialized-file", help="the weights: TorchScript, a state dict (with --model-file), ONNX or OpenVINO"
    )
    add_argument("--model-file", help="the Python file with the class of the model, for a state dict")
    add_argument("--handler", required=True, help="the name of a handler of TorchServe, or a file: h.py, h:function")
    add_argument(
        "--extra-files", help="more files, separated by commas; patterns such as data/*.txt; a folder's content"
    )
    add_argument("--runtime", default="python", choices=["python", "python3", "LSP"], help="default: python")
    add_argument("--export-path", default=".", help="the folder for the archive; default: the current one")
    add_argument(
        "--archive-format",
        default="default",
        choices=["tgz", "no-archive", "zip-store", "default"],
        help="a .mar (default and zip-store, both stored), a .tar.gz, or a folder",
    )
    add_argument("-f", "--force", action="store_true", help="overwrite an existing archive")
    add_argument("-v", "--version", required=True, help="the model's version")
    add_argument("-r", "--requirements-file", help="packages that the server installs for this model")
    add_argument("-c", "--config-file", help="the model's configuration, YAML")
    add_argument(
        "--no-check", dest="check", action="store_false", help="write the archive even if torchmar check finds errors"
    )
    add_argument(
        "--ignore",
        metavar="CODE",
        action="append",
        default=[],
        help="ignore findings with this code, or with this prefix: MAR3; may be repeated",
    )
    return parser


if __name__ == "__main__":
    main()
