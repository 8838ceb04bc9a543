"""Archives of S3, Google Cloud Storage and Azure Blob Storage, from servers that speak these protocols."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.support.cutting_proxy import CuttingProxy
from tests.support.object_stores import (
    BUCKET,
    S3,
    S3_ENVIRONMENT,
    AzureStorage,
    GoogleStorage,
    azure_storage,
    google_storage,
    s3,
)
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar import properties
from torchmar.engines.builtin import Builtin
from torchmar.engines.server_records import ServerRecord
from torchmar.errors import ServerError
from torchmar.grpc import GrpcManagement
from torchmar.server.api_error import ApiError
from torchmar.server.config import reader
from torchmar.server.models import state_file
from torchmar.server.models.archive_cache import ArchiveCache, CachedArchive

pytestmark = pytest.mark.oracle
pytest.importorskip("s3fs")
Make = Callable[..., Path]
ANSWER = "def handle(rows, context):\n    return None if rows is None else ['done'] * len(rows)\n"


class Bench:
    """The archive cache of a server whose folder stays between runs."""

    def __init__(self, folder: Path) -> None:
        self.store, self.folder = folder / "store", folder / "models"
        self.store.mkdir(exist_ok=True)

    def fetch(self, url: str, digest: str = "", **overrides: str) -> CachedArchive:
        values = {"allowed_urls": f"(s3|gs|az)://{BUCKET}/.*", **overrides}
        settings, _ = reader.read(None, {}, model_store=str(self.store), **values)

        async def do() -> CachedArchive:
            cache = ArchiveCache(settings, self.folder)
            try:
                return await cache.fetch(url, digest=digest)
            finally:
                await cache.close()

        return asyncio.run(do())

    def error_of(self, url: str, **overrides: str) -> ApiError:
        with pytest.raises(ApiError) as caught:
            self.fetch(url, **overrides)
        return caught.value

    def written(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3]:
    with s3() as store:
        yield store


@pytest.fixture
def proxy(bucket: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    """A proxy before S3, to which the environment leads."""
    with CuttingProxy(bucket.port).running() as running:
        for name, value in {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{running.port}"}.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def large(make: Make) -> bytes:
    """An archive of more chunks than are downloaded at a time."""
    content = make(ANSWER, disk={"w.bin": os.urandom(20_000_000)}, files={"w.bin": "w.bin"}).read_bytes()
    assert len(content) > 4 * (4 << 20)
    return content


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_an_object_is_registered_although_its_connections_break(
    bench: Bench, bucket: S3, proxy: CuttingProxy, large: bytes
) -> None:
    bucket.put("models/large name.mar", large)
    proxy.cuts = [3_000_000, 1_000_000, 2_000_000]
    assert bench.fetch(f"s3://{BUCKET}/models/large name.mar", digest_of(large)).name == "made"
    assert proxy.cut == 3
    assert b"If-Match: " in proxy.received
    assert not bench.written()


def test_a_part_of_an_object_is_continued_by_the_next_server_if_the_object_is_the_same(
    bench: Bench, bucket: S3, proxy: CuttingProxy, large: bytes, make: Make
) -> None:
    bucket.put("resumed.mar", large)
    url = f"s3://{BUCKET}/resumed.mar"
    # More than all connections together receive before the first range is complete.
    proxy.refuses_after = 18_500_000
    error = bench.error_of(url, torchmar_download_retries="0")
    assert (error.status, error.type) == (400, "DownloadArchiveException")
    (part,) = bench.folder.glob(".part-*/archive")
    kept = part.stat().st_size
    assert 4 << 20 <= kept < len(large)
    assert part.read_bytes() == large[:kept]
    proxy.refuses_after = None
    proxy.received.clear()
    assert bench.fetch(url, digest_of(large)).name == "made"
    assert f"bytes={kept}-".encode() in proxy.received
    assert b"bytes=0-" not in proxy.received

    # More than all connections together receive before the first range is complete.
    proxy.refuses_after = 18_500_000
    bench.error_of(url, torchmar_download_retries="0")
    proxy.refuses_after = None
    bucket.put("resumed.mar", make(name="other").read_bytes())
    assert bench.fetch(url).name == "other"
    assert not bench.written()


def test_an_object_that_was_replaced_is_never_served_from_before(
    bench: Bench, bucket: S3, proxy: CuttingProxy, make: Make
) -> None:
    url = f"s3://{BUCKET}/mutable.mar"
    for name in ("first", "second", "first"):
        bucket.put("mutable.mar", make(name=name).read_bytes())
        assert bench.fetch(url).name == name


def test_an_object_that_changes_while_it_is_downloaded_is_downloaded_again(
    bench: Bench, bucket: S3, proxy: CuttingProxy, large: bytes, make: Make
) -> None:
    bucket.put("changing.mar", large)
    replacements = [make(name="other").read_bytes()]
    passed = proxy._passed

    def change(sent: int, count: int) -> int:
        if sent > 1_000_000 and (content := replacements.pop(0) if replacements else None):
            bucket.put("changing.mar", content)
        return passed(sent, count)

    proxy._passed = change  # type: ignore[method-assign]
    assert bench.fetch(f"s3://{BUCKET}/changing.mar").name == "other"


def test_a_version_of_an_object_is_fetched(bench: Bench, bucket: S3, proxy: CuttingProxy, make: Make) -> None:
    bucket.keep_versions()
    version = bucket.put("versioned.mar", make(name="first").read_bytes())
    bucket.put("versioned.mar", make(name="second").read_bytes())
    assert version
    assert bench.fetch(f"s3://{BUCKET}/versioned.mar?versionId={version}").name == "first"
    assert bench.fetch(f"s3://{BUCKET}/versioned.mar").name == "second"


def test_errors_say_what_is_missing_and_contain_no_key(
    bench: Bench, bucket: S3, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = {"torchmar_download_retries": "0"}
    errors = {
        "there is no such object": bench.error_of(f"s3://{BUCKET}/none.mar", **once),
        "no pattern of allowed_urls matches it": bench.error_of("s3://others/x.mar", **once),
        "write it as s3://BUCKET/NAME": bench.error_of(f"s3://{BUCKET}@other/x.mar", allowed_urls=".*"),
    }
    bucket.put("x.mar", b"junk")
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        error = bench.error_of(f"s3://{BUCKET}/x.mar", **once)
        errors["no credentials that work (NoCredentialsError); the server needs AWS_ACCESS_KEY_ID and"] = error
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "s3fs", None)
        errors["it needs s3fs: pip install 'torchmar[s3]'"] = bench.error_of(f"s3://{BUCKET}/x.mar", **once)
    for text, error in errors.items():
        assert text in error.message
        assert S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] not in error.message
    assert not bench.written()


def test_a_server_loads_registers_and_restores_objects(
    bucket: S3, proxy: CuttingProxy, tmp_path: Path, make: Make
) -> None:
    content = {name: make(ANSWER, name=name).read_bytes() for name in ("loaded", "registered", "called")}
    for name, archive in content.items():
        bucket.put(f"{name}.mar", archive)
    store = tmp_path / "empty"
    store.mkdir()
    urls = {name: f"s3://{BUCKET}/{name}.mar" for name in content}
    config = write_config(
        tmp_path,
        load_models=f"loaded={urls['loaded']}#sha256={digest_of(content['loaded'])}",
        allowed_urls=f"s3://{BUCKET}/.*",
        default_workers_per_model="1",
        disable_token_authorization="true",
        torchmar_state_file=str(tmp_path / "state.json"),
    )
    with Builtin(config, store, tmp_path / "run") as server:
        until(lambda: _predicts(server, "loaded"))
        models = f"{server.server.management}/models"
        wrong = requests.post(models, params={"url": urls["registered"], "digest": f"sha256:{'0' * 64}"})
        assert (wrong.status_code, wrong.json()["type"]) == (400, "InvalidModelException")
        malformed = requests.post(models, params={"url": urls["registered"], "digest": "abc"})
        assert (malformed.status_code, "64 hexadecimal digits" in malformed.text) == (400, True)
        server.management.register(urls["registered"], digest=f"sha256:{digest_of(content['registered'])}")
        with GrpcManagement(server.server) as over_grpc, pytest.raises(ServerError, match="The SHA-256 of the file"):
            over_grpc.register(f"{urls['called']}#sha256={'0' * 64}", initial_workers=1)
        with GrpcManagement(server.server) as over_grpc:
            over_grpc.register(f"{urls['called']}#sha256={digest_of(content['called'])}", initial_workers=1)
        assert {model.url for model in server.management.models()} == set(urls.values())
        record = ServerRecord.find(server.folder)
        assert record
        os.kill(record.pid, signal.SIGKILL)
        until(lambda: not record.alive)
    # With the state that the killed server has left: the digests are compared again.
    bucket.put("registered.mar", content["loaded"])
    state = state_file.read(tmp_path / "state.json", store, properties.read(config))
    assert state
    with Builtin(config, store, tmp_path / "run", overrides=state.overrides) as server:
        report = server.wait_until_loaded(60)
        assert report
        (failure,) = report.failures
        assert f"The SHA-256 of the file {urls['registered']} is {digest_of(content['loaded'])}" in failure.message
        assert _predicts(server, "loaded")
        assert _predicts(server, "called")


def _predicts(server: Builtin, name: str) -> bool:
    return requests.post(f"{server.server.inference}/predictions/{name}", data=b"x").text == "done"


@pytest.fixture(scope="module")
def google() -> Iterator[GoogleStorage]:
    with google_storage() as store:
        yield store


def test_an_object_of_google_is_fetched_and_continued(
    bench: Bench, google: GoogleStorage, large: bytes, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gcsfs")
    google.put("folder/x.mar", large)
    url = f"gs://{BUCKET}/folder/x.mar"
    with CuttingProxy(google.port).running() as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{proxy.port}")
        proxy.cuts = [3_000_000]
        assert bench.fetch(url, digest_of(large)).name == "made"
        assert proxy.cut == 1
        assert "there is no such object" in bench.error_of(f"gs://{BUCKET}/none.mar").message
        google.put("folder/x.mar", make(name="other").read_bytes())
        assert bench.fetch(url).name == "other"
    assert not bench.written()


def test_an_object_of_azure_is_fetched_and_continued(
    bench: Bench, large: bytes, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("adlfs")
    url = f"az://{BUCKET}/folder/x.mar"
    with azure_storage() as azure, CuttingProxy(azure.port).running() as proxy:
        azure.put("folder/x.mar", large)
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azure.connection_string(proxy.port))
        proxy.cuts = [3_000_000]
        assert bench.fetch(url, digest_of(large)).name == "made"
        assert proxy.cut == 1
        error = bench.error_of(f"az://{BUCKET}/none.mar")
        assert "there is no such object" in error.message
        azure.put("folder/x.mar", make(name="other").read_bytes())
        assert bench.fetch(url).name == "other"
        monkeypatch.setenv(
            "AZURE_STORAGE_CONNECTION_STRING", azure.connection_string(proxy.port).replace("Eby8", "AAAA")
        )
        error = bench.error_of(url)
        assert "the server's credentials may not read it" in error.message
        assert "AAAA" not in error.message
    assert not bench.written()


def test_azure_is_asked_once_in_an_attempt(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("adlfs")
    url, once = f"az://{BUCKET}/x.mar", {"torchmar_download_retries": "0"}
    with CuttingProxy(0, refuses_after=0).running() as proxy:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", AzureStorage(0).connection_string(proxy.port))
        assert "in 1 attempt" in bench.error_of(url, **once).message
        assert proxy.connections <= 2  # aiohttp connects twice
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    # Azure's own command is the only source of credentials, and has none.
    command = tmp_path / "bin" / "az"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\necho >> {tmp_path}/asked\nexit 1\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzureCliCredential")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "nobody")
    error = bench.error_of(url, **once)
    assert "no credentials that work (ClientAuthenticationError)" in error.message
    assert "AZURE_STORAGE_CONNECTION_STRING" in error.message
    assert (tmp_path / "asked").read_text() == "\n"
