"""``archive.yaml``: the recipe of one archive, read strictly.

All problems of a file are reported at once, each with its line and, for a key that
does not exist, the key that was probably meant. File names in a recipe are relative
to the folder of the recipe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from torchmar import strict_yaml
from torchmar.errors import Problem, RecipeError
from torchmar.handler_names import STOCK_HANDLERS, handler_problem
from torchmar.manifest import NAME_PATTERN
from torchmar.server_config import ServerConfig
from torchmar.strict_yaml import Document, StrictModel, unknown

FILE_NAME = "archive.yaml"
VERSION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_\-.+]*$"


def _labels(value: object) -> object:
    # The short form for the ten digits: [0, 1, 2].
    def plain(item: object) -> bool:
        return isinstance(item, str | int) and not isinstance(item, bool)

    if isinstance(value, list) and all(map(plain, value)):
        return [str(item) for item in value]
    if isinstance(value, dict) and all(str(key).isdigit() and plain(item) for key, item in value.items()):
        return {str(key): str(item) for key, item in value.items()}
    if isinstance(value, str) or value is None:
        return value
    raise ValueError("labels are a list of names, a mapping from class index to name, or a JSON file with either")


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or "\\" in value or str(path) == ".":
        raise ValueError("a path inside the archive is relative, without '..' and with forward slashes")
    if path.parts[0].upper() == "MAR-INF":
        raise ValueError("MAR-INF belongs to the archive itself")
    return str(path)


Inside = Annotated[str, BeforeValidator(lambda value: _inside(value) if isinstance(value, str) else value)]


class Runtime(StrictModel):
    """The virtual environment that an archive's workers run in; the built-in server and ``torchmar run`` make it.

    TorchServe does not: there, the lock file is the archive's requirements file.
    """

    python: Annotated[str, Field(pattern=r"^3\.[0-9]+(\.[0-9]+)?$")] = Field(
        description='The version of Python, in quotes: "3.11". The machine must have it.'
    )
    requirements: str = Field(
        description="The lock file: each package with its version and hashes. torchmar lock writes it."
    )
    requires: list[str] = Field(
        default_factory=list,
        description='What torchmar lock makes the lock file of: "tokenizers>=0.20". It adds what workers need.',
    )
    wheels: str | None = Field(
        None, description="A folder with the wheels of the lock file, to install without a network."
    )
    server_packages: bool = Field(
        False,
        description="Whether workers see the server's packages, too, behind those of the lock file: torch need not be "
        "in it, but Python must be the server's version.",
    )

    def document(self) -> dict[str, Any]:
        """Return the document about the runtime that an archive contains; its file names are those in the archive."""
        files = {"requirements": PurePosixPath(self.requirements).name}
        if self.wheels:
            files["wheels"] = PurePosixPath(self.wheels).name
        return {**self.model_dump(mode="json", exclude_defaults=True, exclude={"requires"}), **files}


class Sample(StrictModel):
    """A request and the expectation of its answer; archives contain their samples."""

    input: Inside | None = Field(None, description="The file whose bytes are the request's body.")
    json_body: Any = Field(None, alias="json", description="A JSON body, in place of a file.")
    explain: bool = Field(False, description="Ask for an explanation, not a prediction.")
    status: Annotated[int, Field(ge=100, le=599)] = Field(200, description="The HTTP status expected.")
    expect: Any = Field(
        None,
        description="The answer expected. Of an object only the keys given here are compared; "
        "numbers are equal within the tolerance.",
    )
    tolerance: Annotated[float, Field(ge=0, strict=False)] = Field(1e-3, description="Absolute, for every number.")

    @model_validator(mode="after")
    def _one_body(self) -> Sample:
        if (self.input is None) == (self.json_body is None):
            raise ValueError("give exactly one of input and json")
        return self

    def document(self) -> dict[str, Any]:
        """Return the sample with the recipe's keys, without default values."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


class Recipe(StrictModel):
    """The recipe of one archive."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = Field(description="The model's name on the server.")
    version: Annotated[str, Field(pattern=VERSION_PATTERN)] = Field(
        description='The model\'s version, in quotes: "1.0".'
    )
    description: str | None = Field(None, description="A text for people; `inspect` shows it.")
    handler: Annotated[str, Field(min_length=1)] = Field(
        description="A file (handler.py, or handler.py:function), one of torchmar's handlers "
        "(torchmar_handlers.image_classifier) or one that TorchServe ships (image_classifier)."
    )
    weights: str | None = Field(
        None,
        description="TorchScript, ONNX, OpenVINO (model.xml; model.bin beside it is packed, too), a torch.export "
        "program or AOTInductor package; a Keras model, which the build converts to a torch.export program, or one of "
        "TensorFlow (SavedModel folder, .tflite), which it converts to OpenVINO; or, together with model_file, a state "
        "dict or safetensors. TorchServe's own handlers load TorchScript and state dicts only.",
    )
    model_file: str | None = Field(None, description="The file with the one class that a state dict fills.")
    generated_by: str | None = Field(
        None, description="The script that makes the weights; named when they are missing."
    )
    labels: Annotated[str | list[str] | dict[str, str] | None, BeforeValidator(_labels)] = Field(
        None, description="Class names: a list, a mapping from class index, or a JSON file with either."
    )
    files: dict[Inside, str] = Field(
        default_factory=dict, description="More content: path in the archive -> file or folder on disk."
    )
    requirements: str | None = Field(None, description="A requirements.txt for the server to install.")
    runtime: Runtime | None = Field(None, description="An environment of its own, with its own Python and packages.")
    config: Annotated[
        Annotated[ServerConfig, Tag("keys")] | Annotated[str, Tag("file")],
        Discriminator(lambda value: "file" if isinstance(value, str) else "keys"),
        Field(description="The archive's model-config.yaml, or the file that is to be it, byte for byte."),
    ] = ServerConfig()
    samples: list[Sample] = Field(default_factory=list, description="The archive's contract.")

    @model_validator(mode="after")
    def _packages_once(self) -> Recipe:
        if self.runtime and self.requirements:
            raise ValueError("the packages are those of requirements or of runtime: give one of the two")
        return self


_SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")


def read(path: Path) -> tuple[Recipe, Path]:
    """Read a recipe; return it and the folder to which its file names are relative.

    Args:
        path: an ``archive.yaml``, or its folder.

    Raises:
        RecipeError: the file is missing, is no YAML or breaks the schema.
    """
    file = file_of(path)
    text = strict_yaml.read(file, f"a recipe is a file called {FILE_NAME}, or the folder that holds one")
    return parse(text, str(file), file.parent), file.parent


def file_of(path: Path) -> Path:
    """Return the file of a recipe from its own path or that of its folder."""
    return path / FILE_NAME if path.is_dir() else path


def is_recipe(path: Path) -> bool:
    """Return whether ``path`` names a recipe (or its folder), and not an archive."""
    return (path / FILE_NAME).is_file() or path.suffix in (".yaml", ".yml")


def parse(text: str, file: str = FILE_NAME, folder: Path | None = None) -> Recipe:
    """Return the recipe in ``text``.

    Args:
        text: YAML.
        file: the recipe's name in error messages.
        folder: folder in which the files that the recipe names must exist; None: this is not checked.

    Raises:
        RecipeError: the recipe has problems; the error contains all of them.
    """
    document = strict_yaml.parse(text, file, "a recipe is a mapping of keys, such as name: and handler:")
    problems = document.repeated()
    recipe = None
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        problems += [_problem(dict(detail), document) for detail in error.errors()]
    if folder:
        problems += [document.problem(*missing) for missing in _missing(recipe or _sound_part(document.data), folder)]
    if problems or recipe is None:
        raise RecipeError(problems)
    return recipe


def schema() -> dict[str, Any]:
    """Return the JSON Schema of ``archive.yaml``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def _sound_part(data: dict[str, Any]) -> Recipe:
    """Return the valid part of a recipe with problems, in which further problems are searched."""
    sound: dict[str, Any] = {"name": "x", "version": "1", "handler": STOCK_HANDLERS[0]}
    for key in Recipe.model_fields.keys() & data.keys():
        with contextlib.suppress(ValidationError):
            Recipe.model_validate({**sound, key: data[key]})
            sound[key] = data[key]
    return Recipe.model_validate(sound)


def _missing(recipe: Recipe, folder: Path) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """Yield the place, message and hint of every file that a recipe names and the folder lacks."""
    references: list[tuple[tuple[str | int, ...], str | None]] = [
        (("weights",), recipe.weights),
        (("model_file",), recipe.model_file),
        (("labels",), recipe.labels if isinstance(recipe.labels, str) else None),
        (("requirements",), recipe.requirements),
        (("runtime", "requirements"), recipe.runtime.requirements if recipe.runtime else None),
        (("config",), recipe.config if isinstance(recipe.config, str) else None),
        *((("samples", index, "input"), sample.input) for index, sample in enumerate(recipe.samples)),
    ]
    for location, name in references:
        if name is not None and not (folder / name).is_file():
            if location == ("weights",) and any((folder / name / graph).is_file() for graph in _SAVED_MODEL):
                continue  # a model of TensorFlow, which is a folder
            hint = (
                f"{folder / recipe.generated_by} makes it" if location == ("weights",) and recipe.generated_by else ""
            )
            hint = f"torchmar lock {folder} writes it" if location[0] == "runtime" else hint
            yield location, f"there is no file {folder / name}", hint
    if recipe.runtime and recipe.runtime.wheels and not (folder / recipe.runtime.wheels).is_dir():
        missing = f"there is no folder {folder / recipe.runtime.wheels}"
        yield ("runtime", "wheels"), missing, f"torchmar lock {folder} fills it"
    for name in recipe.files.values():
        if not (folder / name).exists():
            place = next(key for key, value in recipe.files.items() if value == name)
            yield ("files", place), f"there is no file or folder {folder / name}", ""
    if problem := handler_problem(recipe.handler, folder):
        yield ("handler",), *problem


def _problem(detail: dict[str, Any], document: Document) -> Problem:
    # Pydantic's location includes the part of a mapping and the member of a union, which mean nothing to the user.
    location = [part for part in detail["loc"] if part not in ("[key]", "keys")]
    line, node = document.find(location)
    message, hint = str(detail["msg"]).removeprefix("Value error, "), ""
    if detail["type"] == "extra_forbidden":
        message = unknown(str(location.pop()), Sample if "samples" in location else Recipe)
    elif location[:1] == ["config"] and len(location) == 2 and location[1] not in ServerConfig.model_fields:
        message = unknown(str(location.pop()), ServerConfig)
        hint = "options of the handler go into a section, such as handler:"
    elif detail["type"] == "missing":
        message = "this key is required"
    elif location == ["runtime", "python"] and detail["type"].startswith("string_"):
        message = f'{detail["input"]!r} is no version of Python in quotes, such as "3.11"'
    elif detail["type"] in ("model_type", "model_attributes_type", "dataclass_type"):
        message = f"{detail['input']!r} is no mapping of keys to values"
    elif detail["type"] == "string_pattern_mismatch":
        message = f"{detail['input']!r} cannot stand in a URL"
        hint = "letters, digits, '.', '_' and '-', a letter or digit first"
    elif location == ["version"] and isinstance(node, yaml.ScalarNode):
        # YAML reads 1.10 as the number 1.1: a version without quotes would be a wrong version.
        message = f'write the version in quotes: "{node.value}"'
    elif detail["type"] != "value_error":
        message = f"{detail['input']!r}: {message[:1].lower()}{message[1:]}"
    return Problem(file=document.file, line=line, place=".".join(map(str, location)), message=message, hint=hint)


def config_problems(error: ValidationError) -> list[str]:
    """Return the problems of a server configuration outside of a recipe, one line each."""
    details = ({**detail, "loc": ("config", *detail["loc"])} for detail in error.errors())
    problems = (_problem(detail, Document("", {}, None)) for detail in details)
    return [
        f"{problem.place.removeprefix('config').lstrip('.')}: {problem.message}".lstrip(": ") for problem in problems
    ]
