"""The server to measure: a running one, with its process and metrics, or one started for the measurement."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil

from torchmar import engines, properties
from torchmar.archive import Archive
from torchmar.cluster.processes import ClusterGroup
from torchmar.connection import Endpoint
from torchmar.engines import EngineName
from torchmar.engines.addresses import free_addresses, listener_of
from torchmar.engines.server_records import ServerRecord, configured
from torchmar.errors import NotFoundError, TorchmarError
from torchmar.load.target import Target
from torchmar.management import ManagementClient
from torchmar.properties import Properties

_SECONDS = 5.0


def running(target: Target, run_folder: Path) -> Target:
    """Return a target with the process, engine, metrics and version of its server, as far as they can be determined.

    Args:
        target: the server and model.
        run_folder: run folder of a server, which is the target's if both have the same address.

    Raises:
        NotFoundError: the server's management API does not know the model.
    """
    record = ServerRecord.find(run_folder)
    if record and replace(target, endpoint=Endpoint.from_run_folder(run_folder)).url == target.url:
        target = replace(target, pid=target.pid or record.pid)
        target = _configured(target, record.engine, properties.read(run_folder / "config.properties"))
        return replace(target, version=target.version or _version(target))
    if target.pid is None and target.local and target.port is not None:
        listener = listener_of(target.port)
        target = replace(target, pid=listener.pid if listener else None)
    if target.pid is not None:
        with contextlib.suppress(psutil.Error, TorchmarError):  # a process of another user
            if configuration := configured(psutil.Process(target.pid)):
                engine, file = configuration
                target = _configured(target, engine, properties.read(file))
    return target


def _configured(target: Target, engine: EngineName, config: Properties) -> Target:
    """Return a target with the values from the configuration of its server."""
    metrics = config.url("metrics_address") if config.get("metrics_mode") == "prometheus" else None
    cluster = cluster_of(config) if engine == "ray" else None
    return replace(target, engine=engine, metrics=target.metrics or metrics, cluster=cluster)


def cluster_of(config: Properties) -> ClusterGroup | None:
    """Return the cluster that a server with the engine ray joins; None: its cluster is its own, below its process."""
    address = config.get("torchmar_ray_address").strip()
    return ClusterGroup(address, config.get("torchmar_ray_group").strip()) if address else None


def _version(target: Target) -> str | None:
    """Return the default version of a model; None if the server does not report it."""
    try:
        with ManagementClient(target.endpoint, timeout=_SECONDS, retries=0) as client:
            return client.describe(target.model)[0].version
    except NotFoundError:
        raise
    except TorchmarError:
        return None


@contextlib.contextmanager
def started(engine: EngineName, archive: Path, config: Path | None = None, head: str | None = None) -> Iterator[Target]:
    """Run a server with one archive on free ports while the context is open.

    Args:
        engine: the kind of server.
        archive: the ``.mar``.
        config: the server's ``config.properties``; default: the one of the working directory, if there is one.
        head: address of the cluster's head, for the engine ray; default: that of the configuration, or a cluster of
            this machine.

    Raises:
        TorchmarError: the file is no archive, or the server or the model does not start.
    """
    with Archive(archive) as opened:
        name, version, digest = opened.manifest.name, opened.manifest.version, opened.digest
    kind = engines.named(engine)
    # A configuration that forbids registrations must not forbid that of the archive.
    overrides = {**free_addresses(), "load_models": "", "enable_model_api": "true", **kind.own_keys("bench", head)}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torchmar-bench-")))
        server = stack.enter_context(kind(config, archive.resolve().parent, folder / "run", overrides=overrides))
        server.load(archive)
        record = ServerRecord.find(server.folder)
        yield Target(
            endpoint=server.server,
            model=name,
            version=version,
            pid=record.pid if record else None,
            metrics=server.properties.url("metrics_address"),
            engine=engine,
            cluster=cluster_of(server.properties) if engine == "ray" else None,
            archive_digest=digest,
        )
