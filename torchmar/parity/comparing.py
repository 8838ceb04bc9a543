"""Start two engines, send both the same requests, report mismatches."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
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
from torchmar.parity.responses import Mismatch, deviations
from torchmar.recipe import Sample

PROTOCOL = "protocol"
_TOLERANCE = 1e-3
_PATIENCE = 5.0  # seconds
_CORNERS = (*cases.BODIES, *cases.PATHS)
_FAILS = 'def handle(rows, context):\n    raise ValueError("this one is meant to fail")\n'
_CONFIG = {
    "enable_model_api": "true",
    "disable_system_metrics": "true",
    "max_request_size": str(cases.MOST),
    "max_response_size": str(4 * cases.MOST),
    "job_queue_size": "100",
    "cors_allowed_origin": "https://example.com",
    "cors_allowed_methods": "GET, POST, PUT, OPTIONS",
    "cors_allowed_headers": "X-Custom-Header",
}


@dataclass(frozen=True)
class Outcome:
    """What came of an archive, or of the protocol.

    Attributes:
        name: which.
        cases: how many requests both engines got.
        equal: how many of them they answered alike.
        meant: by the id of a documented difference, the deviations that it explains.
        different: the mismatches that are not documented.
    """

    name: str
    cases: int
    equal: int
    meant: dict[str, list[Mismatch]] = field(default_factory=dict)
    different: list[Mismatch] = field(default_factory=list)

    @property
    def documented(self) -> int:
        """How many requests were answered otherwise only where that is meant."""
        unmeant = {one.case for one in self.different}
        return len({one.case for found in self.meant.values() for one in found} - unmeant)


def compare(
    archives: Sequence[Path],
    between: tuple[EngineName, EngineName] = ("torchserve", "builtin"),
    *,
    protocol: bool = True,
    corners: bool = True,
    more: Mapping[str, Sequence[Case]] | None = None,
    config: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda what: None,
) -> Iterator[Outcome]:
    """Yield the outcome of every archive, after that of the protocol itself.

    Every archive is registered with both engines and asked its samples, predicted, explained and
    as that version, and all that `torchmar.parity.cases` has for a model.

    Args:
        archives: their files.
        between: the engine that is right, and the one that is to be like it.
        protocol: ask what has nothing to do with one archive: tokens, management, metrics.
        corners: ask of every archive more than its samples.
        more: what else to ask, by the name of an archive's file without its suffix.
        config: keys of ``config.properties`` that both engines get.
        tell: called with what is done, for who waits.

    Raises:
        EngineError: an engine does not start.
    """
    with engine_pair(between, config=config, tell=tell) as pair:
        if protocol:
            yield pair.protocol()
        for path in archives:
            yield pair.archive(path, corners=corners, more=(more or {}).get(path.stem, ()))


@contextlib.contextmanager
def engine_pair(
    between: tuple[EngineName, EngineName] = ("torchserve", "builtin"),
    *,
    config: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda what: None,
) -> Iterator[EnginePair]:
    """Run two engines over one model store while the context is open; the arguments are those of `compare`."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torchmar-parity-")))
        store = folder / "store"
        store.mkdir()
        _own_archives(store)
        sides = []
        for number, name in enumerate(between):
            tell(f"starting {engines.TITLES[name]}")
            file = folder / f"{number}.properties"
            file.write_text(properties.show({**_CONFIG, **free_addresses(), **(config or {})}), encoding="utf-8")
            started = stack.enter_context(engines.named(name)(file, store, folder / f"run-{number}"))
            sides.append(EngineClient(started))
        yield EnginePair(sides, store, stack.enter_context(ThreadPoolExecutor(len(sides))), tell)


class EnginePair:
    """Two running engines that get the same requests."""

    def __init__(
        self, sides: Sequence[EngineClient], store: Path, threads: ThreadPoolExecutor, tell: Callable[[str], None]
    ) -> None:
        self._sides, self._store, self._threads, self._tell = sides, store, threads, tell
        self._sent = 0
        self._found: list[Mismatch] = []  # since the last outcome

    def protocol(self) -> Outcome:
        """Compare what has nothing to do with one archive: tokens, management, metrics."""
        filling = Filling("echo", "1.0", b'{"data": [1, 2.5, "three"]}', "application/json")
        self._send(PROTOCOL, _register("echo-1.0.mar"), filling)
        for case in (*_CORNERS, *cases.NOWHERE, *cases.TOKENS, *cases.MANAGEMENT):
            self._send(PROTOCOL, case, filling)
        self._send(PROTOCOL, _unregister(), filling)
        return self._outcome(PROTOCOL)

    def archive(self, path: Path, *, corners: bool = True, more: Sequence[Case] = ()) -> Outcome:
        """Put an archive into the model store and compare how it is registered, answers, and is unregistered.

        Args:
            path: its file or folder.
            corners: send more than its samples.
            more: further requests.
        """
        _into(self._store, path)
        name, version, samples = path.stem, "1.0", list[tuple[Sample, Filling]]()
        with contextlib.suppress(TorchmarError), Archive(path) as opened:  # what servers make of no archive matters
            name, version = opened.manifest.name, opened.manifest.version
            for sample in opened.samples:
                if sample.input is None:
                    filling = Filling(name, version, json.dumps(sample.json_body).encode(), "application/json")
                else:
                    filling = Filling(name, version, opened.read(sample.input), content_type(sample.input))
                samples.append((sample, filling))
        first = samples[0][1] if samples else Filling(name, version, b"{}", "application/json")
        loaded = self._send(name, _register(path.name), first)
        if all(document.status < 300 for document in loaded):
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
        self._tell(f"{of}: {case.name}")
        self._sent += 1
        deadline = time.monotonic() + _PATIENCE
        while True:
            first, second = self._threads.map(lambda side: side.send(case, filling), self._sides)
            found = deviations(f"{of}/{case.name}", first, second, tolerance)
            # Workers report their metrics some time after the response.
            if case.api != "metrics" or not any(map(_unmeant, found)) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self._found += found
        # No request is sent while a worker that died starts again: whether it is answered would be a matter of luck.
        if case.settles or max(first.status, second.status) >= 500 or 0 in (first.status, second.status):
            list(self._threads.map(EngineClient.settle, self._sides))
        return first, second

    def _outcome(self, name: str) -> Outcome:
        found, sent = self._found, self._sent
        self._found, self._sent = [], 0
        outcome = Outcome(name, sent, sent - len({one.case for one in found}))
        for deviation in found:
            if meant := documented(deviation):
                outcome.meant.setdefault(meant.id, []).append(deviation)
            else:
                outcome.different.append(deviation)
        return outcome


def _unmeant(deviation: Mismatch) -> bool:
    return documented(deviation) is None


def _sample(name: str) -> tuple[Case, ...]:
    asked = Case(f"{name}, predicted", "POST", "/predictions/{name}", b"{sample}", cases.SAMPLE)
    return (
        asked,
        replace(asked, name=f"{name}, of this version", path="/predictions/{name}/{version}"),
        replace(asked, name=f"{name}, explained", path="/explanations/{name}"),
    )


def _register(file: str) -> Case:
    path = f"/models?url={file}&initial_workers=1&synchronous=true"
    return Case("load", "POST", path, api="management", settles=True, seconds=180)


def _unregister() -> Case:
    return Case("unload", "DELETE", "/models/{name}/{version}", api="management", settles=True)


def _own_archives(store: Path) -> None:
    """Put the archives that the protocol is tried with into a model store: one that echoes, one that fails."""
    echo = Path(__file__).with_name("echo.py").read_text(encoding="utf-8")
    for name, version, code in (("echo", "1.0", echo), ("echo", "2.0", echo), ("fails", "1.0", _FAILS)):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "handler.py").write_text(code, encoding="utf-8")
            made = recipe.Recipe(name=name, version=version, handler="handler.py")
            archive.pack(archive.collect_members(made, Path(folder)), store / f"{name}-{version}.mar")
    (store / "broken.mar").write_bytes(b"no archive")


def _into(store: Path, path: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, store / path.name)
    else:
        shutil.copy(path, store / path.name)
