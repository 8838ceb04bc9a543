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

# Seconds of a token's life that are too few to start a request with; half of it, where it is short.
_TOO_FEW, _LEAST = 30.0, 1.0
_ONE_AT_A_TIME = threading.Lock()  # a renewal ends the life of the token that another thread has just got
_WRITING = 0.25  # seconds that a server may take to write its key file, which it does in place
_RENEWAL_SECONDS = 30.0


class Tokens:
    """The tokens that a server wants. For use by several threads."""

    def __init__(self, server: Endpoint) -> None:
        self._server = server
        self._file = server.key_file

    def __repr__(self) -> str:
        return f"<Tokens of {self._file or 'the environment'}>"

    def current(self, api: Api) -> str | None:
        """Return the token of an API; None if no token is known.

        Raises:
            Unauthorized: it has expired and could not be renewed.
            CertificateError: it would have been renewed, and the server's certificate is not trusted.
            ConnectError: there is no key file.
            TorchmarError: the key file is none.
        """
        if self._file is None:
            return self._server.tokens.get(api)
        keys = _read(self._file)
        if _expires_soon(keys.get(api), self._file):
            with _ONE_AT_A_TIME:
                keys = _read(self._file)
                if _expires_soon(keys.get(api), self._file):
                    keys = self._renewed(self._file, api, keys)
        return str(keys[api]["key"])

    def other_than(self, api: Api, used: str | None) -> bool:
        """Tell whether the key file has another token by now than the one that was ``used``, and refused."""
        if self._file is None or used is None:
            return False
        deadline = time.monotonic() + _WRITING
        with _ONE_AT_A_TIME:
            # Between a renewal by another client and the new key file, the server refuses the token of the old file.
            while (key := _read(self._file).get(api)) is not None and key["key"] == used:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)
        return True

    def renew(self, api: Api) -> None:
        """Have the server write a new token into its key file; the one before it ends.

        Raises:
            Unauthorized: the server did not do it, or wrote into another file.
            TorchmarError: there is no key file.
        """
        if self._file is None:
            raise TorchmarError("a token is renewed with the API key of the server's key file", hint="--key-file")
        with _ONE_AT_A_TIME:
            self._renewed(self._file, api, _read(self._file))

    def _renewed(self, file: Path, api: Api, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys after a renewal; only one thread may be here."""
        try:
            why = self._no_renewal(api, str(keys["API"]["key"]))
        except (KeyError, TypeError):
            why = "the file has no API key"
        if why:
            raise UnauthorizedError(
                f"the token in {file} has expired and could not be renewed: {why}",
                status=400,
                hint="is the file of the server that runs now?",
            )
        after = _read(file)
        if after.get(api) == keys.get(api):
            raise UnauthorizedError(
                f"the server wrote a new token into its own key file, and {file} still has the old one",
                status=400,
                hint="it is a copy: copy it again",
            )
        return after

    def _no_renewal(self, api: Api, key: str) -> str:
        """Ask the server for a new token, which it writes into its key file; return why it did not."""
        management = Transport(self._server.management, "management API", self._server)
        try:
            response = management.send("GET", "/token", token=key, query={"type": api}, timeout=_RENEWAL_SECONDS)
        except CertificateError:
            raise
        except ConnectError as error:
            return error.message
        finally:
            management.close()
        return "" if response.status_code < 300 else f"the server answered with {response.status_code}"


def _read(file: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _WRITING
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
            # Half a file is one that is being written; what is no JSON in its first byte is something else.
            if isinstance(error, ValueError) and content[:1] in (b"", b"{") and time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            why = "torchmar serve writes another when it starts"
            raise TorchmarError(f"{file} is not a TorchServe key file", hint=why) from None


def _expires_soon(key: Mapping[str, str] | None, file: Path) -> bool:
    if key is None:
        return True
    end = _expires(key)
    life = end - file.stat().st_mtime  # or less, if the file was written again for the other API's sake
    return end - time.time() < max(_LEAST, min(_TOO_FEW, life / 2))


def _expires(key: Mapping[str, str]) -> float:
    # Java writes nanoseconds, which Python's parser does not take.
    text = str(key.get("expiration time", "")).partition(".")[0].rstrip("Z")
    try:
        return datetime.fromisoformat(f"{text}+00:00").timestamp()
    except ValueError:
        return float("inf")
