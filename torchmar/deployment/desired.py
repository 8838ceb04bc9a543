"""``deployment.yaml``: the desired state of a server, read strictly.

All problems of a file are reported at once, each with its line. File names are relative to the folder of the file;
archives are searched in the model store first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from torchmar import byte_sizes, strict_yaml
from torchmar.deployment import gpu_sizes, versions
from torchmar.errors import Problem, RecipeError, TorchmarError
from torchmar.manifest import NAME_PATTERN
from torchmar.recipe import VERSION_PATTERN
from torchmar.server.config import routes
from torchmar.server_config import Count, Positive
from torchmar.strict_yaml import Document, StrictModel, unknown

FILE_NAME = "deployment.yaml"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
VersionName = Annotated[str, Field(pattern=VERSION_PATTERN)]


def _size(value: object) -> object:
    if isinstance(value, str):
        try:
            return byte_sizes.parse(value, unit_required=True)
        except ValueError as error:
            raise ValueError(f"{value!r} is {error}") from None
    raise ValueError('write a size with its unit: "6GiB"')


def _inventory(value: object) -> object:
    if isinstance(value, str):
        try:
            return gpu_sizes.parse(value)
        except TorchmarError as error:
            raise ValueError(error.message) from None
    raise ValueError('write their number and size: "2x80GiB"')


Size = Annotated[int, BeforeValidator(_size, json_schema_input_type=str)]
Inventory = Annotated[tuple[int, ...], BeforeValidator(_inventory, json_schema_input_type=str)]


class ServerSection(StrictModel):
    """The server of the deployment; options on the command line override these keys."""

    config: str | None = Field(None, description="Its config.properties, to which torchmar startup adds the models.")
    run_folder: str | None = Field(None, description="The run folder of torchmar serve. Default: .torchmar.")
    inference: str | None = Field(None, description="The address of its inference API.")
    management: str | None = Field(None, description="The address of its management API.")
    key_file: str | None = Field(None, description="Its key_file.json.")
    model_store: str | None = Field(
        None, description="The folder with the archives. Default: the server's, or model_store."
    )
    gpus: Inventory | None = Field(
        None, description='Its GPUs, for machines without nvidia-smi: "2x80GiB", "80GiB,40GiB".'
    )


class VersionState(StrictModel):
    """One version of a model; a missing key has the archive's value, or otherwise the server's current one."""

    archive: str | None = Field(
        None,
        description="A file in the model store, a path, or a URL that the server allows. Default: NAME-VERSION.mar.",
    )
    digest: str | None = Field(
        None,
        pattern="^sha256:[0-9a-fA-F]{64}$",
        description="The SHA-256 that the file of an archive behind a URL must have, as sha256:HEX.",
    )
    min_workers: Count | None = Field(
        None,
        description="The number of workers. Default: the archive's, or 1. 0 for a default version "
        "is possible only if no version has workers.",
    )
    max_workers: Count | None = Field(None, description="The largest number of workers. Default: min_workers.")
    batch_size: Positive | None = Field(None, description="The largest number of requests in one batch.")
    max_batch_delay: Count | None = Field(None, description="Milliseconds to wait for a batch to fill.")
    response_timeout: Positive | None = Field(None, description="Seconds that a worker may take for a batch.")
    startup_timeout: Positive | None = Field(None, description="Seconds that a worker may take to load.")
    devices: Annotated[list[Count], Field(min_length=1)] | None = Field(
        None, description="The GPUs on which its workers may run."
    )
    gpus: Positive | None = Field(None, description="The largest number of GPUs over which its workers are spread.")
    worker_memory: Size | None = Field(None, description='GPU memory that one worker needs: "6GiB".')

    @model_validator(mode="after")
    def _agrees(self) -> VersionState:
        if self.min_workers is not None and self.max_workers is not None and self.max_workers < self.min_workers:
            raise ValueError(f"max_workers ({self.max_workers}) is less than min_workers ({self.min_workers})")
        if self.max_workers is not None and self.min_workers is None:
            raise ValueError("set min_workers, too: TorchServe ignores one without the other")
        if self.devices is not None and self.gpus is not None:
            raise ValueError("give devices (which) or gpus (how many), not both")
        if self.digest and "://" not in (self.archive or ""):
            raise ValueError("digest is that of an archive behind a URL; set archive, too")
        return self

    @property
    def on_gpus(self) -> bool:
        """Whether the plan assigns a GPU to each of its workers."""
        return self.devices is not None or self.gpus is not None or self.worker_memory is not None


class Checks(StrictModel):
    """The checks of a version before it gets traffic."""

    samples: bool = Field(True, description="Send the samples of its archive, and compare the answers.")
    requests: str | None = Field(None, description="A folder of further requests; an error fails the check.")
    max_latency: Positive | None = Field(
        None, description="The limit in milliseconds for the median of five answers to each sample, after the warm-up."
    )


class ModelState(StrictModel):
    """One model: its versions, and how one replaces another."""

    default: VersionName | None = Field(None, description="The version that answers requests without one.")
    keep: Count = Field(
        1, description="The number of versions that stay registered when they are no longer listed, for a rollback."
    )
    kept_workers: Positive | None = Field(
        None,
        description="The number of workers of a kept version. Default: all. With fewer, a rollback takes no "
        "longer, but answers are slow until more workers have started.",
    )
    drain_seconds: Count | None = Field(
        None,
        description="The longest time of one answer in seconds: no worker is removed earlier after the "
        "traffic of its version has ended. Default: the response timeout, which the server enforces.",
    )
    warmup_requests: Count = Field(
        20, description="The number of warm-up requests that a version gets before its traffic."
    )
    checks: Checks = Checks()
    versions: Annotated[dict[VersionName, VersionState | None], Field(min_length=1)]

    @model_validator(mode="after")
    def _agrees(self) -> ModelState:
        default = self.default or next(iter(self.versions))
        if self.default is None and len(self.versions) > 1:
            raise ValueError("name the default version: default: ...")
        if default not in self.versions:
            raise ValueError(f"the default {default} is none of its versions ({', '.join(self.versions)})")
        if self.version(default).min_workers == 0 and not self.parked:
            raise ValueError(
                f"the default {default} has no workers (min_workers: 0), but others do: every request "
                "without a version would be refused"
            )
        by_base: dict[str, str] = {}
        for name in self.versions:
            if other := by_base.get(versions.base(name)):
                raise ValueError(f"{other} and {name} are builds of one version; keep one")
            by_base[versions.base(name)] = name
        return self

    @property
    def parked(self) -> bool:
        """Whether the model should be registered without any workers."""
        return all(self.version(name).min_workers == 0 for name in self.versions)

    @property
    def default_version(self) -> str:
        """The version that answers requests without one."""
        return self.default or next(iter(self.versions))

    def version(self, name: str) -> VersionState:
        """Return the state of a version, which may have no keys."""
        return self.versions[name] or VersionState()


class RouteState(StrictModel):
    """The model of a route."""

    model: Name = Field(description="A model of this file.")
    version: VersionName | None = Field(None, description="Its version. Default: the default one at each request.")


def _route(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


def _route_path(value: object) -> object:
    return routes.check_path(value) if isinstance(value, str) else value


Route = Annotated[RouteState, BeforeValidator(_route, json_schema_input_type=str | RouteState)]
RoutePath = Annotated[str, BeforeValidator(_route_path)]


class Deployment(StrictModel):
    """The desired state of a server."""

    server: ServerSection = ServerSection()
    prune: bool = Field(False, description="Remove models that are not listed.")
    routes: dict[RoutePath, Route] | None = Field(
        None,
        description="All paths of your choice that lead to models, /inference: NAME. Default: the server's stay. "
        "Only the built-in server has routes.",
    )
    models: dict[Name, ModelState]

    @model_validator(mode="after")
    def _agrees(self) -> Deployment:
        for path, route in (self.routes or {}).items():
            if (model := self.models.get(route.model)) is None:
                raise ValueError(f"the route {path} leads to {route.model}, which is none of the models")
            if route.version is not None and route.version not in model.versions:
                versions = ", ".join(model.versions)
                raise ValueError(
                    f"the route {path} leads to {route.model} {route.version}; its versions are {versions}"
                )
        return self


def read(file: Path) -> Deployment:
    """Read a ``deployment.yaml``.

    Raises:
        RecipeError: the file is missing, is no YAML or breaks the schema.
    """
    return parse(strict_yaml.read(file, f"torchmar capture > {FILE_NAME} writes the state of a server"), str(file))


def parse(text: str, file: str = FILE_NAME) -> Deployment:
    """Return the desired state in ``text``; ``file`` is its name in error messages.

    Raises:
        RecipeError: with all problems.
    """
    document = strict_yaml.parse(text, file, "a deployment is a mapping of keys, such as models:")
    problems = document.repeated()
    deployment = None
    try:
        deployment = Deployment.model_validate(document.data)
    except ValidationError as error:
        problems += _problems(error, document)
    if problems or deployment is None:
        raise RecipeError(problems)
    return deployment


def schema() -> dict[str, Any]:
    """Return the JSON Schema of ``deployment.yaml``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Deployment.model_json_schema()}


def _problems(error: ValidationError, document: Document) -> Iterator[Problem]:
    reported: set[tuple[int, str]] = set()
    for detail in error.errors():
        problem = _problem(dict(detail), document)
        # A key that is no text has two errors, which give the same problem.
        if (problem.line, problem.message) not in reported:
            reported.add((problem.line, problem.message))
            yield problem


def _problem(detail: dict[str, Any], document: Document) -> Problem:
    is_key = "[key]" in detail["loc"]
    location = [part for part in detail["loc"] if part != "[key]"]
    line, node = document.find(location)
    text = node.value if isinstance(node, yaml.ScalarNode) else str(location[-1] if location else "")
    message, hint = str(detail["msg"]).removeprefix("Value error, "), ""
    if detail["type"] == "extra_forbidden":
        key = str(location.pop())
        message = unknown(key, _model(location))
    elif detail["type"] == "missing":
        message = "this key is required"
    elif detail["type"] == "string_type" and (is_key or location[-1] in ("default", "version")):
        # YAML reads 1.10 as the number 1.1: a version without quotes would be a wrong version.
        noun = "name" if location[:-1] == ["models"] else "version"
        location = list(document.written(location))
        if is_key:
            text = location[-1]
        message = f'write the {noun} in quotes: "{text}"'
    elif detail["type"] == "string_pattern_mismatch":
        message = f"{detail['input']!r} cannot be part of a URL"
        hint = "letters, digits, '.', '_', '-' and in a version '+', a letter or digit first"
    elif detail["type"] in ("too_short", "model_type", "dict_type"):
        message = "give it content" if detail["type"] == "too_short" else "this is a mapping of keys"
    elif detail["type"] != "value_error":
        message = f"{detail['input']!r}: {message[:1].lower()}{message[1:]}"
    return Problem(file=document.file, line=line, place=".".join(map(str, location)), message=message, hint=hint)


def _model(location: list[Any]) -> type[BaseModel]:
    """Return the part of the schema at a location."""
    if location[:1] == ["server"]:
        return ServerSection
    if location[:1] == ["routes"]:
        return RouteState
    by_depth: dict[int, type[BaseModel]] = {0: Deployment, 2: ModelState, 3: Checks, 4: VersionState}
    return by_depth.get(len(location), Deployment)
