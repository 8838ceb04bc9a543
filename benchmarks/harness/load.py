"""Load on a server: `wrk` with connections that each send a request after the last answer."""

from __future__ import annotations

import http.client
import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from harness.models import Model
from harness.processes import cpu_seconds
from harness.sides import Failed, Running, Unanswered

_SCRIPT = Path(__file__).with_name("post.lua")


@dataclass(frozen=True)
class Figures:
    """Requests a second, latencies in seconds, and CPU seconds of the server for a thousand requests."""

    rate: float
    p50: float
    p99: float
    cpu: float


def fire(running: Running, model: Model, connections: int, seconds: float) -> Figures:
    """Load a server for some seconds.

    Raises:
        Unanswered: the time ended before the first answer.
        Failed: a request was refused or not answered.
    """
    with tempfile.TemporaryDirectory(prefix="serving-bodies-") as folder:
        arguments = [f"H:{name}={value}" for name, value in running.headers(model).items()]
        for index, body in enumerate(model.bodies):
            file = Path(folder, str(index))
            file.write_bytes(running.body(model, body))
            arguments.append(f"F:{file}")
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "60s", "-s", str(_SCRIPT)]
        before = cpu_seconds(running.pid)
        process = subprocess.run([*command, running.url, "--", *arguments], capture_output=True, text=True)
        spent = cpu_seconds(running.pid) - before
    last = process.stdout.strip().rpartition("\n")[2]
    if process.returncode or not last.startswith("{"):
        raise Failed(f"wrk: {(process.stderr or process.stdout).strip()}")
    counts = json.loads(last)
    if counts["refused"] or counts["broken"] or not counts["requests"]:
        raise (Failed if counts["refused"] or counts["broken"] else Unanswered)(
            f"{counts['requests']} requests of {connections} connections, {counts['refused']} refused, "
            f"{counts['broken']} not answered"
        )
    return Figures(
        rate=counts["requests"] / counts["microseconds"] * 1e6,
        p50=counts["p50"] / 1e6,
        p99=counts["p99"] / 1e6,
        cpu=spent / counts["requests"] * 1000,
    )


def check(running: Running, model: Model, count: int = 4) -> None:
    """Send requests to a server, and compare its answers.

    Raises:
        Failed: an answer is wrong.
        OSError: the server does not listen.
    """
    parts = urlsplit(running.url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=120)
    try:
        for body, expected in list(zip(model.bodies, model.expected, strict=True))[:count]:
            status, answer = _post(connection, parts.path, running.body(model, body), running.headers(model))
            if status != 200:
                raise Failed(f"{status} in place of an answer: {answer[:300].decode('utf-8', 'replace')}")
            found = running.value(model, json.loads(answer))
            if not model.same(found, expected):
                raise Failed(f"a wrong answer: {str(found)[:200]} in place of {str(expected)[:200]}")
    finally:
        connection.close()


def _post(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[int, bytes]:
    try:
        connection.request("POST", path, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
