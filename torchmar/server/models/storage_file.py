"""An object of S3, Google Cloud Storage or Azure Blob Storage, read with the credentials of the environment."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

from torchmar.server.api_error import ApiError
from torchmar.server.daemon_threads import DaemonThreads
from torchmar.server.models.archive_errors import not_downloaded
from torchmar.server.models.archive_urls import StorageObject, parse_object, without_secrets
from torchmar.server.models.remote_file import TEMPORARY, ChangedError, Transfer, TransferError

_CHUNK = 4 << 20
_CONNECTIONS = 4  # number per download; object stores limit the rate of each connection
_CONNECT_SECONDS, _READ_SECONDS = 10, 20


class Package(NamedTuple):
    """A package that reads the objects of a store.

    Attributes:
        name: name of the package and of its module.
        extra: extra of torchmar that installs it.
    """

    name: str
    extra: str


_PACKAGES = {"s3": Package("s3fs", "s3"), "gs": Package("gcsfs", "gcs"), "az": Package("adlfs", "azure")}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of the pod or machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or a service account of the pod or machine",
    "az": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with a key, a token or a managed identity",
}
# Exceptions of the three packages and their dependencies, by name: importing their modules takes a second.
_WITHOUT_CREDENTIALS = {
    "ClientAuthenticationError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "RefreshError",
    "TokenRetrievalError",
}


def missing_package(url: str) -> Package | None:
    """Return the package that the URL of an object needs, if it is not installed; otherwise None."""
    package = _PACKAGES[url.partition(":")[0].lower()]
    return None if importlib.util.find_spec(package.name) else package


class StorageFile:
    """An object in a bucket or container.

    Args:
        url: ``s3://BUCKET/NAME``, ``gs://BUCKET/NAME`` or ``az://CONTAINER/NAME``.

    Raises:
        ApiError: 400, the URL is malformed, or the package that it needs is not installed.
    """

    def __init__(self, url: str) -> None:
        self._object, self._shown = parse_object(url), without_secrets(url)
        if missing := missing_package(url):
            raise not_downloaded(self._shown, f"it needs {missing.name}: pip install 'torchmar[{missing.extra}]'")

    @contextlib.contextmanager
    def open(self, offset: int, identity: str) -> Iterator[Transfer]:
        """Read the object's description; its bytes are read by range requests. See `RemoteFile.open`."""
        with self._errors():
            reader = _READERS[self._object.store](self._object)
            size, current = reader.describe()
        start = offset if current and identity == current else 0
        with DaemonThreads(_CONNECTIONS, "download") as threads:
            yield Transfer(start, size, current, self._chunks(reader, start, size, current, threads))

    def _chunks(self, reader: _Reader, start: int, size: int, identity: str, threads: DaemonThreads) -> Iterator[bytes]:
        pending: deque[Future[bytes]] = deque()
        with self._errors():
            try:
                for beginning in range(start, size, _CHUNK):
                    pending.append(threads.submit(reader.read, beginning, min(beginning + _CHUNK, size)))
                    if len(pending) == _CONNECTIONS:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            except FileNotFoundError:
                raise _changed() from None
            finally:
                for future in pending:
                    future.cancel()
            if reader.describe() != (size, identity):
                raise _changed()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Map exceptions of the packages, whose texts may contain signatures.

        Raises:
            ApiError: 400, another attempt would fail, too.
            TransferError: another attempt may succeed.
        """
        store = self._object.store
        try:
            yield
        except TransferError:
            raise
        except FileNotFoundError:
            raise not_downloaded(self._shown, "there is no such object") from None
        except PermissionError:
            raise self._forbidden() from None
        except Exception as error:
            names = {kind.__name__ for kind in type(error).__mro__}
            if names & _WITHOUT_CREDENTIALS:
                reason = f"no credentials that work ({type(error).__name__}); the server needs {_CREDENTIALS[store]}"
                raise not_downloaded(self._shown, reason) from None
            if isinstance(error, ValueError | TypeError | ImportError):
                reason = f"{_PACKAGES[store].name} is not configured ({type(error).__name__})"
                raise not_downloaded(self._shown, f"{reason}; the server needs {_CREDENTIALS[store]}") from None
            if isinstance(error, OSError) and error.errno == errno.EINVAL and "pre-condition" in str(error).lower():
                raise _changed() from None
            status = _status(error)
            if status in (401, 403) or (isinstance(error, OSError) and str(error).startswith("Forbidden")):
                raise self._forbidden() from None
            if 400 <= status < 500 and status not in TEMPORARY:
                raise not_downloaded(self._shown, f"HTTP {status}") from None
            raise TransferError(f"HTTP {status}" if status else type(error).__name__) from None

    def _forbidden(self) -> ApiError:
        return not_downloaded(self._shown, "the server's credentials may not read it, or have expired")


def _status(error: Exception) -> int:
    """Return the HTTP status of an exception of the packages; 0: it has none."""
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    return status if isinstance(status, int) else 0


def _changed() -> ChangedError:
    return ChangedError("the object has changed while it was downloaded")


class _Reader:
    """A reader of one object, with a new connection to the store and without a cache."""

    def __init__(self, target: StorageObject) -> None:
        self._path = f"{target.bucket}/{target.key}"

    def describe(self) -> tuple[int, str]:
        """Return the size of the object, and a value that differs for different contents."""
        raise NotImplementedError

    def read(self, start: int, end: int) -> bytes:
        """Return bytes of the object that `describe` has described; may be called from several threads."""
        raise NotImplementedError


class _S3Reader(_Reader):
    def __init__(self, target: StorageObject) -> None:
        super().__init__(target)
        import s3fs

        self._system = s3fs.S3FileSystem(
            version_aware=bool(target.version),
            config_kwargs={
                "connect_timeout": _CONNECT_SECONDS,
                "read_timeout": _READ_SECONDS,
                "retries": {"total_max_attempts": 2, "mode": "standard"},
            },
            **_WITHOUT_CACHES,
        )
        self._system.retries = 2  # the default of five in s3fs, each with five in botocore, would take minutes
        self._version = {"version_id": target.version} if target.version else {}

    def describe(self) -> tuple[int, str]:
        info = self._system.info(self._path, refresh=True, **self._version)
        etag = _file(info)["ETag"]
        # Sent with all further requests: the ETag of S3 identifies a content, which may change and change back.
        self._system.s3_additional_kwargs = {"IfMatch": etag}
        return int(info["size"]), str(etag)

    def read(self, start: int, end: int) -> bytes:
        return bytes(self._system.cat_file(self._path, start=start, end=end, **self._version))


class _GoogleReader(_Reader):
    def __init__(self, target: StorageObject) -> None:
        super().__init__(target)
        # gcsfs would put names of frameworks into the User-Agent, and use a special API for some buckets, which takes
        # seconds.
        os.environ.setdefault("GCSFS_NO_TELEMETRY", "1")
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        import aiohttp
        from gcsfs.core import GCSFileSystem  # the class gcsfs.GCSFileSystem may be the one with the special API

        # Otherwise gcsfs would try anonymous access last, and its error would hide the reason.
        token = "anon" if os.environ.get("STORAGE_EMULATOR_HOST") else "google_default"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
        self._system = GCSFileSystem(token=token, version_aware=True, requests_timeout=timeout, **_WITHOUT_CACHES)
        self._generation = target.version

    def describe(self) -> tuple[int, str]:
        version = f"#{self._generation}" if self._generation else ""
        info = _file(self._system.info(f"{self._path}{version}"))
        self._generation = str(info["generation"])
        return int(info["size"]), self._generation

    def read(self, start: int, end: int) -> bytes:
        return bytes(self._system.cat_file(self._path, start=start, end=end, generation=self._generation))


class _AzureReader(_Reader):
    def __init__(self, storage_object: StorageObject) -> None:
        super().__init__(storage_object)
        import adlfs
        from azure.storage.blob.aio import BlobServiceClient

        self._system = adlfs.AzureBlobFileSystem(version_aware=bool(storage_object.version), **_WITHOUT_CACHES)
        # adlfs passes no options to this client, which would try each request four times, even without credentials, and
        # wait for 90 seconds in between.
        client = self._system.service_client
        self._system.service_client = BlobServiceClient(
            client.url,
            client.credential,
            retry_total=0,
            connection_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
        )
        self._versioned = f"{self._path}?versionid={storage_object.version}" if storage_object.version else self._path

    def describe(self) -> tuple[int, str]:
        info = _file(self._system.info(self._versioned, refresh=True))
        return int(info["size"]), str(info["etag"])  # the ETag of a blob changes with each write

    def read(self, start: int, end: int) -> bytes:
        return bytes(self._system.cat_file(self._versioned, start=start, end=end))


# A description from a cache could be that of an older content.
_WITHOUT_CACHES: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
_READERS = {"s3": _S3Reader, "gs": _GoogleReader, "az": _AzureReader}


def _file(info: dict[str, Any]) -> dict[str, Any]:
    """Return the description of an object; raise FileNotFoundError for a folder."""
    if info["type"] != "file":
        raise FileNotFoundError
    return info
