"""Values of ``config.properties``: conversion of texts to types.

Each reader returns the value, or raises ValueError with the expected syntax.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torchmar import address
from torchmar.address import Address
from torchmar.checks.finding import unknown
from torchmar.server.config.base_paths import VersionPolicy

#: Platforms whose containers have further paths.
PLATFORMS = ("sagemaker", "sagemaker-multi-model")

_MAX_MINUTES = 100 * 365 * 24 * 60.0
_MODEL_NUMBERS = (
    *("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout", "parallelLevel"),
)
_MIN_TOKEN_LENGTH = 16
_TOKEN = re.compile(rf"[A-Za-z0-9._~+/=-]{{{_MIN_TOKEN_LENGTH},}}")


def flag(text: str) -> bool:
    """Return whether a text is ``true``; any other text counts as false, as in TorchServe."""
    return text.lower() == "true"


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a reader of whole numbers from ``least`` to ``most``."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]+", text) or int(text) < least or (most is not None and int(text) > most):
            raise ValueError(f"not a whole number {f'from {least} to {most}' if most else f'of at least {least}'}")
        return int(text)

    return read


def codes_of_checks(text: str) -> tuple[str, ...]:
    """Return codes of checks, or prefixes of codes, from a text with commas."""
    codes = tuple(filter(None, map(str.strip, text.split(","))))
    if unknown_codes := unknown(codes):
        raise ValueError(f"no code of a check is called {unknown_codes[0]} or begins so")
    return codes


def watch_policy(text: str) -> VersionPolicy | None:
    """Return the versions of a watched model store to serve; None for ``false``."""
    if text.lower() == "false":
        return None
    if text not in ("latest", "all"):
        raise ValueError("not latest, all or false")
    return VersionPolicy(latest=1 if text == "latest" else 0)


def group(text: str) -> str:
    """Return the name of a group of servers."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", text):
        raise ValueError("not a name of letters, digits and hyphens")
    return text


def platform(text: str) -> str:
    """Return the platform whose paths the inference API has in addition to its own."""
    if text not in PLATFORMS:
        raise ValueError(f"not {' or '.join(PLATFORMS)}")
    return text


def url_path(text: str) -> str:
    """Return the path of a URL."""
    if not re.fullmatch(r"/[^\s?#%\\\x00-\x1f\x7f]*", text):
        raise ValueError("not a path like /healthz, without spaces and ?#%")
    return text


def log_layout(text: str) -> str:
    """Return the layout of logs."""
    if text not in ("text", "json"):
        raise ValueError("not text or json")
    return text


def minutes(text: str) -> float:
    """Return a number of minutes."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= _MAX_MINUTES:  # also false for nan
        raise ValueError(f"not a number of minutes above 0 and up to {_MAX_MINUTES:.0f}")
    return value


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:  # also false for nan
        raise ValueError("not a number from 0 to 1")
    return value


def collector_url(text: str) -> str:
    """Return the URL of a collector over HTTP, without the path that the OTLP exporter appends."""
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
        raise ValueError("not a URL like http://HOST:PORT")
    if url.username or url.password:
        raise ValueError("has a password; set it in OTEL_EXPORTER_OTLP_HEADERS")
    return text


def amount(text: str) -> float:
    """Return a number above 0, possibly with a fraction."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < math.inf:  # also false for nan
        raise ValueError("not a number above 0")
    return value


def web_address(http_port: int, https_port: int) -> Callable[[str], Address]:
    """Return a reader of addresses; the ports are defaults for URLs without a port."""
    return partial(address.parse, http_port=http_port, https_port=https_port)


def models(text: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return options of versions, by model and version."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    match document:
        case dict() if all(isinstance(versions, dict) for versions in document.values()):
            return {
                name: {version: _version(name, version, keys) for version, keys in versions.items()}
                for name, versions in document.items()
            }
    raise ValueError("not an object of models, each an object of versions")


def _version(name: str, version: str, keys: object) -> dict[str, Any]:
    place = f"{name} {version}"
    if not isinstance(keys, dict):
        raise ValueError(f"{place} is not an object")
    values = {}
    for key, value in keys.items():
        if key in _MODEL_NUMBERS:
            if isinstance(value, str) and re.fullmatch("-?[0-9]+", value):
                value = int(value)  # as TorchServe's parser does
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{place}: {key} is {value!r}, not a whole number")
        values[key] = value
    return values


def pattern(text: str) -> re.Pattern[str]:
    """Return a regular expression for URLs that ignores case."""
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"{text} is not a regular expression: {error}") from None


def patterns(text: str) -> tuple[re.Pattern[str], ...]:
    """Return comma-separated regular expressions for URLs."""
    return tuple(pattern(part.strip()) for part in text.split(",") if part.strip())


def regular_expression(text: str) -> re.Pattern[str]:
    """Return a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None


def path(text: str) -> Path:
    """Return an absolute path."""
    return Path(text).absolute()


def token(text: str) -> str:
    """Return a bearer token (RFC 6750, 2.1)."""
    if not _TOKEN.fullmatch(text):
        raise ValueError(
            f"not a token of {_MIN_TOKEN_LENGTH} characters or more, which are letters, digits and any of - . _ ~ + / ="
        )
    return text


def metrics_mode(text: str) -> str:
    """Return a mode of TorchServe's metrics."""
    if text.lower() not in ("log", "prometheus", "legacy"):
        raise ValueError("not log, prometheus or legacy")
    return text.lower()
