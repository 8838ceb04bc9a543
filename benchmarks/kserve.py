"""The layout of KServe's TorchServe runtime: torchmar's server, compared with TorchServe behind KServe's wrapper.

KServe's image runs TorchServe, with a wrapper in Python in front of it. Both sides get the same folder,
``config/config.properties`` and ``model-store/`` with one archive, whose handler is written for TorchServe's envelopes,
with one worker, and the same requests of protocol v1 or v2. The sides take turns; each is started again in each round,
and its answers are compared with the model's before any figure counts. CPU seconds are those of all processes of a
side.

The wrapper is not in any package: ``--wrapper`` names ``kubernetes/kserve/kserve_wrapper`` of a clone of
https://github.com/pytorch/serve. It runs in a separate environment (``tests/oracles/kserve_wrapper.txt``), unchanged
except for its ports.

    scripts/bench kserve --wrapper serve/kubernetes/kserve/kserve_wrapper [--seconds 3] [--rounds 5]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from harness import load
from harness.load import Figures
from harness.machine import processor
from harness.models import JSON, Model
from harness.rounds import interval
from harness.sides import Failed, Running
from torch import nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the environments of the tests

from tests.oracles import python_of  # noqa: E402
from tests.support import torchserve_messages  # noqa: E402
from torchmar import archive, recipe  # noqa: E402
from torchmar.cli.terminal import show_table, table  # noqa: E402
from torchmar.engines import java  # noqa: E402
from torchmar.engines.addresses import free_ports  # noqa: E402

WIDTH = 64
START_SECONDS = 180.0
# A row is one of the instances (v1) or of the inputs (v2); BaseHandler returns a list for each row.
HANDLER = """
import torch
from ts.torch_handler.base_handler import BaseHandler


class Rows(BaseHandler):
    def preprocess(self, data):
        return torch.as_tensor([row["data"] for row in data], device=self.device)
"""
SNAPSHOT = {
    "name": "startup.cfg",
    "modelCount": 1,
    "models": {
        "tiny": {
            "1.0": {
                "defaultVersion": True,
                "marName": "tiny.mar",
                "minWorkers": 1,
                "maxWorkers": 1,
                "batchSize": 1,
                "maxBatchDelay": 1,
                "responseTimeout": 60,
            }
        }
    },
}
SIDES = ("wrapper", "torchserve", "builtin")
TITLES = {
    "wrapper": "TorchServe behind the wrapper",
    "torchserve": "TorchServe alone",
    "builtin": "torchmar, built in",
}


@dataclass
class Wrapped(Running):
    """A server that answers requests of KServe's protocol v1 or v2."""

    protocol: str = "v1"

    def body(self, model: Model, body: bytes) -> bytes:
        """Return a row as a request."""
        if self.protocol == "v1":
            return b'{"instances": [{"data": %s}]}' % body
        return b'{"inputs": [{"name": "rows", "shape": [%d], "datatype": "FP32", "data": %s}]}' % (WIDTH, body)

    def value(self, model: Model, answer: Any) -> Any:
        """Return the row of an answer."""
        return answer["predictions"][0] if self.protocol == "v1" else answer["outputs"][0]["data"]


def main() -> int:
    """Measure, and print the tables; exit 1 if a side failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wrapper", type=Path, help="the folder with the wrapper's __main__.py")
    parser.add_argument("--protocols", nargs="+", choices=("v1", "v2"), default=["v1", "v2"])
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of load, for each figure")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the servers, too
    if not shutil.which("wrk"):
        sys.exit("wrk is missing; apt install wrk (macOS: brew install wrk)")
    sides = [side for side in SIDES if side != "wrapper" or options.wrapper]
    print(f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}, {options.rounds} rounds of ", end="")
    print(f"{options.seconds:g} s; load average {os.getloadavg()[0]:.1f} at the start")
    if not options.wrapper:
        print("Without --wrapper, TorchServe is measured alone, which is less than what KServe runs.")
    with tempfile.TemporaryDirectory(prefix="kserve-") as name:
        folder = Path(name)
        model = tiny(folder)
        for protocol in options.protocols:
            figures: dict[tuple[str, int], list[Figures]] = {}
            for number in range(options.rounds):
                for side in sides if number % 2 else sides[::-1]:
                    with start(side, folder, protocol, options.wrapper) as running:
                        until_right(running, model)
                        load.fire(running, model, 1, 2.0)  # Java compiles functions that are called often
                        for connections in options.connections:
                            figures.setdefault((side, connections), []).append(
                                load.fire(running, model, connections, options.seconds)
                            )
            show(protocol, sides, options.connections, figures)
    print(f"load average {os.getloadavg()[0]:.1f} at the end")
    return 0


def tiny(folder: Path) -> Model:
    """Return a perceptron of 64 features in the layout of KServe."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)).eval().requires_grad_(False)
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, WIDTH)), folder / "tiny.pt")
    (folder / "stock.py").write_text(HANDLER)
    document = {"name": "tiny", "version": "1.0", "weights": "tiny.pt", "handler": "stock.py"}
    made = recipe.Recipe.model_validate(document)
    archive.pack(archive.collect_members(made, folder), folder / "models" / "model-store" / "tiny.mar")
    inputs = [torch.rand(WIDTH).mul(1000).round().div(1000) for _ in range(8)]
    with torch.inference_mode():
        answers = [net(row[None])[0].tolist() for row in inputs]
    bodies = tuple(json.dumps([round(value, 3) for value in row.tolist()]).encode() for row in inputs)
    return Model("tiny", folder / "tiny.pt", {}, JSON, bodies, tuple(answers), _same)


def _same(found: Any, expected: Any) -> bool:
    return len(found) == len(expected) and all(abs(a - b) < 1e-4 for a, b in zip(found, expected, strict=True))


def show(
    protocol: str, sides: Sequence[str], connections: Sequence[int], figures: Mapping[tuple[str, int], list[Figures]]
) -> None:
    """Print the medians of the rounds, and the ratios to torchmar's server, as medians of the rounds' ratios."""
    lines = []
    for count in connections:
        ours = figures["builtin", count]
        for side in sides:
            theirs = figures[side, count]
            ratios = ["", ""]
            if side != "builtin":
                pairs = list(zip(ours, theirs, strict=True))
                rates, cpu_times = [a.rate / b.rate for a, b in pairs], [b.cpu / a.cpu for a, b in pairs]
                ratios = ["{:.1f} ({:.1f} to {:.1f})".format(*interval(values)) for values in (rates, cpu_times)]
            rate, p50, p99, cpu = (statistics.median(values) for values in zip(*map(_columns, theirs), strict=True))
            row = (f"{rate:.0f}", f"{p50 * 1e3:.2f}", f"{p99 * 1e3:.2f}", f"{cpu:.2f}")
            lines.append((str(count), TITLES[side], *row, *ratios))
    headings = ("connections", "server", "requests/s", "p50 ms", "p99 ms", "CPU s / 1000", "our rate", "its CPU")
    print(f"\nprotocol {protocol}: our requests/s as a multiple of its, and its CPU as a multiple of ours")
    show_table(table(headings, lines, right=headings[2:6]))


def _columns(figures: Figures) -> tuple[float, float, float, float]:
    return figures.rate, figures.p50, figures.p99, figures.cpu


def until_right(running: Running, model: Model) -> None:
    """Wait until a server gives the right answers.

    Raises:
        Failed: the server does not give them in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            load.check(running, model, len(model.bodies))
        except (OSError, Failed) as error:
            if (problem := running.ended()) or time.monotonic() > deadline:
                raise Failed(problem or str(error)) from None
            time.sleep(0.2)
        else:
            return


@contextlib.contextmanager
def start(side: str, folder: Path, protocol: str, wrapper: Path | None) -> Iterator[Wrapped]:
    """Start a side with the layout; all of its processes are below one process."""
    with tempfile.TemporaryDirectory(prefix=f"{side}-") as name:
        home, store = Path(name), folder / "models" / "model-store"
        inference, management, metrics, rpc, rpc_management, rest, wrapped_rpc = free_ports(7)
        config = home / "config.properties"
        values = {
            "inference_address": f"http://127.0.0.1:{inference}",
            "management_address": f"http://127.0.0.1:{management}",
            "metrics_address": f"http://127.0.0.1:{metrics}",
            "grpc_inference_port": rpc,
            "grpc_management_port": rpc_management,
            "enable_envvars_config": "true",
            "disable_token_authorization": "true",
            "metrics_mode": "prometheus",
            "job_queue_size": 100,
            "model_store": store,
            "model_snapshot": json.dumps(SNAPSHOT, separators=(",", ":")),
        }
        # The wrapper reads lines, without the escapes of properties files.
        config.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
        environment = {
            **os.environ,
            "JAVA_HOME": str(java.find().executable.parent.parent),
            "TMPDIR": name,  # TorchServe's pid file and sockets, separate from those of other servers
            "TEMP": name,
            "TS_SERVICE_ENVELOPE": {"v1": "kserve", "v2": "kservev2"}[protocol],
            "PROTOCOL_VERSION": protocol,
            "CONFIG_PATH": str(config),
            "MODEL_LOAD_DELAY": "1",
            "MODEL_LOAD_MAX_TRY": "100",
        }
        if side == "builtin":
            environment |= {
                "TS_INFERENCE_ADDRESS": f"http://127.0.0.1:{inference}",
                "TS_MANAGEMENT_ADDRESS": f"http://127.0.0.1:{management}",
                "TS_METRICS_ADDRESS": f"http://127.0.0.1:{metrics}",
                "TS_GRPC_INFERENCE_PORT": str(rpc),
            }
            flags = ["--config", str(config), "--model-store", str(store), "--run-folder", str(home / "run")]
            commands = [[sys.executable, "-m", "torchmar", "serve", "--platform", "kserve", *flags]]
        else:
            flags = ["--foreground", "--ncs", "--model-store", str(store), "--ts-config", str(config)]
            commands = [[sys.executable, "-m", "ts.model_server", "--start", *flags]]
        if side == "wrapper" and wrapper:
            messages = torchserve_messages.write(home / "messages")
            arguments = [ROOT / "tests/oracles/kserve_wrapper.py", wrapper.resolve(), messages, rest, wrapped_rpc]
            commands.append([str(python_of("kserve_wrapper")), *map(str, arguments)])
        port = rest if side == "wrapper" else inference
        path = "/v1/models/tiny:predict" if protocol == "v1" else "/v2/models/tiny/infer"
        with _running(commands, home, environment) as process:
            yield Wrapped(
                process.pid,
                f"http://127.0.0.1:{port}{path}",
                lambda: _ending(process, home / "console.log"),
                protocol=protocol,
            )


@contextlib.contextmanager
def _running(
    commands: Sequence[Sequence[str]], folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    line = " & ".join(map(shlex.join, commands))
    with (folder / "console.log").open("wb") as console:
        process = subprocess.Popen(
            ["sh", "-c", f"{line} & wait"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        tree = psutil.Process(process.pid).children(recursive=True)
        for each in tree:
            with contextlib.suppress(psutil.Error):
                each.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(tree, timeout=3)
        for each in alive:
            with contextlib.suppress(psutil.Error):
                each.kill()
        process.kill()
        process.wait()


def _ending(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the last lines of the log if all servers of a side have ended; empty while one runs."""
    if process.poll() is None:
        return ""
    return "\n".join(["it has ended", *log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]])


if __name__ == "__main__":
    sys.exit(main())
