"""Real applications behind the guard: attacks get 403, people's requests pass, on WSGI, ASGI and Django."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.guarded_requests import AGENT, ATTACKS, NORMAL, check, sender
from tests.support.packing import pack_handler
from tests.support.servers import write_config
from tests.support.wsgi import serving
from torchmar.connection import Endpoint
from torchmar.engines.builtin import Builtin
from torchmar.guard import AsgiGuard, Guard, WsgiGuard

# The middleware is tested, and rules stand for the model.
RULES = """
from urllib.parse import unquote_plus

SIGNS = ("union select", "../..", "; cat ", "<script")

def handle(rows, context):
    if rows is None:
        return None
    texts = [unquote_plus(row["body"]["text"]).lower() for row in rows]
    found = [any(sign in text for sign in SIGNS) for text in texts]
    return [{"attack": 0.99 if one else 0.01, "normal": 0.01 if one else 0.99} for one in found]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Serve the rules as a model."""
    folder = tmp_path_factory.mktemp("guard")
    built = pack_handler(folder / "store", RULES, name="guard")
    with Builtin(write_config(folder), folder / "store", folder / "run") as running:
        running.load(built)
        yield running.server


@pytest.fixture
def guard(model: Endpoint) -> Iterator[Guard]:
    guard = Guard(model, time_limit_s=10, on_failure="block")
    yield guard
    guard.close()


def test_a_wsgi_application(guard: Guard) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return [environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))]

    with serving(WsgiGuard(application, guard)) as port:
        check(sender(port))


def test_a_starlette_application(guard: Guard) -> None:
    uvicorn = pytest.importorskip("uvicorn")
    applications = pytest.importorskip("starlette.applications")
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def echo(request: Request) -> Response:
        return Response(await request.body())

    app = applications.Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST", "PUT"])])
    app.add_middleware(AsgiGuard, guard=guard)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        check(sender(server.servers[0].sockets[0].getsockname()[1]))
    finally:
        server.should_exit = True
        thread.join()


DJANGO = """
import asyncio, json, os, sys
from pathlib import Path
import django
from django.conf import settings
from django.http import HttpResponse
from django.test import AsyncClient, Client
from django.urls import re_path
from torchmar import archive, recipe
from torchmar.connection import Endpoint

def echo(request, path):
    return HttpResponse(request.body)

urlpatterns = [re_path("^(.*)$", echo)]
settings.configure(
    ROOT_URLCONF="__main__",
    ALLOWED_HOSTS=["testserver"],
    MIDDLEWARE=["torchmar.guard.django.GuardMiddleware"],
    TORCHMAR_GUARD={"server": Endpoint.from_run_folder(Path(os.environ["RUN_FOLDER"])), "time_limit_s": 10},
)
django.setup()

def send(client, method, path, data, kind, headers):
    return client.generic(method, path, data, content_type=kind, headers=headers)

async def send_all(rows):
    return [await send(AsyncClient(), *row) for row in rows]

rows = json.load(sys.stdin)
answers = asyncio.run(send_all(rows)) if sys.argv[1] == "async" else [send(Client(), *row) for row in rows]
print(json.dumps([[answer.status_code, answer.content.decode("latin-1")] for answer in answers]))
"""


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_django_project(model: Endpoint, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("django")
    sent = []
    for method, path, arguments in [*ATTACKS.values(), *NORMAL.values()]:
        prepared = requests.Request(method, f"http://testserver{path}", **arguments).prepare()
        body = prepared.body or b""
        data = body if isinstance(body, str) else body.decode("latin-1")
        content_type = prepared.headers.get("Content-Type", "application/octet-stream")
        sent.append([method, prepared.path_url, data, content_type, {"user-agent": AGENT}])
    script = tmp_path / "project.py"
    script.write_text(DJANGO)
    ran = subprocess.run(
        [sys.executable, script, kind],
        input=json.dumps(sent),
        capture_output=True,
        text=True,
        env={**os.environ, "RUN_FOLDER": str(model.key_file.parent if model.key_file else "")},
    )
    assert not ran.returncode, ran.stderr
    answers = json.loads(ran.stdout)
    assert [status for status, _ in answers] == [403] * len(ATTACKS) + [200] * len(NORMAL)


def test_a_threshold_above_the_probability_lets_pass(model: Endpoint) -> None:
    guard = Guard(model, threshold=1.0, time_limit_s=10)
    verdict = guard.check("GET", "/products?id=7", {"user-agent": AGENT})
    guard.close()
    assert not verdict.blocked
    assert verdict.error is None
    assert verdict.probability is not None
    assert verdict.probability < 0.5


def test_another_model_is_a_failure_with_its_name(model: Endpoint) -> None:
    guard = Guard(model, "missing", time_limit_s=10, on_failure="block")
    verdict = guard.check("GET", "/", {})
    guard.close()
    assert (verdict.blocked, verdict.status, verdict.probability) == (True, 503, None)
    assert "missing" in (verdict.error or "")
