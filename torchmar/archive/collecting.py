"""The members of an archive, collected from its recipe: content by path in the archive."""

from __future__ import annotations

import ast
import filecmp
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from torchmar import manifest
from torchmar.archive import runtime as runtimes
from torchmar.archive.copying import ArchiveSlice, MemberContent
from torchmar.conversion import converting
from torchmar.conversion.converting import Conversion
from torchmar.errors import ArchiveError
from torchmar.handler_names import CARRIED_PACKAGE, carried_folder
from torchmar.recipe import Recipe, Runtime

CONFIG_FILE = "model-config.yaml"
LABELS_FILE = "index_to_name.json"  # name that TorchServe's handlers expect
SAMPLES_FILE = "MAR-INF/SAMPLES.json"

_LEFT_OUT = ("__pycache__", ".DS_Store", ".ipynb_checkpoints", ".mypy_cache", ".pytest_cache", ".ruff_cache")


def collect_members(recipe: Recipe, folder: Path, converted: Conversion | None = None) -> dict[str, MemberContent]:
    """Return the source of every member, by its path in the archive.

    Args:
        recipe: a recipe whose files exist.
        folder: folder to which the recipe's file names are relative.
        converted: converted weights of the recipe, if they are a model of another framework and were converted before;
            None: they are converted here if necessary.

    Raises:
        ArchiveError: two sources have the same path, or a file cannot be used or converted.
    """
    converted = converted or converting.convert(recipe, folder)
    members: dict[str, MemberContent] = {}
    handler = _add_handler(members, recipe, folder)
    weights = converted.file if converted else folder / recipe.weights if recipe.weights else None
    if weights:
        _add_weights(members, weights)
    # TorchServe installs the lock file of a runtime like other requirements.
    requirements = recipe.runtime.requirements if recipe.runtime else recipe.requirements
    for name in (recipe.model_file, requirements):
        if name:
            add(members, PurePosixPath(name).name, folder / name)
    if recipe.labels is not None:
        add(members, LABELS_FILE, _labels(recipe.labels, folder))
    config_file = _add_config(members, recipe, folder)
    for path, name in recipe.files.items():
        for relative, file in files_below(folder / name):
            add(members, str(PurePosixPath(path, relative)), file)
    _add_samples(members, recipe, folder)
    if recipe.runtime:
        _add_runtime(members, recipe.runtime, folder)
    # A recipe may contain its own version of the handlers, for example one that was imported from an archive.
    brought = any(path.startswith(f"{CARRIED_PACKAGE}/") for path in members)
    if not brought and carries(handler, members):
        members |= carried()
    model = manifest.Model(
        model_name=recipe.name,
        model_version=recipe.version,
        description=recipe.description,
        handler=handler,
        serialized_file=weights.name if weights else None,
        model_file=_base(recipe.model_file),
        requirements_file=_base(requirements),
        config_file=config_file if config_file in members else None,
    )
    add(members, manifest.PATH, manifest.Manifest(model=model).to_json())
    check_clashes(members)
    return members


def _add_handler(members: dict[str, MemberContent], recipe: Recipe, folder: Path) -> str:
    """Add the file of the handler, if it has one; return the handler for the manifest."""
    module, _, function = recipe.handler.partition(":")
    handler = PurePosixPath(module).name
    if not module.endswith(".py"):
        return handler
    add(members, handler, folder / module)
    # Spelled as torch-model-archiver does, so that manifests are similar.
    return f"{handler.removesuffix('.py')}:{function}" if function else handler


def _add_weights(members: dict[str, MemberContent], weights: Path) -> None:
    add(members, weights.name, weights)
    # OpenVINO reads the tensors of model.xml from model.bin, although the file does not contain this name.
    tensor_file = weights.with_suffix(".bin")
    if weights.suffix == ".xml" and tensor_file.is_file():
        add(members, tensor_file.name, tensor_file)


def _add_config(members: dict[str, MemberContent], recipe: Recipe, folder: Path) -> str:
    """Add the configuration, if there is one; return its name in the archive."""
    if isinstance(recipe.config, str):
        name = PurePosixPath(recipe.config).name
        add(members, name, folder / recipe.config)
        return name
    if config := recipe.config.to_yaml():
        add(members, CONFIG_FILE, config)
    return CONFIG_FILE


def _add_samples(members: dict[str, MemberContent], recipe: Recipe, folder: Path) -> None:
    for sample in recipe.samples:
        if sample.input and sample.input not in members:
            add(members, sample.input, folder / sample.input)
    if recipe.samples:
        add(members, SAMPLES_FILE, _json([sample.document() for sample in recipe.samples]))


def add(members: dict[str, MemberContent], path: str, source: MemberContent) -> None:
    """Add a member; the same file, or one with the same content, may be added again.

    Raises:
        ArchiveError: another file has this path.
    """
    if path in members:
        if _same(members[path], source):
            return
        raise ArchiveError(
            f"{_name(members[path])} and {_name(source)} would both be {path} in the archive",
            hint="give one of them another name, or under files: another path",
        )
    members[path] = source


def _add_runtime(members: dict[str, MemberContent], runtime: Runtime, folder: Path) -> None:
    """Add the description of the archive's environment, and its wheels."""
    document = runtime.document()
    add(members, runtimes.FILE, _json(document))
    for relative, file in files_below(folder / runtime.wheels) if runtime.wheels else ():
        add(members, str(PurePosixPath(document["wheels"], relative)), file)


def _same(first: MemberContent, second: MemberContent) -> bool:
    if not (isinstance(first, Path) and isinstance(second, Path)):
        return first == second
    try:
        return first.samefile(second) or filecmp.cmp(first, second, shallow=False)
    except OSError:
        return False


def carries(handler: str, members: Mapping[str, MemberContent]) -> bool:
    """Return whether an archive with this handler needs torchmar's handlers inside."""
    return handler.startswith(f"{CARRIED_PACKAGE}.") or any(map(_imports_carried, members.values()))


def carried() -> dict[str, MemberContent]:
    """Return the members for the package of torchmar's handlers."""
    return {f"{CARRIED_PACKAGE}/{relative}": file for relative, file in files_below(carried_folder())}


def files_below(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file below ``path`` with its relative path; for a file, only itself, with an empty path."""
    if path.is_file():
        yield "", path
        return
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if file.is_file() and not any(part in _LEFT_OUT for part in relative.parts):
            yield relative.as_posix(), file


def _labels(labels: str | list[str] | dict[str, str], folder: Path) -> MemberContent:
    if isinstance(labels, str):
        file = folder / labels
        try:
            parsed: Any = json.loads(file.read_bytes())
        except ValueError as error:
            raise ArchiveError(f"{file}: labels are not JSON: {error}") from None
        if isinstance(parsed, dict):
            return file
        if not isinstance(parsed, list):
            raise ArchiveError(f"{file}: labels are a list of names or a mapping from class index to name")
        labels = [str(name) for name in parsed]
    names = dict(enumerate(labels)) if isinstance(labels, list) else labels
    return _json({str(index): name for index, name in names.items()})


def _imports_carried(source: MemberContent) -> bool:
    """Return whether a member is a Python file that imports the package of torchmar's handlers."""
    if not isinstance(source, Path) or source.suffix != ".py":
        return False
    try:
        tree = ast.parse(source.read_bytes(), str(source))
    except OSError as error:
        raise ArchiveError(f"{source} cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ArchiveError(f"{source} is not Python: {error}", hint="TorchServe could not import it either") from None
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        if any(name.partition(".")[0] == CARRIED_PACKAGE for name in names):
            return True
    return False


def check_clashes(members: Mapping[str, MemberContent]) -> None:
    """Raise ArchiveError if a path is a file of one member and a folder of another."""
    for path in members:
        for parent in PurePosixPath(path).parents:
            if str(parent) in members:
                raise ArchiveError(f"{parent} would be both a file and a folder in the archive ({path})")


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _base(name: str | None) -> str | None:
    return PurePosixPath(name).name if name else None


def _name(source: MemberContent) -> str:
    if isinstance(source, ArchiveSlice):
        source = source.file
    return "a generated file" if isinstance(source, bytes) else str(source)
