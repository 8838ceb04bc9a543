"""Tokens of a server: read from its key file, renewed before they expire."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from torchmar.connection.endpoint import Api, Endpoint
from torchmar.connection.transport import Transport
from torchmar.errors import CertificateError, ConnectError, TorchmarError, UnauthorizedError

# A token is renewed when less of its life is left: 30 seconds, or half of its life if that is shorter, but at least 1.
_MAX_MARGIN, _MIN_MARGIN = 30.0, 1.0
_RENEWAL_LOCK = threading.Lock()  # because a renewal invalidates the token that another thread has just read
_WRITE_SECONDS = 0.25  # time in which a server writes its key file in place
_RENEWAL_SECONDS = 30.0


class Tokens:
    """The tokens for a server. For use by several threads."""

    def __init__(self, server: Endpoint) -> None:
        self._server = server
        self._file = server.key_file

    def __repr__(self) -> str:
        return f"<Tokens of {self._file or 'the environment'}>"

    def current(self, api: Api) -> str | None:
        """Return the token of an API; None if no token is known.

        Raises:
            UnauthorizedError: it has expired and could not be renewed.
            CertificateError: it has expired, and the server's certificate is not trusted.
            ConnectError: there is no key file.
            TorchmarError: the key file is invalid.
        """
        if self._file is None:
            return self._server.tokens.get(api)
        keys = _read(self._file)
        if _expires_soon(keys.get(api), self._file):
            with _RENEWAL_LOCK:
                keys = _read(self._file)
                if _expires_soon(keys.get(api), self._file):
                    keys = self._renewed(self._file, api, keys)
        return str(keys[api]["key"])

    def other_than(self, api: Api, token: str | None) -> bool:
        """Return whether the key file now has another token than ``token``, which the server has rejected."""
        if self._file is None or token is None:
            return False
        deadline = time.monotonic() + _WRITE_SECONDS
        with _RENEWAL_LOCK:
            # Between another client's renewal and the new key file, the token in the file is invalid.
            while (key := _read(self._file).get(api)) is not None and key["key"] == token:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)
        return True

    def renew(self, api: Api) -> None:
        """Let the server write a new token into its key file; the previous one becomes invalid.

        Raises:
            UnauthorizedError: the server refused, or has another key file.
            TorchmarError: there is no key file.
        """
        if self._file is None:
            raise TorchmarError("the renewal of a token needs the API key of the server's key file", hint="--key-file")
        with _RENEWAL_LOCK:
            self._renewed(self._file, api, _read(self._file))

    def _renewed(self, file: Path, api: Api, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Renew a token, and return the keys of the new file; the caller holds the lock."""
        try:
            failure = self._request_renewal(api, str(keys["API"]["key"]))
        except (KeyError, TypeError):
            failure = "the file has no API key"
        if failure:
            raise UnauthorizedError(
                f"the token in {file} has expired and could not be renewed: {failure}",
                status=400,
                hint="is this the key file of the running server?",
            )
        after = _read(file)
        if after.get(api) == keys.get(api):
            raise UnauthorizedError(
                f"the server wrote a new token into its own key file, and {file} still has the old one",
                status=400,
                hint="the file is a copy; copy it again",
            )
        return after

    def _request_renewal(self, api: Api, key: str) -> str:
        """Request a new token, which the server writes into its key file; return an error message, or an empty text."""
        management = Transport(self._server.management, "management API", self._server)
        try:
            response = management.send("GET", "/token", token=key, query={"type": api}, timeout=_RENEWAL_SECONDS)
        except CertificateError:
            raise
        except ConnectError as error:
            return error.message
        finally:
            management.close()
        return "" if response.status_code < 300 else f"the server responded with {response.status_code}"


def _read(file: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _WRITE_SECONDS
    while True:
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise ConnectError(f"no server is running here: {file} does not exist", hint="torchmar serve") from None
        except OSError as error:
            raise TorchmarError(f"{file} cannot be read: {error.strerror}") from None
        try:
            return {api: {**key, "key": key["key"]} for api, key in json.loads(content).items()}
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            # A file that is just being written is incomplete; one that does not start like JSON is not a key file.
            if isinstance(error, ValueError) and content[:1] in (b"", b"{") and time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            hint = "torchmar serve writes a new one when it starts"
            raise TorchmarError(f"{file} is not a TorchServe key file", hint=hint) from None


def _expires_soon(key: Mapping[str, str] | None, file: Path) -> bool:
    if key is None:
        return True
    end = _expires(key)
    life = end - file.stat().st_mtime  # shorter than the real life, if the file was written again for the other API
    return end - time.time() < max(_MIN_MARGIN, min(_MAX_MARGIN, life / 2))


def _expires(key: Mapping[str, str]) -> float:
    # Java writes nanoseconds, which Python's parser rejects.
    text = str(key.get("expiration time", "")).partition(".")[0].rstrip("Z")
    try:
        return datetime.fromisoformat(f"{text}+00:00").timestamp()
    except ValueError:
        return float("inf")
