"""Packing an archive from torch-model-archiver's options: its members and its manifest."""

from __future__ import annotations

import glob
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torchmar import manifest
from torchmar.archive import BuiltArchive, pack, pack_folder, pack_tgz
from torchmar.archive.collecting import add, carried, carries, check_clashes
from torchmar.archive.copying import MemberContent, Progress, size_of
from torchmar.checks import foreign
from torchmar.errors import ArchiveError
from torchmar.handler_names import CARRIED_PACKAGE

_LOG = logging.getLogger(__name__)

# Names that torch-model-archiver accepts as handlers of TorchServe; any other text is a file.
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
_FILES = ("serialized_file", "model_file", "requirements_file", "config_file")

Write = Callable[[Mapping[str, MemberContent], Path, Progress], BuiltArchive]
Begin = Callable[[str, int], Progress]
"""Called with the archive's file name and its size in bytes; returns a callback for the bytes of each piece."""

Inspect = Callable[[Mapping[str, MemberContent]], object]
"""Called with the members before they are packed; raises ArchiveError to reject them."""


def package(
    options: Namespace,
    *,
    manifest_text: str | None = None,
    begin: Begin = lambda name, total: lambda count: None,
    inspect: Inspect | None = None,
) -> BuiltArchive:
    """Write the archive of torch-model-archiver's options.

    Args:
        options: parsed flags of torch-model-archiver; optional ones may be missing.
        manifest_text: manifest, in place of the one from the options.
        begin: callback for progress.
        inspect: checks the members before they are packed.

    Raises:
        ArchiveError: an option is wrong, a file is missing, or the archive already exists.
    """
    name, folder = options.model_name, Path(given(options, "export_path") or ".")
    if not manifest.is_name(name):
        hint = "letters, digits, '.', '_' and '-', a letter or digit first"
        raise ArchiveError(f"--model-name {name!r} cannot stand in a URL", hint=hint)
    if not str(options.version or "").strip():
        raise ArchiveError("--version is empty", hint="give one, such as 1.0")
    if not folder.is_dir():
        raise ArchiveError(f"--export-path {folder} is not a folder", hint="make it first")
    suffix, write = _form(given(options, "archive_format") or "default", name)
    target = folder / f"{name}{suffix}"
    if target.exists() and not given(options, "force"):
        raise ArchiveError(f"{target} exists already", hint="--force overwrites it")
    members = compose(options, manifest_text)
    if inspect:
        inspect(members)
    return write(members, target, begin(target.name, sum(map(size_of, members.values()))))


def given(options: Namespace, name: str) -> str | None:
    """Return an option; None if it is missing, because tools that pack from Python omit unused options."""
    return getattr(options, name, None)


def compose(options: Namespace, manifest_text: str | None = None) -> dict[str, MemberContent]:
    """Return the members of the options, by path in the archive.

    Args:
        options: options, as for `package`.
        manifest_text: manifest, as for `package`.

    Raises:
        ArchiveError: a file is missing, or two files would have the same path.
    """
    members: dict[str, MemberContent] = {}
    runtime = given(options, "runtime") or "python"
    handler, file = _handler(options.handler, runtime)
    named_files = {name: given(options, name) for name in _FILES}
    for name, value in {**named_files, "handler": file}.items():
        if value:
            path = Path(value)
            if other := foreign.folder(path):
                raise ArchiveError(f"--{name.replace('_', '-')}: {value} is {other[0]}, a folder", hint=other[1])
            if not path.is_file():
                raise ArchiveError(f"--{name.replace('_', '-')}: there is no file {value}")
            add(members, path.name, path)
    for path in _extra_files(given(options, "extra_files") or ""):
        if path.is_file():
            add(members, path.name, path)
        for relative, below in _below(path):
            add(members, relative, below)
    if carries(handler, members) and not any(path.startswith(f"{CARRIED_PACKAGE}/") for path in members):
        members |= carried()
    add(members, manifest.PATH, (manifest_text or manifest_of(options).to_json().decode()).encode())
    check_clashes(members)
    return members


def manifest_of(options: Namespace) -> manifest.Manifest:
    """Return the manifest for the options."""
    runtime = given(options, "runtime") or "python"
    handler, _ = _handler(options.handler, runtime)
    files = {name: Path(value).name for name in _FILES if (value := given(options, name))}
    model = manifest.Model(model_name=options.model_name, model_version=str(options.version), handler=handler, **files)
    return manifest.Manifest(model=model, runtime=runtime)


def _handler(handler: str, runtime: str) -> tuple[str, str | None]:
    """Return the handler for the manifest, and its file unless it is one of TorchServe's."""
    built_in = BUILT_IN_LSP if runtime == "LSP" else BUILT_IN
    if handler in built_in or handler.startswith(f"{CARRIED_PACKAGE}."):
        return handler, None
    file, _, function = handler.partition(":")
    if runtime == "LSP":
        ending = ".dylib" if sys.platform == "darwin" else ".so"
        return Path(handler).name, f"{file}{ending}"
    file = file if file.endswith(".py") else f"{file}.py"
    # TorchServe's loader allows a function after the name of a module, and a class after the name of a file.
    return (f"{Path(file).stem}:{function}" if function else Path(handler).name), file


def _extra_files(patterns: str) -> Iterator[Path]:
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        matches = sorted(glob.glob(pattern))
        if not matches and not glob.has_magic(pattern):
            raise ArchiveError(f"--extra-files: {pattern} does not exist")
        if not matches:  # torch-model-archiver reports no error here, and a script may rely on it
            _LOG.warning("--extra-files: %s matches no file", pattern)
        yield from map(Path, matches)


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder, with their paths relative to it, which become their paths in the archive."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a parent folder
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and not name.startswith("."))
        for name in sorted(files):
            file = Path(place, name)
            yield file.relative_to(folder).as_posix(), file


def _form(archive_format: str, name: str) -> tuple[str, Write]:
    if archive_format == "tgz":
        return ".tar.gz", lambda members, target, progress: pack_tgz(members, target, name, progress)
    if archive_format == "no-archive":
        return "", pack_folder
    return ".mar", pack
