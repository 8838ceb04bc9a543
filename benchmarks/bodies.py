"""Time large bodies: tensors of 10 and 50 MB through servers, compared with one copy of the bytes in memory.

The model returns ten numbers of its input, or the whole input, and computes nothing: only the way of the bytes is
measured, from the client's socket to the tensor and back. Bodies are `.npy` files. In every round, each side answers
one request, in turn. The same round copies the same number of bytes once in memory, and sends and
receives them over a socket of a bare process, the minimum for any server. Answers are compared. Ratios
are medians of the rounds' ratios, with an interval that contains the median with a confidence of at least 95 %.
CPU is the time of all threads of a server's processes. Memory is the largest growth of their resident sizes since
the answer to a small request, in multiples of the larger one of request and response.

    scripts/bench bodies [--rounds 20] [--engines builtin torchserve]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import torch
from harness.machine import processor
from harness.processes import cpu_seconds
from harness.rounds import interval
from harness.sides import ROOT
from torch import Tensor, nn

from torchmar import archive, properties, recipe
from torchmar.cli.terminal import show_table, table
from torchmar.engines.addresses import free_addresses
from torchmar.engines.builtin import Builtin
from torchmar.engines.engine import Engine
from torchmar.engines.torchserve import TorchServe

MEGABYTE = 1_000_000
NPY = "application/x-npy"
# As in TorchServe's documentation: a base handler with preprocess and postprocess overridden.
STOCK = """
import io

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class Arrays(BaseHandler):
    def preprocess(self, data):
        return torch.stack([torch.from_numpy(np.load(io.BytesIO(row["body"]))) for row in data]).to(self.device)

    def postprocess(self, output):
        files = []
        for array in output.numpy():
            stream = io.BytesIO()
            np.save(stream, array)
            files.append(stream.getvalue())
        return files
"""
_RECEIVE = 1 << 20
_WARM_UP = 3


class First(nn.Module):
    """A model that returns ten numbers of the input."""

    def forward(self, rows: Tensor) -> Tensor:
        """Return the first ten numbers of each row."""
        return rows[:, :10]


class Same(nn.Module):
    """The input."""

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows."""
        return rows


# By name: the model, megabytes of a request, whether the answer has the same size.
CASES: dict[str, tuple[nn.Module, int, bool]] = {
    "10 MB in": (First(), 10, False),
    "50 MB in": (First(), 50, False),
    "50 MB in and out": (Same(), 50, True),
}
# By key: title, engine, handler.
SIDES: dict[str, tuple[str, Callable[..., Engine], str]] = {
    "builtin": ("torchmar, built in", Builtin, "torchmar_handlers.tensors"),
    "builtin-stock": ("torchmar, TorchServe's handler", Builtin, "stock.py"),
    "torchserve": ("TorchServe", TorchServe, "stock.py"),
}


def main() -> int:
    """Measure each case, and print a table of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help=f"counted rounds; {_WARM_UP} more run first")
    parser.add_argument("--engines", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{processor()}, {cores} cores, Python {platform.python_version()}, load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="bodies-") as folder:
        for number, case in enumerate(options.only):
            home = Path(folder, str(number))
            home.mkdir()
            measure(home, case, options.engines, options.rounds)
    return 0


def measure(home: Path, case: str, engines: list[str], rounds: int) -> None:
    """Measure one case with all sides, and print its table."""
    model, megabytes, answered = CASES[case]
    values = np.random.default_rng(0).random(megabytes * MEGABYTE // 4, np.float32)
    request, expected = npy(values), npy(values if answered else values[:10])
    moved = len(request) + len(expected)
    torch.jit.save(torch.jit.script(model.eval()), home / "model.pt")
    (home / "stock.py").write_text(STOCK)
    with contextlib.ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {"memory": copying(moved)}
        calls["socket"] = stack.enter_context(bare_server(request, expected)).call
        sides: dict[str, Client] = {}
        for key in engines:
            sides[key] = stack.enter_context(served(home / key, SIDES[key], home, request, expected))
            calls[key] = sides[key].call
        took: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(rounds + _WARM_UP):
            for name, call in list(calls.items())[:: -1 if number % 2 else 1]:
                client = sides.get(name)
                spent = cpu_seconds(client.pid) if client else 0.0
                started = time.perf_counter()
                call()
                seconds = time.perf_counter() - started
                if client:
                    client.check()
                if number >= _WARM_UP:
                    took[name].append(seconds)
                    if client:
                        client.cpu += cpu_seconds(client.pid) - spent
        rows = []
        for name, times in took.items():
            title = (
                SIDES[name][0] if name in SIDES else {"memory": "one copy in memory", "socket": "a socket alone"}[name]
            )
            ratios = [" ".join(ratio(times, took[base])) for base in ("memory", "socket")]
            cpu = growth = ""
            if client := sides.get(name):
                cpu = f"{client.cpu / rounds * 1000:.0f}"
                growth = f"{client.growth() / max(len(request), len(expected)):.1f}"
            rows.append((title, f"{statistics.median(times) * 1000:.1f}", *ratios, cpu, growth))
    print(f"\n{case}: {moved / MEGABYTE:.0f} MB in all\n", flush=True)
    head = ("", "ms", "of one copy in memory", "of a socket alone", "CPU ms", "memory")
    show_table(table(head, rows, right=head[1:]))


def ratio(ours: list[float], theirs: list[float]) -> tuple[str, str]:
    """Return the median of the rounds' ratios, and its interval."""
    middle, low, high = interval([one / other for one, other in zip(ours, theirs, strict=True)])
    return f"{middle:.2f} x", f"({low:.2f} to {high:.2f})"


def npy(array: np.ndarray) -> bytes:
    """Return the `.npy` file of an array."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def copying(size: int) -> Callable[[], object]:
    """Return a function that copies this number of bytes in memory; both places have been used before."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    return lambda: np.copyto(target, source)


class Client:
    """A connection that sends one request repeatedly.

    Args:
        address: address of the server.
        path: path of the request.
        request: body of the request.
        expected: body of the expected response.
        pid: root of the server's processes; 0: none are measured.

    Attributes:
        cpu: CPU seconds of the server, which the caller adds.
    """

    def __init__(self, address: tuple[str, int], path: str, request: bytes, expected: bytes, pid: int = 0) -> None:
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._path, self._request, self._expected, self.pid = path, request, expected, pid
        self._answer = bytearray(len(expected) + _RECEIVE)
        self._start = self._before = 0
        self.cpu = 0.0
        if pid:
            self._receive(self._send(npy(np.zeros(10, np.float32))))
            for process in tree(pid):
                Path(f"/proc/{process}/clear_refs").write_text("5")  # the largest size is then the current one
            self._before = sum(size(process, "VmRSS") for process in tree(pid))

    def call(self) -> None:
        """Send the request, and receive the answer."""
        self._send(self._request)
        self._receive(len(self._expected))

    def check(self) -> None:
        """Compare the answer."""
        assert self._answer[self._start : self._start + len(self._expected)] == self._expected, "a wrong answer"

    def growth(self) -> int:
        """Return the largest growth of the server's processes in bytes."""
        return sum(size(process, "VmHWM") for process in tree(self.pid)) - self._before

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _send(self, body: bytes) -> int:
        lines = f"POST {self._path} HTTP/1.1\r\nHost: x\r\nContent-Type: {NPY}\r\nAccept: {NPY}\r\n"
        self._socket.sendall(f"{lines}Content-Length: {len(body)}\r\n\r\n".encode())
        self._socket.sendall(body)
        return len(body)

    def _receive(self, size: int) -> None:
        """Receive a response with a body of ``size`` bytes."""
        view, filled, start = memoryview(self._answer), 0, 0
        while not start or filled < start + size:
            count = self._socket.recv_into(view[filled:])
            assert count, "the server has closed the connection"
            filled += count
            if not start and (end := self._answer.find(b"\r\n\r\n", 0, filled)) >= 0:
                start = end + 4
                assert self._answer.startswith(b"HTTP/1.1 200"), bytes(self._answer[:filled])
        self._start = start


def tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    root = psutil.Process(pid)
    return [process.pid for process in [root, *root.children(recursive=True)]]


def size(pid: int, key: str) -> int:
    """Return a size of a process in bytes, by its name in ``/proc/PID/status``."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


@contextlib.contextmanager
def served(
    folder: Path,
    side: tuple[str, Callable[..., Engine], str],
    home: Path,
    request: bytes,
    expected: bytes,
) -> Iterator[Client]:
    """Serve the model with one worker, and yield a client of the server."""
    _, engine, handler = side
    options = {"handler": {"inputs": [{"name": "rows", "shape": [None]}]}} if "torchmar" in handler else {}
    config = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "responseTimeout": 300, **options}
    document = {"name": "m", "version": "1.0", "handler": handler, "weights": "model.pt", "config": config}
    made = recipe.Recipe.model_validate(document)
    archive.pack(archive.collect_members(made, home), folder / "store" / "m-1.0.mar")
    values = {**properties.read(ROOT / "config.properties").values, **free_addresses()}
    limit = str(2 * len(request))
    values |= {"disable_token_authorization": "true", "max_request_size": limit, "max_response_size": limit}
    values["load_models"] = "m-1.0.mar"
    (folder / "config.properties").write_text(properties.show(values))
    with engine(folder / "config.properties", folder / "store", folder / "run") as running:
        parts = urlsplit(running.server.inference)
        pid = json.loads((folder / "run" / "server.json").read_text())["pid"]
        client = Client((parts.hostname or "", parts.port or 0), "/predictions/m", request, expected, pid)
        with contextlib.closing(client):
            yield client


@contextlib.contextmanager
def bare_server(request: bytes, expected: bytes) -> Iterator[Client]:
    """Run a process that receives the request into one buffer, and sends the answer; yield a client of the process."""
    listener = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(target=_answer, args=(listener, len(request), expected))
    process.start()
    client = Client(listener.getsockname(), "/", request, expected)
    listener.close()
    try:
        yield client
    finally:
        client.close()
        process.join()


def _answer(listener: socket.socket, size: int, body: bytes) -> None:
    connection, _ = listener.accept()
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    buffer = bytearray(size + _RECEIVE)
    view = memoryview(buffer)
    filled = start = 0
    while count := connection.recv_into(view[filled:]):
        filled += count
        if not start:
            start = buffer.find(b"\r\n\r\n", 0, filled) + 4
        if filled == start + size:
            connection.sendall(head)
            connection.sendall(body)
            filled = start = 0


if __name__ == "__main__":
    sys.exit(main())
