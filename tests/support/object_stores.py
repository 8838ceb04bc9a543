"""Object stores on this machine, as separate processes: moto's S3, and emulators of Google's and of Azure's."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from tests.oracles import python_of

BUCKET = "models"
#: Credentials that moto accepts, like any others, and with which botocore asks no metadata service.
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "secret-access-key",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}


#: The key from Azurite's documentation; it is not secret.
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
# moto checks no signature, but requires one.
_SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/us-east-1/s3/aws4_request"}


class Store:
    """An object store with one bucket, `BUCKET`."""

    def __init__(self, port: int) -> None:
        self.port, self.address = port, f"http://127.0.0.1:{port}"

    def put(self, name: str, content: bytes) -> str:
        """Write an object; return its version, if the store has versions."""
        raise NotImplementedError


class S3(Store):
    """moto's server."""

    def create_bucket(self) -> None:
        requests.put(f"{self.address}/{BUCKET}", headers=_SIGNED).raise_for_status()

    def put(self, name: str, content: bytes) -> str:
        response = requests.put(f"{self.address}/{BUCKET}/{quote(name)}", data=content, headers=_SIGNED)
        response.raise_for_status()
        return response.headers.get("x-amz-version-id", "")

    def keep_versions(self) -> None:
        body = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        requests.put(f"{self.address}/{BUCKET}?versioning", data=body, headers=_SIGNED).raise_for_status()


class GoogleStorage(Store):
    """gcp-storage-emulator."""

    def create_bucket(self) -> None:
        requests.post(f"{self.address}/storage/v1/b", params={"project": "p"}, json={"name": BUCKET}).raise_for_status()

    def put(self, name: str, content: bytes) -> str:
        response = requests.post(
            f"{self.address}/upload/storage/v1/b/{BUCKET}/o",
            params={"uploadType": "media", "name": name},
            data=content,
            headers={"content-type": "application/octet-stream"},
        )
        response.raise_for_status()
        return str(response.json().get("generation", ""))


@contextlib.contextmanager
def s3() -> Iterator[S3]:
    """Run moto's server with a bucket."""
    port = _free_port()
    with _running(["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        store = S3(port)
        store.create_bucket()
        yield store


@contextlib.contextmanager
def google_storage() -> Iterator[GoogleStorage]:
    """Run the emulator of Google Cloud Storage with a bucket."""
    port = _free_port()
    command = ["-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory"]
    with _running(command, port):
        store = GoogleStorage(port)
        store.create_bucket()
        yield store


class AzureStorage(Store):
    """Azurite, with the account of its documentation."""

    def connection_string(self, port: int) -> str:
        """Return the value of AZURE_STORAGE_CONNECTION_STRING, for a port that leads to the store."""
        endpoint = f"http://127.0.0.1:{port}/devstoreaccount1"
        return (
            f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={AZURITE_KEY};"
            f"BlobEndpoint={endpoint};"
        )

    def create_bucket(self) -> None:
        self._client().create_container(BUCKET)

    def put(self, name: str, content: bytes) -> str:
        self._client().get_blob_client(BUCKET, name).upload_blob(content, overwrite=True)
        return ""

    def _client(self) -> Any:
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(self.connection_string(self.port))


@contextlib.contextmanager
def azure_storage() -> Iterator[AzureStorage]:
    """Run Azurite with a container; the test is skipped if Azurite, a package of npm, is not installed."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("there is no azurite-blob here: npm install -g azurite")
    port = _free_port()
    command = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent", "--skipApiVersionCheck"]
    with tempfile.TemporaryDirectory() as folder:
        telemetry = ["--disableTelemetry"]
        with _process([program, *command, *telemetry, "--location", folder], port):
            store = AzureStorage(port)
            store.create_bucket()
            yield store


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _running(arguments: list[str], port: int) -> contextlib.AbstractContextManager[None]:
    return _process([str(python_of("storage")), *arguments], port)


@contextlib.contextmanager
def _process(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, cwd=Path("/"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, f"{command} has ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()
