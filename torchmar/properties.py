"""``config.properties``: TorchServe's configuration as text and as values.

Keys are not interpreted here, except addresses; `torchmar.server.config.keys` has the catalogue.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import javaproperties

from torchmar import address
from torchmar.address import Address
from torchmar.errors import PropertiesError

FILE_NAME = "config.properties"
DEFAULTS = {
    "inference_address": "http://127.0.0.1:8080",
    "management_address": "http://127.0.0.1:8081",
    "metrics_address": "http://127.0.0.1:8082",
    "grpc_inference_address": "127.0.0.1",
    "grpc_inference_port": "7070",
    "grpc_management_address": "127.0.0.1",
    "grpc_management_port": "7071",
}

# The configuration without a file: clients with the token can register models.
_WITHOUT_FILE = {"enable_model_api": "true"}
# TorchServe's ports for addresses without a port: of http, and of https.
PORTS = {"inference_address": (80, 443), "management_address": (8081, 8444), "metrics_address": (8082, 8445)}


_VALUE = re.compile(r"^((?:\\.|[^=\\\n])*=)(.*)$", re.MULTILINE)  # the key and the value of a line
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Properties:
    """A configuration: its file and its values as text."""

    file: Path | None
    values: Mapping[str, str]

    def get(self, key: str) -> str:
        """Return the value of ``key``, or TorchServe's default, or the empty string."""
        return self.values.get(key) or DEFAULTS.get(key, "")

    def flag(self, key: str) -> bool:
        """Return whether a value is ``true``; all other texts are false, as for the server."""
        return self.get(key).strip().lower() == "true"

    @property
    def serves_metrics(self) -> bool:
        """Whether the metrics API is served: it is, unless ``enable_metrics_api`` is ``false``."""
        return self.get("enable_metrics_api").strip().lower() != "false"

    def addresses(self) -> list[Address]:
        """Return every address at which the server listens.

        Raises:
            PropertiesError: an address is not ``http(s)://HOST:PORT`` or ``unix:/PATH``, or a port is not a number.
        """
        web = [self._web(key) for key in PORTS]
        grpc = [self._grpc(api) for api in ("inference", "management")]
        return [*web, *grpc]

    def url(self, key: str) -> str:
        """Return the address of an API over HTTP as text: ``http(s)://HOST:PORT`` or ``unix:/PATH``.

        Raises:
            PropertiesError: for the reasons of `addresses`.
        """
        return str(self._web(key))

    def _web(self, key: str) -> Address:
        text = self.get(key).strip()
        try:
            return address.parse(text, *PORTS[key], key=key)
        except ValueError:
            raise self._wrong(key, text, "http://127.0.0.1:8080") from None

    def _grpc(self, api: str) -> Address:
        key = f"grpc_{api}_port"
        text = self.get(key)
        if not text.isdigit() or not 0 < int(text) < 65536:
            raise self._wrong(key, text, "7070")
        return Address(self.get(f"grpc_{api}_address"), int(text), tls=self.flag("enable_grpc_ssl"), key=key)

    def _wrong(self, key: str, value: str, example: str) -> PropertiesError:
        prefix = f"{self.file}: " if self.file else ""
        return PropertiesError(f"{prefix}{key}={value}: not an address", hint=f"write it like {key}={example}")


def read_or_default(file: Path | None) -> Properties:
    """Return the configuration in ``file``, else in ``./config.properties``, else the default one.

    Raises:
        PropertiesError: for the reasons of `read`.
    """
    if file is None and not Path(FILE_NAME).is_file():
        return Properties(None, _WITHOUT_FILE)
    return read(file or Path(FILE_NAME))


def read(file: Path) -> Properties:
    """Read a ``config.properties`` in UTF-8, or else in Latin-1, the encoding in which Java reads these files.

    Raises:
        PropertiesError: the file cannot be read or is not a properties file.
    """
    try:
        content = file.read_bytes()
        if b"\0" in content:
            raise PropertiesError(f"{file} is no text in UTF-8", hint="save it in this encoding")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
        values = dict(javaproperties.loads(text))
        "".join([*values, *values.values()]).encode()  # escapes may be halves of characters
        return Properties(file, values)
    except FileNotFoundError:
        raise PropertiesError(f"{file} does not exist", hint="name one with --config") from None
    except (OSError, UnicodeEncodeError, javaproperties.InvalidUEscapeError) as error:
        raise PropertiesError(f"{file} cannot be read: {error}") from None


def show(values: Mapping[str, str]) -> str:
    """Return ``values`` as the text of a properties file, sorted by key.

    Colons and equals signs in values have no backslash, because Java does not need it there: people read
    addresses, and KServe's wrapper of TorchServe does not remove backslashes.
    """
    text = javaproperties.dumps(dict(values), sort_keys=True, timestamp=False, ensure_ascii=True)
    return _VALUE.sub(lambda line: line[1] + _ESCAPE.sub(_plain, line[2]), str(text))


def _plain(escape: re.Match[str]) -> str:
    return escape[1] if escape[1] in ":=" else escape[0]
