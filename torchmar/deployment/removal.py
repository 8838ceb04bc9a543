"""The plan for the end of unlisted versions: they are kept for a rollback, or drained and removed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torchmar.deployment import actions, versions
from torchmar.deployment.actual import LiveModel
from torchmar.deployment.desired import ModelState
from torchmar.deployment.draft import Draft
from torchmar.management import ModelVersion


def retire_versions(model: ModelState, resolved: Mapping[str, str], live: LiveModel, draft: Draft) -> None:
    """Add the changes of registered versions that a listed model does not list, or that were replaced.

    Args:
        model: the deployment's entry of the model.
        resolved: the registered build of each listed version.
        live: the registered model.
        draft: the plan.
    """
    replacements = {versions.base(version): build for version, build in resolved.items()}
    remaining = set(resolved.values())
    old = [version for version in live.versions.values() if version.version not in remaining]
    # A rollback goes to the current default; after it, to the newest.
    old.sort(
        key=lambda version: (version.version == live.default, versions.newest_first(version.version)), reverse=True
    )
    kept_bases: set[str] = set()
    for version in old:
        base = versions.base(version.version)
        title = f"{live.name} {version.version}"
        if base in replacements or base in kept_bases or len(kept_bases) >= model.keep:
            reason = (
                f"{replacements[base]} takes its place"
                if base in replacements
                else f"not listed; {_kept(live.name, kept_bases)}"
            )
            draft.add_change("-", title, reason)
            _remove(version, drained(model, version), draft)
            continue
        kept_bases.add(base)
        count = len(version.workers)
        if model.kept_workers is not None and count > model.kept_workers:
            scale_down(version, drained(model, version), model.kept_workers, model.kept_workers, draft)
            draft.add_change("~", title, f"workers {count} -> {model.kept_workers}, kept for a rollback")


def retire_model(live: LiveModel, prune: bool, draft: Draft) -> None:
    """Add the changes of a registered model that the deployment does not list; with ``prune``, it is removed."""
    if not prune:
        draft.add_change(
            "!", live.name, f"not listed; it stays, since prune is false ({len(live.versions)} registered)"
        )
        return
    # The server refuses to remove the default version while there are others.
    for version in sorted(live.versions.values(), key=lambda version: version.version == live.default):
        draft.add_change("-", f"{live.name} {version.version}", "not listed")
        _remove(version, actions.Drained(live.name, version.version, version.response_timeout), draft)


def drained(model: ModelState, version: ModelVersion) -> actions.Drained:
    """Return the drain of a version of a listed model, with its duration."""
    seconds = version.response_timeout if model.drain_seconds is None else model.drain_seconds
    return actions.Drained(version.name, version.version, seconds)


def scale_down(
    version: ModelVersion, drained: actions.Drained, min_workers: int, max_workers: int, draft: Draft
) -> None:
    """Add the drain of a version and the removal of some of its workers."""
    draft.drains.append(drained)
    draft.down.append(
        actions.ScaleDown(
            model=version.name,
            version=version.version,
            before=len(version.workers),
            min_workers=min_workers,
            max_workers=max_workers,
        )
    )


def _remove(version: ModelVersion, drained: actions.Drained, draft: Draft) -> None:
    if version.workers:
        draft.drains.append(drained)
    stored = draft.index.archives.get(version.url)
    # A derived archive can be derived again while another build of the version is in the store.
    derived = stored and versions.is_build(stored.version) and len(draft.index.builds(stored.name, stored.version)) > 1
    draft.down.append(actions.Remove(version.name, version.version, stored.path if stored and derived else None))


def _kept(name: str, bases: Collection[str]) -> str:
    if not bases:
        return "keep: 0 keeps none to roll back to"
    return f"{', '.join(sorted(bases))} is kept to roll {name} back to"
