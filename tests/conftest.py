"""Fixtures with real things: weights trained on real digits, archives with them, a real server."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.support import java_options
from tests.support.packing import pack_handler
from tests.support.paths import DIGITS, ROOT, TESTS
from tests.support.preloaded import fork_processes, unforked
from tests.support.preloaded.server import loading_variables
from tests.support.servers import ECHO, ENGINES, write_config
from torchmar import archive, openmp
from torchmar.engines import EngineName, addresses
from torchmar.engines.engine import Engine
from torchmar.engines.torchserve import TorchServe
from torchmar.inference import InferenceClient
from torchmar.worker.process import optional_imports

if TYPE_CHECKING:
    from tests.support.pool_harness import PoolHarness

# TorchServe's base handler, the base of handlers in tests, imports OpenVINO, which takes seconds and sends statistics.
optional_imports.leave_out()
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests of weights load ONNX Runtime in their own process
# Container images often set it; files that users' processes write beside modules must be written in tests, too.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# In a shell's background job, Ctrl-C is ignored, and processes of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# scripts/test --fast generates fewer examples, scripts/test the usual hundred.
settings.register_profile("fast", max_examples=25)

# Each process of pytest-xdist has its own ports, so that none takes a port that another has found free.
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
addresses.PORTS = range(20_000 + _PROCESS % 5 * 2_000, 22_000 + _PROCESS % 5 * 2_000)

#: The folders whose modules wait for processes or compute for seconds.
SLOW_FOLDERS = ("torchserve", "server", "process")


def pytest_configure(config: pytest.Config) -> None:
    """Start the processes that fork others once for all processes of pytest-xdist, in the process that starts these."""
    if getattr(config.option, "numprocesses", None):  # the processes of pytest-xdist have none
        stack = contextlib.ExitStack()
        stack.enter_context(fork_processes())
        config.add_cleanup(stack.close)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without garbage collections, in four fifths of the time: nearly all objects stay.

    Meanwhile, test modules import torch, whose threads wait as briefly as in workers. Processes that tests start do not
    inherit this.
    """
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in openmp.short_wait(os.environ).items():
                patch.setenv(name, value)
            return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Exclude the loaded objects from garbage collections, which otherwise take a twelfth of the time."""
    gc.freeze()


def folder_of(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests by their modules, and mark each by its needs: a server, TorchServe, trained models."""
    _order(items)
    for item in items:
        folder = folder_of(item)
        if folder in SLOW_FOLDERS:
            item.add_marker(folder)
        fixtures = getattr(item, "fixturenames", ())
        if "engine" in fixtures:
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            item.add_marker("torchserve" if parameters.get("engine", TorchServe.name) == TorchServe.name else "server")
        if "weights" in fixtures:
            item.add_marker("train")


def _order(items: list[pytest.Item]) -> None:
    """Spread the modules of each slow folder over the run, and put the fast tests at its end.

    Tests of servers wait most of their time, tests of workers compute: together they use all cores. Modules with
    similar names wait alike, so that a checksum of the path orders those of a folder. The last tests are short, which
    keeps all processes of pytest-xdist busy.
    """
    modules: dict[str, dict[Path, None]] = {}
    for item in items:
        modules.setdefault(folder_of(item), {})[item.path] = None
    places: dict[Path, tuple[bool, float]] = {}
    for folder, paths in modules.items():
        slow = folder in SLOW_FOLDERS
        for number, path in enumerate(sorted(paths, key=_checksum) if slow else paths):
            places[path] = (not slow, number / len(paths))
    items.sort(key=lambda item: places[item.path])


def _checksum(path: Path) -> int:
    return zlib.crc32(path.relative_to(TESTS).as_posix().encode())


@pytest.fixture(scope="session", autouse=True)
def _fork_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let processes that have loaded the necessary packages fork workers, servers, commands and conversions."""
    starts_workers = any(_starts_workers(item) for item in request.session.items)
    with fork_processes(*(("workers",) if starts_workers else ())):
        yield


@pytest.fixture(scope="session", autouse=True)
def _start_java_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make Java start quickly, if there are tests that may start TorchServe."""
    with pytest.MonkeyPatch.context() as patch:
        if any(_starts_workers(item) for item in request.session.items):
            patch.setenv(java_options.VARIABLE, java_options.java_options())
        yield


def _starts_workers(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("process", "server", "torchserve"))


@pytest.fixture(scope="module", autouse=True)
def _start_processes_of_modules(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start workers and servers of modules with the mark ``unforked`` as users start them."""
    before = loading_variables(os.environ)
    with _started(request):
        yield
    # Packages set variables when they are imported. Processes started after that would need seconds of CPU time.
    left = dict(loading_variables(os.environ).items() ^ before.items())
    assert not left, f"set for all tests that follow, whose processes would not be forked: {left}"
    # Imported modules stay. Measurements of load collect all garbage before they begin, which would take seconds.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _start_processes_of_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start workers and servers of a test with the mark ``unforked`` as users start them."""
    with _started(request):
        yield


def _started(request: pytest.FixtureRequest) -> contextlib.AbstractContextManager[None]:
    return unforked() if request.node.get_closest_marker("unforked") else contextlib.nullcontext()


@pytest.fixture(scope="session")
def weights() -> None:
    """Train the models that are not trained yet."""
    subprocess.run([sys.executable, ROOT / "scripts" / "training.py"], check=True)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Path:
    """Return the digits archive, in a separate store."""
    return archive.build(DIGITS, tmp_path_factory.mktemp("store")).path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Return `pack_handler`, with a store for this test unless another is given."""

    def build(code: str = ECHO, *, store: Path | None = None, **keys: Any) -> Path:
        return pack_handler(store or tmp_path / "store", code, **keys)

    return build


@pytest.fixture(scope="module")
def pool_harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolHarness]:
    """Run a fork server and an event loop for pools of workers in the process of the test."""
    from tests.support.pool_harness import PoolHarness
    from torchmar.server.telemetry import logs

    logs.open_in(tmp_path_factory.mktemp("logs"))
    with PoolHarness() as harness:
        yield harness


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> EngineName:
    """Return the engine of the server; a test without `on_both_engines` gets the real TorchServe."""
    name: EngineName = getattr(request, "param", TorchServe.name)
    return name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, digits: Path, engine: EngineName) -> Iterator[Engine]:
    """Run a server with the digits archive; tests may add to its model store."""
    folder = tmp_path_factory.mktemp("server")
    store = folder / "model_store"
    store.mkdir()
    shutil.copy(digits, store)
    with ENGINES[engine](write_config(folder), store, folder / "run") as running:
        running.load(store / digits.name)
        yield running


@pytest.fixture
def client(server: Engine) -> InferenceClient:
    """Return a client of the server."""
    return InferenceClient(server.server)
