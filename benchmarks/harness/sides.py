"""The servers that are compared: each starts with one model and defines the request for it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil

from harness.models import BATCH, DELAY, JPEG, Model
from torchmar import properties
from torchmar.connection import Endpoint
from torchmar.engines import java
from torchmar.engines.addresses import free_addresses, free_ports
from torchmar.engines.engine import Engine
from torchmar.engines.server_records import MAIN_CLASS
from torchmar.management import ManagementClient

ROOT = Path(__file__).parent.parent.parent
_COMPETITORS = Path(__file__).with_name("competitors")
_BOUNDARY = "one-file-and-nothing-else"


class Failed(Exception):
    """A side does not start, or does not answer correctly."""


class Unanswered(Failed):
    """A server has answered none of its requests in time."""


@dataclass
class Running:
    """A server that runs.

    Attributes:
        pid: root of its processes.
        url: address of the requests.
        ended: function that returns the reason if the server has ended by itself, and an empty text while it runs.
        list_of: key for JSON as a list of instances; empty: JSON is sent unchanged.
        field: field of a form for an image; empty: images are sent unchanged.
        management: management API, if it is TorchServe's.
    """

    pid: int
    url: str
    ended: Callable[[], str] = lambda: ""
    list_of: str = ""
    field: str = ""
    management: ManagementClient | None = None

    def headers(self, model: Model) -> dict[str, str]:
        """Return the headers of a request."""
        form = self.field and model.content_type == JPEG
        content_type = f"multipart/form-data; boundary={_BOUNDARY}" if form else model.content_type
        return {"Content-Type": content_type, **model.headers}

    def body(self, model: Model, body: bytes) -> bytes:
        """Return a request in the form of this server."""
        if model.content_type != JPEG:
            return b'{"%s": [%s]}' % (self.list_of.encode(), body) if self.list_of else body
        if not self.field:
            return body
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{self.field}"; filename="image.jpg"\r\n'
        return f"{head}Content-Type: {JPEG}\r\n\r\n".encode() + body + f"\r\n--{_BOUNDARY}--\r\n".encode()

    def value(self, model: Model, answer: Any) -> Any:
        """Return the model's answer to a request, without the server's envelope."""
        if model.explain:
            return answer["attributions"] if isinstance(answer, dict) else answer
        return answer[0] if self.list_of else answer


class Side(ABC):
    """A server to be compared.

    Attributes:
        key: its name on the command line.
        title: its name in tables.
        managed: whether models are registered and scaled while it runs.
        only_load: whether the side is measured for its throughput alone.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    managed: ClassVar[bool] = True
    only_load: ClassVar[bool] = False

    @abstractmethod
    def start(
        self, model: Model, *, workers: int = 1, empty: bool = False
    ) -> contextlib.AbstractContextManager[Running]:
        """Start a server; it may not answer yet.

        Args:
            model: model to serve.
            workers: number of workers; always one on a managed side, which is scaled later.
            empty: whether to start without the model, which is registered later.
        """

    def missing(self) -> str:
        """Return the reason why this side cannot be measured here; empty: it can."""
        return ""


class Shipped(Side):
    """TorchServe as pip installs it: its script, its logging, its defaults, the handlers of its documentation."""

    key, title, store = "torchserve", "TorchServe as shipped", "bare"

    @contextlib.contextmanager
    def start(self, model: Model, *, workers: int = 1, empty: bool = False) -> Iterator[Running]:
        """Start ``torchserve --foreground``; tokens are off and the model API is open."""
        with tempfile.TemporaryDirectory(prefix="torchserve-") as home:
            folder = Path(home)
            addresses = free_addresses()
            values = {**addresses, "disable_token_authorization": "true", "enable_model_api": "true"}
            (folder / "config.properties").write_text(properties.show(values))
            command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--model-store"]
            command += [str(model.stores[self.store]), "--ts-config", "config.properties"]
            command += [] if empty else ["--models", model.file]
            environment = {
                **os.environ,
                "JAVA_HOME": str(java.find().executable.parent.parent),
                # Its pid file and the sockets of its workers, separate from those of other servers.
                "TMPDIR": home,
                "TEMP": home,
            }
            with _process(command, folder, environment) as (process, ended):
                server = Endpoint(
                    inference=addresses["inference_address"], management=addresses["management_address"], tokens={}
                )
                if empty:
                    _wait_for_port(addresses["management_address"], ended)
                pid = _java(process.pid, ended)
                yield Running(pid, _url(server.inference, model), ended, management=ManagementClient(server))


class Batching(Shipped):
    """TorchServe as shipped, with an archive configured like those of the other sides: one worker, batches."""

    key, title, store = "torchserve-batches", f"TorchServe, batches of {BATCH}", "stock"


class Ours(Side):
    """A server by one of torchmar's engines, with torchmar's handlers and ``config.properties``."""

    engine: ClassVar[Callable[..., Engine]]
    store: ClassVar[str] = "ours"
    settings: ClassVar[Mapping[str, str]] = {}

    @contextlib.contextmanager
    def start(self, model: Model, *, workers: int = 1, empty: bool = False) -> Iterator[Running]:
        """Start the engine as ``torchmar serve`` does, with tokens off."""
        with tempfile.TemporaryDirectory(prefix=f"{self.key}-") as home:
            folder = Path(home)
            values = {**properties.read(ROOT / "config.properties").values, **free_addresses()}
            values |= {"disable_token_authorization": "true", **self.settings}
            if not empty:
                values["load_models"] = model.file
            (folder / "config.properties").write_text(properties.show(values))
            with self.engine(folder / "config.properties", model.stores[self.store], folder / "run") as engine:
                record = json.loads((folder / "run" / "server.json").read_text())
                process = psutil.Process(record["pid"])
                yield Running(
                    process.pid,
                    _url(engine.server.inference, model),
                    lambda: "" if process.is_running() else "the server has ended",
                    management=engine.management,
                )


class Tuned(Ours):
    """TorchServe with torchmar's profile and handlers."""

    key, title = "tuned", "TorchServe by torchmar"

    @staticmethod
    def engine(*arguments: Any) -> Engine:
        """Return TorchServe, not started."""
        from torchmar.engines.torchserve import TorchServe

        return TorchServe(*arguments)


class Builtin(Ours):
    """The built-in server."""

    key, title = "builtin", "torchmar, built in"

    @staticmethod
    def engine(*arguments: Any) -> Engine:
        """Return torchmar's server, not started."""
        from torchmar.engines.builtin import Builtin as Server

        return Server(*arguments)

    def missing(self) -> str:
        """Return the reason why this version of torchmar has no server; empty: it has one."""
        completed = subprocess.run([sys.executable, "-m", "torchmar.server", "--help"], capture_output=True, text=True)
        return (
            f"python -m torchmar.server: {completed.stderr.strip().rpartition(chr(10))[2]}"
            if completed.returncode
            else ""
        )


class BuiltinStock(Builtin):
    """torchmar's server with TorchServe's handlers, which separates the server's share from the handler's."""

    key, title, store, only_load = "builtin-stock", "torchmar, TorchServe's handler", "stock", True


class Competitor(Side):
    """A service written for another framework, in ``competitors/KEY_service.py``.

    Args:
        python: interpreter of an environment that may have the framework.
    """

    managed = False
    path = "/predict"
    list_of = field = ""

    def __init__(self, python: Path) -> None:
        self.python = python

    def missing(self) -> str:
        """Return the reason if the framework is not installed; empty: it is."""
        completed = subprocess.run([self.python, "-c", f"import {self.module}"], capture_output=True, text=True)
        last = completed.stderr.strip().rpartition("\n")[2]
        return f"{self.title} is not installed for {self.python}: {last}" if completed.returncode else ""

    @property
    def module(self) -> str:
        """The module to import to see whether the framework is installed."""
        return self.key

    def command(self, port: int) -> list[str]:
        """Return the command line that starts the service."""
        return [str(self.python), str(_COMPETITORS / f"{self.key}_service.py")]

    def environment(self, port: int, folder: Path) -> Mapping[str, str]:
        """Return the variables of the environment that the framework needs."""
        return {}

    @contextlib.contextmanager
    def start(self, model: Model, *, workers: int = 1, empty: bool = False) -> Iterator[Running]:
        """Start the service."""
        port = free_ports(1)[0]
        with tempfile.TemporaryDirectory(prefix=f"{self.key}-") as home:
            environment = {
                **os.environ,
                "SERVE_MODEL": model.name,
                "SERVE_FILE": str(model.weights),
                "SERVE_WORKERS": str(workers),
                "SERVE_BATCH": str(BATCH),
                "SERVE_DELAY": str(DELAY),
                "SERVE_PORT": str(port),
                "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
                **self.environment(port, Path(home)),
            }
            with _process(self.command(port), Path(home), environment) as (process, ended):
                yield Running(
                    process.pid,
                    f"http://127.0.0.1:{port}{self.path_of(model)}",
                    ended,
                    list_of=self.list_of,
                    field=self.field,
                )

    def path_of(self, model: Model) -> str:
        """Return the path of a model's requests."""
        return self.path


class Mosec(Competitor):
    """mosec: HTTP and batching in Rust, workers in Python."""

    key, title, path = "mosec", "mosec, by hand", "/inference"

    def environment(self, port: int, folder: Path) -> Mapping[str, str]:
        """Return mosec's settings, with the same time limit for a request as on the other sides."""
        return {"MOSEC_PORT": str(port), "MOSEC_ADDRESS": "127.0.0.1", "MOSEC_TIMEOUT": "60000"}


class LitServe(Competitor):
    """LitServe: FastAPI, and workers behind queues."""

    key, title, field = "litserve", "LitServe", "image"


class RayServe(Competitor):
    """Ray Serve: a proxy, and replicas as actors."""

    key, title = "ray", "Ray Serve"

    @property
    def module(self) -> str:
        """The module of Ray Serve, because Ray may be installed without Serve."""
        return "ray.serve"

    def environment(self, port: int, folder: Path) -> Mapping[str, str]:
        """Return Ray's settings: no usage statistics are sent, and its files are in the temporary folder."""
        return {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder), "PYTHONPATH": str(_COMPETITORS)}


class BentoML(Competitor):
    """BentoML: a server per service, with adaptive batching; a request is itself a batch."""

    key, title, list_of, field = "bentoml", "BentoML", "rows", "images"

    def command(self, port: int) -> list[str]:
        """Return ``bentoml serve``."""
        place = ["--working-dir", str(_COMPETITORS), "--host", "127.0.0.1", "--port", str(port)]
        return [str(self.python), "-m", "bentoml", "serve", "bentoml_service:Model", *place]

    def environment(self, port: int, folder: Path) -> Mapping[str, str]:
        """Return BentoML's settings: no usage statistics are sent, and its files are in the temporary folder."""
        return {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder)}

    def path_of(self, model: Model) -> str:
        """Return the method for the model's input."""
        return "/classify" if model.content_type == JPEG else "/predict"


TORCHSERVES: tuple[type[Side], ...] = (Shipped, Batching, Tuned, Builtin, BuiltinStock)
COMPETITORS: tuple[type[Competitor], ...] = (Mosec, LitServe, RayServe, BentoML)


@contextlib.contextmanager
def _process(
    command: list[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Run a command, with its output in a file; end it with all processes that it started."""
    log = folder / "console.log"
    with log.open("wb") as console:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ended() -> str:
        if process.poll() is None:
            return ""
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        return "\n".join([f"it ended with exit code {process.returncode}", *lines])

    try:
        yield process, ended
    finally:
        # Some leave their process group: all processes that they started are found by the tree.
        tree: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            tree = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for child in tree:
            with contextlib.suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(tree, 10)


def _java(script: int, ended: Callable[[], str]) -> int:
    """Return TorchServe's own process: the script that starts it only waits, and need not be running."""
    while not (problem := ended()):
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(script).children():
                if MAIN_CLASS in process.cmdline():
                    return process.pid
        time.sleep(0.01)
    raise Failed(problem)


def _url(inference: str, model: Model) -> str:
    return f"{inference}/{'explanations' if model.explain else 'predictions'}/{model.name}"


def _wait_for_port(address: str, ended: Callable[[], str], seconds: float = 60) -> None:
    host, _, port = address.rpartition("/")[2].partition(":")
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        if problem := ended():
            raise Failed(problem)
        if time.monotonic() > deadline:
            raise Failed(f"no server listens at {address} after {seconds:.0f} s")
        time.sleep(0.02)


def environment_of_competitors(folder: Path) -> Path:
    """Return the Python of an environment with the frameworks that can be installed; it is made if it is missing."""
    import venv

    python = folder / "bin" / "python"
    if not python.is_file():
        print(f"making {folder} for the other frameworks (some minutes, once)", file=sys.stderr)
        venv.create(folder, with_pip=True)
        import torch

        wanted = [f"torch=={torch.__version__.partition('+')[0]} numpy pillow orjson"]
        for packages in [*wanted, "mosec", "litserve", "ray[serve]", "bentoml"]:
            command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages.split()]
            completed = subprocess.run(command, capture_output=True, text=True)
            if completed.returncode:
                print(f"{packages}: {completed.stderr.strip().rpartition(chr(10))[2]}", file=sys.stderr)
    if not python.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        raise Failed(f"{folder} could not be made")
    return python
