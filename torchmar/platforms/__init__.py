"""Platforms that run containers: their demands on a server, from the environment variables that they set.

A platform sets variables, mounts models at its own path, and sends requests and health checks to its own paths. Its
module translates these to keys of ``config.properties`` (`Demands`), with which the server starts. Paths and responses
that only the platform has are part of the server, in `torchmar.server.api`.
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
#: Selects a platform if the command line has none, for example in an image.
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
        values: keys of ``config.properties``, which override the configuration.
        model_store: folder with the archives; None: that of the configuration.
        notes: sentences for the user about consequences, such as who can reach the server.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    model_store: Path | None = None
    notes: tuple[str, ...] = ()


def demands(name: PlatformName, environment: Mapping[str, str], config: Properties) -> Demands:
    """Return the demands of a platform.

    Args:
        name: name of the platform.
        environment: environment variables of the platform.
        config: configuration of the user, for keys that the platform does not set.

    Raises:
        TorchmarError: a variable has an invalid value, or models are missing.
    """
    module = importlib.import_module(f"{__name__}.{name}")
    result: Demands = module.demands(environment, config)
    return result


def config_file(name: PlatformName, environment: Mapping[str, str]) -> Path | None:
    """Return the configuration that a platform mounts; None if it mounts none, or the file does not exist."""
    module = importlib.import_module(f"{__name__}.{name}")
    mounted = module.config_file(environment) if hasattr(module, "config_file") else None
    return mounted if mounted and mounted.is_file() else None


def marked(environment: Mapping[str, str]) -> tuple[str, PlatformName] | None:
    """Return a variable that a platform has set, and the platform; None if there is none.

    It is only a hint: a server listens on all interfaces and without tokens only if its user asks for it, and
    SageMaker's notebooks also have variables of SageMaker.
    """
    return next(((variable, name) for variable, name in _MARKS.items() if environment.get(variable)), None)


def port(environment: Mapping[str, str], variable: str, default: int) -> int:
    """Return the port in a variable; ``default`` if it is not set.

    Raises:
        TorchmarError: the value is not a port.
    """
    text = environment.get(variable, "").strip() or str(default)
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise TorchmarError(f"{variable}={text}: not a port", hint=f"write it like {variable}={default}")
    return int(text)


def flag(environment: Mapping[str, str], variable: str) -> bool:
    """Return whether a variable is ``true``; it may be missing.

    Raises:
        TorchmarError: the value is neither true nor false.
    """
    text = environment.get(variable, "").strip().lower()
    if text not in ("", "true", "false"):
        raise TorchmarError(f"{variable}={text}: neither true nor false")
    return text == "true"


def in_list(text: str) -> str:
    """Return a path or URL for a key of ``config.properties`` whose values are separated by commas.

    Raises:
        TorchmarError: it contains a comma, or has spaces at an end.
    """
    if "," in text or text != text.strip():
        raise TorchmarError(f"{text!r} has a comma, or a space at an end, which separates archives", hint="rename it")
    return text


def loopback_addresses(ports: Sequence[int]) -> dict[str, str]:
    """Return addresses on loopback for the APIs that a platform does not call.

    Args:
        ports: four port numbers.
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


def ports_beside(used_port: int) -> list[int]:
    """Return the four ports after a port, or before it if there are none after it."""
    return [used_port + step if used_port + 4 < 65536 else used_port - step for step in range(1, 5)]


def without_tokens() -> dict[str, str]:
    """Return keys for a platform whose requests have no tokens: no client registers models, even on this machine."""
    return {"disable_token_authorization": "true", "enable_model_api": "false"}


def only_archive(store: Path, title: str) -> Path:
    """Return the only archive of a model store.

    Args:
        store: a folder.
        title: name of the platform for the error.

    Raises:
        TorchmarError: there is none, or several.
    """
    from torchmar.archive import store as archive_store

    archives = archive_store.find(store) if store.is_dir() else []
    if len(archives) == 1:
        return archives[0]
    names = ", ".join(archive.name for archive in archives) or "none"
    raise TorchmarError(
        f"{title} sends its requests to one model, and {store} has {'the archives ' if archives else ''}{names}",
        hint="put one archive into the image" if archives else "put an archive into the image, or name its folder",
    )
