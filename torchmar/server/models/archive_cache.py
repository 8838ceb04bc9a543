"""The archives of all registrations, counted by references: each registration has its own folder with the content.

Registrations of the same content share its packages and its metadata while any of them exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torchmar.archive import Archive, file_digest
from torchmar.checks.admission import EVERYTHING
from torchmar.errors import ArchiveError, ManifestError
from torchmar.manifest import Manifest
from torchmar.recipe import Runtime
from torchmar.server.api_error import ApiError
from torchmar.server.background_tasks import BackgroundTasks
from torchmar.server.config.settings import Settings
from torchmar.server.daemon_threads import DaemonThreads
from torchmar.server.models import archive_metadata, archive_urls, requirements, venvs
from torchmar.server.models.archive_errors import digest_differs, not_downloaded, not_saved
from torchmar.server.models.archive_metadata import ArchiveMetadata
from torchmar.server.models.download import DownloadProgress, Downloads
from torchmar.server.models.requirements import InstallError
from torchmar.server.models.venvs import VenvError
from torchmar.worker.venvs import folder as venv_folders
from torchmar.worker.venvs.folder import Venv

T = TypeVar("T")

_MAX_DOWNLOADS = 4  # concurrent downloads; further ones wait
# Names that the cache itself writes in its folder.
_OWN_NAME = re.compile(r"\.fetch-[0-9a-f]+|\.?[0-9a-f]{64}(\..+)?")


@dataclass(frozen=True, kw_only=True)
class CachedArchive:
    """An archive that is ready to be served.

    Attributes:
        url: URL of its registration.
        manifest: manifest of the archive; its name and handler are empty if the archive has no manifest.
        config: content of ``model-config.yaml``.
        folder: folder with the content. Handlers write into it, so that each registration has its own; an archive that
            is a folder is not copied.
        requirements: folder with the packages that the archive requires; None: none were installed.
        venv: environment of its workers; None: the server's own.
        key: identifier of the content: the archive's digest; if the archive is a folder, the digest of its path.
        size: bytes of the file; None: it is a folder.
        modified: time of the file's last change, in seconds since 1970; None for a folder or a download.
        digest: SHA-256 of the file in hexadecimal, if the registration expects one; otherwise empty.
    """

    url: str
    manifest: Manifest
    config: Mapping[str, Any]
    folder: Path
    requirements: Path | None
    venv: Venv | None
    key: str
    size: int | None = None
    modified: float | None = None
    digest: str = ""

    @property
    def name(self) -> str:
        """The model's name; empty if the archive has none."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The model's version; ``1.0`` if the archive has none."""
        return self.manifest.version


@dataclass(frozen=True)
class _Installation:
    """Packages for the registrations of one content, installed or being installed.

    Attributes:
        target: folder of the packages, which is removed with the last registration.
        task: task that returns the environment, if the folder is one.
    """

    target: Path
    task: asyncio.Task[Venv | None]


class ArchiveCache:
    """The archives of registrations. All methods except `name_of` are called in the server's loop.

    Args:
        settings: settings for allowed URLs, the model store and requirements.
        folder: folder for extracted archives of this server; those of an earlier run are removed.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder.resolve()
        self._uses: Counter[str] = Counter()  # number of references, by key
        self._installations: dict[str, _Installation] = {}  # installations by key
        self._metadata: dict[Path, ArchiveMetadata] = {}
        self._tasks = BackgroundTasks()
        self._stopping = threading.Event()
        self._downloads = Downloads(settings, self._folder, self._stopping)
        # Separate from the loop's threads: a few slow servers would block all other work in them.
        self._download_threads = DaemonThreads(_MAX_DOWNLOADS, "download")
        self._downloading: set[asyncio.Future[Any]] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_all()

    async def fetch(
        self,
        url: str,
        ignored_checks: Sequence[str] = (),
        *,
        model_name: str = "",
        by_operator: bool = False,
        digest: str = "",
    ) -> CachedArchive:
        """Return the archive at the URL of a registration; the caller has to `release` it.

        The URL is the name of a file or folder in the model store, a ``file://`` or ``http(s)://`` URL, an object
        (``s3://``, ``gs://``, ``az://``), or the path of a folder, which may lack ``MAR-INF``, as SageMaker's models
        do. No code of the archive is run, except code that pip runs when it installs requirements.

        Args:
            url: location of the archive.
            ignored_checks: codes of checks, or prefixes of codes, to ignore in addition to those of the settings.
            model_name: name for messages, in place of the archive's.
            by_operator: whether the command line or the configuration names the archive: its path need not match
                ``allowed_urls``.
            digest: expected SHA-256 of the file, in hexadecimal; empty: any. A file with another digest is not opened.

        Raises:
            ApiError: 404, there is no archive, or the URL is not allowed; 400, it cannot be fetched, is no archive, has
                another digest or an error that the checks find, or its packages cannot be installed; 500, the server
                cannot write it.
        """
        threads = self._download_threads if archive_urls.is_remote(url) else None
        reading = asyncio.get_running_loop().run_in_executor(
            threads, self._read, url, self._ignored(ignored_checks), by_operator, digest
        )
        metadata, scratch = await (self._downloaded(url, reading) if threads else reading)
        self._uses[metadata.key] += 1
        shown_url = archive_urls.without_secrets(url)
        extracting = self._tasks.start(self._content_folder(shown_url, metadata, scratch))
        try:
            # Shielded, because the thread continues to write even if its task is cancelled.
            folder = await asyncio.shield(extracting)
            packages, venv = await self._packages(metadata, folder)
        except BaseException as error:
            self._tasks.start(self._release_unfinished(metadata, extracting))
            name = model_name or metadata.manifest.name
            if isinstance(error, VenvError):
                message = f"The environment of model {name} cannot be used: {error}"
                raise ApiError(400, "ModelException", message) from None
            if isinstance(error, InstallError):
                message = "\n".join([f"Custom pip package installation failed for model {name}", *error.lines])
                raise ApiError(400, "ModelException", message) from None
            raise
        if scratch is None and metadata.stamp:
            self._metadata[metadata.path] = metadata
        return CachedArchive(
            url=url,
            manifest=metadata.manifest,
            config=metadata.config,
            folder=folder,
            requirements=packages,
            venv=venv,
            key=metadata.key,
            size=metadata.stamp[1] if metadata.stamp else None,
            modified=metadata.stamp[2] / 1e9 if metadata.stamp and scratch is None else None,
            digest=digest,
        )

    def release(self, archive: CachedArchive) -> None:
        """Drop a reference from `fetch`; the files of the registration are removed."""
        if archive.folder.parent == self._folder and _OWN_NAME.fullmatch(archive.folder.name):
            self._remove(archive.folder)
        if archive.venv:
            archive.venv.close()
        self._drop_reference(archive.key)

    def stop_downloads(self) -> None:
        """End all downloads, even those whose connections are silent; their registrations fail."""
        self._stopping.set()
        self._download_threads.shutdown(wait=False, cancel_futures=True)
        for reading in self._downloading:
            reading.cancel()

    async def close(self) -> None:
        """Stop downloads and installations, and remove all files except downloads that can be continued."""
        self.stop_downloads()
        await self._tasks.close()
        await asyncio.to_thread(self._remove_all)
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # only if it has no other files

    @property
    def downloads(self) -> list[DownloadProgress]:
        """The running downloads."""
        return self._downloads.running

    def name_of(self, url: str) -> str:
        """Return the model's name from an archive in the model store; empty if it cannot be read. Blocking."""
        with contextlib.suppress(ApiError, ArchiveError, ManifestError, OSError, ValueError):
            if not archive_urls.is_url(url):
                with Archive(archive_urls.local_path(url, self._settings)) as archive:
                    return archive.manifest.name
        return ""

    def _ignored(self, by_registration: Sequence[str]) -> tuple[str, ...]:
        if not self._settings.check_archives:
            return EVERYTHING
        return (*self._settings.ignored_checks, *by_registration)

    # The following methods block, and run in threads.

    def _read(
        self, url: str, ignored_checks: tuple[str, ...], by_operator: bool, digest: str
    ) -> tuple[ArchiveMetadata, Path | None]:
        """Return the metadata of an archive, and the folder of its download; None if it is local."""
        archive_urls.check(url, self._settings)
        if not archive_urls.is_remote(url):
            path = archive_urls.local_path(url, self._settings, by_operator=by_operator)
            stamp = self._compare_digest(url, path, digest) if digest else None
            metadata = self._metadata_of(url, path, ignored_checks)
            if digest and metadata.stamp != stamp:
                raise not_saved(url, "it changed while it was read")
            return metadata, None
        path = self._downloads.fetch(url, digest)
        try:
            return self._metadata_of(archive_urls.without_secrets(url), path, ignored_checks), path.parent
        except BaseException:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise

    def _compare_digest(self, url: str, path: Path, digest: str) -> archive_metadata.Stamp | None:
        """Compare the digest of a file; return the file's stamp.

        Raises:
            ApiError: 400, the digest differs, or it is a folder; 500, the file cannot be read.
        """
        stamp = archive_metadata.stamp(path)
        if stamp is None:
            raise ApiError(400, "InvalidModelException", f"{url} is a folder, which has no digest of a file.")
        try:
            actual = file_digest.of(path, self._stopping.is_set)
        except InterruptedError:
            raise not_downloaded(url, "the server is stopping") from None
        except OSError as error:
            raise not_saved(url, error.strerror) from None
        if actual != digest:
            raise digest_differs(url, expected=digest, actual=actual)
        return stamp

    def _metadata_of(self, url: str, path: Path, ignored_checks: tuple[str, ...]) -> ArchiveMetadata:
        try:
            cached = self._metadata.get(path)
            # An archive that was checked with more ignored checks is checked again.
            if (
                cached
                and cached.stamp == archive_metadata.stamp(path)
                and set(cached.ignored_checks) <= set(ignored_checks)
            ):
                return cached
            return archive_metadata.read(path, ignored_checks)
        except (ArchiveError, ManifestError) as error:
            raise ApiError(400, "InvalidModelException", error.message.replace(str(path), url)) from None
        except OSError as error:
            raise not_saved(url, error.strerror) from None

    def _extract(self, url: str, metadata: ArchiveMetadata) -> Path:
        folder = self._folder / f"{metadata.key}.{secrets.token_hex(4)}"
        try:
            with Archive(metadata.path) as archive:
                archive.extract(folder)
            if archive_metadata.stamp(metadata.path) != metadata.stamp:
                raise ArchiveError(f"{metadata.path} changed while it was read")
        except (ArchiveError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise not_saved(url, str(error).replace(str(metadata.path), url)) from None
        return folder

    def _remove_all(self) -> None:
        for path in list(self._folder.glob("*")):  # on a second call, the folder does not exist
            if _OWN_NAME.fullmatch(path.name):  # other files in the folder are kept
                shutil.rmtree(path, ignore_errors=True)
        self._downloads.remove_old()

    # The following methods run in the loop.

    async def _downloaded(self, url: str, reading: asyncio.Future[T]) -> T:
        """Return the result of a thread that first downloads.

        Raises:
            ApiError: those of `fetch`; or 400, because `stop_downloads` was called.
        """
        self._downloading.add(reading)
        try:
            return await reading
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
            raise not_downloaded(archive_urls.without_secrets(url), "the server is stopping") from None
        finally:
            self._downloading.discard(reading)

    async def _content_folder(self, url: str, metadata: ArchiveMetadata, scratch: Path | None) -> Path:
        """Return a folder with the archive's content; remove its download."""
        try:
            if metadata.stamp is None:
                return metadata.path
            return await asyncio.to_thread(self._extract, url, metadata)
        finally:
            if scratch:
                self._remove(scratch)

    async def _own_venv(self, metadata: ArchiveMetadata, runtime: Runtime, folder: Path) -> Venv:
        """Return the environment of an archive with a runtime; build it if it does not exist.

        Raises:
            VenvError: the environment cannot be built.
        """
        return await venvs.prepare(
            runtime,
            content=folder,
            place=self._settings.venv_folder or venv_folders.root(),
            may_build=self._settings.install_py_dep_per_model,
            model_name=metadata.manifest.name,
            environment=self._settings.worker_environment(os.environ),
        )

    async def _packages(self, metadata: ArchiveMetadata, folder: Path) -> tuple[Path | None, Venv | None]:
        """Return the folder of the required packages, or their environment; it is made once for each content.

        Raises:
            InstallError: pip failed.
            VenvError: an environment of the archive cannot be built.
        """
        if metadata.runtime:
            # Checked each time: an archive that is a folder may have another lock file now.
            return None, await self._tasks.start(self._own_venv(metadata, metadata.runtime, folder))
        if metadata.key not in self._installations:
            installation = self._install(metadata, folder)
            if installation is None:
                return None, None
            self._installations[metadata.key] = installation
        installation = self._installations[metadata.key]
        # Shielded, because the first registration may be cancelled while others wait.
        venv = await asyncio.shield(installation.task)
        return (None if venv else installation.target), venv

    def _install(self, metadata: ArchiveMetadata, folder: Path) -> _Installation | None:
        """Start to install the archive's requirements; None: it has none, or the server must not install them."""
        requirements_file = metadata.manifest.model.requirements_file
        if not requirements_file or not self._settings.install_py_dep_per_model:
            return None
        target = self._folder / f"{metadata.key}.requirements.{secrets.token_hex(4)}"
        venv = Venv(target) if metadata.config.get("useVenv") is True else None

        async def install() -> Venv | None:
            installing = requirements.install_in_venv if venv else requirements.install
            await installing(
                requirements_file,
                target,
                model_name=metadata.manifest.name,
                archive_folder=folder,
                environment=self._settings.worker_environment(os.environ),
            )
            return venv

        return _Installation(target, self._tasks.start(install()))

    async def _release_unfinished(self, metadata: ArchiveMetadata, extracting: asyncio.Task[Path]) -> None:
        """Drop the reference of a failed or cancelled `fetch`."""
        await asyncio.wait([extracting])
        installation = self._installations.get(metadata.key)
        self._drop_reference(metadata.key)
        if installation:
            await asyncio.wait([installation.task])  # others may wait for it, and pip writes to this folder
        if metadata.stamp and not extracting.cancelled() and not extracting.exception():
            self._remove(extracting.result())

    def _drop_reference(self, key: str) -> None:
        """Drop one reference to a content; with the last one, remove its shared files."""
        self._uses[key] -= 1
        if self._uses[key]:
            return
        del self._uses[key]
        self._metadata = {path: metadata for path, metadata in self._metadata.items() if metadata.key != key}
        if installation := self._installations.pop(key, None):
            target = installation.target
            installation.task.cancel()
            if installation.task.done():
                self._remove(target)
            else:
                installation.task.add_done_callback(lambda _: self._remove(target))

    def _remove(self, folder: Path) -> None:
        """Remove a folder in the background; its name can be used again at once."""
        renamed = self._folder / f".{'0' * 64}.{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            folder.rename(renamed)
            self._tasks.start(asyncio.to_thread(shutil.rmtree, renamed, ignore_errors=True))
