"""The values of an archive's ``model-config.yaml`` that the server reads.

As in TorchServe, values of a wrong type are ignored, and logged. An error is raised for a key that would change
answers, or share resources that must not be shared, if it were ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from torchmar.server.api_error import ApiError
from torchmar.server.models.registration import MAX_WORKERS
from torchmar.server.telemetry import logs
from torchmar.server.workers import staged_pool
from torchmar.server_config import NO_STAGE, Replica, Stages, TorchmarConfig, are_stages

# Keys that change the requests of a handler. Ignoring one would give wrong responses, not slow ones.
UNSUPPORTED_KEYS = (
    "asyncCommunication",
    "continuousBatching",
    "parallelLevel",
    "parallelType",
    "sequenceBatching",
    "sequenceMaxIdleMSec",
    "torchrun",
)


class ModelConfig:
    """The ``model-config.yaml`` of a version.

    Args:
        values: values, by their keys.
        name: name of the model, for the log.
        version: version of the model, for the log.
    """

    def __init__(self, values: Mapping[str, Any], name: str, version: str) -> None:
        self._values, self._title = values, (name, version)

    def positive(self, key: str) -> int | None:
        """Return a whole number above zero; None: the key is not set."""
        if key not in self._values:
            return None
        value = positive(self._values, key)
        if value is None:
            self.ignore(key, "should be a whole number above zero")
        return value

    def get(self, key: str) -> Any:
        """Return a value unchanged; None: the key is not set."""
        return self._values.get(key)

    def ignore(self, key: str, reason: str) -> None:
        """Log that a key is ignored."""
        name, version = self._title
        extra = {"model": name, "version": version}
        arguments = (name, version, key, self._values[key], reason)
        logs.SERVER.warning("%s %s: model-config.yaml: %s=%r is ignored: %s", *arguments, extra=extra)

    def devices(self, count: int) -> tuple[bool, tuple[int, ...]]:
        """Return whether workers run on GPUs, and the indices of the GPUs in the file."""
        device_type, ids = self.get("deviceType"), self.get("deviceIds")
        device_type = device_type.lower() if isinstance(device_type, str) else device_type
        if device_type not in (None, "", "cpu", "gpu"):
            self.ignore("deviceType", "should be cpu or gpu")
        if not count or device_type == "cpu":
            return False, ()
        if ids is None:
            return True, ()
        if not isinstance(ids, list) or not ids or any(whole(index) is None or not 0 <= index < count for index in ids):
            self.ignore("deviceIds", f"should be numbers of GPUs, of which there are {count} (0 to {count - 1})")
            return True, ()
        return True, tuple(ids)

    def stages(self, url: str) -> dict[str, int]:
        """Return the number of workers by stage; empty: there are no stages.

        Without the stage ``inference``, the number of workers with the model is the same as without stages.
        """
        stages = self.get("stages")
        if not are_stages(stages):
            return {}
        problems = [f"there is no stage {name!r}" for name in stages if name not in Stages.model_fields]
        problems += [
            f"{name}: {value!r} is no number of workers from 1 to {MAX_WORKERS}"
            for name, value in stages.items()
            if name in Stages.model_fields and not 1 <= (whole(value) or 0) <= MAX_WORKERS
        ]
        if not stages.keys() & {"preprocess", "postprocess"}:
            problems.append(NO_STAGE)
        if problems:
            message = f"{url}: its model-config.yaml: stages: {'; '.join(problems)}"
            example = "stages: {preprocess: 2, inference: 1, postprocess: 1}"
            raise ApiError(400, "InvalidModelException", f"{message}. Write {example}")
        if not staged_pool.available():
            self.ignore("stages", "they take memory that processes share as on Linux; workers do all of a request")
            return {}
        return dict(stages)

    def fork(self) -> bool | None:
        """Return the value of ``torchmar: {fork: ...}``; None: it is not set."""
        section = self.get("torchmar")
        if section is None:
            return None
        if not isinstance(section, Mapping):
            self.ignore("torchmar", "should be a section, such as torchmar: {fork: true}")
            return None
        value = section.get("fork")
        if unknown := [str(name) for name in section if name not in TorchmarConfig.model_fields]:
            self.ignore("torchmar", f"there is no key {', '.join(unknown)} in this section; it has fork and replica")
        if value is not None and not isinstance(value, bool):
            self.ignore("torchmar", "fork should be true or false")
            return None
        return value

    def replica(self, url: str) -> Replica | None:
        """Return the section ``torchmar: {replica: ...}``; None: it is not set.

        Raises:
            ApiError: 400; the section is wrong: with fewer resources than its author intended, replicas would share
                resources that they must not share.
        """
        section = self.get("torchmar")
        if not isinstance(section, Mapping) or section.get("replica") is None:
            return None
        try:
            return Replica.model_validate(section["replica"])
        except ValidationError as error:
            reasons = [
                ": ".join(
                    filter(None, (".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")))
                )
                for detail in error.errors()
            ]
            message = f"{url}: its model-config.yaml: torchmar: replica: {'; '.join(reasons)}"
            example = "replica: {cpus: 2, gpus: 0.5, memory: 4GiB, resources: {a100: 1}}"
            raise ApiError(400, "InvalidModelException", f"{message}. Write {example}") from None


def check_supported(config: Mapping[str, Any], runtime: str, url: str) -> None:
    """Check that this server can run an archive as TorchServe would.

    Raises:
        ApiError: 400; the archive needs a feature that this server does not have.
    """
    unsupported = [key for key in UNSUPPORTED_KEYS if config.get(key)]
    if unsupported:
        message = f"{url}: its model-config.yaml sets {', '.join(unsupported)}, which this server does not do"
    elif runtime == "lsp":
        message = f"{url}: its runtime is lsp, and this server runs Python"
    else:
        return
    raise ApiError(400, "InvalidModelException", f"{message}; torchmar serve --engine torchserve runs it.")


def whole(value: object) -> int | None:
    """Return a value if it is a whole number, otherwise None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def positive(values: Mapping[str, Any], key: str) -> int | None:
    """Return the value of a key if it is a whole number above zero, otherwise None."""
    value = whole(values.get(key))
    return value if value is not None and value > 0 else None
