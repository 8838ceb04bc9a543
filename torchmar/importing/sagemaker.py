"""A ``model.tar.gz`` for SageMaker's PyTorch toolkit as a recipe, whose handler runs the package's functions."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from torchmar import atomic, handler_names, manifest
from torchmar.archive import Archive
from torchmar.checks.formats import Format, identify
from torchmar.errors import TorchmarError
from torchmar.importing import package
from torchmar.importing.package import Imported

HANDLER = f"{handler_names.CARRIED_PACKAGE}.sagemaker"
CODE = "code"
PROGRAM = "inference.py"
_FUNCTIONS = ("model_fn", "transform_fn", "input_fn", "predict_fn", "output_fn", "pre_model_fn", "model_warmup_fn")
_REQUIREMENTS = "requirements.txt"
# Packages of the toolkit's containers that scripts import; archives must list them.
_TOOLKIT = {
    "sagemaker_inference": "sagemaker-inference",
    "sagemaker_containers": "sagemaker-containers",
    "sagemaker_pytorch_serving_container": "sagemaker-pytorch-inference",
}
# The exceptions of parsing a text that is not Python.
_NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
_NEEDED = f"a package has {CODE}/{PROGRAM}, or a TorchScript model.pt at its top"


def is_package_folder(path: Path) -> bool:
    """Return whether a path is a folder that is no model archive."""
    if not path.is_dir():
        return False
    outer = [path, *(entry for entry in path.iterdir() if entry.is_dir())]
    return not any((folder / "MAR-INF").is_dir() for folder in outer)


def open_package(path: Path) -> Archive | None:
    """Open a ``.tar.gz`` that is no model archive, for `import_package`; None: the path is another kind of file.

    Raises:
        ArchiveError: the ``.tar.gz`` is hostile or damaged.
    """
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream:
            if stream.read(2) != b"\x1f\x8b":
                return None
    except OSError:
        return None  # the archive's own errors say what is wrong
    archive = Archive(path)
    if any(str(PurePosixPath(*PurePosixPath(name).parts[-2:])) == manifest.PATH for name in archive.sizes):
        archive.close()
        return None
    return archive


def import_package(
    path: Path,
    to: Path,
    *,
    opened: Archive | None = None,
    name: str | None = None,
    version: str = "1.0",
    program: str | None = None,
) -> Imported:
    """Turn a package into a recipe and its files in ``to/NAME``.

    Args:
        path: a ``model.tar.gz``, or the folder that it was packed from.
        to: the folder for the recipe's own folder, usually ``archives``.
        opened: the ``model.tar.gz``, if it is open already; opening it again takes as long as decompressing it.
        name: name of the model; None: that of the file.
        version: version of the model.
        program: the script with the functions, in ``code/`` or at the top; None: ``inference.py``, if there is one.

    Raises:
        TorchmarError: the path is no such package, the package is hostile or damaged, or the recipe's folder exists.
    """
    model = package.model_name(name, path.resolve().name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz"))
    target = to / model
    with atomic.new_folder(target) as folder:
        if opened:
            opened.extract(folder)
        else:
            _unpack(path, folder)
        package.clean(folder)
        script = _script(folder, path, program)
        functions = _functions(script, path, folder) if script else set()
        if functions is not None and "model_fn" not in functions:
            _check_default_weights(folder, path, script)
        files = package.entries(folder, path)
        requirements = _requirements(folder, files)
        document: dict[str, Any] = {
            "name": model,
            "version": version,
            "handler": HANDLER,
            "files": files,
            "requirements": requirements,
        }
        if program is not None:
            document["config"] = {"handler": {"program": program}}
        package.write_recipe(document, folder, path)
        notes = tuple(_notes(folder, script, functions, requirements))
    return Imported(target, notes)


def _unpack(path: Path, folder: Path) -> None:
    if path.is_dir():
        # The targets of links are packed, as by tar -h.
        package.copy(path, folder)
        return
    with Archive(path) as archive:
        archive.extract(folder)


def _script(folder: Path, source: Path, program: str | None) -> Path | None:
    """Return the script with the functions; None: the toolkit's own functions run."""
    name = program or PROGRAM
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise TorchmarError(f"--program {name}: a file in {CODE}/, or at the top of the package, is expected")
    for place in (folder / CODE, folder):
        for candidate in (place / name, place / f"{name}.py"):
            if candidate.is_file() and candidate.suffix == ".py":
                return candidate
    scripts = sorted(
        path.relative_to(folder).as_posix() for path in [*folder.glob("*.py"), *folder.glob(f"{CODE}/*.py")]
    )
    if program is not None:
        hint = f"it has {', '.join(scripts)}" if scripts else _NEEDED
        raise TorchmarError(f"{source} has no {name}, neither in {CODE}/ nor at its top", hint=hint)
    inner = [entry for entry in folder.iterdir() if entry.is_dir() and (entry / CODE / PROGRAM).is_file()]
    if inner:
        raise TorchmarError(
            f"{source} has its content in the folder {inner[0].name}/, where SageMaker does not look",
            hint=f"pack it again: tar -czf model.tar.gz -C {inner[0].name} .",
        )
    if scripts:
        defining = [script for script in scripts if _defined(folder / script) & set(_FUNCTIONS)]
        if defining:
            raise TorchmarError(
                f"{source} has no {PROGRAM}, and {', '.join(defining)} defines functions for SageMaker",
                hint=f"--program {PurePosixPath(defining[0]).name} names the script (the endpoint's SAGEMAKER_PROGRAM)",
            )
    return None


def _functions(script: Path, source: Path, folder: Path) -> set[str] | None:
    """Return the functions of SageMaker that a script defines; None: only running it would show them.

    Raises:
        TorchmarError: the script is not Python, or defines functions that exclude each other.
    """
    relative = script.relative_to(folder).as_posix()
    try:
        tree = ast.parse(script.read_bytes())
    except _NOT_PYTHON as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise TorchmarError(f"{source}!{relative}{line} is not Python: {error}") from None
    if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree)):
        return None
    names = _names(tree) & set(_FUNCTIONS)
    if "transform_fn" in names and (others := sorted(names & {"input_fn", "predict_fn", "output_fn"})):
        raise TorchmarError(
            f"{source}!{relative} defines transform_fn and {', '.join(others)}, which SageMaker's toolkit rejects",
            hint="keep transform_fn alone, or the others",
        )
    return names


def _defined(script: Path) -> set[str]:
    try:
        return _names(ast.parse(script.read_bytes()))
    except _NOT_PYTHON:
        return set()


def _names(tree: ast.Module) -> set[str]:
    """Return the names that a module defines or imports, including those under an ``if`` or a ``try``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def _check_default_weights(folder: Path, source: Path, script: Path | None) -> None:
    """Raise TorchmarError unless the toolkit's model_fn finds one TorchScript file."""
    cause = f"{script.relative_to(folder).as_posix()} defines no model_fn" if script else f"there is no {PROGRAM}"
    file = folder / "model.pt"
    if not file.is_file():
        files = sorted(path for path in folder.iterdir() if path.suffix in (".pt", ".pth") and path.is_file())
        if len(files) != 1:
            names = ", ".join(path.name for path in files) or "neither model.pt nor another .pt or .pth file"
            inner = next(iter(sorted(folder.glob("*.tar.gz"))), None)
            raise TorchmarError(
                f"{source}: {cause}, and its top has {names}; SageMaker's toolkit loads one file of these",
                hint=f"{inner.name} in it may be the package: extract it" if inner else _NEEDED,
            )
        (file,) = files
    with file.open("rb") as stream:
        weights = identify(stream, file.name)
    if weights.format is not Format.TORCHSCRIPT:
        raise TorchmarError(
            f"{source}: {cause}, and {file.name} is {weights.description}, which SageMaker's toolkit does not load",
            hint=f"define model_fn in {CODE}/{PROGRAM}, or save the model with torch.jit.save",
        )


def _requirements(folder: Path, files: dict[str, str]) -> str | None:
    """Return the file of the requirements, which the archive has at its top level, too; None: there is none."""
    file = folder / CODE / _REQUIREMENTS
    if not file.is_file():
        return None
    top = folder / _REQUIREMENTS
    if top.is_file() and top.read_bytes() != file.read_bytes():
        # The toolkit does not read the file at the top level, but the script may.
        copy = folder / "code-requirements.txt"
        shutil.copyfile(file, copy)
        return copy.name
    return f"{CODE}/{_REQUIREMENTS}"


def _notes(folder: Path, script: Path | None, functions: set[str] | None, requirements: str | None) -> Iterator[str]:
    if script is None:
        yield f"there is no {CODE}/{PROGRAM}: SageMaker's own functions take JSON, CSV and .npy"
    listed = (folder / requirements).read_text("utf-8", "replace").lower().replace("_", "-") if requirements else ""
    imported = {name for file in [*folder.glob("*.py"), *folder.glob(f"{CODE}/**/*.py")] for name in _imports(file)}
    for module, distribution in _TOOLKIT.items():
        if module in imported and distribution not in listed:
            place = requirements or f"{CODE}/{_REQUIREMENTS}"
            yield f"the code imports {module}, which SageMaker's containers have: add {distribution} to {place}"
    if requirements:
        yield (
            f"the packages of {requirements} are installed for the model with install_py_dep_per_model=true in the "
            "server's configuration"
        )
    if functions is None or functions & {"input_fn", "transform_fn"}:
        yield (
            "the server decodes JSON, so that input_fn gets it written anew, with the same values; "
            "decode_input_request=false passes bodies byte for byte, as on SageMaker"
        )


def _imports(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except _NOT_PYTHON:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
