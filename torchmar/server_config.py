"""``model-config.yaml``: the keys of TorchServe and of torchmar's server, with their types and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from torchmar import byte_sizes, optimized_section
from torchmar.strict_yaml import StrictModel

_MAX = 2**31 - 1  # TorchServe's integers are Java's; it drops a larger value
Count = Annotated[int, Field(ge=0, le=_MAX)]
Positive = Annotated[int, Field(gt=0, le=_MAX)]

NO_STAGE = "neither preprocess nor postprocess is given, so that there is no stage beside the model"


class Stages(StrictModel):
    """The numbers of processes for the steps before the model, for the model, and for the steps after it."""

    preprocess: Positive | None = Field(None, description="Without it, the processes with the model do these steps.")
    inference: Positive | None = Field(None, description="As many as there are workers without stages, unless given.")
    postprocess: Positive | None = Field(None, description="Without it, the processes with the model do these steps.")

    @model_validator(mode="after")
    def _beside_the_model(self) -> Stages:
        if self.preprocess is None and self.postprocess is None:
            raise ValueError(NO_STAGE)
        return self


Amount = Annotated[float, Field(gt=0, le=_MAX, allow_inf_nan=False, strict=False)]


def _bytes(value: object) -> object:
    """Return the number of bytes for a text such as 4GiB."""
    return byte_sizes.parse(value, unit_required=True) if isinstance(value, str) else value


class Replica(StrictModel):
    """The resources that a node reserves for each worker, if workers are replicas on a cluster (engine ray)."""

    cpus: Amount | None = Field(None, description="Cores; the worker uses as many threads.")
    gpus: Annotated[float, Field(ge=0, le=64, strict=False)] | None = Field(
        None, description="GPUs: a part of one, such as 0.5, or whole ones; 0: the model runs on a CPU."
    )
    memory: Annotated[int, BeforeValidator(_bytes), Field(gt=0)] | None = Field(
        None, description="Memory: bytes, or text such as 4GiB."
    )
    resources: dict[str, Amount] = Field(
        default_factory=dict,
        description="Other resources of nodes, by the names that ray start --resources gives them.",
    )

    @model_validator(mode="after")
    def _whole_gpus(self) -> Replica:
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: {self.gpus:g} is neither a part of one GPU nor a whole number of them")
        if reserved := sorted({"CPU", "GPU", "memory", "object_store_memory"} & self.resources.keys()):
            raise ValueError(f"resources: {reserved[0]} is no other resource; write cpus, gpus or memory")
        return self


class TorchmarConfig(StrictModel):
    """Options of torchmar's server alone."""

    fork: bool | None = Field(
        None,
        description="Whether workers may be forks of one process that has run the handler's initialize. Unless given, "
        "they are for handlers that torchmar knows, and every other worker runs initialize itself.",
    )
    replica: Replica | None = Field(
        None, description="What a node of a cluster keeps free for each worker (torchmar serve --engine ray)."
    )


def are_stages(value: object) -> bool:
    """Return whether a section ``stages`` is that of torchmar's server, and not one that only the handler knows."""
    if not isinstance(value, Mapping):
        return False
    return bool(value.keys() & Stages.model_fields) or all(isinstance(item, int | float) for item in value.values())


class ServerConfig(BaseModel):
    """The archive's ``model-config.yaml``: TorchServe's own keys, with their types and ranges.

    A section (a mapping) with a name that TorchServe does not know is for the handler,
    which reads the whole file; torchmar's handlers read the section ``handler``.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    __pydantic_extra__: dict[str, dict[str, Any]]

    minWorkers: Positive | None = Field(None, description="Workers that are always up; set maxWorkers too.")
    maxWorkers: Positive | None = Field(None, description="Workers at the most; set minWorkers too.")
    batchSize: Positive | None = Field(None, description="Requests in one batch at the most.")
    maxBatchDelay: Count | None = Field(None, description="Milliseconds to wait for a batch to fill.")
    responseTimeout: Positive | None = Field(None, description="Seconds a worker may take to answer.")
    startupTimeout: Positive | None = Field(None, description="Seconds a worker may take to load.")
    maxRetryTimeoutInSec: Count | None = Field(None, description="Seconds to go on restarting a failing worker.")
    clientTimeoutInMills: Count | None = Field(None, description="Milliseconds after which a client has gone.")
    jobQueueSize: Positive | None = Field(None, description="Requests that may wait; more are rejected.")
    useJobTicket: bool | None = Field(None, description="Refuse a request at once if no worker is free.")
    deviceType: Literal["cpu", "gpu"] | None = Field(
        None, description="The device of the workers; default: a GPU if there is one."
    )
    deviceIds: list[Count] | None = Field(None, description="The GPUs this model's workers may use.")
    parallelType: Literal["pp", "tp", "pptp", "custom"] | None = Field(
        None, description="How one model is distributed over processes. TorchServe only."
    )
    parallelLevel: Positive | None = Field(None, description="Processes for one model. TorchServe only.")
    torchrun: dict[str, Any] | None = Field(
        None, description="Options of torchrun, for a distributed model. TorchServe only."
    )
    sequenceMaxIdleMSec: Count | None = Field(
        None, description="Milliseconds after which an idle sequence ends. TorchServe only."
    )
    sequenceTimeoutMSec: Count | None = Field(
        None, description="Milliseconds after which a sequence ends. TorchServe only."
    )
    maxSequenceJobQueueSize: Positive | None = Field(
        None, description="Requests of one sequence that may wait. TorchServe only."
    )
    maxNumSequence: Positive | None = Field(None, description="Sequences at the same time. TorchServe only.")
    continuousBatching: bool | None = Field(
        None, description="Let requests join and leave a running batch. TorchServe only."
    )
    sequenceBatching: bool | None = Field(
        None, description="Keep the requests of a sequence in one worker. TorchServe only."
    )
    asyncCommunication: bool | None = Field(None, description="Call the handler as a coroutine. TorchServe only.")
    useVenv: bool | None = Field(
        None, description="Install the requirements into a virtual environment, in front of the server's packages."
    )
    stages: Stages | None = Field(
        None, description="Processes for the steps before and after the model; TorchServe ignores it."
    )
    torchmar: TorchmarConfig | None = Field(None, description="Options of the built-in server; TorchServe ignores it.")
    handler: dict[str, Any] | None = Field(
        None,
        description="Options of the handler.",
        json_schema_extra=lambda schema: schema.update(properties={optimized_section.KEY: optimized_section.schema()}),
    )

    @model_validator(mode="after")
    def _workers_together(self) -> ServerConfig:
        if (self.minWorkers is None) != (self.maxWorkers is None):
            raise ValueError("set both minWorkers and maxWorkers: TorchServe ignores one without the other")
        if self.minWorkers is not None and self.maxWorkers is not None and self.maxWorkers < self.minWorkers:
            raise ValueError(f"maxWorkers ({self.maxWorkers}) is less than minWorkers ({self.minWorkers})")
        return self

    def to_yaml(self) -> bytes:
        """Return the text of ``model-config.yaml``, with the given keys in their order."""
        values = self.model_dump(exclude_none=True)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode() if values else b""
