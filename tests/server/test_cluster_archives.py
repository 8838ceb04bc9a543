"""Archives on a cluster: from object stores and HTTPS to the front, and from there to each node, once."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.certificates import certify
from tests.support.object_stores import BUCKET, S3_ENVIRONMENT, azure_storage, google_storage, s3
from tests.support.packing import pack_handler
from tests.support.ray_cluster import LOOPBACK, RayCluster, can_hide_folders, ray_cluster, start_front
from tests.support.waiting import until
from torchmar.archive import file_digest
from torchmar.engines.ray import Ray
from torchmar.errors import ServerError

pytestmark = [pytest.mark.oracle, pytest.mark.unforked]
WHERE = """
import os, time

def handle(rows, context):
    time.sleep(0.05)
    folder = context.system_properties["model_dir"]
    with open(os.path.join(folder, "weights.bin"), "rb") as weights:
        size = len(weights.read())
    answer = {"folder": folder, "size": size, "secret": os.environ.get("AWS_SECRET_ACCESS_KEY"), "pid": os.getpid()}
    return None if rows is None else [answer for row in rows]
"""
SIZE = 1_000_000
NAMES = ("loaded", "s3", "gs", "az", "https", "near", "bare")


def pack(store: Path, name: str, size: int = SIZE) -> None:
    replica = {"cpus": 1, "resources": {"without" if name == "bare" else "with": 1}}
    config = {"minWorkers": 1, "maxWorkers": 1, "torchmar": {"replica": replica}}
    files = {"weights.bin": "weights.bin"}
    pack_handler(store, WHERE, name=name, disk={"weights.bin": os.urandom(size)}, config=config, files=files)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("archives") / "store"
    store.mkdir()
    for name in NAMES:
        pack(store, name)
    return store


def digest_of(file: Path) -> str:
    return file_digest.of(file, lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("front")


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders for temporary files of two nodes."""
    return [tmp_path_factory.mktemp("node") for _ in range(2)]


@pytest.fixture(scope="module")
def cluster(folder: Path, temporary: list[Path]) -> Iterator[RayCluster]:
    """A node with the front, one that does not see its folder, and one without torchmar; they have no credentials."""
    if not can_hide_folders():
        pytest.skip("no folder can be hidden from a node here: unshare --mount does not work")
    nodes = [{"num_cpus": 2, "resources": {"with": 9}, "env_vars": {"TMPDIR": str(each)}} for each in temporary]
    without = folder.with_name("without") / "torchmar"
    without.mkdir(parents=True)
    (without / "__init__.py").write_text("raise ImportError('torchmar is not installed here')")
    bare = {"num_cpus": 1, "resources": {"without": 1}, "env_vars": {"PYTHONPATH": str(without.parent)}}
    nodes[1]["hidden"] = str(folder)
    with ray_cluster(*nodes, bare) as running:
        yield running


@pytest.fixture(scope="module")
def urls(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """URLs of the archives; and this process' environment has what the front needs for them."""
    folder = tmp_path_factory.mktemp("site")
    key, certificate = certify(folder)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(store))
    site = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    with contextlib.ExitStack() as stack:
        bucket, google = stack.enter_context(s3()), stack.enter_context(google_storage())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("s3", "loaded"):
            bucket.put(f"{name}.mar", (store / f"{name}-1.0.mar").read_bytes())
        google.put("gs.mar", (store / "gs-1.0.mar").read_bytes())
        values = {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL_S3": bucket.address, "STORAGE_EMULATOR_HOST": google.address}
        for name, value in {**values, **LOOPBACK, "REQUESTS_CA_BUNDLE": str(certificate)}.items():
            patch.setenv(name, value)
        found = {
            "loaded": f"s3://{BUCKET}/loaded.mar",
            "s3": f"s3://{BUCKET}/s3.mar",
            "gs": f"gs://{BUCKET}/gs.mar",
            "https": f"https://127.0.0.1:{site.server_port}/https-1.0.mar",
        }
        if shutil.which("azurite-blob"):
            azure = stack.enter_context(azure_storage())
            azure.put("az.mar", (store / "az-1.0.mar").read_bytes())
            patch.setenv("AZURE_STORAGE_CONNECTION_STRING", azure.connection_string(azure.port))
            found["az"] = f"az://{BUCKET}/az.mar"
        yield found
        site.shutdown()


@pytest.fixture(scope="module")
def server(cluster: RayCluster, folder: Path, store: Path, urls: dict[str, str]) -> Iterator[Ray]:
    keys = {
        "load_models": f"loaded={urls['loaded']}#sha256={digest_of(store / 'loaded-1.0.mar')}",
        "allowed_urls": f"(s3|gs|az)://{BUCKET}/.*,https://127.0.0.1.*",
        "disable_token_authorization": "true",
    }
    with start_front(cluster, folder, store, **keys) as running:
        assert running.wait_until_loaded(120)
        yield running


def answer(server: Ray, name: str) -> dict[str, Any]:
    response = requests.post(f"{server.server.inference}/predictions/{name}", b"", timeout=120)
    assert response.status_code == 200, response.text
    return dict(response.json())


def answers_of(server: Ray, name: str, replicas: int) -> dict[int, dict[str, Any]]:
    """Return an answer of each replica, by its process."""
    answers: dict[int, dict[str, Any]] = {}
    deadline = time.monotonic() + 120
    with ThreadPoolExecutor(4 * replicas) as threads:
        while len(answers) < replicas:
            assert time.monotonic() < deadline, f"{len(answers)} of {replicas} replicas have answered"
            sending = [threads.submit(answer, server, name) for _ in range(4 * replicas)]
            answers |= {each["pid"]: each for each in (request.result() for request in sending)}
    return answers


def test_an_object_that_the_configuration_names_is_served(server: Ray) -> None:
    served = answer(server, "loaded")
    assert served["size"] == SIZE
    assert served["secret"] is None  # the front's credentials do not leave it


@pytest.mark.parametrize("name", ["s3", "gs", "az", "https"])
def test_an_archive_at_a_url_is_registered_if_it_has_the_digest(
    server: Ray, store: Path, urls: dict[str, str], name: str
) -> None:
    if name not in urls:
        pytest.skip("there is no azurite-blob here: npm install -g azurite")
    with pytest.raises(ServerError, match="The SHA-256 of the file") as caught:
        server.management.register(urls[name], digest=f"sha256:{'0' * 64}", timeout=120)
    assert caught.value.status == 400
    assert name not in server.management.names()
    digest = digest_of(store / f"{name}-1.0.mar")
    server.management.register(urls[name], digest=f"sha256:{digest}", timeout=120)
    assert answer(server, name)["size"] == SIZE
    assert server.management.describe(name)[0].url == urls[name]
    server.management.unregister(name)


def test_a_content_gets_to_each_node_once_and_is_removed_with_its_last_replica(
    server: Ray, store: Path, temporary: list[Path]
) -> None:
    def scaled() -> bool:  # when those that have ended have left their room
        with contextlib.suppress(ServerError):
            server.management.scale("near", min_worker=4, max_worker=4, timeout=120)
        return server.management.describe("near")[0].ready == 4

    for name in list(server.management.names()):  # the one that the configuration names
        server.management.unregister(name)
    server.management.register("near-1.0.mar", timeout=120)
    until(scaled, 300)
    before = answers_of(server, "near", 4)
    folders = {served["folder"] for served in before.values()}
    # The first node reads the front's file; the second does not see it, and gets its bytes through Ray.
    assert sorted(Path(each).parents[2] for each in folders) == sorted(temporary)
    # A file that has changed on a node is not served by further replicas.
    (Path(min(folders)) / "weights.bin").write_bytes(b"damaged")
    server.management.scale("near", min_worker=2, max_worker=2, timeout=120)
    until(scaled, 300)
    for pid, served in answers_of(server, "near", 4).items():
        assert served["size"] == SIZE or pid in before
    server.management.unregister("near")
    # The same version with another content, at once.
    pack(store, "near", SIZE + 1)
    server.management.register("near-1.0.mar", timeout=120)
    assert {served["size"] for served in answers_of(server, "near", 1).values()} == {SIZE + 1}
    server.management.unregister("near")
    for each in temporary:
        (root,) = each.glob("torchmar-archives-*")
        until(lambda root=root: not list(root.iterdir()))


def test_a_node_on_which_replicas_cannot_even_start_is_an_error_with_the_reason(server: Ray) -> None:
    with pytest.raises(ServerError, match="torchmar is not installed here"):
        server.management.register("bare-1.0.mar", timeout=180)
    assert "bare" not in server.management.names()
