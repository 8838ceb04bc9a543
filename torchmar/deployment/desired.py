"""``deployment.yaml``: the desired state of a server, read strictly.

Every problem of a file is reported at once, each with its line. File names are relative to
the folder that the file lies in, but for archives, which are looked for in the model store first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from torchmar import strict_yaml
from torchmar.deployment import gpu_sizes, versions
from torchmar.errors import Problem, RecipeError, TorchmarError
from torchmar.manifest import NAME_PATTERN
from torchmar.recipe import VERSION_PATTERN, Count, Positive
from torchmar.strict_yaml import Document, unknown

FILE_NAME = "deployment.yaml"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
VersionName = Annotated[str, Field(pattern=VERSION_PATTERN)]


def _size(value: object) -> object:
    if isinstance(value, str):
        try:
            return gpu_sizes.parse_size(value)
        except TorchmarError as error:
            raise ValueError(error.message) from None
    raise ValueError('write a size with its unit: "6GiB"')


def _inventory(value: object) -> object:
    if isinstance(value, str):
        try:
            return gpu_sizes.parse(value)
        except TorchmarError as error:
            raise ValueError(error.message) from None
    raise ValueError('write how many of which size: "2x80GiB"')


Size = Annotated[int, BeforeValidator(_size, json_schema_input_type=str)]
Inventory = Annotated[tuple[int, ...], BeforeValidator(_inventory, json_schema_input_type=str)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ServerSection(_Strict):
    """Where the server is; options on the command line go before this."""

    config: str | None = Field(None, description="Its config.properties, to which torchmar startup adds the models.")
    run_folder: str | None = Field(None, description="The folder that torchmar serve runs with: .torchmar.")
    inference: str | None = Field(None, description="The address of its inference API.")
    management: str | None = Field(None, description="The address of its management API.")
    key_file: str | None = Field(None, description="Its key_file.json.")
    model_store: str | None = Field(None, description="The folder with the archives: model_store.")
    gpus: Inventory | None = Field(
        None, description='Its GPUs, where nvidia-smi cannot be asked: "2x80GiB", "80GiB,40GiB".'
    )


class VersionState(_Strict):
    """One version of a model; what is left out is what the archive says, or as the server has it."""

    archive: str | None = Field(
        None, description="A file in the model store, a path, or a URL that the server allows; NAME-VERSION.mar."
    )
    min_workers: Count | None = Field(
        None,
        description="Workers that are up; 1 unless the archive says. 0: none, which a default version "
        "can have only if no version has any.",
    )
    max_workers: Count | None = Field(None, description="Workers at the most; as many as min_workers.")
    batch_size: Positive | None = Field(None, description="Requests in one batch at the most.")
    max_batch_delay: Count | None = Field(None, description="Milliseconds to wait for a batch to fill.")
    response_timeout: Positive | None = Field(None, description="Seconds a worker may take to answer.")
    startup_timeout: Positive | None = Field(None, description="Seconds a worker may take to load.")
    devices: Annotated[list[Count], Field(min_length=1)] | None = Field(
        None, description="The GPUs that its workers stay on."
    )
    gpus: Positive | None = Field(None, description="Over how many GPUs, at the most, its workers are spread.")
    worker_memory: Size | None = Field(None, description='GPU memory that one worker needs: "6GiB".')

    @model_validator(mode="after")
    def _agrees(self) -> VersionState:
        if self.min_workers is not None and self.max_workers is not None and self.max_workers < self.min_workers:
            raise ValueError(f"max_workers ({self.max_workers}) is less than min_workers ({self.min_workers})")
        if self.max_workers is not None and self.min_workers is None:
            raise ValueError("set min_workers, too: TorchServe ignores one without the other")
        if self.devices is not None and self.gpus is not None:
            raise ValueError("give devices (which) or gpus (how many), not both")
        return self

    @property
    def on_gpus(self) -> bool:
        """Whether the plan says which GPU each of its workers gets."""
        return self.devices is not None or self.gpus is not None or self.worker_memory is not None


class Checks(_Strict):
    """What a version has to do right before it gets traffic."""

    samples: bool = Field(True, description="Answer the samples that its archive carries as these expect.")
    requests: str | None = Field(None, description="A folder of more requests; none may be refused.")
    max_latency: Positive | None = Field(
        None, description="Milliseconds: the median of five answers to each sample, one at a time, when it is warm."
    )


class ModelState(_Strict):
    """One model: its versions and how one takes the place of another."""

    default: VersionName | None = Field(None, description="The version that answers requests without one.")
    keep: Count = Field(
        1, description="How many versions that are no longer listed stay registered, to roll back to at once."
    )
    kept_workers: Positive | None = Field(
        None,
        description="Workers that a kept version keeps; all of them. With fewer a rollback is as fast, "
        "but slow to answer until more are up.",
    )
    drain_seconds: Count | None = Field(
        None,
        description="Seconds that an answer takes at the most: so long nothing is taken from a version "
        "whose traffic has ended. Default: its response timeout, which the server itself enforces.",
    )
    warmup_requests: Count = Field(20, description="Requests that a version answers before it gets traffic.")
    checks: Checks = Checks()
    versions: Annotated[dict[VersionName, VersionState | None], Field(min_length=1)]

    @model_validator(mode="after")
    def _agrees(self) -> ModelState:
        default = self.default or next(iter(self.versions))
        if self.default is None and len(self.versions) > 1:
            raise ValueError("say which version is the default: default: ...")
        if default not in self.versions:
            raise ValueError(f"the default {default} is none of its versions ({', '.join(self.versions)})")
        if self.version(default).min_workers == 0 and not self.parked:
            raise ValueError(
                f"the default {default} has no workers (min_workers: 0), but others do: every request "
                "that names no version would be refused"
            )
        seen: dict[str, str] = {}
        for name in self.versions:
            if other := seen.get(versions.base(name)):
                raise ValueError(f"{other} and {name} are builds of one version; keep one")
            seen[versions.base(name)] = name
        return self

    @property
    def parked(self) -> bool:
        """Whether the model is registered and has no workers at all, as is meant."""
        return all(self.version(name).min_workers == 0 for name in self.versions)

    @property
    def default_version(self) -> str:
        """The version that answers requests without one."""
        return self.default or next(iter(self.versions))

    def version(self, name: str) -> VersionState:
        """Return what is asked of a version; one without keys asks for nothing but to be there."""
        return self.versions[name] or VersionState()


class Deployment(_Strict):
    """What a server should serve."""

    server: ServerSection = ServerSection()
    prune: bool = Field(False, description="Remove models that are not listed; otherwise they are left alone.")
    models: dict[Name, ModelState]


def read(file: Path) -> Deployment:
    """Read a ``deployment.yaml``.

    Raises:
        RecipeError: the file is missing, is no YAML or breaks the schema.
    """
    return parse(strict_yaml.read(file, f"torchmar capture > {FILE_NAME} writes down what a server has"), str(file))


def parse(text: str, file: str = FILE_NAME) -> Deployment:
    """Return the desired state in ``text``, which error messages call ``file``.

    Raises:
        RecipeError: with every problem that was found.
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
    message: set[tuple[int, str]] = set()
    for detail in error.errors():
        problem = _problem(dict(detail), document)
        # A key that is no text is reported once, not once for each of its two faults.
        if (problem.line, problem.message) not in message:
            message.add((problem.line, problem.message))
            yield problem


def _problem(detail: dict[str, Any], document: Document) -> Problem:
    is_key = "[key]" in detail["loc"]
    location = [part for part in detail["loc"] if part != "[key]"]
    line, node = document.find(location)
    written = node.value if isinstance(node, yaml.ScalarNode) else str(location[-1] if location else "")
    message, hint = str(detail["msg"]).removeprefix("Value error, "), ""
    if detail["type"] == "extra_forbidden":
        key = str(location.pop())
        message = unknown(key, _model(location))
    elif detail["type"] == "missing":
        message = "this key is required"
    elif detail["type"] == "string_type" and (is_key or location[-1:] == ["default"]):
        # YAML reads 1.10 as the number 1.1: a version without quotes would be a wrong version.
        message = f'write the version in quotes: "{location[-1] if is_key else written}"'
    elif detail["type"] == "string_pattern_mismatch":
        message = f"{detail['input']!r} cannot stand in a URL"
        hint = "letters, digits, '.', '_', '-' and in a version '+', a letter or digit first"
    elif detail["type"] in ("too_short", "model_type", "dict_type"):
        message = "give it content" if detail["type"] == "too_short" else "this is a mapping of keys"
    elif detail["type"] != "value_error":
        message = f"{detail['input']!r}: {message[:1].lower()}{message[1:]}"
    return Problem(document.file, line, ".".join(map(str, location)), message, hint)


def _model(location: list[Any]) -> type[BaseModel]:
    """Return the part of the schema at a place."""
    if location[:1] == ["server"]:
        return ServerSection
    by_depth: dict[int, type[BaseModel]] = {0: Deployment, 2: ModelState, 3: Checks, 4: VersionState}
    return by_depth.get(len(location), Deployment)
