"""An installation of TorchServe as a ``deployment.yaml`` and a ``config.properties``, with a list of differences."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchmar import atomic, checks, properties
from torchmar.archive import Archive
from torchmar.deployment import capture, desired
from torchmar.deployment.store_index import StoredArchive, read_archive
from torchmar.deployment.target import SETTINGS
from torchmar.errors import PropertiesError, TorchmarError
from torchmar.parity.differences import DIFFERENCES
from torchmar.parity.known_difference import KnownDifference
from torchmar.server.config import reader, startup_models
from torchmar.server.config import values as config_values
from torchmar.server.config.keys import IGNORED_KEYS, PATH_KEYS, SUPPORTED_KEYS, suggest
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.models import archive_urls, snapshots
from torchmar.server.models.model_config import UNSUPPORTED_KEYS

_NUMBERS = {"minWorkers": "min_workers", "maxWorkers": "max_workers"} | {
    key: name for name, (key, _) in SETTINGS.items()
}


@dataclass(frozen=True)
class Difference:
    """A difference from TorchServe's behaviour, or a step that remains for the user.

    Attributes:
        place: a key of the configuration, or a model and its version.
        what: the difference, in a sentence.
        id: id of a documented difference; empty for other differences.
        blocks: whether a model is not served until the difference is resolved.
    """

    place: str
    what: str
    id: str = ""
    blocks: bool = False


@dataclass(frozen=True)
class Installation:
    """The configuration of a TorchServe, and the models that it would serve after a restart.

    Attributes:
        source: the file that was read: a snapshot, if there is one.
        folder: the folder to which relative paths in it refer.
        values: values of the configuration.
        model_store: the folder with the archives.
        models: models in the order in which they are loaded.
    """

    source: Path
    folder: Path
    values: Mapping[str, str]
    model_store: Path
    models: tuple[StartupModel, ...]


@dataclass(frozen=True)
class Imported:
    """The result of the import of an installation."""

    installation: Installation
    deployment: Path
    config: Path
    models: Mapping[str, tuple[str, ...]]
    differences: tuple[Difference, ...] = field(default_factory=tuple)


def read(path: Path, model_store: Path | None = None, *, use_snapshots: bool = True) -> Installation:
    """Read the configuration of an installation, as TorchServe does at a restart.

    The last snapshot in ``logs/config`` precedes ``config.properties``.

    Args:
        path: a ``config.properties``, a snapshot (``logs/config/*.cfg``), or the folder that TorchServe was started in.
        model_store: folder with the archives, in place of the configuration's; None: the configuration's.
        use_snapshots: whether to look for snapshots.

    Raises:
        TorchmarError: there is no configuration, no model store, or a value is wrong.
    """
    if not path.exists():
        raise TorchmarError(f"{path} does not exist", hint="name a config.properties, or TorchServe's folder")
    folder = path if path.is_dir() else path.parent
    file = path / properties.FILE_NAME if path.is_dir() else path
    if file.suffix == ".cfg" and folder.name == "config" and folder.parent.name == "logs":
        folder = folder.parent.parent  # the folder in which TorchServe was started
    source = file
    if use_snapshots and file.suffix != ".cfg" and (last := snapshots.latest(folder / "logs" / "config")):
        configured = properties.read(file).values if file.is_file() else {}
        source = file if configured.get("model_snapshot", "").strip() else last
    if not source.is_file():
        raise TorchmarError(
            f"{path} has neither {properties.FILE_NAME} nor logs/config/*.cfg",
            hint="name the file that torchserve --ts-config was started with",
        )
    values = dict(properties.read(source).values)
    store = _model_store(source, folder, values, model_store)
    return Installation(source, folder, values, store, _models(source, values, store))


def import_installation(installation: Installation, to: Path) -> Imported:
    """Write ``deployment.yaml`` and ``config.properties`` for an installation, without changing or copying its files.

    A server that starts with the configuration serves the same models with the same workers and settings.

    Raises:
        TorchmarError: an archive is missing or cannot be read, or one of the two files exists.
    """
    targets = to / desired.FILE_NAME, to / properties.FILE_NAME
    if existing := next((target for target in targets if target.exists()), None):
        raise TorchmarError(f"{existing} exists already", hint="remove it, or name another folder with --to")
    stored = _archives(installation)
    document = _document(installation, stored)
    header = f"# Made of {installation.source.name} by torchmar import.\n"
    text = header + capture.dump(document)
    deployment = desired.parse(text, str(targets[0]))
    config, differences = _configuration(installation, stored)
    differences += _of_archives(installation, stored)
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TorchmarError(f"{to} cannot be made: {error.strerror}") from None
    atomic.write_text(text, targets[0])
    try:
        atomic.write_text(f"{header}{properties.show(config)}", targets[1])
    except TorchmarError:
        targets[0].unlink(missing_ok=True)
        raise
    models = {name: tuple(model.versions) for name, model in deployment.models.items()}
    return Imported(installation, *targets, models, tuple(differences))


def _model_store(source: Path, folder: Path, values: Mapping[str, str], option: Path | None) -> Path:
    configured = values.get("model_store", "").strip()
    if option is None and not configured:
        raise TorchmarError(
            f"{source} names no model_store", hint="--model-store FOLDER, as torchserve was started with"
        )
    for store in [option] if option else [folder / configured, Path(configured)]:
        if store and store.is_dir():
            return store.resolve()
    if option:
        raise TorchmarError(f"the model store {option} is not a folder")
    raise TorchmarError(
        f"{source}: the model store {configured} is neither in {folder.resolve()} nor in the current folder",
        hint="--model-store FOLDER names it",
    )


def _models(source: Path, values: Mapping[str, str], store: Path) -> tuple[StartupModel, ...]:
    try:
        if snapshot := values.get("model_snapshot", "").strip():
            return startup_models.parse_snapshot(snapshot)
        listed = startup_models.parse_load_models(values.get("load_models", "").strip() or "none")
    except ValueError as error:
        hint = "--no-config-snapshots imports config.properties" if source.suffix == ".cfg" else ""
        raise PropertiesError(f"{source}: {error}", hint=hint) from None
    if listed == "all":
        return tuple(startup_models.in_store(store))
    return tuple(StartupModel(url, name=name, fallback=startup_models.fallback_name(url)) for name, url in listed)


def _archives(installation: Installation) -> dict[StartupModel, StoredArchive]:
    """Return the archive of each model. Raises TorchmarError, which names all missing archives."""
    stored, missing = {}, []
    for model in installation.models:
        paths = [installation.model_store / Path(model.url).name, installation.model_store / model.url, Path(model.url)]
        existing = list(filter(_exists, paths))
        readable = next((archive for path in existing if (archive := read_archive(path))), None)
        if readable is None:
            shown_url = archive_urls.without_secrets(model.url)
            missing.append(f"{shown_url} ({_why_unreadable(next(iter(existing), None))})")
        else:
            stored[model] = readable
    if missing:
        raise TorchmarError(
            f"{installation.source} names archives that {installation.model_store} does not have: {', '.join(missing)}",
            hint="copy them there (those of URLs, too), or name the right folder with --model-store",
        )
    return stored


def _exists(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):  # no name of a file: too long, or with a NUL
        return path.exists()
    return False


def _why_unreadable(path: Path | None) -> str:
    if path is None:
        return "there is no such file"
    if path.is_dir() and not (path / "MAR-INF").is_dir():
        return f"{path} is a folder without MAR-INF; torchmar import {path} makes an archive of a SageMaker package"
    return f"{path} is no archive that can be read"


def _document(installation: Installation, stored: Mapping[StartupModel, StoredArchive]) -> dict[str, Any]:
    server = {"config": properties.FILE_NAME, "model_store": str(installation.model_store)}
    models: dict[str, dict[str, Any]] = {}
    try:
        options = config_values.models(installation.values.get("models", "").strip() or "{}")
    except ValueError as error:
        raise PropertiesError(f"{installation.source}: models: {error}") from None
    for model, archive in stored.items():
        name, version = model.name or archive.name, model.version or archive.version
        state = model.state or options.get(name, {}).get(version, {})
        # If load_models names several archives of a model, the first becomes the default.
        entry = models.setdefault(name, {"default": version, "versions": {}})
        if model.default:
            entry["default"] = version
        entry["versions"][version] = _version(installation, name, version, archive, state)
    return {"server": server, "models": models}


def _version(
    installation: Installation, name: str, version: str, archive: StoredArchive, state: Mapping[str, Any]
) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if archive.path.parent.resolve() != installation.model_store:
        document["archive"] = str(archive.path.resolve())
    elif archive.path.name != f"{name}-{version}.mar":
        document["archive"] = archive.path.name
    own_values = {key: value for key in _NUMBERS if (value := archive.number(key)) is not None}
    if not _sets_workers(archive):
        own_values.pop("minWorkers", None)
        own_values.pop("maxWorkers", None)
    # In models=, the archive's own configuration has precedence; in a snapshot, the snapshot has.
    is_snapshot = bool(installation.values.get("model_snapshot", "").strip())
    values = {**own_values, **state} if is_snapshot else {**state, **own_values}
    low = values.get("minWorkers", _default_workers(installation))
    document["min_workers"] = low
    if values.get("maxWorkers", low) > low:
        document["max_workers"] = values["maxWorkers"]
    return document | {
        key: values[name] for name, key in _NUMBERS.items() if key in SETTINGS and values.get(name) is not None
    }


def _sets_workers(archive: StoredArchive) -> bool:
    return bool(archive.number("minWorkers") and archive.number("maxWorkers"))


def _default_workers(installation: Installation) -> int:
    configured = installation.values.get("default_workers_per_model", "").strip()
    return int(configured) if configured.isdigit() and int(configured) else os.cpu_count() or 1


def _configuration(
    installation: Installation, stored: Mapping[StartupModel, StoredArchive]
) -> tuple[dict[str, str], list[Difference]]:
    """Return the keys of the new configuration, and the differences that the old keys cause.

    The keys of models are kept, because both servers read them in the same way.
    """
    base: dict[str, str] = {}
    differences: list[Difference] = []
    if ignored := sorted(installation.values.keys() & IGNORED_KEYS.keys()):
        differences.append(Difference(", ".join(ignored), "left out: for Java, or without meaning here"))
    for key, value in installation.values.items():
        if key in IGNORED_KEYS:
            continue
        if key not in SUPPORTED_KEYS:
            near = suggest(key)
            hint = f"; did you mean {near}?" if near else ""
            differences.append(Difference(key, f"left out: neither server has such a key{hint}"))
        else:
            path = key in PATH_KEYS and value.strip() and "://" not in value
            base[key] = str((installation.folder / value.strip()).absolute()) if path else value
    base["model_store"] = str(installation.model_store)
    differences += _of_values(installation, base, stored)
    return base, differences


def _of_values(
    installation: Installation, base: Mapping[str, str], stored: Mapping[StartupModel, StoredArchive]
) -> Iterator[Difference]:
    def is_true(key: str) -> bool:
        return base.get(key, "").strip().lower() == "true"

    def of(id: str, place: str) -> Difference:
        return _documented(id, place)

    if not base.get("allowed_urls", "").strip():
        yield of("allowed-urls", "allowed_urls")
    if installation.values.get("keystore", "").strip():
        yield of("keystore", "keystore")
    if is_true("enable_envvars_config"):
        text = "variables TS_... of the environment precede the file: set the same ones, or write them into it"
        yield Difference("enable_envvars_config", text)
    if not is_true("enable_model_api"):
        text = "without enable_model_api=true the models of the start are served, and torchmar apply can change none"
        yield Difference("enable_model_api", text)
    numbered = all("minWorkers" in model.state or _sets_workers(archive) for model, archive in stored.items())
    if not numbered and not base.get("default_workers_per_model", "").strip():
        text = (
            f"TorchServe starts a worker for each processor: deployment.yaml has {os.cpu_count() or 1}, those of this "
            "machine, for archives that set no number"
        )
        yield Difference("default_workers_per_model", text)
    if installation.source.suffix == ".cfg":
        yield of("snapshots", installation.source.name)
    yield from _rejected(base)
    if workflows := sorted(_workflows(installation)):
        yield Difference("workflow_store", f"workflows are not supported: {', '.join(workflows)}", blocks=True)


def _rejected(base: Mapping[str, str]) -> Iterator[Difference]:
    """Yield the values with which torchmar's server does not start; the values of variables are not known."""
    literals = {key: value for key, value in base.items() if "$$" not in value}
    try:
        reader.read(None, {}, **literals)
    except PropertiesError as error:
        for line in error.message.splitlines():
            yield Difference(properties.FILE_NAME, f"the server does not start with {line}", blocks=True)


def _workflows(installation: Installation) -> set[str]:
    configured = installation.values.get("workflow_store", "").strip()
    folders = {installation.model_store, *([installation.folder / configured] if configured else [])}
    return {path.name for folder in folders if folder.is_dir() for path in folder.glob("*.war")}


def _of_archives(installation: Installation, stored: Mapping[StartupModel, StoredArchive]) -> Iterator[Difference]:
    for model, archive in stored.items():
        place = f"{model.name or archive.name} {model.version or archive.version}"
        if model.version not in ("", archive.version):
            text = f"the snapshot has the version {model.version}, and {archive.path.name} is {archive.version}"
            yield Difference(place, text, blocks=True)
        with Archive(archive.path) as opened:
            manifest = opened.manifest
        if keys := [key for key in UNSUPPORTED_KEYS if archive.config.get(key)]:
            difference = _documented("config-modes", place)
            yield Difference(place, f"{', '.join(keys)}: {difference.what}", difference.id, blocks=True)
        if manifest.runtime == "LSP":
            yield _documented("runtime-cpp", place, blocks=True)
        if archive.configured and not archive.number("responseTimeout") and not model.state:
            yield _documented("config-timeouts", place)
        if manifest.model.requirements_file and installation.values.get("install_py_dep_per_model") == "true":
            yield _documented("requirements", place)
        findings = checks.check(archive.path)
        for finding in findings:
            if finding.severity == "error":
                text = f"{finding.code.name} {finding.place}: {finding.cause}".replace("  ", " ")
                yield Difference(place, f"{text}; torchmar check {archive.path} has more", "archive-check", blocks=True)
        if warnings := sorted({finding.code.name for finding in findings if finding.severity != "error"}):
            yield Difference(place, f"warnings {', '.join(warnings)}: torchmar check {archive.path} explains them")


def _documented(id: str, place: str, *, blocks: bool = False) -> Difference:
    entry: KnownDifference = next(difference for difference in DIFFERENCES if difference.id == id)
    return Difference(place, f"{entry.what}: under TorchServe {entry.torchserve}; here {entry.builtin}", id, blocks)
