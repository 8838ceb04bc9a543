"""A client of one engine that sends requests unchanged and returns responses as received."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from torchmar.engines.engine import Engine
from torchmar.errors import NotFoundError
from torchmar.parity.cases import Case

_SECONDS = 60.0
_SETTLE_SECONDS = 120.0
_CUT_OFF = b"<cut off>"


@dataclass(frozen=True)
class RawResponse:
    """A response: status, reason phrase, headers by lower-case name, body. The status 0 means no response."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Filling:
    """The values of a case's placeholders: model, version, body and content type."""

    name: str
    version: str
    body: bytes = b""
    content_type: str = "application/octet-stream"


class EngineClient:
    """A client of one engine; not thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        values = engine.properties
        self._addresses = {
            "inference": _address(engine.server.inference),
            "management": _address(engine.server.management),
            "metrics": _address(values.get("metrics_address")),
        }
        # Values that differ between servers, with the names that replace them.
        self._own = [(f"{host}:{port}", f"<{api}>") for api, (host, port) in self._addresses.items()]
        self._own += [(str(engine.folder), "<run folder>")]

    def send(self, case: Case, filling: Filling) -> RawResponse:
        """Send a case; return the response, in which names replace this server's addresses, folder and tokens."""
        host, port = self._addresses[case.api]
        connection = http.client.HTTPConnection(host, port, timeout=case.seconds)
        try:
            connection.request(
                case.method,
                _fill(case.path, filling),
                _body(case, filling),
                {name: _fill(value, filling) for name, value in self._headers(case).items()},
                encode_chunked=case.chunked,
            )
            response = connection.getresponse()
            body = _read(response)
        except TimeoutError:
            return RawResponse(0, "", {}, f"no answer within {case.seconds:.0f} s".encode())
        except (OSError, http.client.HTTPException):
            return RawResponse(0, "", {}, b"the connection was closed without an answer")
        finally:
            connection.close()
        headers: dict[str, str] = {}
        for name, value in response.getheaders():
            previous = headers.get(name.lower())
            headers[name.lower()] = f"{previous}, {value}" if previous is not None else value
        neutral = {name: self._neutral(value) for name, value in headers.items()}
        return RawResponse(response.status, response.reason, neutral, self._plain(body))

    def settle(self, model: str | None) -> None:
        """Wait until a model has its minimum of workers, two minutes at most.

        Args:
            model: its name; None: all models.
        """
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline and not self._settled(model):
            time.sleep(0.05)

    def _settled(self, model: str | None) -> bool:
        client = self.engine.management
        for name in client.names() if model is None else (model,):
            with contextlib.suppress(NotFoundError):  # unregistered meanwhile, or a name that no path can address
                for version in client.describe(name, "all"):
                    if not len(version.workers) == version.ready >= version.min_workers:
                        return False
        return True

    def _headers(self, case: Case) -> dict[str, str]:
        headers = dict(case.headers)
        if case.chunked:
            headers["Transfer-Encoding"] = "chunked"
        if case.authorization and self.engine.server.key_file:
            keys = _keys(self.engine.server.key_file)
            self._own += [
                (key, f"<{kind} token>") for kind, key in keys.items() if (key, f"<{kind} token>") not in self._own
            ]
            token = keys["management" if case.api == "management" else "inference"]
            credentials = case.authorization.replace("{token}", token)
            headers["Authorization"] = re.sub(
                r"\{(inference|management|API)\}", lambda kind: keys[kind[1]], credentials
            )
        return headers

    def _plain(self, body: bytes) -> bytes:
        try:
            return self._neutral(body.decode()).encode()
        except UnicodeDecodeError:
            return body

    def _neutral(self, text: str) -> str:
        for token, name in self._own:
            text = text.replace(token, name)
        return text


def _read(response: http.client.HTTPResponse) -> bytes:
    """Return the body of a response; if it is cut off, the received part with a mark."""
    body = b""
    try:
        while part := response.read1(1 << 20):
            body += part
    except (ConnectionError, http.client.HTTPException):
        return body + _CUT_OFF
    return body if response.length in (None, 0) else body + _CUT_OFF


def _keys(file: Path) -> dict[str, str]:
    """Return the current tokens, which a case may have renewed."""
    return {kind: str(key["key"]) for kind, key in json.loads(file.read_text(encoding="utf-8")).items()}


def _body(case: Case, filling: Filling) -> bytes | list[bytes] | None:
    body = case.body
    if b"{" in body:
        body = body.replace(b"{name}", filling.name.encode())
        body = body.replace(b"{sample}", filling.body).replace(b"{base64}", base64.b64encode(filling.body))
    if case.chunked:
        return [body[: len(body) // 2], body[len(body) // 2 :]]
    return body or None


def _fill(text: str, filling: Filling) -> str:
    for name, value in (("name", filling.name), ("version", filling.version), ("type", filling.content_type)):
        text = text.replace(f"{{{name}}}", value)
    return text


def _address(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    return parts.hostname or "", parts.port or 80
