"""torchmar.server.models.startup keeps a server from being ready, and requests from 404, until models are loaded."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
import requests

from tests.support.command import torchmar
from tests.support.servers import ENGINES, on_both_engines, write_config
from tests.support.startup import OK, OPEN, SECONDS, address, post
from torchmar import properties
from torchmar.engines import EngineName
from torchmar.engines.builtin import Builtin
from torchmar.engines.loading import Loader
from torchmar.errors import ModelFailedError
from torchmar.grpc.wire.inference_pb2 import PredictionResponse, PredictionsRequest
from torchmar.server.api_error import ApiError
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.models import startup

Make = Callable[..., Path]


class Files:
    """A web server that sends files once they are released."""

    def __init__(self) -> None:
        self.released, self.requested = threading.Event(), threading.Event()
        self.content = b""
        files = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                files.requested.set()
                files.released.wait(SECONDS)
                self.send_response(200)
                self.send_header("Content-Length", str(len(files.content)))
                self.end_headers()
                self.wfile.write(files.content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()


@pytest.fixture
def files() -> Iterator[Files]:
    new_files = Files()
    yield new_files
    new_files.close()


@on_both_engines
def test_a_model_that_is_loaded_at_the_start_is_never_404(engine: EngineName, tmp_path: Path, make: Make) -> None:
    archive = make(OK, name="echo")
    config = write_config(tmp_path, load_models=archive.name, **OPEN)
    statuses: set[int] = set()
    over = threading.Event()

    def poll() -> None:
        with requests.Session() as session:
            while not over.is_set() or 200 not in statuses:
                try:
                    answer = session.post(f"{address(config)}/predictions/echo", data=b"x", timeout=SECONDS)
                    statuses.add(answer.status_code)
                except requests.ConnectionError:
                    over.wait(0.005)

    with ThreadPoolExecutor() as threads:
        polling = threads.submit(poll)
        try:
            with ENGINES[engine](config, archive.parent, tmp_path / "run") as server:
                assert server.load(archive).name == "echo"
                over.set()
                polling.result(SECONDS)
        finally:
            over.set()
            statuses.add(200)
    assert statuses <= {200, 503}


def test_until_all_are_loaded_the_server_is_not_ready_and_requests_wait(
    tmp_path: Path, make: Make, files: Files
) -> None:
    archive = make(OK, name="echo")
    files.content = make(OK, name="late").read_bytes()
    (archive.parent / "late-1.0.mar").unlink()
    models = f"late={files.url}/late.mar,{archive.name}"
    urls = f"{files.url}/.*,file://{archive.parent}/.*"
    config = write_config(tmp_path, load_models=models, allowed_urls=urls, **OPEN)
    with Builtin(config, archive.parent, tmp_path / "run"), ThreadPoolExecutor() as threads:
        base, management = address(config), address(config, "management")
        assert files.requested.wait(SECONDS)
        waiting = [threads.submit(post, f"{base}{path}") for path in ("/predictions/late", "/v1/models/late:predict")]
        describing = threads.submit(requests.get, f"{management}/models/late", timeout=SECONDS)
        channel = grpc.insecure_channel(f"127.0.0.1:{properties.read(config).get('grpc_inference_port')}")
        with channel:
            predict = channel.unary_unary(
                "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
                request_serializer=PredictionsRequest.SerializeToString,
                response_deserializer=PredictionResponse.FromString,
            )
            calling = predict.future(PredictionsRequest(model_name="late", input={"data": b"x"}), timeout=SECONDS)
            ping = requests.get(f"{base}/ping", timeout=SECONDS)
            assert (ping.status_code, ping.json()) == (500, {"status": "Unhealthy"})
            assert requests.get(f"{base}/v2/health/ready", timeout=SECONDS).status_code == 503
            ready = requests.get(f"{base}/v2/models/late/ready", timeout=SECONDS)
            assert (ready.status_code, ready.json()) == (503, {"name": "late", "ready": False})
            assert not any(future.done() for future in (*waiting, describing, calling))
            files.released.set()
            assert [future.result(SECONDS).status_code for future in waiting] == [200, 200]
            assert describing.result(SECONDS).status_code == 200
            assert calling.result(timeout=SECONDS).prediction
        until_pinged(base, 200)
        assert post(f"{base}/predictions/missing").status_code == 404


def test_a_model_that_a_client_registers_before_its_turn_at_start_counts_as_loaded(
    tmp_path: Path, make: Make, files: Files
) -> None:
    archive = make(OK, name="echo")
    files.content = make(OK, name="late").read_bytes()
    (archive.parent / "late-1.0.mar").unlink()
    urls = f"{files.url}/.*,file://{archive.parent}/.*"
    models = f"late={files.url}/late.mar,{archive.name}"
    config = write_config(tmp_path, load_models=models, allowed_urls=urls, **OPEN)
    with Builtin(config, archive.parent, tmp_path / "run") as server:
        assert files.requested.wait(SECONDS)
        url = f"{address(config, 'management')}/models?url={archive.name}&initial_workers=1"
        assert requests.post(url, timeout=SECONDS).status_code == 200
        files.released.set()
        report = server.wait_until_loaded(SECONDS)
        assert report
        assert report.failures == ()
        assert requests.get(f"{address(config)}/ping", timeout=SECONDS).json() == {"status": "Healthy"}


def until_pinged(base: str, status: int) -> None:
    over = threading.Event()
    threading.Timer(SECONDS, over.set).start()
    while requests.get(f"{base}/ping", timeout=SECONDS).status_code != status:
        assert not over.wait(0.05)


def test_a_model_that_is_not_loaded_in_time_gets_503_with_retry_after() -> None:
    state = startup.Startup()
    state.begin([StartupModel("late.mar", name="late"), StartupModel("known.mar", name="known")])
    known = ApiError(404, "ModelNotFoundException", "Model not found: other")
    assert state.not_found("other", known) is known  # both names are known, and it is neither
    error = state.not_found("late", known)
    assert (error.status, error.headers) == (503, {"Retry-After": "1"})
    assert 'Model "late" is not loaded yet' in error.message
    assert not asyncio.run(state.wait_for("late", 0.01))
    state.begin([StartupModel("any.mar")])  # whose name its archive has
    assert state.not_found("other", known).status == 503


def test_a_model_that_cannot_be_loaded_is_named_and_keeps_the_server_unhealthy(tmp_path: Path, make: Make) -> None:
    archive = make(OK, name="echo")
    (archive.parent / "torn-1.0.mar").write_bytes(b"PK\x03\x04")
    config = write_config(tmp_path, load_models=f"{archive.name},torn=torn-1.0.mar,none.mar", **OPEN)
    with Builtin(config, archive.parent, tmp_path / "run") as server:
        report = server.wait_until_loaded(SECONDS)
        assert report
        assert [failure.url for failure in report.failures] == ["torn-1.0.mar", "none.mar"]
        base, management = address(config), address(config, "management")
        assert requests.get(f"{base}/ping", timeout=SECONDS).status_code == 500
        assert requests.get(f"{base}/v2/health/ready", timeout=SECONDS).status_code == 503
        assert post(f"{base}/predictions/echo").status_code == 200  # what is there is served all the same
        described = requests.get(f"{management}/models/torn", timeout=SECONDS)
        assert described.status_code == 404
        assert "Model not found: torn; torn-1.0.mar could not be loaded at the start: " in described.json()["message"]
        index = requests.post(f"{base}/v2/repository/index", timeout=SECONDS).json()
        assert {model["name"]: model["state"] for model in index} == {
            "echo": "READY",
            "torn": "UNAVAILABLE",
            "none": "UNAVAILABLE",
        }
        loader = Loader(server.server, server.folder, server.management, model_api=True)
        with pytest.raises(ModelFailedError, match=r"torn-1\.0\.mar could not be loaded at the start"):
            loader.wait_for("torn", "1.0", SECONDS)
        assert requests.delete(f"{management}/models/none", timeout=SECONDS).status_code == 200  # not wanted any more
        assert requests.get(f"{base}/ping", timeout=SECONDS).status_code == 500
        make(OK, name="torn")
        (state,) = json.loads(torchmar("status", "--json", "--run-folder", server.folder, cwd=tmp_path, code=1).stdout)
        assert (state["healthy"], [model.split()[1] for model in state["not_loaded"]]) == (False, ["torn-1.0.mar"])
        registered = requests.post(f"{management}/models?url=torn-1.0.mar&initial_workers=1", timeout=SECONDS)
        assert registered.status_code == 200
        assert requests.get(f"{base}/ping", timeout=SECONDS).json() == {"status": "Healthy"}
        assert torchmar("status", "--run-folder", server.folder, cwd=tmp_path).stderr == ""
