"""The front of a cluster as an application of Ray Serve, which restarts it, on another node if its node fails.

``torchmar export ray-cluster`` writes a configuration of Ray Serve with this application.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from torchmar.engines.ray import Ray
from torchmar.errors import TorchmarError

_KEYS = ("config", "model_store", "run_folder")


class Front:
    """The class of the deployment: it runs a server as a child process, which ends with it.

    Args:
        config: ``config.properties`` of the server, on each node.
        model_store: folder with the archives, on each node.
        run_folder: run folder of the server, on each node; made if it does not exist.

    Raises:
        RuntimeError: the server does not start; Ray Serve then tries again, with growing pauses.
    """

    def __init__(self, config: str, model_store: str, run_folder: str) -> None:
        import ray

        head = {"torchmar_ray_address": ray.get_runtime_context().gcs_address}
        self._server = Ray(Path(config), Path(model_store), Path(run_folder), overrides=head)
        try:
            self._server.__enter__()
        except TorchmarError as error:  # Ray may have to show it where this module is not installed
            raise RuntimeError(str(error)) from None

    def check_health(self) -> None:
        """Raise if the server has ended; Ray Serve then starts another front."""
        if (code := self._server.exit_code) is not None:
            raise RuntimeError(f"the server has ended with exit code {code}")

    async def __del__(self) -> None:
        """Stop the server after its requests are answered."""
        await asyncio.to_thread(self._server.__exit__, None, None, None)


def app(args: dict[str, Any]) -> Any:
    """Return the application for the ``args`` of its configuration, which are the arguments of `Front`.

    Raises:
        ValueError: an argument is missing or unknown.
    """
    from ray import serve

    if wrong := sorted(set(args) ^ set(_KEYS)):
        raise ValueError(f"args: {', '.join(wrong)} is missing or unknown; they are {', '.join(_KEYS)}")
    return serve.deployment(Front).bind(**args)
