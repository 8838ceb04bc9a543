"""torchmar.server.models.download continues what broke off, and compares digests before an archive is opened."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.file_server import FileServer
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar.engines.builtin import Builtin
from torchmar.engines.server_records import ServerRecord
from torchmar.server.api_error import ApiError
from torchmar.server.config import reader
from torchmar.server.models import download
from torchmar.server.models.archive_cache import ArchiveCache, CachedArchive
from torchmar.server.telemetry import logs

Make = Callable[..., Path]


class Bench:
    """A server's archive cache, whose files stay between runs as in a run folder."""

    def __init__(self, folder: Path) -> None:
        self.store, self.folder = folder / "store", folder / "models"
        self.store.mkdir(exist_ok=True)

    def run(self, work: Callable[[ArchiveCache], Any], **overrides: str) -> Any:
        values = {"allowed_urls": "http://127.0.0.1.*", **overrides}
        settings, _ = reader.read(None, {}, model_store=str(self.store), **values)

        async def do() -> Any:
            cache = ArchiveCache(settings, self.folder)
            try:
                return await work(cache)
            finally:
                await cache.close()

        return asyncio.run(do())

    def fetch(self, url: str, digest: str = "", **overrides: str) -> CachedArchive:
        return self.run(lambda cache: cache.fetch(url, digest=digest), **overrides)

    def error_of(self, url: str, digest: str = "", **overrides: str) -> ApiError:
        with pytest.raises(ApiError) as caught:
            self.fetch(url, digest, **overrides)
        return caught.value

    def written(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*"))

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob(".part-*/archive"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def server(make: Make) -> Iterator[FileServer]:
    path = make(disk={"weights.bin": os.urandom(300_000)}, files={"weights.bin": "weights.bin"})
    with FileServer(path.read_bytes()).serving() as serving:
        yield serving


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_download_continues_where_its_connection_broke(bench: Bench, server: FileServer) -> None:
    server.breaks = [100_000, 50_000]
    assert bench.fetch(f"{server.address}/x.mar", digest_of(server.content)).name == "made"
    assert server.requested == ["", "bytes=99999-", "bytes=149998-"]
    assert not bench.written()


def test_a_download_that_broke_off_continues_in_the_next_server(bench: Bench, server: FileServer) -> None:
    server.breaks = [100_000]
    error = bench.error_of(f"{server.address}/x.mar", torchmar_download_retries="0")
    assert (error.status, error.type) == (400, "DownloadArchiveException")
    assert "100.0 kB are kept" in error.message
    (part,) = bench.parts()
    assert part.read_bytes() == server.content[:100_000]
    assert bench.fetch(f"{server.address}/x.mar", digest_of(server.content)).name == "made"
    assert server.requested == ["", "bytes=99999-"]
    assert not bench.written()


def test_a_part_of_another_file_is_not_continued(bench: Bench, server: FileServer, make: Make) -> None:
    server.breaks = [100_000]
    bench.error_of(f"{server.address}/x.mar", torchmar_download_retries="0")
    server.content = make(name="other").read_bytes()
    assert bench.fetch(f"{server.address}/x.mar").name == "other"
    # Another URL is another file, even with the same ETag.
    server.breaks, server.etag = [10], '"same"'
    bench.error_of(f"{server.address}/y.mar", torchmar_download_retries="0")
    server.requested.clear()
    assert bench.fetch(f"{server.address}/x.mar").name == "other"
    assert server.requested == [""]


def test_a_file_that_changes_while_it_is_downloaded_is_downloaded_again(
    bench: Bench, server: FileServer, make: Make
) -> None:
    other = make(name="other").read_bytes()
    server.breaks = [100_000]
    answer = server.answer

    def change(request: Any) -> None:
        answer(request)
        server.content = other

    server.answer = change  # type: ignore[method-assign]
    assert bench.fetch(f"{server.address}/x.mar").name == "other"


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_proof_that_a_file_is_the_same_it_is_downloaded_from_its_beginning(
    bench: Bench, server: FileServer, etag: str
) -> None:
    server.etag, server.breaks = etag, [100_000]
    assert bench.fetch(f"{server.address}/x.mar", digest_of(server.content)).name == "made"
    assert server.requested == ["", ""]
    server.breaks = [100_000]
    bench.error_of(f"{server.address}/x.mar", torchmar_download_retries="0")
    assert not bench.written()


def test_a_server_without_range_requests_sends_the_whole_file_again(bench: Bench, server: FileServer) -> None:
    server.ranges, server.breaks = False, [100_000]
    assert bench.fetch(f"{server.address}/x.mar", digest_of(server.content)).name == "made"
    assert server.requested == ["", "bytes=99999-"]


def test_temporary_statuses_are_tried_again_and_others_are_not(bench: Bench, server: FileServer) -> None:
    server.statuses = [503, 429]
    assert bench.fetch(f"{server.address}/x.mar").name == "made"
    server.statuses, server.requested = [403], []
    assert "HTTP 403" in bench.error_of(f"{server.address}/x.mar").message
    assert len(server.requested) == 1
    server.statuses = [503, 503]
    assert "HTTP 503, in 2 attempts" in bench.error_of(f"{server.address}/x.mar", torchmar_download_retries="1").message


def test_a_file_with_another_digest_is_not_opened(bench: Bench, make: Make) -> None:
    # Not an archive at all, which would be the error if it was opened.
    (bench.store / "junk.mar").write_bytes(b"no zip at all")
    other = digest_of(b"something else")
    with FileServer(b"no zip at all").serving() as server:
        for url in ("junk.mar", f"file://{bench.store}/junk.mar", f"{server.address}/x.mar"):
            error = bench.error_of(url, other, allowed_urls=".*")
            assert (error.status, error.type) == (400, "InvalidModelException")
            assert f"The SHA-256 of the file {url} is {digest_of(b'no zip at all')}" in error.message
            assert not bench.written()
    (bench.store / "folder" / "MAR-INF").mkdir(parents=True)
    assert "a folder" in bench.error_of("folder", other).message
    path = make(store=bench.store)
    fetched = bench.fetch(path.name, digest_of(path.read_bytes()))
    assert (fetched.name, fetched.digest) == ("made", digest_of(path.read_bytes()))


def test_a_part_that_was_changed_on_the_disk_does_not_pass_its_digest(bench: Bench, server: FileServer) -> None:
    server.breaks = [100_000]
    digest = digest_of(server.content)
    bench.error_of(f"{server.address}/x.mar", digest, torchmar_download_retries="0")
    (part,) = bench.parts()
    part.write_bytes(b"x" * 100_000)
    assert "The SHA-256" in bench.error_of(f"{server.address}/x.mar", digest).message
    assert not bench.written()
    assert bench.fetch(f"{server.address}/x.mar", digest).name == "made"


def test_no_signature_is_logged_or_sent(bench: Bench, server: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    url = f"{server.address}/x.mar?X-Amz-Signature=topsecret&a=b"
    with caplog.at_level("INFO", logs.SERVER.name):
        logs.SERVER.propagate = True
        try:
            server.breaks = [1000]
            bench.fetch(url)
            server.statuses = [403]
            errors = [bench.error_of(url), bench.error_of(url, "0" * 64), bench.error_of(url, allowed_urls="s3://.*")]
            server.content = b"junk"
            errors.append(bench.error_of(url))
            errors.append(bench.error_of(url.replace("//", "//user:topsecret@"), allowed_urls=".*"))
            server.breaks = [1]
            errors.append(bench.error_of(url, torchmar_download_retries="0"))
        finally:
            logs.SERVER.propagate = False
    assert f"{server.address}/x.mar?..." in caplog.text
    assert "topsecret" not in caplog.text
    assert all("topsecret" not in error.message and "x.mar?..." in error.message for error in errors)


def test_two_downloads_of_one_url_do_not_disturb_each_other(bench: Bench, server: FileServer) -> None:
    server.breaks = [100_000, 50_000]
    url, digest = f"{server.address}/x.mar", digest_of(server.content)

    async def work(cache: ArchiveCache) -> list[CachedArchive]:
        return await asyncio.gather(*(cache.fetch(url, digest=digest) for _ in range(3)))

    assert [archive.name for archive in bench.run(work)] == ["made"] * 3


def test_only_the_newest_downloads_that_broke_off_are_kept_for_a_day(bench: Bench, server: FileServer) -> None:
    for number in range(6):
        server.breaks = [100_000]
        bench.error_of(f"{server.address}/{number}.mar", torchmar_download_retries="0")
    assert len(bench.parts()) == 4

    async def work(cache: ArchiveCache) -> None:
        """Only start and end."""

    bench.run(work)
    first, *_ = bench.parts()
    long_ago = time.time() - 25 * 3600
    os.utime(first.parent, (long_ago, long_ago))
    bench.run(work)
    assert first not in bench.parts()
    assert len(bench.parts()) == 3


def test_a_download_that_the_end_of_a_server_interrupts_continues_in_the_next_one(
    bench: Bench, server: FileServer, tmp_path: Path
) -> None:
    server.pause_s = 0.1
    for archive in bench.store.iterdir():
        archive.unlink()
    config = write_config(
        tmp_path,
        load_models=f"{server.address}/x.mar#sha256={digest_of(server.content)}",
        allowed_urls=f"{server.address}/.*",
        default_workers_per_model="1",
        disable_token_authorization="true",
    )
    parts = tmp_path / "run" / "models"
    with Builtin(config, bench.store, tmp_path / "run") as running:
        until(lambda: any(path.stat().st_size for path in parts.glob(".part-*/archive")))
        base = running.server.inference
        # The loop is not blocked meanwhile.
        assert requests.get(f"{base}/v2/health/live").status_code == 200
        assert requests.get(f"{base}/v2/health/ready").status_code == 503
        (download,) = running.management.downloads()
        assert (download.url, download.size) == (f"{server.address}/x.mar", len(server.content))
        assert 0 < download.received < len(server.content)
    (part,) = parts.glob(".part-*/archive")
    kept = part.stat().st_size
    assert 0 < kept < len(server.content)
    server.pause_s = 0
    with Builtin(config, bench.store, tmp_path / "run") as running:
        until(lambda: requests.get(f"{running.server.inference}/v2/health/ready").status_code == 200)
        assert running.management.downloads() == []
    assert server.requested == ["", f"bytes={kept - 1}-"]


def test_a_download_that_trickles_is_ended_and_can_be_continued(
    bench: Bench, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_RATE_SECONDS", 0.2)
    server.part, server.pause_s = 1, 0.01
    error = bench.error_of(f"{server.address}/x.mar")
    assert error.status == 400
    assert "less than 1000 bytes a second arrive; " in error.message and "are kept" in error.message
    (part,) = bench.parts()
    kept = part.stat().st_size
    server.pause_s = 0
    bench.fetch(f"{server.address}/x.mar")
    assert server.requested == ["", f"bytes={kept - 1}-"]


def test_a_connection_on_which_nothing_arrives_does_not_delay_the_end_of_a_server(
    bench: Bench, server: FileServer, tmp_path: Path
) -> None:
    server.stalls = threading.Event()
    url = f"{server.address}/x.mar"
    config = write_config(
        tmp_path,
        load_models=f"slow={url}",
        allowed_urls=f"{server.address}/.*",
        enable_model_api="true",
        disable_token_authorization="true",
    )
    try:
        with Builtin(config, bench.store, tmp_path / "run") as running, ThreadPoolExecutor(1) as threads:
            models = f"{running.server.management}/models"
            registering = threads.submit(requests.post, models, params={"url": url})
            until(lambda: registering.done() or len(running.management.downloads()) == 2)
            assert not registering.done(), registering.result().text
            record = ServerRecord.find(running.folder)
            assert record
            os.kill(record.pid, signal.SIGTERM)
            answer = registering.result()
            until(lambda: not record.alive)
            # It has ended, and neither connection has failed until now.
            assert len(server.requested) == 2
    finally:
        server.stalls.set()
    assert answer.status_code == 400
    assert "(the server is stopping)" in answer.json()["message"]
    assert "broke off" not in (tmp_path / "run" / "logs" / "server.log").read_text()
