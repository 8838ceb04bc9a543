"""From the URL of a registration to a folder with the archive's content, of this registration alone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import threading
from collections import Counter, deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

import yaml

from torchmar import manifest
from torchmar.archive import Archive, digests
from torchmar.checks.admission import EVERYTHING, admit
from torchmar.checks.finding import Code, matches
from torchmar.errors import ArchiveError, ManifestError
from torchmar.manifest import Manifest, Model
from torchmar.server.api_error import ApiError
from torchmar.server.config.settings import Settings
from torchmar.server.models.commands import supervised
from torchmar.server.telemetry import logs

if TYPE_CHECKING:
    import requests

_CHUNK = 1 << 20
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0  # until a connection stands; without a byte
_REDIRECTS = 5
_PIP_LINES, _PIP_LINE = 15, 500  # of pip's last output, in the error; characters of each
_OURS = re.compile(r"\.fetch-[0-9a-f]+|\.?[0-9a-f]{64}(\..+)?")  # the names that we give in our folder
_URL = re.compile(r"(file|https?)://.*", re.IGNORECASE | re.DOTALL)

_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class CachedArchive:
    """An archive that is ready to be served.

    Attributes:
        url: that it was fetched by.
        manifest: the archive's; with an empty name and handler where it has none.
        config: what ``model-config.yaml`` says, read as YAML.
        folder: with the content. It is of this registration alone, since handlers write into it, unless the archive
            is a folder itself, which is used where it is.
        requirements: a folder with the packages that the archive requires; None where none were installed.
        key: what stands for the content: the archive's digest, or that of the path of an archive that is a folder.
    """

    url: str
    manifest: Manifest
    config: Mapping[str, Any]
    folder: Path
    requirements: Path | None
    key: str

    @property
    def name(self) -> str:
        """The model's name; empty where the archive says none."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The model's version; ``1.0`` where the archive says none."""
        return self.manifest.version


class ArchiveCache:
    """The archives that registrations use. Everything but reading and writing happens in the server's loop.

    Args:
        settings: which URLs are allowed, where the model store is, whether requirements are installed.
        folder: for what is extracted, of this server alone; what a former run has left there is removed.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder.resolve()
        self._uses: Counter[str] = Counter()  # by key
        self._installed: dict[str, tuple[Path, asyncio.Task[None]]] = {}
        self._known: dict[Path, tuple[_Stamp, _Found]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_all()

    async def fetch(
        self, url: str, ignored_checks: Sequence[str] = (), *, model_name: str = "", by_operator: bool = False
    ) -> CachedArchive:
        """Return the archive behind the URL of a registration; `release` it when it is used no more.

        The URL is the name of a file or folder in the model store, or ``file://``, or ``http(s)://``, or the path of a
        folder, which may have no ``MAR-INF``: SageMaker's models have none. Nothing of the archive has run by then but
        what pip runs, where requirements are installed.

        Args:
            url: where the archive is.
            ignored_checks: codes of checks, or beginnings of codes, to ignore besides those of the settings.
            model_name: in messages, in place of the archive's.
            by_operator: whether the command line or the configuration names it: a path need not be in ``allowed_urls``.

        Raises:
            ApiError: 404, there is nothing, or the URL is not allowed; 400, it cannot be fetched, is no archive, has an
                error that the checks find, or its requirements cannot be installed; 500, it cannot be written here.
        """
        found = await asyncio.to_thread(self._find, url, self._ignored(ignored_checks), by_operator)
        self._uses[found.key] += 1
        extracting = self._in_background(self._extracted(url, found))
        try:
            folder = await asyncio.shield(extracting)  # a thread goes on when its task is cancelled
            requirements = await self._requirements(found, folder)
        except BaseException as error:
            self._in_background(self._abandon(found, extracting))
            if isinstance(error, _InstallFailed):
                name = model_name or found.manifest.name
                message = "\n".join([f"Custom pip package installation failed for model {name}", *error.lines])
                raise ApiError(400, "ModelException", message) from None
            raise
        if found.scratch is None and found.stamp:
            self._known[found.path] = found.stamp, found
        return CachedArchive(url, found.manifest, found.config, folder, requirements, found.key)

    def release(self, source: CachedArchive) -> None:
        """Let an archive go; what was written for it is removed."""
        if source.folder.parent == self._folder and _OURS.fullmatch(source.folder.name):
            self._remove(source.folder)
        self._leave(source.key)

    async def close(self) -> None:
        """Stop fetching and installing, and remove all that was written."""
        self._stopping.set()
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._remove_all)
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # if nothing of others is in it

    def _ignored(self, by_registration: Sequence[str]) -> tuple[str, ...]:
        if not self._settings.check_archives:
            return EVERYTHING
        return (*self._settings.ignored_checks, *by_registration)

    # What follows up to the next such line runs in a thread.

    def name_of(self, url: str) -> str:
        """Return the model's name that an archive of the model store has; empty if it cannot be read."""
        with contextlib.suppress(ApiError, ArchiveError, ManifestError, OSError, ValueError):
            if not _URL.fullmatch(url):
                with Archive(self._in_store(url)) as archive:
                    return archive.manifest.name
        return ""

    def _find(self, url: str, ignored: tuple[str, ...], by_operator: bool) -> _Found:
        """Fetch an archive, if it is elsewhere, and look into it."""
        path, scratch = self._locate(url, by_operator)
        try:
            stamp = None if path.is_dir() else _stamp(path)
            known = self._known.get(path)
            # An archive that was found with fewer checks is looked at again.
            if known and known[0] == stamp and set(known[1].ignored) <= set(ignored):
                return known[1]
            return _look(path, stamp, scratch, ignored)
        except BaseException as error:
            if scratch:
                shutil.rmtree(scratch, ignore_errors=True)
            if isinstance(error, ArchiveError | ManifestError):
                message = error.message.replace(str(path), url)
                raise ApiError(400, "InvalidModelException", message) from None
            if isinstance(error, OSError):
                raise _not_saved(url, error.strerror) from None
            raise

    def _locate(self, url: str, by_operator: bool) -> tuple[Path, Path | None]:
        """Return where an archive is, and the folder that was made for it, if it had to be fetched."""
        if not url:
            raise _not_found("empty url")
        if ".." in unquote(url):
            raise _not_found(f"Relative path is not allowed in url: {url}")
        allowed = url.isprintable() and self._allowed(url)
        if _URL.fullmatch(url) and not allowed:
            raise _not_found(f"Given URL {url} does not match any allowed URL(s)")
        if allowed and url.lower().startswith(("http://", "https://")):
            scratch = self._folder / f".fetch-{secrets.token_hex(8)}"
            scratch.mkdir()
            try:
                return self._download(url, scratch), scratch
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
        if allowed and url.lower().startswith("file://"):
            place = urlsplit(url)
            path = Path(unquote(place.path))
            if place.netloc not in ("", "localhost") or not path.exists():
                raise _not_downloaded(url, "there is nothing")
            return _inner(path), None
        if url.lower().startswith("s3://"):
            hint = "S3 is not spoken here: give a presigned https:// URL, or copy it to the model store"
            raise _not_found(f"Model not found at: {url}; {hint}")
        return self._in_store(url, by_operator), None

    def _in_store(self, name: str, by_operator: bool = False) -> Path:
        store = self._settings.model_store
        # TorchServe leaves out folders before the name; whoever means one is given it.
        places = [Path(os.path.normpath(store / name)), store / name.rpartition("/")[2]]
        for place in places:
            inside = store in place.parents or self._allowed(place.as_uri()) or by_operator
            with contextlib.suppress(OSError, ValueError):  # no name at all: too long, or with a NUL
                if inside and place.exists():
                    return _inner(place)
        path = Path(name)
        hint = f"; outside the model store, allowed_urls must match {path.as_uri()}" if path.is_absolute() else ""
        raise _not_found(f"Model not found at: {name}{hint}")

    def _allowed(self, url: str) -> bool:
        return any(pattern.fullmatch(url) for pattern in self._settings.allowed_urls)

    def _download(self, url: str, folder: Path) -> Path:
        import requests
        import urllib3

        place = url
        with requests.Session() as session:
            for _ in range(_REDIRECTS + 1):
                parts = urlsplit(place)
                # Before an "@" stands no host, whatever a pattern takes it for; and what is no address is sent nowhere.
                if parts.scheme not in ("http", "https") or "@" in parts.netloc or "\\" in place:
                    raise _not_downloaded(url, f"{place} is not fetched from")
                try:
                    with session.get(
                        place,
                        stream=True,
                        allow_redirects=False,
                        timeout=(_CONNECT_SECONDS, _READ_SECONDS),
                        headers={"Accept-Encoding": "identity"},
                        auth=lambda request: request,  # or else it would send what .netrc says
                    ) as response:
                        if not response.is_redirect:
                            self._save(url, response, folder / "archive")
                            return _named(folder / "archive")
                        place = urljoin(place, response.headers["location"])
                except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                    raise _not_downloaded(url, type(error).__name__) from None
                if not self._allowed(place):
                    raise _not_found(f"Given URL {url} leads to {place}, which does not match any allowed URL(s)")
        raise _not_downloaded(url, f"more than {_REDIRECTS} redirections")

    def _save(self, url: str, response: requests.Response, target: Path) -> None:
        if response.status_code != 200:
            raise _not_downloaded(url, f"HTTP {response.status_code}")
        most = self._settings.max_download_size
        announced = response.headers.get("content-length", "")
        too_large = f"it has more than torchmar_max_download_size={most} bytes"
        if announced.isdecimal() and int(announced) > most:
            raise _not_downloaded(url, too_large)
        size = 0
        try:
            with target.open("xb") as stream:
                # As it comes: an archive that is compressed stays so.
                for chunk in response.raw.stream(_CHUNK, decode_content=False):
                    size += len(chunk)
                    if size > most:
                        raise _not_downloaded(url, too_large)
                    if self._stopping.is_set():
                        raise _not_downloaded(url, "the server is stopping")
                    stream.write(chunk)
        except OSError as error:
            raise _not_saved(url, error.strerror) from None
        if announced.isdecimal() and size != int(announced):
            raise _not_downloaded(url, f"it ended after {size} of {announced} bytes")

    def _extract(self, url: str, found: _Found) -> Path:
        folder = self._folder / f"{found.key}.{secrets.token_hex(4)}"
        try:
            with Archive(found.path) as archive:
                archive.extract(folder)
            if _stamp(found.path) != found.stamp:
                raise ArchiveError(f"{found.path} changed while it was read")
        except (ArchiveError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _not_saved(url, str(error).replace(str(found.path), url)) from None
        return folder

    def _remove_all(self) -> None:
        for place in list(self._folder.glob("*")):  # it may be closed twice, and gone
            if _OURS.fullmatch(place.name):  # and nothing else, in case the folder holds other files
                shutil.rmtree(place, ignore_errors=True)

    # What follows runs in the loop.

    async def _extracted(self, url: str, found: _Found) -> Path:
        """Return a folder with the archive's content."""
        try:
            return found.path if found.stamp is None else await asyncio.to_thread(self._extract, url, found)
        finally:
            if found.scratch:
                self._remove(found.scratch)

    async def _requirements(self, found: _Found, folder: Path) -> Path | None:
        """Return the folder with what an archive requires, installed once for all who use it; None: nothing is."""
        name = found.manifest.model.requirements_file
        if not name or not self._settings.install_py_dep_per_model:
            return None
        if found.key not in self._installed:
            target = self._folder / f"{found.key}.requirements.{secrets.token_hex(4)}"
            installing = self._in_background(self._install(found.manifest.name, folder, name, target))
            self._installed[found.key] = target, installing
        target, installing = self._installed[found.key]
        await asyncio.shield(installing)  # who asked first may give up while others wait
        return target

    async def _install(self, model: str, folder: Path, file: str, target: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "--target", str(target), "-r", file]
        command += ["--no-input", "--no-color", "--progress-bar", "off", "--disable-pip-version-check"]
        last: deque[str] = deque(maxlen=_PIP_LINES)
        async with supervised(
            command,
            cwd=folder,  # requirements may be files of the archive
            env=self._settings.worker_environment(os.environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        ) as process:
            assert process.stdout
            left = b""
            while data := await process.stdout.read(_CHUNK):
                *lines, left = (left + data).split(b"\n")
                for line in lines:
                    _take_note(model, line, last)
            _take_note(model, left, last)
            code = await process.wait()
        if code:
            raise _InstallFailed(last)

    async def _abandon(self, found: _Found, extracting: asyncio.Task[Path]) -> None:
        """Let an archive go that was not fetched to the end."""
        await asyncio.wait([extracting])
        installing = self._installed.get(found.key)
        self._leave(found.key)
        if installing:
            await asyncio.wait([installing[1]])  # it may be for others, and pip at work in this folder
        if found.stamp and not extracting.cancelled() and not extracting.exception():
            self._remove(extracting.result())

    def _leave(self, key: str) -> None:
        """Let one use of an archive go; what all have in common is removed with the last."""
        self._uses[key] -= 1
        if self._uses[key]:
            return
        del self._uses[key]
        self._known = {path: known for path, known in self._known.items() if known[1].key != key}
        if key in self._installed:
            target, installing = self._installed.pop(key)
            installing.cancel()
            if installing.done():
                self._remove(target)
            else:
                installing.add_done_callback(lambda _: self._remove(target))

    def _remove(self, folder: Path) -> None:
        """Remove a folder; its name is free at once."""
        waste = self._folder / f".{'0' * 64}.{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            folder.rename(waste)
            self._in_background(asyncio.to_thread(shutil.rmtree, waste, ignore_errors=True))

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _InstallFailed(Exception):
    """pip has failed; registrations under several names may wait for it."""

    def __init__(self, lines: Iterable[str]) -> None:
        super().__init__()
        self.lines = tuple(lines)


@dataclass(frozen=True)
class _Found:
    path: Path
    stamp: _Stamp | None  # None: it is a folder, and used where it is
    scratch: Path | None  # to be removed
    manifest: Manifest
    config: Mapping[str, Any]
    key: str
    ignored: tuple[str, ...]  # the codes of checks that did not count


def _look(path: Path, stamp: _Stamp | None, scratch: Path | None, ignored: tuple[str, ...]) -> _Found:
    """Read what an archive says of itself; nothing of it is run.

    Raises:
        ArchiveError, ManifestError: it is none, or has errors.
    """
    if path.is_dir() and not (path / "MAR-INF").is_dir():
        # A model as SageMaker lays it out: the registration or the configuration names the handler.
        return _Found(path, None, None, _lenient({}), {}, _folder_key(path), ignored)
    with Archive(path) as archive:
        has_manifest = manifest.PATH in archive
        check = not matches(Code.MAR108, ignored)  # the digests
        if has_manifest:
            for finding in admit(path, ignored):
                if finding.works:
                    logs.SERVER.warning("%s %s!%s: %s", finding.code.name, path.name, finding.place, finding.cause)
        elif check and (damaged := archive.mismatched()):
            # Without a manifest there is nothing to check the rest by; a registration may give what it lacks.
            raise ArchiveError(f"{path}: {damaged[0]} is not what {digests.PATH} lists")
        read = _manifest(archive) if has_manifest else _lenient({})
        try:
            config = _config(archive, read.model.config_file)
        except ArchiveError as error:
            if not matches(Code.MAR501, ignored):
                raise
            logs.SERVER.warning("%s is served without its configuration: %s", path.name, error.message)
            config = {}
        if stamp is None:
            key = _folder_key(path)
        elif check and digests.PATH in archive:
            key = archive.digest
        else:
            # What was not compared with its SHA256SUMS must not pass for what these name.
            key = _digest(path)
    return _Found(path, stamp, scratch, read, config, key, ignored)


def _folder_key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def _manifest(archive: Archive) -> Manifest:
    text = archive.read(manifest.PATH)
    try:
        return manifest.parse(text)
    except ManifestError:
        # Not checked, and so taken for what it says, as by TorchServe.
        with contextlib.suppress(ValueError, RecursionError):
            document = json.loads(text)
            if isinstance(document, dict):
                return _lenient(document)
        raise


def _lenient(document: Mapping[str, Any]) -> Manifest:
    model = document.get("model")
    content = model if isinstance(model, dict) else {}
    names = {"model_name": "modelName", "model_version": "modelVersion", "config_file": "configFile"}
    names |= {"requirements_file": "requirementsFile", "handler": "handler", "envelope": "envelope"}
    names["model_file"] = "modelFile"
    values = {name: str(content[alias]) for name, alias in names.items() if content.get(alias)}
    runtime = str(document.get("runtime") or "python")
    model_said = Model.model_construct(None, **{"model_name": "", "handler": "", **values})
    return Manifest.model_construct(None, model=model_said, runtime=runtime)


def _config(archive: Archive, name: str | None) -> Mapping[str, Any]:
    if not name:
        return {}
    try:
        config = yaml.safe_load(archive.read(name))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{archive.path}: {name} is not YAML: {error}") from None
    return config if isinstance(config, dict) else {}


def _named(file: Path) -> Path:
    """Give a file that was fetched the ending of what it is; what its URL ends in says nothing."""
    with file.open("rb") as stream:
        ending = ".tar.gz" if stream.read(2) == b"\x1f\x8b" else ".mar"
    return file.rename(file.with_name(f"{file.name}{ending}"))


def _inner(path: Path) -> Path:
    """Return the folder of an archive that is one: below its only folder, as a packed one unpacks."""
    if path.is_dir() and not (path / "MAR-INF").is_dir():
        inside = list(path.iterdir())
        if len(inside) == 1 and (inside[0] / "MAR-INF").is_dir():
            return inside[0].resolve()
    return path.resolve()


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _take_note(model: str, line: bytes, last: deque[str]) -> None:
    text = line.decode("utf-8", "replace").strip()[:_PIP_LINE]
    if text:
        logs.SERVER.info("pip for %s: %s", model, text)
        last.append(text)


def _not_found(message: str) -> ApiError:
    return ApiError(404, "ModelNotFoundException", message)


def _not_downloaded(url: str, why: str) -> ApiError:
    return ApiError(400, "DownloadArchiveException", f"Failed to download archive from: {url} ({why})")


def _not_saved(url: str, why: str | None) -> ApiError:
    return ApiError(500, "InternalServerException", f"Failed to save model: {url} ({why})")
