"""Compute a plan from desired and actual state; pure."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torchmar.deployment import actions, placement, versions
from torchmar.deployment.actions import Action, workers
from torchmar.deployment.actual import LiveModel
from torchmar.deployment.desired import Deployment, ModelState, VersionState
from torchmar.deployment.placement import Demand
from torchmar.deployment.store_index import StoredArchive, StoreIndex
from torchmar.deployment.target import Target, spread
from torchmar.errors import TorchmarError
from torchmar.management import ModelVersion

Sign = Literal["+", "~", "-", "!"]
_NEW_BUILD = "TorchServe cannot change these of a version that is registered"
_FEWER = "TorchServe drops what a worker is at when it takes the worker away"


@dataclass(frozen=True)
class Change:
    """One difference as a person reads it.

    Attributes:
        sign: ``+`` added, ``~`` changed, ``-`` removed, ``!`` drift: the server is not what was asked for,
            and no plan changes that.
        what: model and version.
        lines: what differs, and why it is done so.
        failing: whether workers that are there do not answer.
    """

    sign: Sign
    what: str
    lines: tuple[str, ...] = ()
    failing: bool = False


@dataclass(frozen=True)
class Gpu:
    """A GPU when all is done: bytes of memory, bytes that are spoken for, and whose workers are on it."""

    size: int
    used: int
    workers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Plan:
    """What differs, what is to be done about it in this order, and what will be on the GPUs."""

    changes: tuple[Change, ...] = ()
    actions: tuple[Action, ...] = ()
    gpus: tuple[Gpu, ...] = ()

    @property
    def failing(self) -> list[str]:
        """Model and version of all whose workers do not answer, about which no plan does anything."""
        return [change.what for change in self.changes if change.failing]

    def document(self) -> dict[str, Any]:
        """Return the plan as JSON has it."""
        names = {"+": "add", "~": "change", "-": "remove", "!": "drift"}
        return {
            "changes": [
                {"kind": names[change.sign], "what": change.what, "lines": list(change.lines)}
                for change in self.changes
            ],
            "steps": [actions.document(action) for action in self.actions],
            "gpus": [{"size": gpu.size, "used": gpu.used, "workers": dict(gpu.workers)} for gpu in self.gpus],
        }


@dataclass(frozen=True)
class DesiredVersion:
    """One listed version: its archive, its target, and the build on the server that is it already, if any."""

    model: str
    version: str
    state: VersionState
    stored: StoredArchive | None
    target: Target
    live: ModelVersion | None


@dataclass
class _Phases:
    """Actions in the order in which nothing is lost: all that is new, then the switches, then what is old."""

    up: list[Action] = field(default_factory=list)
    # More workers of versions with traffic: the one thing of what is new that cannot be undone without a loss.
    scale_up: list[Action] = field(default_factory=list)
    switches: list[Action] = field(default_factory=list)
    drains: list[actions.Drained] = field(default_factory=list)
    down: list[Action] = field(default_factory=list)

    def all(self) -> tuple[Action, ...]:
        drains = [actions.Drain(tuple(self.drains))] if self.drains else []
        return (*self.up, *self.scale_up, *self.switches, *drains, *self.down)


def plan(
    deployment: Deployment,
    live: Mapping[str, LiveModel],
    index: StoreIndex,
    archives: Mapping[tuple[str, str], StoredArchive | None],
    sizes: Sequence[int] = (),
    folder: Path = Path(),
) -> Plan:
    """Return how a server becomes what it should be.

    Args:
        deployment: what should be.
        live: what is.
        index: the model store.
        archives: the archive of every listed model and version; None where it is nowhere to be read.
        sizes: bytes of memory of each GPU.
        folder: what other files that the deployment names are relative to.

    Raises:
        TorchmarError: it cannot be done; the message says why.
    """
    wants = [
        _want(name, version, model, archives.get((name, version)), live.get(name))
        for name, model in deployment.models.items()
        for version in model.versions
    ]
    wants, gpus = _placed(wants, live, index, sizes)
    changes: list[Change] = []
    phases = _Phases()
    taken: set[str] = set(index.archives)
    for name, model in deployment.models.items():
        mine = [want for want in wants if want.model == name]
        changes += _of_model(name, model, mine, live.get(name), index, taken, phases, folder)
    for name in live.keys() - deployment.models.keys():
        changes += _unlisted(live[name], deployment.prune, index, phases)
    order = {"+": 0, "~": 1, "-": 2, "!": 3}
    changes.sort(key=lambda change: (change.what.split(" ")[0], order[change.sign]))
    return Plan(tuple(changes), phases.all(), gpus)


def _want(
    name: str, version: str, model: ModelState, stored: StoredArchive | None, live: LiveModel | None
) -> DesiredVersion:
    state = model.version(version)
    builds = _builds(live, version)
    is_default = model.default_version == version
    for build in builds:
        target = Target.of(state, stored, build, at_least=int(is_default))
        busy = live is not None and (live.default == build.version or is_default) and not model.parked
        fewer = target.min_workers < len(build.workers) or target.max_workers < len(build.workers)
        if not (busy and fewer) and not list(target.differences(build)):
            return DesiredVersion(name, version, state, stored, target, build)
    return DesiredVersion(
        name,
        version,
        state,
        stored,
        Target.of(state, stored, builds[0] if builds else None, at_least=int(is_default)),
        None,
    )


def _builds(live: LiveModel | None, version: str) -> list[ModelVersion]:
    """Return the builds of a version that are registered: the default one first, then the newest."""
    if live is None:
        return []
    same = [one for one in live.versions.values() if versions.base(one.version) == versions.base(version)]
    return sorted(same, key=lambda one: (one.version == live.default, versions.number(one.version)), reverse=True)


def _placed(
    wants: Sequence[DesiredVersion], live: Mapping[str, LiveModel], index: StoreIndex, sizes: Sequence[int]
) -> tuple[list[DesiredVersion], tuple[Gpu, ...]]:
    """Return the versions with the GPU of each of their workers, and what will be on each GPU."""
    on_gpus = [want for want in wants if want.state.on_gpus and want.target.min_workers]
    if not on_gpus:
        return list(wants), ()
    staying = {(want.model, want.version) for want in on_gpus if _stays(want)}
    # A version that grows keeps the places that the server would give it, if there is room for it there.
    growing = {
        (want.model, want.version) for want in on_gpus if want.live and want.target.min_workers > len(want.live.workers)
    }
    try:
        found = _place(on_gpus, staying, wants, live, index, sizes)
    except TorchmarError:
        if not growing & staying:
            raise
        found = _place(on_gpus, staying - growing, wants, live, index, sizes)
    placed = []
    for want in wants:
        devices = found.get((want.model, want.version))
        moved = replace(want, target=replace(want.target, devices=devices)) if devices is not None else want
        if moved.live and list(moved.target.differences(moved.live)):
            moved = replace(moved, live=None)
        placed.append(moved)
    final = [want for want in placed if want.target.devices]
    return placed, tuple(_gpu(device, size, final) for device, size in enumerate(sizes))


def _stays(want: DesiredVersion) -> bool:
    """Tell whether the workers of a version may stay on the GPUs that they have."""
    if want.live is None or not want.live.device_ids:
        return False
    devices = set(spread(want.live.device_ids, want.target.min_workers))
    allowed = want.state.devices is None or devices <= set(want.state.devices)
    return allowed and (want.state.gpus is None or len(devices) <= want.state.gpus)


def _place(
    on_gpus: Sequence[DesiredVersion],
    staying: set[tuple[str, str]],
    wants: Sequence[DesiredVersion],
    live: Mapping[str, LiveModel],
    index: StoreIndex,
    sizes: Sequence[int],
) -> dict[tuple[str, str], tuple[int, ...]]:
    demands = []
    for want in on_gpus:
        stays = (want.model, want.version) in staying and want.live
        demands.append(
            Demand(
                f"{want.model} {want.version}",
                want.target.min_workers,
                want.target.worker_memory,
                tuple(want.state.devices) if want.state.devices is not None else None,
                want.state.gpus,
                spread(want.live.device_ids, want.target.min_workers) if want.live and stays else None,
            )
        )
    same = {(want.model, want.live.version) for want in on_gpus if want.live and (want.model, want.version) in staying}
    memory = {(want.model, versions.base(want.version)): want.target.worker_memory for want in wants}
    # What is there now is there until its successor has its traffic.
    for model in live.values():
        for one in model.versions.values():
            if one.device_ids and one.workers and (model.name, one.version) not in same:
                stored = index.archives.get(one.url)
                need = memory.get((model.name, versions.base(one.version))) or (stored.worker_memory if stored else 0)
                there = spread(one.device_ids, len(one.workers))
                demands.append(Demand(f"{model.name} {one.version}", len(there), need, fixed=there))
    found = placement.place(sizes, demands)
    return {(want.model, want.version): place for want, place in zip(on_gpus, found, strict=False)}


def _gpu(device: int, size: int, wants: Sequence[DesiredVersion]) -> Gpu:
    there = [
        (f"{want.model} {want.version}", (want.target.devices or ()).count(device), want.target.worker_memory)
        for want in wants
    ]
    used = sum(count * memory for _, count, memory in there)
    return Gpu(size, used, tuple((name, count) for name, count, _ in there if count))


def _of_model(
    name: str,
    model: ModelState,
    wants: Sequence[DesiredVersion],
    live: LiveModel | None,
    index: StoreIndex,
    taken: set[str],
    phases: _Phases,
    folder: Path,
) -> Iterator[Change]:
    resolved: dict[str, str] = {}
    default_first = sorted(wants, key=lambda want: want.version != model.default_version)
    for want in default_first:
        is_default = want.version == model.default_version
        if want.live:
            resolved[want.version] = want.live.version
            yield from _in_place(want, model, live, phases)
            check = _check(model, want, want.live.version, want.live.batch_size, want.live.url, folder, index)
            if live and is_default and live.default != want.live.version and not model.parked:
                # Registered long ago, perhaps: it has to show once more that it is right.
                phases.up.append(check)
            elif want.target.min_workers and not want.live.workers:
                (phases.scale_up if is_default else phases.up).append(check)
        else:
            build = yield from _new(want, is_default, model, live, index, taken, phases, folder)
            resolved[want.version] = build
    wanted = resolved[model.default_version]
    if live and live.default != wanted:
        target = next(want.target for want in wants if want.version == model.default_version)
        drain_seconds = (
            target.settings["response_timeout"] or 120 if model.drain_seconds is None else model.drain_seconds
        )
        phases.switches.append(actions.Switch(name, wanted, live.default, drain_seconds, model.parked))
        # Where the new default is new itself, that is told with it.
        if wanted in live.versions and versions.base(live.default) != versions.base(wanted):
            yield Change("~", name, (f"default {live.default} -> {wanted}",))
    if live:
        yield from _old(name, model, resolved, live, index, phases)


def _in_place(
    want: DesiredVersion, model: ModelState, model_now: LiveModel | None, phases: _Phases
) -> Iterator[Change]:
    """Yield what changes of a version that stays registered as it is."""
    assert want.live
    live, target, there = want.live, want.target, len(want.live.workers)
    what = f"{want.model} {live.version}"
    if "min_workers" in target.said and (target.min_workers, target.max_workers) != (there, live.max_workers):
        before, after = _range(there, live.max_workers), _range(target.min_workers, target.max_workers)
        if target.min_workers >= there and target.max_workers >= there:
            has_traffic = model_now is not None and model_now.default == live.version
            scale_up = actions.ScaleUp(want.model, live.version, there, target.min_workers, target.max_workers)
            (phases.scale_up if has_traffic else phases.up).append(scale_up)
        else:
            phases.drains.append(_drained(model, live))
            phases.down.append(
                actions.ScaleDown(want.model, live.version, there, target.min_workers, target.max_workers)
            )
        yield Change("~", what, (f"workers {before} -> {after}",))
    if live.ready < there:
        lines = (f"{live.ready} of {workers(there)} answer; the server's log says why",)
        yield Change("!", what, lines, failing=True)


def _new(
    want: DesiredVersion,
    is_default: bool,
    model: ModelState,
    live: LiveModel | None,
    index: StoreIndex,
    taken: set[str],
    phases: _Phases,
    folder: Path,
) -> Generator[Change, None, str]:
    """Yield how a version comes to be registered; return the name of the build that is."""
    stored, target = want.stored, want.target
    builds = _builds(live, want.version)
    what = f"{want.model} {want.version}"
    archive = want.state.archive or f"{want.model}-{want.version}.mar"
    if stored is None and "://" not in archive:
        raise TorchmarError(
            f"{what} is not on the server, and there is no archive {archive} in {index.folder or 'a model store here'}",
            hint="torchmar build makes archives; archive: names another file, model_store: under server: the folder",
        )
    if stored and versions.base(stored.version) != versions.base(want.version):
        raise TorchmarError(f"{stored.path} is version {stored.version}, not {want.version}")
    found = _as_it_is(want, builds, index)
    if stored is None:
        if builds:
            raise TorchmarError(
                f"{what} is to change, but its archive {archive} is not here to derive another build from",
                hint="name the model store under server:, or write what the server has",
            )
        version, url = want.version, archive
    elif found:
        version, url = found.version, found.path.name
        if index.folder and found.path.parent.resolve() != index.folder.resolve():
            if url in taken:
                raise TorchmarError(f"{found.path} and {index.folder / url} are two archives of one name")
            phases.up.append(actions.Copy(want.model, found.path, index.folder / url))
            taken.add(url)
    else:
        if index.folder is None:
            raise TorchmarError(
                f"{what} needs another build, but the server's model store is not here",
                hint="name its folder under server: model_store: ...",
            )
        made = max(
            [0]
            + [versions.number(one.version) for one in builds]
            + [versions.number(one.version) for one in index.builds(stored.name, want.version) if _derived(one)]
        )
        while f"{stored.name}-{versions.build(want.version, made + 1)}.mar" in taken:
            made += 1
        version = versions.build(want.version, made + 1)
        url = f"{stored.name}-{version}.mar"
        taken.add(url)
        config = target.config(stored)
        phases.up.append(actions.Derive(want.model, version, stored.path, config, index.folder / url))
    settings = target.settings
    phases.up.append(
        actions.Register(
            want.model,
            version,
            url,
            target.min_workers,
            target.max_workers,
            settings["batch_size"],
            settings["max_batch_delay"],
            settings["response_timeout"],
            settings["startup_timeout"],
            target.devices,
            stored.path if stored else None,
        )
    )
    if target.min_workers:
        phases.up.append(_check(model, want, version, target.settings["batch_size"] or 1, url, folder, index))
    if not builds:
        yield Change("+", f"{want.model} {version}", tuple(_described(want, version, is_default, live)))
        return version
    old = builds[0]
    lines = [f"{name} {before} -> {after}" for name, before, after in target.differences(old)]
    reasons = [_NEW_BUILD] if lines else []
    if target.min_workers != len(old.workers):
        lines.append(f"workers {len(old.workers)} -> {target.min_workers}")
        if target.min_workers < len(old.workers):
            reasons.append(_FEWER)
    why = f"a new build, {version}: {'; '.join(reasons)}"
    yield Change("~", f"{want.model} {old.version} -> {version}", (*lines, why))
    return version


def _as_it_is(want: DesiredVersion, builds: Sequence[ModelVersion], index: StoreIndex) -> StoredArchive | None:
    """Return an archive that gives the target when it is registered as it is: the version's own, or a build of it."""
    stored = want.stored
    if stored is None:
        return None
    # A build that is left from before a restart, say; but not one of other weights.
    left = [
        one
        for one in index.builds(stored.name, want.version)
        if one.path != stored.path
        and one.content
        and one.content == stored.content
        and one.worker_memory == want.target.worker_memory
    ]
    # Beside another build the version's own name is for what its archive says, not for what registration adds.
    own = [stored] if not builds or want.target.is_what(stored) else []
    there = {one.version for one in builds}
    fitting = (one for one in (*own, *left) if one.version not in there and want.target.comes_of(one))
    return next(fitting, None)


def _derived(stored: StoredArchive) -> bool:
    return versions.is_build(stored.version)


def _described(want: DesiredVersion, version: str, is_default: bool, live: LiveModel | None) -> Iterator[str]:
    target = want.target
    role = f", the default in place of {live.default}" if live else ", the default"
    yield f"{workers(target.min_workers)}{role if is_default else ''}"
    settings = [f"{name} {value}" for name, value in target.settings.items() if name in target.said]
    if settings:
        yield ", ".join(settings)
    if target.devices is not None:
        yield f"GPU of each worker: {', '.join(map(str, target.devices))}"
    if version != want.version:
        yield f"{version} is {want.version} with this configuration, which goes before what registration says"


def _check(
    model: ModelState, want: DesiredVersion, version: str, batch_size: int, url: str, folder: Path, index: StoreIndex
) -> actions.Check:
    # A derived archive carries the samples of its source, and before it is made only that can be read.
    there = index.archives.get(url)
    archive = want.stored.path if want.stored else there.path if there else None
    checks = model.checks
    return actions.Check(
        want.model,
        version,
        archive,
        checks.samples,
        folder / checks.requests if checks.requests else None,
        model.warmup_requests,
        min(16, batch_size * max(1, want.target.min_workers)),
        checks.max_latency,
    )


def _old(
    name: str, model: ModelState, resolved: Mapping[str, str], live: LiveModel, index: StoreIndex, phases: _Phases
) -> Iterator[Change]:
    """Yield what becomes of the versions of a listed model that are not wanted any more."""
    staying = set(resolved.values())
    listed = {versions.base(version) for version in resolved}
    rest = [one for one in live.versions.values() if one.version not in staying]
    # What was the default until now is what one rolls back to; otherwise the newest.
    rest.sort(key=lambda one: (one.version == live.default, versions.newest_first(one.version)), reverse=True)
    kept: set[str] = set()
    for one in rest:
        base = versions.base(one.version)
        if base in listed or base in kept or len(kept) >= model.keep:
            reason = (
                f"{resolved[next(v for v in resolved if versions.base(v) == base)]} takes its place"
                if base in listed
                else f"not listed; {_kept(name, kept)}"
            )
            yield Change("-", f"{name} {one.version}", (reason,))
            _remove(one, _drained(model, one), index, phases)
            continue
        kept.add(base)
        there = len(one.workers)
        if model.kept_workers is not None and there > model.kept_workers:
            phases.drains.append(_drained(model, one))
            phases.down.append(actions.ScaleDown(name, one.version, there, model.kept_workers, model.kept_workers))
            yield Change(
                "~", f"{name} {one.version}", (f"workers {there} -> {model.kept_workers}, kept for a rollback",)
            )


def _unlisted(live: LiveModel, prune: bool, index: StoreIndex, phases: _Phases) -> Iterator[Change]:
    if not prune:
        yield Change(
            "!", live.name, (f"not listed; left alone, since prune is false ({len(live.versions)} registered)",)
        )
        return
    # The default version cannot go while others are there.
    for one in sorted(live.versions.values(), key=lambda one: one.version == live.default):
        yield Change("-", f"{live.name} {one.version}", ("not listed",))
        _remove(one, actions.Drained(live.name, one.version, one.response_timeout), index, phases)


def _remove(one: ModelVersion, drained: actions.Drained, index: StoreIndex, phases: _Phases) -> None:
    if one.workers:
        phases.drains.append(drained)
    stored = index.archives.get(one.url)
    derived = stored and _derived(stored) and len(index.builds(stored.name, stored.version)) > 1
    phases.down.append(actions.Remove(one.name, one.version, stored.path if stored and derived else None))


def _drained(model: ModelState, one: ModelVersion) -> actions.Drained:
    return actions.Drained(
        one.name, one.version, one.response_timeout if model.drain_seconds is None else model.drain_seconds
    )


def _kept(name: str, bases: Collection[str]) -> str:
    return (
        f"{', '.join(sorted(bases))} is kept to roll {name} back to" if bases else "keep: 0 keeps none to roll back to"
    )


def _range(low: int, high: int) -> str:
    return str(low) if high <= low else f"{low} to {high}"
