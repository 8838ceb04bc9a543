"""The plan for changes of routes, which are the user's own paths for models."""

from __future__ import annotations

from collections.abc import Mapping

from torchmar.deployment import actions
from torchmar.deployment.actual import LiveRoute
from torchmar.deployment.desired import RouteState
from torchmar.deployment.draft import Draft

UNSUPPORTED = "the routes"  # the subject of this drift in the plan; no model can have this name


def plan_routes(
    desired: Mapping[str, RouteState],
    live: Mapping[str, LiveRoute] | None,
    builds: Mapping[tuple[str, str], str],
    draft: Draft,
) -> None:
    """Add the changes of routes, which are carried out together with the switches of default versions.

    Args:
        desired: all routes that the server should have.
        live: current routes; None: the server has none, as TorchServe.
        builds: the registered build of each listed model and version.
        draft: the plan.
    """
    if live is None:
        if desired:
            text = (
                f"this server has no routes, as TorchServe, so that {', '.join(desired)} cannot be set. Serve with the "
                "built-in server, or map the paths in a proxy"
            )
            draft.add_change("!", UNSUPPORTED, text)
        return
    for path, state in desired.items():
        version = None if state.version is None else builds[state.model, state.version]
        route, before = LiveRoute(state.model, version), live.get(path)
        if route == before:
            continue
        draft.add_change("~" if before else "+", f"route {path}", f"{before} -> {route}" if before else f"to {route}")
        draft.switches.append(actions.SetRoute(path, route.model, route.version))
    for path in live.keys() - desired.keys():
        draft.add_change("-", f"route {path}", "not listed")
        draft.switches.append(actions.RemoveRoute(path))
