"""The plan: the actions from the actual to the desired state; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchmar.deployment import actions, desired_version, placement, registration, removal, routes, versions
from torchmar.deployment.actions import Action, workers
from torchmar.deployment.actual import LiveModel, LiveRoute
from torchmar.deployment.desired import Deployment, ModelState
from torchmar.deployment.desired_version import DesiredVersion
from torchmar.deployment.draft import Change, Draft
from torchmar.deployment.placement import Gpu
from torchmar.deployment.store_index import StoredArchive, StoreIndex
from torchmar.management import ModelVersion


@dataclass(frozen=True)
class Plan:
    """The differences, the actions in their order, and the GPUs after them."""

    changes: tuple[Change, ...] = ()
    actions: tuple[Action, ...] = ()
    gpus: tuple[Gpu, ...] = ()

    @property
    def failing(self) -> list[str]:
        """The model and version of all versions whose workers do not respond; no action can repair that."""
        return [change.what for change in self.changes if change.failing]

    @property
    def without_routes(self) -> bool:
        """Whether the deployment has routes but the server cannot; no action can change that."""
        return any(change.sign == "!" and change.what == routes.UNSUPPORTED for change in self.changes)

    def document(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        names = {"+": "add", "~": "change", "-": "remove", "!": "drift"}
        return {
            "changes": [
                {"kind": names[change.sign], "what": change.what, "lines": list(change.lines)}
                for change in self.changes
            ],
            "steps": [actions.document(action) for action in self.actions],
            "gpus": [{"size": gpu.size, "used": gpu.used, "workers": dict(gpu.workers)} for gpu in self.gpus],
        }


def plan(
    deployment: Deployment,
    live: Mapping[str, LiveModel],
    index: StoreIndex,
    archives: Mapping[tuple[str, str], StoredArchive | None],
    gpu_sizes: Sequence[int] = (),
    folder: Path = Path(),
    live_routes: Mapping[str, LiveRoute] | None = None,
) -> Plan:
    """Return the changes and actions that bring a server to its desired state.

    Args:
        deployment: the desired state.
        live: the actual state.
        index: the model store.
        archives: archive of every listed model and version; None if it cannot be read.
        gpu_sizes: bytes of memory of each GPU.
        folder: folder to which file names in the deployment are relative.
        live_routes: current routes; None: the server has none, as TorchServe.

    Raises:
        TorchmarError: the desired state cannot be reached; the message is the reason.
    """
    desired = list(desired_version.match(deployment, live, archives))
    desired, gpus = placement.place(desired, live, index, gpu_sizes)
    draft = Draft(index, folder, taken=set(index.archives))
    builds: dict[tuple[str, str], str] = {}
    for name, model in deployment.models.items():
        of_model = [version for version in desired if version.model == name]
        builds |= _plan_model(model, of_model, live.get(name), draft)
    for name in live.keys() - deployment.models.keys():
        removal.retire_model(live[name], deployment.prune, draft)
    if deployment.routes is not None:
        routes.plan_routes(deployment.routes, live_routes, builds, draft)
    order = {"+": 0, "~": 1, "-": 2, "!": 3}
    changes = sorted(draft.changes, key=lambda change: (change.what.split(" ")[0], order[change.sign]))
    return Plan(tuple(changes), draft.ordered_actions(), gpus)


def _plan_model(
    model: ModelState, desired: Sequence[DesiredVersion], live: LiveModel | None, draft: Draft
) -> dict[tuple[str, str], str]:
    """Add the changes of one model; return the build of each of its versions that is registered after them."""
    resolved: dict[str, str] = {}
    # The first registered version of a model becomes its default.
    for version in sorted(desired, key=lambda version: not version.is_default):
        if version.live:
            resolved[version.version] = version.live.version
            _update(version, version.live, live, draft)
        else:
            resolved[version.version] = registration.register(version, live, draft)
    if live:
        default = next(version for version in desired if version.is_default)
        _switch(default, resolved[default.version], live, draft)
        removal.retire_versions(model, resolved, live, draft)
    return {(version.model, version.version): resolved[version.version] for version in desired}


def _update(desired: DesiredVersion, registered: ModelVersion, live: LiveModel | None, draft: Draft) -> None:
    """Add the changes of a version that stays registered: its number of workers, and its check if it needs one."""
    target, count = desired.target, len(registered.workers)
    title = f"{desired.model} {registered.version}"
    is_live_default = live is not None and live.default == registered.version
    if "min_workers" in target.explicit and (target.min_workers, target.max_workers) != (count, registered.max_workers):
        if target.min_workers >= count and target.max_workers >= count:
            scale_up = actions.ScaleUp(
                model=desired.model,
                version=registered.version,
                before=count,
                min_workers=target.min_workers,
                max_workers=target.max_workers,
            )
            (draft.scale_up if is_live_default else draft.up).append(scale_up)
        else:
            drained = removal.drained(desired.model_state, registered)
            removal.scale_down(registered, drained, target.min_workers, target.max_workers, draft)
        before, after = _range(count, registered.max_workers), _range(target.min_workers, target.max_workers)
        draft.add_change("~", title, f"workers {before} -> {after}")
    if registered.ready < count:
        draft.add_change(
            "!", title, f"{registered.ready} of {workers(count)} answer; the server's log has the reason", failing=True
        )
    check = registration.check(desired, registered.version, registered.batch_size, registered.url, draft)
    if live and desired.is_default and not is_live_default and not desired.model_state.parked:
        # The version may have been registered long ago; therefore it is checked again before it gets the traffic.
        draft.up.append(check)
    elif target.min_workers and not registered.workers:
        (draft.scale_up if desired.is_default else draft.up).append(check)


def _switch(default: DesiredVersion, build: str, live: LiveModel, draft: Draft) -> None:
    """Add the change of the default version, if it changes."""
    if live.default == build:
        return
    model = default.model_state
    response_timeout = default.target.settings["response_timeout"] or 120
    draft.switches.append(
        actions.Switch(
            model=live.name,
            version=build,
            before=live.default,
            drain_seconds=response_timeout if model.drain_seconds is None else model.drain_seconds,
            parked=model.parked,
        )
    )
    # The change of a new version already mentions that it is the default.
    if build in live.versions and versions.base(live.default) != versions.base(build):
        draft.add_change("~", live.name, f"default {live.default} -> {build}")


def _range(low: int, high: int) -> str:
    return str(low) if high <= low else f"{low} to {high}"
