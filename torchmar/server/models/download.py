"""Downloads of archives: limited in size, continued after an interruption, compared with their digest."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import NamedTuple

from torchmar.archive import file_digest
from torchmar.archive.built_archive import show_size
from torchmar.errors import TorchmarError
from torchmar.server.api_error import ApiError
from torchmar.server.config.settings import Settings
from torchmar.server.models import archive_urls
from torchmar.server.models.archive_errors import digest_differs, not_downloaded, not_saved
from torchmar.server.models.http_file import HttpFile
from torchmar.server.models.partial_file import PartialFile
from torchmar.server.models.remote_file import ChangedError, RemoteFile, Transfer, TransferError
from torchmar.server.models.storage_file import StorageFile
from torchmar.server.telemetry import logs

_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.25, 10.0  # pause before an attempt; it doubles each time
_PATIENCE_SECONDS = 120.0  # limit without a further byte; the packages of object stores have their own retries
# As curl's --speed-limit and --speed-time: a slower server would occupy a thread for days.
_LEAST_RATE, _RATE_SECONDS = 1000, 30.0  # bytes per second, averaged over each such period
_REPORT_SECONDS = 10.0  # interval of log lines
_PARTIAL = re.compile(r"\.part-[0-9a-f]{64}")
_KEPT_SECONDS, _KEPT_FILES = 24 * 3600.0, 4  # limits for interrupted downloads that are kept


class DownloadProgress(NamedTuple):
    """A running download.

    Attributes:
        url: URL of the archive, without its query.
        received: received bytes.
        size: bytes of the whole file; None: unknown.
    """

    url: str
    received: int
    size: int | None


class _BrokenOffError(Exception):
    """A download was interrupted, and may be continued later; the message is the reason."""


class _TooSlowError(Exception):
    """A download is slower than the least rate; the message is the reason."""


class Downloads:
    """The downloads of a server. Its methods may be called from several threads.

    A download that is interrupted, also by the end of the server, stays in the folder for a day. The next download of
    the same URL continues it if the remote file is still the same, by its ETag or version.

    Args:
        settings: ``allowed_urls``, the limit of the size and the number of attempts.
        folder: folder for the files.
        stopping: set when the server stops, which ends all downloads.
    """

    def __init__(self, settings: Settings, folder: Path, stopping: threading.Event) -> None:
        self._settings, self._folder, self._stopping = settings, folder, stopping
        self._active: set[str] = set()
        self._lock = threading.Lock()
        self._reports: list[_Report] = []

    @property
    def running(self) -> list[DownloadProgress]:
        """The running downloads, in the order of their start."""
        return [report.progress for report in list(self._reports)]

    def fetch(self, url: str, digest: str = "") -> Path:
        """Download an archive; blocking.

        Args:
            url: URL that `archive_urls.check` allows.
            digest: digest of the file, in hexadecimal; empty: any.

        Returns:
            The file, with the suffix of its form, in its own folder, which the caller removes.

        Raises:
            ApiError: 400, it cannot be fetched, or its digest differs; 404, a redirect is not allowed; 500, it cannot
                be written.
        """
        shown_url = archive_urls.without_secrets(url)
        name = f".part-{hashlib.sha256(url.encode()).hexdigest()}"
        scratch = f".fetch-{secrets.token_hex(8)}"
        with self._lock:
            claimed = name not in self._active  # False if another registration is downloading the same URL
            if claimed:
                self._active.add(name)
        folder = self._folder / (name if claimed else scratch)
        try:
            file = PartialFile(folder)
            self._receive(url, file)
            if digest and (actual := file_digest.of(file.path, self._stopping.is_set)) != digest:
                raise digest_differs(shown_url, expected=digest, actual=actual)
            folder = folder.rename(self._folder / scratch)
            return _with_suffix(folder / file.path.name)
        except (_BrokenOffError, InterruptedError) as error:
            if not claimed or not PartialFile(folder).size:
                shutil.rmtree(folder, ignore_errors=True)
            raise not_downloaded(shown_url, str(error) or "the server is stopping") from None
        except (OSError, TorchmarError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise not_saved(shown_url, getattr(error, "strerror", None) or str(error)) from None
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            if claimed:
                with self._lock:
                    self._active.discard(name)

    def remove_old(self) -> None:
        """Remove interrupted downloads, except for the newest ones of the last day."""
        with self._lock:
            idle = [path for path in self._folder.glob(".part-*") if path.name not in self._active]
        ages = {path: time.time() - path.stat().st_mtime for path in idle if _PARTIAL.fullmatch(path.name)}
        for number, (path, age) in enumerate(sorted(ages.items(), key=lambda entry: entry[1])):
            if number >= _KEPT_FILES or age > _KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    def _receive(self, url: str, file: PartialFile) -> None:
        """Receive the missing part of a file; after an interruption, try again from there.

        Raises:
            _BrokenOffError: too many attempts have brought no further byte, or the server stops.
        """
        remote: RemoteFile = StorageFile(url) if archive_urls.is_object(url) else HttpFile(url, self._settings)
        shown_url = archive_urls.without_secrets(url)
        report = _Report(shown_url)
        self._reports.append(report)
        try:
            self._try(remote, shown_url, file, report)
        finally:
            self._reports.remove(report)

    def _try(self, remote: RemoteFile, shown_url: str, file: PartialFile, report: _Report) -> None:
        failures = furthest = 0
        progressed = time.monotonic()
        while True:
            try:
                with remote.open(file.size, file.identity) as transfer:
                    self._save(shown_url, transfer, file, report)
                report.end()
                return
            except _TooSlowError as error:
                raise _BrokenOffError(f"{error}{_kept(file)}") from None
            except TransferError as error:
                if isinstance(error, ChangedError):
                    file.forget()
                failures += 1
                if file.size > furthest:
                    failures, furthest, progressed = 1, file.size, time.monotonic()
                patient = time.monotonic() - progressed < _PATIENCE_SECONDS
                if failures > self._settings.download_retries or not patient:
                    attempts = f"in {failures} attempts" if failures > 1 else "in 1 attempt"
                    raise _BrokenOffError(f"{error}, {attempts}{_kept(file)}") from None
                delay = min(_FIRST_DELAY_SECONDS * 2 ** (failures - 1), _LONGEST_DELAY_SECONDS)
                arguments = (shown_url, error, show_size(file.size), delay)
                logs.SERVER.warning("the download of %s broke off (%s); it continues at %s in %.2f s", *arguments)
                if self._stopping.wait(delay):
                    raise _BrokenOffError("the server is stopping") from None

    def _save(self, shown_url: str, transfer: Transfer, file: PartialFile, report: _Report) -> None:
        limit, size, received = self._settings.max_download_size, transfer.size, transfer.offset
        report.begin(received, size)
        rate_since, rate_from = time.monotonic(), received
        with file.open_at(received, transfer.identity) as stream:
            if size is not None and size > limit:
                raise _too_large(shown_url, limit)
            for chunk in transfer.chunks:
                received += len(chunk)
                if received > limit:
                    raise _too_large(shown_url, limit)
                if self._stopping.is_set():
                    raise _BrokenOffError("the server is stopping")
                stream.write(chunk)
                report.add(received)
                now = time.monotonic()
                if now - rate_since >= _RATE_SECONDS and received != size:
                    if received - rate_from < _LEAST_RATE * (now - rate_since):
                        raise _TooSlowError(f"less than {_LEAST_RATE} bytes a second arrive")
                    rate_since, rate_from = now, received
        if size is not None and received > size:
            raise ChangedError(f"it has more than {size} bytes")
        if size is not None and received < size:
            raise TransferError(f"it ended after {received} of {size} bytes")


class _Report:
    """The progress of one download, with its log lines."""

    def __init__(self, shown_url: str) -> None:
        self._shown, self._size = shown_url, ""
        self.progress = DownloadProgress(shown_url, 0, None)
        self._started = self._reported = time.monotonic()

    def begin(self, offset: int, size: int | None) -> None:
        self._size = f" of {show_size(size)}" if size is not None else ""
        self.progress = DownloadProgress(self._shown, offset, size)
        start = (
            f"the download continues at {show_size(offset)}{self._size}"
            if offset
            else f"the download{self._size} begins"
        )
        logs.SERVER.info("%s: %s", self._shown, start)

    def add(self, received: int) -> None:
        self.progress = self.progress._replace(received=received)
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            logs.SERVER.info("%s: %s%s are downloaded", self._shown, show_size(received), self._size)

    def end(self) -> None:
        seconds = time.monotonic() - self._started
        logs.SERVER.info("%s: downloaded, %s in %.1f s", self._shown, show_size(self.progress.received), seconds)


def _too_large(shown_url: str, limit: int) -> ApiError:
    return not_downloaded(shown_url, f"it has more than torchmar_max_download_size={limit} bytes")


def _kept(file: PartialFile) -> str:
    return f"; {show_size(file.size)} are kept for the next attempt" if file.size else ""


def _with_suffix(file: Path) -> Path:
    """Rename a downloaded file to the suffix of its form, which may differ from that of its URL."""
    with file.open("rb") as stream:
        suffix = ".tar.gz" if stream.read(2) == b"\x1f\x8b" else ".mar"
    return file.rename(file.with_name(f"{file.name}{suffix}"))
