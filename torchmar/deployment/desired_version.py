"""Listed versions, each with its archive, and with a registered build if one already has its target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torchmar.deployment import versions
from torchmar.deployment.actual import LiveModel
from torchmar.deployment.desired import Deployment, ModelState, VersionState
from torchmar.deployment.store_index import StoredArchive
from torchmar.deployment.target import Target
from torchmar.management import ModelVersion


@dataclass(frozen=True, kw_only=True)
class DesiredVersion:
    """One listed version.

    Attributes:
        model: the model's name.
        version: the version's name in the deployment.
        model_state: the deployment's entry of the model.
        state: the deployment's entry of the version.
        stored: its archive; None if there is none to read.
        target: its workers and settings.
        live: registered build that can stay; None if a build has to be registered.
    """

    model: str
    version: str
    model_state: ModelState
    state: VersionState
    stored: StoredArchive | None
    target: Target
    live: ModelVersion | None

    @property
    def key(self) -> tuple[str, str]:
        """Model and version."""
        return self.model, self.version

    @property
    def name(self) -> str:
        """Model and version as text."""
        return f"{self.model} {self.version}"

    @property
    def is_default(self) -> bool:
        """Whether it should be the model's default version."""
        return self.version == self.model_state.default_version


def match(
    deployment: Deployment,
    live: Mapping[str, LiveModel],
    archives: Mapping[tuple[str, str], StoredArchive | None],
) -> Iterator[DesiredVersion]:
    """Yield every version of a deployment, in its order."""
    for name, model in deployment.models.items():
        for version in model.versions:
            yield _match(name, version, model, archives.get((name, version)), live.get(name))


def builds(live: LiveModel | None, version: str) -> list[ModelVersion]:
    """Return the registered builds of a version: the default one first, then the newest."""
    if live is None:
        return []
    same = [build for build in live.versions.values() if versions.base(build.version) == versions.base(version)]
    return sorted(same, key=lambda build: (build.version == live.default, versions.number(build.version)), reverse=True)


def _match(
    name: str, version: str, model: ModelState, stored: StoredArchive | None, live: LiveModel | None
) -> DesiredVersion:
    state = model.version(version)
    is_default = model.default_version == version
    registered = builds(live, version)

    def made(target: Target, build: ModelVersion | None) -> DesiredVersion:
        return DesiredVersion(
            model=name, version=version, model_state=model, state=state, stored=stored, target=target, live=build
        )

    for build in registered:
        target = Target.of(state, stored, build, at_least=int(is_default))
        has_traffic = live is not None and (live.default == build.version or is_default) and not model.parked
        fewer = target.min_workers < len(build.workers) or target.max_workers < len(build.workers)
        if not (has_traffic and fewer) and not list(target.differences(build)):
            return made(target, build)
    return made(Target.of(state, stored, next(iter(registered), None), at_least=int(is_default)), None)
