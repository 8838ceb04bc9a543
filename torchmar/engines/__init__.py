"""Engines: the servers that torchmar starts; each is a context that starts the server and stops it.

* `torchmar.engines.torchserve`: the real TorchServe, for reference;
* `torchmar.engines.builtin`: torchmar's own server, with the same APIs, without Java;
* `torchmar.engines.ray`: the built-in server with workers on the nodes of a cluster of Ray;
* `torchmar.engines.engine`: their base class, which loads archives with `torchmar.engines.loading`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torchmar.engines.engine import Engine

EngineName = Literal["torchserve", "builtin", "ray"]
TITLES: dict[EngineName, str] = {
    "torchserve": "TorchServe",
    "builtin": "the built-in server",
    "ray": "the built-in server on Ray",
}
DEFAULT: EngineName = "builtin"  # the engine that is started by default


def named(name: EngineName) -> type[Engine]:
    """Return an engine by its name."""
    if name == "builtin":
        from torchmar.engines.builtin import Builtin

        return Builtin
    if name == "ray":
        from torchmar.engines.ray import Ray

        return Ray
    from torchmar.engines.torchserve import TorchServe

    return TorchServe
