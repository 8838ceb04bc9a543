"""HTTP to one API of a server: where it is, the token that it wants, errors as exceptions."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import requests

from torchmar import properties
from torchmar.errors import Conflict, NotFound, Refused, TorchmarError, Unauthorized, Unreachable

Api = Literal["inference", "management"]

RUN_FOLDER = Path(".torchmar")
KEY_FILE = "key_file.json"
_RENEW_BEFORE = 30.0  # seconds of a token's life that are too few to start a request with


@dataclass(frozen=True)
class Server:
    """Where a server listens, and the key file that it wrote; None when it asks for no token."""

    inference: str = properties.DEFAULTS["inference_address"]
    management: str = properties.DEFAULTS["management_address"]
    key_file: Path | None = None

    @classmethod
    def started_in(cls, folder: Path = RUN_FOLDER) -> Server:
        """Return the server that ``torchmar serve`` runs with ``folder``, or TorchServe's default addresses.

        Raises:
            PropertiesError: the configuration that lies there cannot be read.
        """
        config = folder / "config.properties"
        if not config.is_file():
            key_file = Path(KEY_FILE)  # where a server that was started by hand in this folder puts it
            return cls(key_file=key_file if key_file.is_file() else None)
        values = properties.read(config)
        open_to_all = values.flag("disable_token_authorization")
        return cls(
            values.get("inference_address"),
            values.get("management_address"),
            None if open_to_all else folder / KEY_FILE,
        )


class Connection:
    """Requests to one API of a server. Not for use by several threads at once.

    Args:
        server: where it is.
        api: which API; each has a token of its own.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, server: Server, api: Api, timeout: float = 60.0) -> None:
        self._server = server
        self._api = api
        self._timeout = timeout
        self._address = (server.inference if api == "inference" else server.management).rstrip("/")
        self._session = requests.Session()
        # A proxy of the environment has no business between a client and a server on this machine.
        self._session.trust_env = False

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> requests.Response:
        """Send one request, once; return the answer if its status is below 400.

        Raises:
            Unreachable: nobody listens there, or the answer did not come in time.
            Refused: the server answered with an error; Unauthorized, NotFound or Conflict where it is one of these.
            TorchmarError: the key file cannot be read.
        """
        given = {name: value for name, value in (query or {}).items() if value is not None}
        seconds = timeout or self._timeout
        all_headers = {**(headers or {}), **self._authorization()}
        try:
            response = self._session.request(
                method, self._address + path, params=given, data=body, headers=all_headers, timeout=(5, seconds)
            )
        except requests.Timeout:
            raise Unreachable(f"{self._address} did not answer within {seconds:.0f} s") from None
        except requests.RequestException as error:
            reason = "nobody listens there" if isinstance(error, requests.ConnectionError) else str(error)
            raise Unreachable(f"no {self._api} API at {self._address}: {reason}", hint="torchmar serve") from None
        if response.status_code >= 400:
            raise _refusal(response)
        return response

    def _authorization(self) -> dict[str, str]:
        if self._server.key_file is None:
            return {}
        keys = _read_keys(self._server.key_file)
        if keys.get(self._api) is None or _expires(keys[self._api]) - time.time() < _RENEW_BEFORE:
            keys = self._renew(keys)
        return {"Authorization": f"Bearer {keys[self._api]['key']}"}

    def _renew(self, keys: dict[str, Any]) -> dict[str, Any]:
        """Have the server write a new token of this API into its key file; tokens live for an hour."""
        file = self._server.key_file
        assert file
        try:
            self._session.get(
                f"{self._server.management.rstrip('/')}/token",
                params={"type": self._api},
                headers={"Authorization": f"Bearer {keys['API']['key']}"},
                timeout=self._timeout,
            ).raise_for_status()
        except (requests.RequestException, KeyError, TypeError):
            raise Unauthorized(
                f"the token in {file} has expired and could not be renewed",
                status=400,
                hint="is the file of the server that runs now?",
            ) from None
        return _read_keys(file)


def _read_keys(file: Path) -> dict[str, Any]:
    try:
        keys = json.loads(file.read_text(encoding="utf-8"))
        return dict(keys)
    except FileNotFoundError:
        raise Unreachable(f"no server is running here: {file} does not exist", hint="torchmar serve") from None
    except (OSError, ValueError, TypeError) as error:
        raise TorchmarError(f"{file} is not a TorchServe key file: {error}") from None


def _expires(key: Mapping[str, str]) -> float:
    # Java writes nanoseconds, which Python's parser does not take.
    text = str(key.get("expiration time", "")).partition(".")[0].rstrip("Z")
    try:
        return datetime.fromisoformat(f"{text}+00:00").timestamp()
    except ValueError:
        return float("inf")


def _refusal(response: requests.Response) -> Refused:
    try:
        said = response.json()
        message, kind = str(said["message"]), str(said.get("type", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, kind = response.text.strip()[:500] or response.reason, ""
    status = response.status_code
    # TorchServe answers a bad token with 400, not with 401.
    if kind == "InvalidKeyException" or status == 401:
        return Unauthorized(
            message, status=status, type=kind, hint="its key_file.json has it: --key-file, or --run-folder"
        )
    if status == 404:
        missing_archive = message.startswith("Model not found at")
        hint = "the server looks in its model store" if missing_archive else "torchmar models lists what is registered"
        return NotFound(message, status=status, type=kind, hint=hint)
    if status == 409:
        return Conflict(message, status=status, type=kind)
    hint = "set enable_model_api=true in config.properties" if status == 405 else ""
    return Refused(message, status=status, type=kind, hint=hint)
