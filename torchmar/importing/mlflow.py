"""A model of MLflow's pytorch flavour as a recipe, whose handler takes the requests of ``mlflow models serve``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from torchmar import atomic, handler_names
from torchmar.checks.formats import Format, Weights, identify
from torchmar.errors import TorchmarError
from torchmar.importing import package
from torchmar.importing.package import Imported

HANDLER = f"{handler_names.CARRIED_PACKAGE}.mlflow"
FILE = "MLmodel"
FLAVOR = "pytorch"
_SAMPLE = "serving_input_example.json"
_REQUIREMENTS = "requirements.txt"
# MLflow's descriptions of environments; only the requirements are kept.
_ENVIRONMENTS = ("conda.yaml", "python_env.yaml", "registered_model_meta")
_CONSTRAINTS = "constraints.txt"
_USES_CONSTRAINTS = re.compile(r"(-c|--constraint)[\s=]")
_SERVERS_OWN = re.compile(r"(mlflow(-skinny|-tracing)?|torch|numpy)(?![\w.\-])", re.IGNORECASE)


def import_model(path: Path, to: Path, *, name: str | None = None, version: str = "1.0") -> Imported:
    """Turn a model that MLflow has saved into a recipe and its files in ``to/NAME``.

    Args:
        path: the folder with ``MLmodel``.
        to: the folder for the recipe's own folder, usually ``archives``.
        name: name of the model; None: that of the folder.
        version: version of the model.

    Raises:
        TorchmarError: the folder has no model of this flavour, files are missing, or the recipe's folder exists.
    """
    document = _document(path)
    flavor = document["flavors"][FLAVOR]
    weights_file = _weights_file(path, flavor)
    with weights_file.open("rb") as stream:
        weights = identify(stream, weights_file.name)
    code = flavor.get("code")
    if code and not _inside(path, "code", code).is_dir():
        raise TorchmarError(f"{path}/{FILE} names the folder {code}, which is not there", hint="copy the whole model")
    model = package.model_name(name, path.resolve().name)
    target = to / model
    with atomic.new_folder(target) as folder:
        package.copy(path, folder, *_ENVIRONMENTS)
        package.clean(folder)
        left_out = _reduce_requirements(folder)
        sample = _write_sample(folder, document)
        files = package.entries(folder, path)
        requirements = _REQUIREMENTS if files.pop(_REQUIREMENTS, None) else None
        recipe_document: dict[str, Any] = {"name": model, "version": version, "handler": HANDLER, "files": files}
        recipe_document["requirements"] = requirements
        if sample:
            files.pop(sample, None)
            recipe_document["samples"] = [{"input": sample}]
        package.write_recipe(recipe_document, folder, path)
        notes = tuple(_notes(document, weights_file.relative_to(path), weights, left_out, requirements, sample))
    return Imported(target, notes)


def _document(path: Path) -> Mapping[str, Any]:
    file = path / FILE
    if not path.is_dir() or not file.is_file():
        hint = f"name the folder with {FILE}: mlruns/0/models/ID/artifacts, or what mlflow artifacts download wrote"
        raise TorchmarError(
            f"{path} does not exist" if not path.exists() else f"{path} is no MLflow model: it has no {FILE}", hint=hint
        )
    try:
        document = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TorchmarError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    flavors = document.get("flavors") if isinstance(document, dict) else None
    if not isinstance(flavors, dict) or not flavors:
        raise TorchmarError(f"{file} names no flavors, which every MLflow model has")
    if not isinstance(flavors.get(FLAVOR), dict):
        others = ", ".join(map(str, flavors))
        raise TorchmarError(
            f"{path} is an MLflow model of the flavors {others}; only {FLAVOR} can be imported",
            hint="log it with mlflow.pytorch.log_model, or serve it in a handler of your own",
        )
    assert isinstance(document, dict)
    return document


def _weights_file(path: Path, flavor: Mapping[str, Any]) -> Path:
    data = _inside(path, "model_data", flavor.get("model_data") or "data")
    for name in ("model.pth", "model.pt2"):
        if (data / name).is_file():
            return data / name
    raise TorchmarError(f"{data} has neither model.pth nor model.pt2", hint="copy the whole model")


def _inside(path: Path, key: str, name: object) -> Path:
    """Return a file or folder that MLmodel names. Raises TorchmarError if it is outside of the model's folder."""
    target = path / str(name)
    if not target.resolve().is_relative_to(path.resolve()):
        raise TorchmarError(f"{path}/{FILE}: {key} is {name}, outside of the model's folder")
    return target


def _reduce_requirements(folder: Path) -> list[str]:
    """Remove the packages that the server has, or the archive does not need, from the requirements; return them."""
    file = folder / _REQUIREMENTS
    if not file.is_file():
        return []
    lines = file.read_text("utf-8", "replace").splitlines()
    left_out = [line.strip() for line in lines if _SERVERS_OWN.match(line.strip())]
    kept_lines = [line for line in lines if not _SERVERS_OWN.match(line.strip())]
    constraints = [line for line in kept_lines if _USES_CONSTRAINTS.match(line.strip())]
    if any(line.strip() and not line.strip().startswith("#") for line in kept_lines if line not in constraints):
        file.write_text("\n".join(kept_lines) + "\n", encoding="utf-8")
    else:
        file.unlink()
        constraints = []
    if not constraints:
        (folder / _CONSTRAINTS).unlink(missing_ok=True)
    return left_out


def _write_sample(folder: Path, document: Mapping[str, Any]) -> str | None:
    """Return the file with a request, made of the model's input example if MLflow wrote none; None: no example."""
    if (folder / _SAMPLE).is_file():
        return _SAMPLE
    info = document.get("saved_input_example_info")
    info = info if isinstance(info, dict) else {}
    name = info.get("artifact_path")
    if not name or not (file := _inside(folder, "artifact_path", name)).is_file():
        return None
    try:
        example = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    if info.get("type") == "dataframe" and isinstance(example, dict) and "data" in example:
        example = {"dataframe_split": example}
    elif not (isinstance(example, dict) and example.keys() & {"inputs", "instances"}):
        return None
    (folder / _SAMPLE).write_text(json.dumps(example), encoding="utf-8")
    return _SAMPLE


def _notes(
    document: Mapping[str, Any],
    file: Path,
    weights: Weights,
    left_out: list[str],
    requirements: str | None,
    sample: str | None,
) -> Iterator[str]:
    if weights.format is not Format.TORCHSCRIPT and file.suffix == ".pth":
        yield (
            f"{file} is a pickle, and loading it runs code of whoever made it; torchmar check names what it imports. "
            "serialization_format='pt2' of mlflow.pytorch.save_model, or a TorchScript model, has no pickle"
        )
    if left_out:
        packages = ", ".join(left_out)
        yield f"left out of {_REQUIREMENTS}: {packages}; the server's torch is used, and MLflow is not needed"
    if requirements:
        yield (
            f"the packages of {requirements} are installed for the model with install_py_dep_per_model=true in the "
            "server's configuration"
        )
    if not document.get("signature"):
        yield "the model has no signature: requests are not checked, and numbers become the type of its weights"
    if not sample:
        yield "the model has no input example, so that the recipe has no sample"
