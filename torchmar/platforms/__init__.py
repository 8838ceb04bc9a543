"""Platforms that run containers: what each demands of a server, by the environment that it starts the process with.

A platform sets variables, mounts models at a path of its own, and sends requests and health checks to paths of its
choice. Its module turns these into keys of ``config.properties`` (`Demands`), with which the server starts; paths and
responses that only the platform has are the server's, in `torchmar.server.api`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.properties import Properties

PlatformName = Literal["kserve", "vertex", "sagemaker"]
#: Selects a platform where the command line has none, such as in an image.
VARIABLE = "TORCHMAR_PLATFORM"
NAMES: tuple[PlatformName, ...] = get_args(PlatformName)

_MARKS: Mapping[str, PlatformName] = {
    "AIP_HTTP_PORT": "vertex",
    "SAGEMAKER_BIND_TO_PORT": "sagemaker",
    "SAGEMAKER_MULTI_MODEL": "sagemaker",
}


@dataclass(frozen=True, kw_only=True)
class Demands:
    """The demands of a platform on a server.

    Attributes:
        values: keys of ``config.properties``, which replace those of the configuration.
        model_store: the folder with the archives; None: the configuration's.
        notes: for the user: what follows from the platform, such as who can reach the server.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    model_store: Path | None = None
    notes: tuple[str, ...] = ()


def demands(name: PlatformName, environment: Mapping[str, str], config: Properties) -> Demands:
    """Return what a platform demands.

    Args:
        name: the platform.
        environment: the variables that it sets.
        config: the configuration of the user, which says what the platform leaves open.

    Raises:
        TorchmarError: a variable has a value that it cannot have, or models are missing.
    """
    module = importlib.import_module(f"{__name__}.{name}")
    result: Demands = module.demands(environment, config)
    return result


def config_file(name: PlatformName, environment: Mapping[str, str]) -> Path | None:
    """Return the configuration that a platform mounts; None if it mounts none, or it is not there."""
    module = importlib.import_module(f"{__name__}.{name}")
    mounted = module.config_file(environment) if hasattr(module, "config_file") else None
    return mounted if mounted and mounted.is_file() else None


def marked(environment: Mapping[str, str]) -> tuple[str, PlatformName] | None:
    """Return a variable that a platform has set, and the platform; None: there is none.

    It only suggests the platform: a server listens at all interfaces and without tokens where its user says so, and
    variables of SageMaker are set in its notebooks, too.
    """
    return next(((variable, name) for variable, name in _MARKS.items() if environment.get(variable)), None)


def port(environment: Mapping[str, str], variable: str, default: int) -> int:
    """Return the port that a variable names; ``default`` if it is not set.

    Raises:
        TorchmarError: it is not a port.
    """
    text = environment.get(variable, "").strip() or str(default)
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise TorchmarError(f"{variable}={text}: not a port", hint=f"write it like {variable}={default}")
    return int(text)


def flag(environment: Mapping[str, str], variable: str) -> bool:
    """Return whether a variable is ``true``; it may be missing.

    Raises:
        TorchmarError: it is something else than true or false.
    """
    text = environment.get(variable, "").strip().lower()
    if text not in ("", "true", "false"):
        raise TorchmarError(f"{variable}={text}: neither true nor false")
    return text == "true"


def in_list(text: str) -> str:
    """Return a path or URL that a key of ``config.properties`` lists with others, between commas.

    Raises:
        TorchmarError: it has a comma itself, or spaces around it.
    """
    if "," in text or text != text.strip():
        raise TorchmarError(f"{text!r} has a comma, or a space at an end, which separates archives", hint="rename it")
    return text


def loopback_addresses(ports: Sequence[int]) -> dict[str, str]:
    """Return addresses on loopback for the APIs that a platform does not call.

    Args:
        ports: four of them.
    """
    management, metrics, grpc, grpc_management = ports
    return {
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_inference_port": str(grpc),
        "grpc_management_address": "127.0.0.1",
        "grpc_management_port": str(grpc_management),
    }


def ports_beside(taken: int) -> list[int]:
    """Return the four ports after a port, or before it if there are none after it."""
    return [taken + step if taken + 4 < 65536 else taken - step for step in range(1, 5)]


def without_tokens() -> dict[str, str]:
    """Return keys for a platform whose requests have no tokens: no one can register a model, not even from here."""
    return {"disable_token_authorization": "true", "enable_model_api": "false"}


def only_archive(store: Path, title: str) -> Path:
    """Return the archive of a model store that must have one.

    Args:
        store: a folder.
        title: of the platform, for the error.

    Raises:
        TorchmarError: there is none, or several.
    """
    from torchmar.archive import store as archive_store

    archives = archive_store.find(store) if store.is_dir() else []
    if len(archives) == 1:
        return archives[0]
    found = ", ".join(archive.name for archive in archives) or "none"
    raise TorchmarError(
        f"{title} sends its requests to one model, and {store} has {'the archives ' if archives else ''}{found}",
        hint="put one archive into the image" if archives else "put an archive into the image, or name its folder",
    )
