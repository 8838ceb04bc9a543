"""The plan for the registration of a version: from its own archive, an earlier build, or a new build."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torchmar.deployment import actions, versions
from torchmar.deployment.actions import workers
from torchmar.deployment.actual import LiveModel
from torchmar.deployment.desired_version import DesiredVersion, builds
from torchmar.deployment.draft import Draft
from torchmar.deployment.store_index import StoredArchive
from torchmar.errors import TorchmarError
from torchmar.management import ModelVersion

_NEW_BUILD = "TorchServe cannot change these of a registered version"
_FEWER = "TorchServe drops the requests of a worker that it removes"


def register(desired: DesiredVersion, live: LiveModel | None, draft: Draft) -> str:
    """Add to a draft the actions and the change that register a version; return the name of the registered build.

    Raises:
        TorchmarError: its archive, or the model store for a new build, is not on this machine.
    """
    registered = builds(live, desired.version)
    version, url = _source(desired, registered, draft)
    target, stored = desired.target, desired.stored
    draft.up.append(
        actions.Register(
            model=desired.model,
            version=version,
            url=url,
            digest=desired.state.digest,
            min_workers=target.min_workers,
            max_workers=target.max_workers,
            **target.settings,
            devices=target.devices,
            archive=stored.path if stored else None,
        )
    )
    if target.min_workers:
        draft.up.append(check(desired, version, target.settings["batch_size"] or 1, url, draft))
    if not registered:
        draft.add_change("+", f"{desired.model} {version}", *_describe(desired, version, live))
        return version
    old = registered[0]
    lines = [f"{name} {before} -> {after}" for name, before, after in target.differences(old)]
    reasons = [_NEW_BUILD] if lines else []
    if target.min_workers != len(old.workers):
        lines.append(f"workers {len(old.workers)} -> {target.min_workers}")
        if target.min_workers < len(old.workers):
            reasons.append(_FEWER)
    reason = f"a new build, {version}: {'; '.join(reasons)}"
    draft.add_change("~", f"{desired.model} {old.version} -> {version}", *lines, reason)
    return version


def check(desired: DesiredVersion, version: str, batch_size: int, url: str, draft: Draft) -> actions.Check:
    """Return the action that checks a build of a version before it gets traffic."""
    # A derived archive has the samples of its source. Before it is written, only the source can be read.
    in_store = draft.index.archives.get(url)
    archive = desired.stored.path if desired.stored else in_store.path if in_store else None
    model = desired.model_state
    return actions.Check(
        model=desired.model,
        version=version,
        archive=archive,
        samples=model.checks.samples,
        requests=draft.folder / model.checks.requests if model.checks.requests else None,
        warmup_requests=model.warmup_requests,
        at_once=min(16, batch_size * max(1, desired.target.min_workers)),
        max_latency=model.checks.max_latency,
    )


def _source(desired: DesiredVersion, registered: Sequence[ModelVersion], draft: Draft) -> tuple[str, str]:
    """Return the build to register and the URL of its archive; if the archive has to be written, add this action."""
    stored, index = desired.stored, draft.index
    archive = desired.state.archive or f"{desired.model}-{desired.version}.mar"
    if stored is None and "://" not in archive:
        raise TorchmarError(
            f"{desired.name} is not on the server, and there is no archive {archive} in "
            f"{index.folder or 'a model store on this machine'}",
            hint="torchmar build makes archives; archive: names another file, model_store: under server: the folder",
        )
    if stored is None:
        if registered:
            raise TorchmarError(
                f"{desired.name} is to change, but its archive {archive} is not here to derive another build from",
                hint="name the model store under server:, or write the settings that the server has",
            )
        return desired.version, archive
    if versions.base(stored.version) != versions.base(desired.version):
        raise TorchmarError(f"{stored.path} is version {stored.version}, not {desired.version}")
    if existing := _existing(desired, stored, registered, draft):
        if index.folder and existing.path.parent.resolve() != index.folder.resolve():
            _copy(desired.model, existing.path, index.folder / existing.path.name, draft)
        return existing.version, existing.path.name
    if index.folder is None:
        raise TorchmarError(
            f"{desired.name} needs another build, but the server's model store is not here",
            hint="name its folder under server: model_store: ...",
        )
    return _derive(desired, stored, registered, index.folder, draft)


def _existing(
    desired: DesiredVersion, stored: StoredArchive, registered: Sequence[ModelVersion], draft: Draft
) -> StoredArchive | None:
    """Return an archive that has the target when registered without changes: the version's own, or a build of it."""
    # The build may be older than a restart of the server. A build with other weights does not count.
    others = [
        build
        for build in draft.index.builds(stored.name, desired.version)
        if build.path != stored.path
        and build.content
        and build.content == stored.content
        and build.worker_memory == desired.target.worker_memory
    ]
    # If another build is registered, the version's own name means the configuration of its own archive, without
    # additional settings of a registration.
    own = [stored] if not registered or desired.target.equals_defaults_of(stored) else []
    names = {build.version for build in registered}
    fitting = (
        archive for archive in (*own, *others) if archive.version not in names and desired.target.satisfied_by(archive)
    )
    return next(fitting, None)


def _copy(model: str, source: Path, destination: Path, draft: Draft) -> None:
    if destination.name in draft.taken:
        raise TorchmarError(f"{source} and {destination} are two archives with the same name")
    draft.up.append(actions.Copy(model, source, destination))
    draft.taken.add(destination.name)


def _derive(
    desired: DesiredVersion, stored: StoredArchive, registered: Sequence[ModelVersion], store: Path, draft: Draft
) -> tuple[str, str]:
    """Add the action that derives the next build; return its version and the name of its archive."""
    in_store = [
        build.version for build in draft.index.builds(stored.name, desired.version) if versions.is_build(build.version)
    ]
    registered_versions = (build.version for build in registered)
    number = 1 + max((versions.number(version) for version in (*registered_versions, *in_store)), default=0)
    while f"{stored.name}-{versions.build(desired.version, number)}.mar" in draft.taken:
        number += 1
    version = versions.build(desired.version, number)
    url = f"{stored.name}-{version}.mar"
    draft.taken.add(url)
    config = desired.target.config(stored)
    draft.up.append(
        actions.Derive(model=desired.model, version=version, source=stored.path, config=config, destination=store / url)
    )
    return version, url


def _describe(desired: DesiredVersion, version: str, live: LiveModel | None) -> Iterator[str]:
    target = desired.target
    role = f", the default in place of {live.default}" if live else ", the default"
    yield f"{workers(target.min_workers)}{role if desired.is_default else ''}"
    if settings := [f"{name} {value}" for name, value in target.settings.items() if name in target.explicit]:
        yield ", ".join(settings)
    if target.devices is not None:
        yield f"GPU of each worker: {', '.join(map(str, target.devices))}"
    if version != desired.version:
        yield f"{version} is {desired.version} with this configuration, which overrides the values of a registration"
