"""``config.properties``: TorchServe's configuration, text in and values out.

Only the keys that torchmar itself acts on have a field here; all others pass
through to the server as they stand.
"""

from __future__ import annotations

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

# What a server is started from where there is no file: models may be registered, by those who have its token.
_WITHOUT_FILE = {"enable_model_api": "true"}
# TorchServe's ports where an address names none: of http, and of https.
PORTS = {"inference_address": (80, 443), "management_address": (8081, 8444), "metrics_address": (8082, 8445)}


@dataclass(frozen=True)
class Properties:
    """A configuration: where it was read and its keys as text."""

    file: Path | None
    values: Mapping[str, str]

    def get(self, key: str) -> str:
        """Return the value of ``key``, or TorchServe's default, or the empty string."""
        return self.values.get(key) or DEFAULTS.get(key, "")

    def flag(self, key: str) -> bool:
        """Return ``key`` as the server reads a boolean: only ``true`` is true."""
        return self.get(key).strip().lower() == "true"

    def addresses(self) -> list[Address]:
        """Return every address that the server will listen on.

        Raises:
            PropertiesError: an address is no ``http://HOST:PORT`` and no ``unix:/PATH``, or a port no number.
        """
        web = [self._web(key) for key in PORTS]
        grpc = [self._grpc(api) for api in ("inference", "management")]
        return [*web, *grpc]

    def url(self, key: str) -> str:
        """Return where an API listens as clients write it: ``http://HOST:PORT`` or ``unix:/PATH``.

        Raises:
            PropertiesError: as `addresses`.
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
        where = f"{self.file}: " if self.file else ""
        return PropertiesError(f"{where}{key}={value}: not an address", hint=f"write it like {key}={example}")


def given(file: Path | None) -> Properties:
    """Return what ``file`` says; if none is named what ``config.properties`` here does, or the least, if there is none.

    Raises:
        PropertiesError: as `read`.
    """
    if file is None and not Path(FILE_NAME).is_file():
        return Properties(None, _WITHOUT_FILE)
    return read(file or Path(FILE_NAME))


def read(file: Path) -> Properties:
    """Read a ``config.properties``.

    Raises:
        PropertiesError: the file cannot be read or is no properties file.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            return Properties(file, dict(javaproperties.load(stream)))
    except FileNotFoundError:
        raise PropertiesError(f"{file} does not exist", hint="name one with --config") from None
    except (OSError, UnicodeDecodeError, javaproperties.InvalidUEscapeError) as error:
        raise PropertiesError(f"{file} cannot be read: {error}") from None


def show(values: Mapping[str, str]) -> str:
    """Return ``values`` as the text of a properties file, sorted by key."""
    text = javaproperties.dumps(dict(values), sort_keys=True, timestamp=False, ensure_ascii=True)
    return str(text)
