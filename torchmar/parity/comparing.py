"""Start two engines, send the same requests to both, and report mismatches."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torchmar import archive, engines, properties, recipe
from torchmar.archive import Archive
from torchmar.engines import EngineName
from torchmar.engines.addresses import free_addresses
from torchmar.errors import TorchmarError
from torchmar.exchange import content_type
from torchmar.parity import cases
from torchmar.parity.cases import Case
from torchmar.parity.differences import documented
from torchmar.parity.engine_client import EngineClient, Filling, RawResponse
from torchmar.parity.responses import Mismatch, mismatches
from torchmar.recipe import Sample

PROTOCOL = "protocol"
_TOLERANCE = 1e-3
_METRICS_SECONDS = 5.0  # seconds until metrics of workers have arrived
_CORNERS = (*cases.BODIES, *cases.PATHS)
_FAILS = 'def handle(rows, context):\n    raise ValueError("this handler fails on purpose")\n'
_CONFIG = {
    "enable_model_api": "true",
    "disable_system_metrics": "true",
    "max_request_size": str(cases.MAX_REQUEST_SIZE),
    "max_response_size": str(4 * cases.MAX_REQUEST_SIZE),
    "job_queue_size": "100",
    "cors_allowed_origin": "https://example.com",
    "cors_allowed_methods": "GET, POST, PUT, OPTIONS",
    "cors_allowed_headers": "X-Custom-Header",
}

# Keys for one engine: on a machine with two cores, Ray has room for more than two replicas of less than a core each.
_CLUSTER: Mapping[str, Mapping[str, str]] = {"ray": {"torchmar_ray_cpus": "0.1"}}


@dataclass(frozen=True)
class Outcome:
    """The result of comparing the engines with one archive, or with the protocol.

    Attributes:
        name: the archive, or ``protocol``.
        cases: the number of requests.
        equal: the number of requests with equal responses.
        known: mismatches that a documented difference explains, by its id.
        different: mismatches that no documented difference explains.
    """

    name: str
    cases: int
    equal: int
    known: dict[str, list[Mismatch]] = field(default_factory=dict)
    different: list[Mismatch] = field(default_factory=list)

    @property
    def documented(self) -> int:
        """The number of requests whose mismatches are all documented."""
        different = {mismatch.case for mismatch in self.different}
        return len({mismatch.case for explained in self.known.values() for mismatch in explained} - different)


def compare(
    archives: Sequence[Path],
    between: tuple[EngineName, EngineName] = ("torchserve", "builtin"),
    *,
    protocol: bool = True,
    corners: bool = True,
    more: Mapping[str, Sequence[Case]] | None = None,
    config: Mapping[str, str] | None = None,
    head: str | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> Iterator[Outcome]:
    """Yield the outcome of the protocol, and then of every archive.

    Every archive is registered with both engines. Its samples are sent as predictions, as predictions of its
    version and as explanations, followed by the requests of `torchmar.parity.cases` for a model.

    Args:
        archives: archive files.
        between: the reference engine, and the engine to compare with it.
        protocol: whether to send the requests that do not concern an archive: tokens, management, metrics.
        corners: whether to send other requests than the samples of an archive.
        more: further requests, by the name of an archive's file without its suffix.
        config: keys of ``config.properties`` for both engines.
        head: head of the cluster, for the engine ray; None: a cluster of this machine alone.
        on_step: callback with a description of each step.

    Raises:
        EngineError: an engine does not start.
    """
    with engine_pair(between, config=config, head=head, on_step=on_step) as pair:
        if protocol:
            yield pair.protocol()
        for path in archives:
            yield pair.archive(path, corners=corners, more=(more or {}).get(path.stem, ()))


@contextlib.contextmanager
def engine_pair(
    between: tuple[EngineName, EngineName] = ("torchserve", "builtin"),
    *,
    config: Mapping[str, str] | None = None,
    head: str | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> Iterator[EnginePair]:
    """Run two engines over one model store while the context is open; the arguments are those of `compare`."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torchmar-parity-")))
        store = folder / "store"
        store.mkdir()
        _own_archives(store)
        clients = []
        for number, name in enumerate(between):
            on_step(f"starting {engines.TITLES[name]}")
            file = folder / f"{number}.properties"
            kind = engines.named(name)
            keys = {**_CONFIG, **free_addresses(), **_CLUSTER.get(name, {}), **kind.own_keys("parity", head)}
            file.write_text(properties.show({**keys, **(config or {})}), encoding="utf-8")
            clients.append(EngineClient(stack.enter_context(kind(file, store, folder / f"run-{number}"))))
        threads = stack.enter_context(ThreadPoolExecutor(len(clients)))
        yield EnginePair(clients, between, store, threads, on_step)


class EnginePair:
    """Two running engines that get the same requests."""

    def __init__(
        self,
        clients: Sequence[EngineClient],
        between: tuple[EngineName, EngineName],
        store: Path,
        threads: ThreadPoolExecutor,
        on_step: Callable[[str], None],
    ) -> None:
        self._documented = partial(documented, between=between)
        self._clients, self._store, self._threads, self._on_step = clients, store, threads, on_step
        self._sent = 0
        self._mismatches: list[Mismatch] = []  # since the last outcome

    def protocol(self) -> Outcome:
        """Compare the requests that do not concern an archive: tokens, management, metrics."""
        filling = Filling("echo", "1.0", b'{"data": [1, 2.5, "three"]}', "application/json")
        self._send(PROTOCOL, _register("echo-1.0.mar"), filling)
        for case in (*_CORNERS, *cases.SERVER, *cases.TOKENS, *cases.MANAGEMENT):
            self._send(PROTOCOL, case, filling)
        self._send(PROTOCOL, _unregister(), filling)
        return self._outcome(PROTOCOL)

    def archive(self, path: Path, *, corners: bool = True, more: Sequence[Case] = ()) -> Outcome:
        """Put an archive into the model store; compare its registration, its answers and its unregistration.

        Args:
            path: file or folder of the archive.
            corners: whether to send other requests than its samples.
            more: further requests.
        """
        _copy(self._store, path)
        name, version, samples = path.stem, "1.0", list[tuple[Sample, Filling]]()
        with contextlib.suppress(TorchmarError), Archive(path) as opened:  # a file that is no archive is sent, too
            name, version = opened.manifest.name, opened.manifest.version
            for sample in opened.samples:
                if sample.input is None:
                    filling = Filling(name, version, json.dumps(sample.json_body).encode(), "application/json")
                else:
                    filling = Filling(name, version, opened.read(sample.input), content_type(sample.input))
                samples.append((sample, filling))
        first = samples[0][1] if samples else Filling(name, version, b"{}", "application/json")
        responses = self._send(name, _register(path.name), first)
        if all(response.status < 300 for response in responses):
            for number, (sample, filling) in enumerate(samples):
                for case in _sample(sample.input or f"sample {number}"):
                    self._send(name, case, filling, min(sample.tolerance, _TOLERANCE))
            for case in (*(_CORNERS if corners else ()), *more):
                self._send(name, case, first)
        self._send(name, _unregister(), first)
        return self._outcome(name)

    def _send(
        self, of: str, case: Case, filling: Filling, tolerance: float = _TOLERANCE
    ) -> tuple[RawResponse, RawResponse]:
        self._on_step(f"{of}: {case.name}")
        self._sent += 1
        deadline = time.monotonic() + _METRICS_SECONDS
        while True:
            first, second = self._threads.map(lambda client: client.send(case, filling), self._clients)
            new_mismatches = mismatches(f"{of}/{case.name}", first, second, tolerance)
            # Workers report their metrics some time after the response.
            if case.api != "metrics" or all(map(self._documented, new_mismatches)) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self._mismatches += new_mismatches
        # No request is sent while a dead worker restarts: the response would depend on the time of the request.
        if case.settles or max(first.status, second.status) >= 500 or 0 in (first.status, second.status):
            model = None if of == PROTOCOL else of  # no other model is loaded with an archive
            list(self._threads.map(lambda client: client.settle(model), self._clients))
        return first, second

    def _outcome(self, name: str) -> Outcome:
        all_mismatches, sent = self._mismatches, self._sent
        self._mismatches, self._sent = [], 0
        outcome = Outcome(name, sent, sent - len({mismatch.case for mismatch in all_mismatches}))
        for mismatch in all_mismatches:
            if difference := self._documented(mismatch):
                outcome.known.setdefault(difference.id, []).append(mismatch)
            else:
                outcome.different.append(mismatch)
        return outcome


def _sample(name: str) -> tuple[Case, ...]:
    predicted = Case(f"{name}, predicted", "POST", "/predictions/{name}", b"{sample}", cases.SAMPLE)
    return (
        predicted,
        replace(predicted, name=f"{name}, of this version", path="/predictions/{name}/{version}"),
        replace(predicted, name=f"{name}, explained", path="/explanations/{name}"),
    )


def _register(file: str) -> Case:
    path = f"/models?url={file}&initial_workers=1&synchronous=true"
    return Case("load", "POST", path, api="management", settles=True, seconds=180)


def _unregister() -> Case:
    return Case("unload", "DELETE", "/models/{name}/{version}", api="management", settles=True)


def _own_archives(store: Path) -> None:
    """Write the archives for the protocol to a model store: one handler echoes requests, the other fails."""
    echo = Path(__file__).with_name("echo.py").read_text(encoding="utf-8")
    for name, version, code in (("echo", "1.0", echo), ("echo", "2.0", echo), ("fails", "1.0", _FAILS)):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "handler.py").write_text(code, encoding="utf-8")
            content = recipe.Recipe(name=name, version=version, handler="handler.py")
            archive.pack(archive.collect_members(content, Path(folder)), store / f"{name}-{version}.mar")
    (store / "broken.mar").write_bytes(b"no archive")


def _copy(store: Path, path: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, store / path.name)
    else:
        shutil.copy(path, store / path.name)
