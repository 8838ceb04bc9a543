"""The composition root of the server: configuration to listeners and loaded models, graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torchmar
from torchmar.address import Address
from torchmar.errors import TorchmarError
from torchmar.server import grpc, http
from torchmar.server.api.console.app import Console
from torchmar.server.api.inference import Inference
from torchmar.server.api.management import Management
from torchmar.server.api.metrics import MetricsApi
from torchmar.server.api.sagemaker import SageMaker
from torchmar.server.bind_errors import bind_error
from torchmar.server.config import reader
from torchmar.server.config.credentials import tls_context
from torchmar.server.config.settings import Settings
from torchmar.server.models import snapshots, startup_report
from torchmar.server.models.archive_cache import ArchiveCache
from torchmar.server.models.registry import Registry
from torchmar.server.models.snapshots import Snapshots
from torchmar.server.models.startup_loading import StartupLoader
from torchmar.server.models.state_file import StateFile
from torchmar.server.models.watcher import Watcher
from torchmar.server.telemetry import logs, metrics_config, tracing
from torchmar.server.telemetry.events import Events
from torchmar.server.telemetry.metrics import Metrics
from torchmar.server.telemetry.observer import ServerObserver
from torchmar.server.telemetry.recent_logs import RecentLogs
from torchmar.server.tokens import Tokens
from torchmar.server.workers.fork_server import ForkServer
from torchmar.server.workers.pools import LocalPools, Pools

if TYPE_CHECKING:
    from torchmar.server.grpc.listener import GrpcListener

# The first segments of management paths, if several APIs share an address.
_MANAGEMENT = ("console", "models", "downloads", "routes", "token")
GRACE = 30.0  # seconds to answer the last requests when the server stops


class ServerApp:
    """A server in a run folder, which contains its key file, logs and extracted archives.

    Args:
        settings: the configuration.
        folder: the run folder.
        pools: makes the pools of versions; None: workers are processes of this machine.
    """

    def __init__(self, settings: Settings, folder: Path, pools: Pools | None = None) -> None:
        self._settings = settings
        config = metrics_config.read(settings.metrics_config) if settings.metrics_config else metrics_config.DEFAULT
        self._metrics = Metrics(
            config, auto_detect=settings.model_metrics_auto_detect, machine=not settings.disable_system_metrics
        )
        self._tracer = tracing.open_tracer(settings.otlp_endpoint, settings.trace_ratio, os.environ)
        if self._tracer:
            help = "Spans that were not sent, since the collector did not take them in time"
            self._metrics.add_counter(tracing.DROPPED, help, lambda: self._tracer.dropped if self._tracer else 0)
        self._tokens = Tokens(
            folder / "key_file.json",
            enabled=settings.tokens,
            minutes=settings.token_expiration_min,
            fixed=settings.fixed_tokens,
        )
        self._pools = pools or LocalPools(ForkServer(settings.worker_environment(os.environ)))
        self._pools.add_metrics(self._metrics)
        self._archives = ArchiveCache(settings, folder / "models")
        self._events, self._recent_logs = Events(), RecentLogs()
        observer = ServerObserver(self._metrics, self._events)
        self.registry = Registry(self._archives, self._pools, settings, observer, self._events)
        self._loader = StartupLoader(self.registry, self._archives, settings)
        self._console = Console(
            self.registry, self._tokens, settings, self._metrics, self._events, self._recent_logs, folder
        )
        self._access = logs.AccessLog(folder / "logs", settings.log_format) if settings.access_log else None
        self._folder = folder
        self._snapshots = None
        if settings.snapshots and settings.file:
            self._snapshots = Snapshots(settings.snapshots, settings.file, self.registry)
        self._state = None
        if settings.state_file and settings.file:
            self._state = StateFile(settings.state_file, settings.file, settings.model_store, self.registry)
        self._loaded = False
        self._reporting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._listeners: list[Any] = []
        self._tls: ssl.SSLContext | None = None
        self._grpc: GrpcListener | None = None

    async def open(self) -> None:
        """Listen, load the models of the configuration, and start the parent of their workers.

        Raises:
            BindError: an address cannot be bound.
            TorchmarError: gRPC cannot be set up, or workers cannot be started.
        """
        settings, registry, tokens, metrics = self._settings, self.registry, self._tokens, self._metrics
        self._recent_logs.open()
        self._events.add("server_started", f"torchmar {torchmar.__version__} was started")
        self._console.start()
        starting = asyncio.ensure_future(self._pools.start())  # concurrently with the rest
        api = Inference(registry, tokens, settings, metrics, self._tracer)
        inference: http.App = api
        if settings.platform.startswith("sagemaker"):
            inference = SageMaker(inference, registry, settings, metrics)
        management = Management(registry, tokens, settings, metrics, self._console, self._pools.forward)
        apps: dict[str, tuple[Address, http.App]] = {
            "inference": (settings.inference, inference),
            "management": (settings.management, management),
        }
        if settings.metrics_api:
            apps["metrics"] = (settings.metrics, MetricsApi(metrics))
        limits = http.Limits(body=settings.max_request_size)
        registry.startup.begin(settings.startup_models())
        self._tls = tls_context(settings)
        try:
            # Before HTTP: clients wait until the server answers there, and call it over gRPC then.
            if (listener := await grpc.listen(registry, tokens, settings, metrics, self._tracer)) is not None:
                self._listeners.append(listener)
                self._grpc = listener
            for address, app in _by_address(apps):
                on_head = api.on_head if address == settings.inference else None
                self._listeners.append(await self._listen(app, address, limits, on_head))
            await starting
            await self._pools.join(registry, management.manage)
        except BaseException:
            starting.cancel()
            await self.close(0)
            raise
        await self._loader.load()
        self._loaded = True
        self._save_snapshot("startup")
        self._pools.changed()
        registry.on_change = self._changed
        if (settings.watch or settings.model_base_paths) and settings.watch_seconds:
            store = settings.model_store if settings.watch else None
            watcher = Watcher(registry, settings.model_base_paths, store, settings.watch, settings.watch_seconds)
            self._watching = asyncio.ensure_future(watcher.run())
        self._reporting = asyncio.ensure_future(self._report())

    def reload(self) -> None:
        """Read fixed tokens, key and certificate again; if that fails, log it, and keep the previous values.

        Received requests and open connections are not affected. All other parts of the configuration need a
        restart.
        """
        try:
            settings, _ = reader.read(self._settings.file)
            renewed = tls_context(settings)  # first, so that a pair that does not match is not used
            self._tokens.replace_fixed(settings.fixed_tokens)
            if self._tls and renewed:
                self._tls.load_cert_chain(
                    str(settings.certificate_file), str(settings.private_key_file), password=lambda: b""
                )
            if self._grpc:
                self._grpc.reload_certificate()
        except (TorchmarError, OSError, ssl.SSLError) as error:
            logs.SERVER.error("nothing is reloaded: %s", error)
        else:
            logs.SERVER.info("tokens and certificates are reloaded")

    async def failed(self) -> TorchmarError:
        """Return the reason why the server cannot continue, as soon as there is one."""
        return await self._pools.failed()

    async def withdraw(self, at_once: asyncio.Event) -> None:
        """Report that the server is not ready, but answer requests for another ``torchmar_shutdown_delay`` seconds.

        Load balancers send requests until they notice that it is not ready.

        Args:
            at_once: ends the delay.
        """
        self.registry.withdrawn = True
        if delay := self._settings.shutdown_delay:
            logs.SERVER.info("not ready any more; new requests are answered for %d s", delay)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(at_once.wait(), delay)

    async def close(self, grace: float = GRACE) -> None:
        """Stop listening, answer received requests for up to ``grace`` seconds, and end all processes."""
        end = time.monotonic() + grace
        for task in (self._reporting, self._watching):
            if task:
                task.cancel()
        # First, because a running rollout is undone, which changes the saved state, and streams keep the listener open.
        await self._console.close()
        startup_report.remove(self._folder)
        if self._loaded:
            self.registry.on_change = lambda: None
            self._save_snapshot("shutdown")
        self._archives.stop_downloads()  # otherwise registrations would wait for them
        await asyncio.gather(*(listener.close(grace) for listener in self._listeners))
        await self._pools.leave()
        await self.registry.close(grace)
        await self._loader.close()
        await self._archives.close()
        await self._pools.close()
        self._recent_logs.close()
        if self._access:
            self._access.close()
        if self._tracer:
            self._tracer.close(max(1.0, end - time.monotonic()))

    async def _report(self) -> None:
        """Report the models that could not be loaded, after each model of the configuration was tried."""
        await self.registry.startup.wait_until_finished()
        self._write_report()

    def _changed(self) -> None:
        self._save_snapshot("snapshot")
        self._pools.changed()
        if not self.registry.startup.loading:
            self._write_report()

    def _write_report(self) -> None:
        try:
            startup_report.write(startup_report.of(self.registry), self._folder)
        except OSError as error:
            logs.SERVER.warning("%s/%s: %s", self._folder, startup_report.FILE_NAME, error.strerror or error)

    def _save_snapshot(self, kind: snapshots.Kind) -> None:
        if self._snapshots:
            self._snapshots.save(kind)
        if self._state:
            self._state.save()

    async def _listen(
        self, app: http.App, address: Address, limits: http.Limits, on_head: http.OnHead | None
    ) -> http.Listener:
        settings = self._settings
        try:
            return await http.listen(
                app,
                address.host,
                address.port,
                limits,
                tls=self._tls if address.tls else None,
                unix=address.unix or None,
                cors=settings.cors,
                access=self._access.put if self._access else None,
                on_head=on_head,
            )
        except OSError as error:
            place = str(address) if address.unix else str(address).partition("//")[2]
            raise bind_error(place, error) from None


def _by_address(apps: Mapping[str, tuple[Address, http.App]]) -> list[tuple[Address, http.App]]:
    """Return one app for each address; several APIs may share one."""
    shared: dict[Address, dict[str, http.App]] = {}
    for api, (address, app) in apps.items():
        shared.setdefault(address, {})[api] = app
    return [
        (address, next(iter(apis.values())) if len(apis) == 1 else _by_path(apis)) for address, apis in shared.items()
    ]


def _by_path(apps: Mapping[str, http.App]) -> http.App:
    """Return one app for each address, which several APIs may share."""

    def app(request: http.Request) -> None:
        first, *rest = request.path.strip("/").split("/")
        api = "management" if first in _MANAGEMENT else "metrics" if first == "metrics" else "inference"
        if first == "models" and rest[-1:] == ["invoke"]:
            api = "inference"  # the API with SageMaker's paths
        apps.get(api, next(iter(apps.values())))(request)

    return app
