"""torchmar.server.models.archive_cache brings the archive of a registration to disk, to a folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import ECHO, KilledTorchServe, write_config
from tests.support.wheels import write_wheel
from torchmar.archive import Archive
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import ServerError
from torchmar.server.api_error import ApiError
from torchmar.server.config import reader
from torchmar.server.models.archive_cache import ArchiveCache, CachedArchive

Make = Callable[..., Path]


class Bench:
    """A model store and the sources over it; each test runs a loop of its own."""

    def __init__(self, folder: Path) -> None:
        self.store, self.folder = folder / "store", folder / "models"
        self.store.mkdir(exist_ok=True)

    def run(self, work: Callable[[ArchiveCache], Any], **overrides: str) -> Any:
        """Run a coroutine function of the sources, close them, and return its result."""
        configured, _ = reader.read(None, {}, model_store=str(self.store), **overrides)

        async def do() -> Any:
            sources = ArchiveCache(configured, self.folder)
            try:
                return await work(sources)
            finally:
                await sources.close()

        return asyncio.run(do())

    def fetch(self, url: str, **overrides: str) -> CachedArchive:
        """Fetch an archive and release it."""
        return self.run(lambda sources: sources.fetch(url), **overrides)

    def error_of(self, url: str, **overrides: str) -> ApiError:
        with pytest.raises(ApiError) as caught:
            self.fetch(url, **overrides)
        assert not self.written()
        return caught.value

    def written(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def write(path: Path, members: dict[str, str | bytes]) -> Path:
    """Write an archive as any zip tool would, without our digests."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def manifest_of(name: str = "plain", **model: str) -> str:
    return json.dumps({"runtime": "python", "model": {"modelName": name, "handler": "handler:handle", **model}})


def plain(path: Path, name: str = "plain", **more: str | bytes) -> Path:
    return write(path, {"handler.py": ECHO, "MAR-INF/MANIFEST.json": manifest_of(name), **more})


@contextlib.contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Serve HTTP with one function; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *of: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def sends(content: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        with contextlib.suppress(OSError):
            request.wfile.write(content)

    return answer


def test_an_archive_of_the_model_store_is_extracted_under_its_digest(bench: Bench, make: Make) -> None:
    path = make(store=bench.store, config={"batchSize": 4})

    async def work(sources: ArchiveCache) -> None:
        source = await sources.fetch(path.name)
        with Archive(path) as archive:
            assert source.folder.parent == bench.folder
            assert source.folder.name.startswith(f"{archive.digest}.")
            assert {file.name for file in source.folder.iterdir()} >= {"handler.py", "MAR-INF"}
        assert (source.url, source.name, source.version) == (path.name, "made", "1.0")
        assert source.config["batchSize"] == 4
        assert source.requirements is None
        sources.release(source)

    bench.run(work)


def test_registrations_of_one_content_have_folders_of_their_own(bench: Bench, make: Make) -> None:
    path = make(store=bench.store)
    shutil.copy(path, bench.store / "copy.mar")

    async def work(sources: ArchiveCache) -> None:
        # At the same time, by two names, and once more later.
        first, second = await asyncio.gather(sources.fetch(path.name), sources.fetch("copy.mar"))
        third = await sources.fetch(path.name)
        sources_found = [first, second, third]
        assert bench.written() == sorted(source.folder.name for source in sources_found)
        for source in sources_found:
            file = source.folder / "handler.py"
            assert file.read_text() == ECHO
            with file.open("r+") as stream:  # in place, as links would show
                stream.write(source.folder.name)
        for source in sources_found:
            assert (source.folder / "handler.py").read_text().startswith(source.folder.name)
            sources.release(source)
            assert not source.folder.exists()
        again = await sources.fetch("copy.mar")
        assert (again.folder / "handler.py").read_text() == ECHO

    bench.run(work)
    assert not bench.written()


def test_a_cancelled_fetch_leaves_no_files_and_does_not_affect_others(bench: Bench, make: Make) -> None:
    path = make(store=bench.store)

    async def work(sources: ArchiveCache) -> None:
        impatient = asyncio.ensure_future(sources.fetch(path.name))
        patient = asyncio.ensure_future(sources.fetch(path.name))
        while not sources._tasks:
            await asyncio.sleep(0)
        impatient.cancel()
        source = await patient
        assert (source.folder / "handler.py").exists()
        while sources._tasks:
            await asyncio.sleep(0.01)
        assert bench.written() == [source.folder.name]
        sources.release(source)
        assert not source.folder.exists()
        assert not sources._uses

    bench.run(work)


def test_an_archive_that_was_replaced_is_another_one(bench: Bench, make: Make) -> None:
    path = make(store=bench.store)
    other = make("def handle(rows, context):\n    return rows\n", store=bench.store / "new")

    async def work(sources: ArchiveCache) -> None:
        before = await sources.fetch(path.name)
        other.replace(path)
        after = await sources.fetch(path.name)
        assert before.folder != after.folder
        assert "return rows" in (after.folder / "handler.py").read_text()

    bench.run(work)


def test_without_the_check_a_digest_that_an_archive_claims_is_not_believed(bench: Bench, make: Make) -> None:
    path = make(store=bench.store)
    with Archive(path) as archive:
        claimed = archive.read("MAR-INF/SHA256SUMS")
    plain(bench.store / "liar.mar", **{"MAR-INF/SHA256SUMS": claimed})

    async def work(sources: ArchiveCache) -> None:
        honest, liar = await sources.fetch(path.name), await sources.fetch("liar.mar")
        assert honest.folder != liar.folder

    bench.run(work, torchmar_check_archives="false")
    assert "MAR108 liar.mar!MAR-INF/MANIFEST.json: its SHA-256 is " in bench.error_of("liar.mar").message


def test_an_archive_with_an_error_is_rejected_unless_checks_are_off(bench: Bench) -> None:
    write(bench.store / "bad.mar", {"MAR-INF/MANIFEST.json": manifest_of("bad", serializedFile="none.pt")})
    error = bench.error_of("bad.mar")
    assert (error.status, error.type) == (400, "InvalidModelException")
    assert "bad.mar!" in error.message
    assert str(bench.store) not in error.message
    assert bench.fetch("bad.mar", torchmar_check_archives="false").name == "bad"


def test_every_form_of_an_archive_is_served(bench: Bench, make: Make) -> None:
    path = make(store=bench.store)
    with Archive(path) as archive:
        archive.extract(bench.store / "unpacked")
    with tarfile.open(bench.store / "packed.tar.gz", "w:gz") as packed:
        packed.add(bench.store / "unpacked", "made")
    with tarfile.open(bench.store / "dotted.tar.gz", "w:gz") as packed:  # tar czf dotted.tar.gz .
        packed.add(bench.store / "unpacked", ".")
    digests = {bench.fetch(name).key for name in (path.name, "packed.tar.gz", "dotted.tar.gz")}
    assert len(digests) == 1


def test_a_folder_is_used_where_it_is(bench: Bench, make: Make) -> None:
    with Archive(make()) as archive:
        archive.extract(bench.store / "folder")
        archive.extract(bench.store / "outer" / "inner")

    async def work(sources: ArchiveCache) -> None:
        sources_found = [await sources.fetch(name) for name in ("folder", "outer", "folder")]
        assert [source.folder for source in sources_found] == [
            bench.store / "folder",
            bench.store / "outer" / "inner",
            bench.store / "folder",
        ]
        for source in sources_found:
            sources.release(source)

    bench.run(work)
    assert (bench.store / "folder" / "handler.py").exists()


def test_an_archive_without_a_manifest_has_no_name_which_a_registration_gives(bench: Bench) -> None:
    write(bench.store / "bare.mar", {"handler.py": ECHO})
    source = bench.fetch("bare.mar")
    assert (source.name, source.version, source.manifest.model.handler) == ("", "1.0", "")
    assert (source.manifest.runtime, source.config) == ("python", {})


def test_without_checks_an_incomplete_manifest_is_accepted(bench: Bench) -> None:
    document = json.dumps({"model": {"modelName": "a b", "modelVersion": 2, "configFile": "c.yaml"}})
    write(bench.store / "odd.mar", {"MAR-INF/MANIFEST.json": document, "c.yaml": "a: ["})
    source = bench.fetch("odd.mar", torchmar_check_archives="false")
    assert (source.name, source.version, source.manifest.model.handler, source.config) == ("a b", "2", "", {})
    write(bench.store / "junk.mar", {"MAR-INF/MANIFEST.json": "{junk"})
    error = bench.error_of("junk.mar", torchmar_check_archives="false")
    assert (error.status, error.type) == (400, "InvalidModelException")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    folder = tmp_path_factory.mktemp("real")
    (folder / "store").mkdir()
    with KilledTorchServe(write_config(folder), folder / "store", folder / "run") as running:
        yield running


@pytest.mark.parametrize(
    "url",
    [
        "missing.mar",
        "../outside.mar",
        "a..b.mar",
        "/etc/passwd",
        "s3://bucket/x.mar",
        "ftp://host/x.mar",
        "file:///etc/passwd",
        "file:///nowhere/../etc/passwd",
        "http://localhost/x.mar",
        "HTTPS://localhost/x.mar",
        "junk.mar",
        "empty.mar",
    ],
)
def test_errors_are_the_same_as_torchserves(real: TorchServe, bench: Bench, url: str) -> None:
    for store in (real.model_store, bench.store):
        (store / "junk.mar").write_text("no zip at all")
        (store / "empty.mar").touch()
    with pytest.raises(ServerError) as theirs:
        real.management.register(url)
    ours = bench.error_of(url)
    assert (ours.status, ours.type) == (theirs.value.status, theirs.value.type)
    if ours.status == 404:
        assert ours.message.startswith(theirs.value.message)


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("", 404),
        (".", 404),
        ("/", 404),
        ("x" * 5000, 404),
        ("a\0b", 404),
        ("a\nb", 404),
        ("file://{store}/%2e%2e/secret.mar", 404),
        ("file://{store}/none.mar", 400),
        ("file://elsewhere{store}/x.mar", 404),
        ("{store}/../secret.mar", 404),
        ("{folder}/secret.mar", 404),
        ("file://{folder}/secret.mar", 404),
    ],
)
def test_no_url_leads_out_of_the_model_store(bench: Bench, url: str, status: int) -> None:
    plain(bench.store.parent / "secret.mar")
    formatted_url = url.format(store=bench.store, folder=bench.store.parent)
    assert bench.error_of(formatted_url).status == status


def test_archives_of_the_model_store_have_a_name_path_or_url(bench: Bench) -> None:
    plain(bench.store / "a.mar")
    (bench.store / "sub").mkdir()
    plain(bench.store / "sub" / "b.mar", name="below")
    for url in ("a.mar", "nowhere/a.mar", f"{bench.store}/a.mar", f"file://{bench.store}/a.mar"):
        assert bench.fetch(url).name == "plain"
    assert bench.fetch("sub/b.mar").name == "below"


def test_a_path_that_allowed_urls_matches_is_served(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    path = plain(tmp_path / "other" / "x.mar")
    allowed = f"FILE://{tmp_path}/other/.*"
    assert bench.fetch(path.as_uri(), allowed_urls=allowed).name == "plain"
    assert bench.fetch(str(path), allowed_urls=allowed).name == "plain"
    assert bench.error_of(path.as_uri()).status == 404


def test_an_archive_is_downloaded_from_where_it_is_allowed(bench: Bench, tmp_path: Path) -> None:
    content = plain(tmp_path / "x.mar").read_bytes()
    with serving(sends(content)) as address:
        assert bench.fetch(f"{address}/x.mar?a=b", allowed_urls=f"{address}/.*").name == "plain"
        error = bench.error_of(f"{address}/x.mar", allowed_urls="http://elsewhere/.*")
        assert error.message == f"Given URL {address}/x.mar does not match any allowed URL(s)"
    assert not list(bench.store.iterdir())
    assert not bench.written()


def test_a_download_is_one_content_with_the_same_archive_of_the_store(bench: Bench, make: Make) -> None:
    path = make(store=bench.store)

    async def work(sources: ArchiveCache, url: str) -> None:
        sources_found = await asyncio.gather(*(sources.fetch(source_url) for source_url in (url, path.name, url)))
        assert len({source.key for source in sources_found}) == 1
        assert len({source.folder for source in sources_found}) == 3
        assert {source.folder.name for source in sources_found} <= set(bench.written())

    with serving(sends(path.read_bytes())) as address:
        bench.run(lambda sources: work(sources, f"{address}/x"), allowed_urls=f"{address}/.*")


def test_a_packed_archive_arrives_as_it_was_sent(bench: Bench) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in (("m/handler.py", ECHO), ("m/MAR-INF/MANIFEST.json", manifest_of())):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    with serving(sends(packed.getvalue(), Content_Encoding="gzip")) as address:
        assert bench.fetch(f"{address}/m.tar.gz", allowed_urls=f"{address}/.*").name == "plain"


def test_a_redirection_is_followed_to_where_it_is_allowed_alone(bench: Bench, tmp_path: Path) -> None:
    content = plain(tmp_path / "x.mar").read_bytes()
    seen = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.path)
        target = {
            "/in": "/x.mar",
            "/out": "/secret/x.mar",
            "/loop": "/loop",
            "/file": "file:///etc/passwd",
            "/malformed": "http://[::1",
        }.get(request.path)
        if target is None:
            sends(content)(request)
            return
        request.send_response(302)
        request.send_header("Location", target)
        request.send_header("Content-Length", "0")
        request.end_headers()

    with serving(answer) as address:
        allowed = f"{address}/[^/]*,file://.*"
        assert bench.fetch(f"{address}/in", allowed_urls=allowed).name == "plain"
        assert "leads to" in bench.error_of(f"{address}/out", allowed_urls=allowed).message
        assert "redirections" in bench.error_of(f"{address}/loop", allowed_urls=allowed).message
        assert "a URL or a header is malformed" in bench.error_of(f"{address}/malformed", allowed_urls=allowed).message
        assert "is not fetched from" in bench.error_of(f"{address}/file", allowed_urls=allowed).message
    assert "/secret/x.mar" not in seen


@pytest.mark.parametrize("url", ["{address}@localhost/x.mar", "{address}\\@localhost/x.mar"])
def test_an_at_sign_does_not_change_the_allowed_host(bench: Bench, url: str) -> None:
    with serving(sends(b"")) as address:
        error = bench.error_of(url.format(address=address), allowed_urls=f"{address}.*")
    assert "is not fetched from" in error.message


def test_failed_downloads_have_torchserves_errors(bench: Bench) -> None:
    def missing(request: BaseHTTPRequestHandler) -> None:
        request.send_error(404)

    settings = {"allowed_urls": ".*", "torchmar_download_retries": "1"}
    with serving(missing) as address:
        errors = [bench.error_of(f"{address}/x.mar", **settings)]
    errors.append(bench.error_of(f"{address}/x.mar", **settings))  # the server is closed
    with serving(sends(b"short", Content_Length="100")) as address:
        errors.append(bench.error_of(f"{address}/x.mar", **settings))
    assert {(error.status, error.type) for error in errors} == {(400, "DownloadArchiveException")}
    assert "HTTP 404" in errors[0].message


def test_a_download_that_is_too_large_is_broken_off(bench: Bench) -> None:
    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        with contextlib.suppress(OSError):
            while True:
                request.wfile.write(bytes(1 << 16))

    for answer in (endless, sends(b"x", Content_Length="2000000")):
        with serving(answer) as address:
            error = bench.error_of(f"{address}/x.mar", allowed_urls=".*", torchmar_max_download_size="1000000")
            assert "torchmar_max_download_size=1000000" in error.message


def test_only_leftovers_of_a_former_run_are_removed(bench: Bench, make: Make) -> None:
    left = [bench.folder / name for name in ("a" * 64, f"{'b' * 64}.requirements", ".fetch-0123456789abcdef")]
    users_folder = bench.folder / "resnet"
    for folder in (*left, users_folder):
        folder.mkdir(parents=True)
        (folder / "file").touch()

    async def work(sources: ArchiveCache) -> None:
        assert bench.written() == ["resnet"]

    bench.run(work)
    assert (users_folder / "file").exists()


def test_requirements_are_installed_beside_the_archive_if_that_is_configured(
    bench: Bench, make: Make, tmp_path: Path
) -> None:
    name = "tiny-1.0-py3-none-any.whl"
    disk: dict[str, str | bytes] = {
        name: write_wheel(tmp_path, "tiny", "1.0", "VALUE = 42\n").read_bytes(),
        "wanted.txt": f"--no-index\n./{name}\n",
    }
    path = make(store=bench.store, disk=disk, requirements="wanted.txt", files={name: name})

    async def work(sources: ArchiveCache) -> None:
        source, other = await asyncio.gather(sources.fetch(path.name), sources.fetch(path.name))
        assert source.requirements == other.requirements
        assert source.requirements and source.requirements.parent == bench.folder
        assert (source.requirements / "tiny.py").read_text() == "VALUE = 42\n"
        assert not (source.folder / "tiny.py").exists()
        sources.release(source)
        sources.release(other)
        assert not source.requirements.exists()

    unchecked = {"torchmar_check_archives": "false"}  # the checks know of packages by name only
    bench.run(work, install_py_dep_per_model="true", **unchecked)
    assert bench.fetch(path.name, **unchecked).requirements is None


def test_a_failed_installation_of_requirements_is_reported_with_the_whole_output_of_pip(
    bench: Bench,
) -> None:
    text = f"--no-index\n{'#' * 10}\n{'x' * 200_000}!\n"
    document = manifest_of("long", requirementsFile="wanted.txt")
    path = bench.store / "long.mar"
    write(path, {"handler.py": ECHO, "MAR-INF/MANIFEST.json": document, "wanted.txt": text})
    error = bench.error_of("long.mar", install_py_dep_per_model="true", torchmar_check_archives="false")
    assert (error.status, error.type) == (400, "ModelException")
    first, *pip_output = error.message.splitlines()
    assert first == "Custom pip package installation failed for model long"
    assert any("ERROR: Invalid requirement" in line for line in pip_output)
    assert len(error.message) < 10_000


def test_an_archive_that_failed_may_be_tried_again(bench: Bench) -> None:
    path = bench.store / "m.mar"
    document = manifest_of("m", requirementsFile="wanted.txt")
    write(path, {"handler.py": ECHO, "MAR-INF/MANIFEST.json": document, "wanted.txt": "--no-index\nnothere==1\n"})

    async def work(sources: ArchiveCache) -> None:
        fetching = sources.fetch(path.name), sources.fetch(path.name, model_name="other")
        results = await asyncio.gather(*fetching, return_exceptions=True)
        assert [error.message.splitlines()[0] for error in results if isinstance(error, ApiError)] == [
            "Custom pip package installation failed for model m",
            "Custom pip package installation failed for model other",
        ]
        plain(path, name="m")
        assert (await sources.fetch(path.name)).name == "m"

    bench.run(work, install_py_dep_per_model="true")


def test_a_damaged_archive_is_rejected_as_by_torchserve_if_nothing_is_checked(bench: Bench) -> None:
    path = write(bench.store / "m.mar", {"handler.py": ECHO * 100, "MAR-INF/MANIFEST.json": manifest_of()})
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    error = bench.error_of("m.mar", torchmar_check_archives="false")
    assert (error.status, error.type) == (500, "InternalServerException")
    assert error.message.startswith("Failed to save model: m.mar (")


def test_it_may_be_closed_twice_and_leaves_nothing(bench: Bench) -> None:
    async def work(sources: ArchiveCache) -> None:
        await sources.close()

    bench.run(work)  # which closes it itself
    assert not bench.folder.exists()
