"""The reader of the configuration: ``config.properties``, ``TS_*`` variables and a command line to `Settings`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmar import gpus, properties
from torchmar.address import Address
from torchmar.server.config import credentials
from torchmar.server.config.config_text import ConfigText
from torchmar.server.config.keys import IGNORED_KEYS, SUPPORTED_KEYS, suggest
from torchmar.server.config.settings import Settings
from torchmar.server.config.values import pattern
from torchmar.server.http import Cors


def read(
    file: Path | None, environment: Mapping[str, str] = os.environ, **overrides: str
) -> tuple[Settings, list[str]]:
    """Read the server's configuration.

    Args:
        file: a ``config.properties``; None: there is none. ``$$NAME$$`` in its values is a variable.
        environment: environment variables; with ``enable_envvars_config=true`` in the file, ``TS_KEY`` takes
            precedence over all else; ``TS_ALLOWED_URLS`` also needs ``use_env_allowed_urls=true``.
        overrides: keys from the command line, which take precedence over the file.

    Returns:
        The settings, with warnings for the user.

    Raises:
        PropertiesError: the file cannot be read, or values are wrong: with file, key, value and an example for each.
    """
    config = ConfigText(file, environment, overrides)
    parsed = {key: config.read(key, key_spec) for key, key_spec in SUPPORTED_KEYS.items() if config.text(key)}
    values = {key: value for key, value in parsed.items() if value is not None}
    settings = _settings(config, values, environment)
    config.raise_problems()
    return settings, [*config.warnings, *_key_warnings(config)]


def texts(file: Path | None, environment: Mapping[str, str] = os.environ, **overrides: str) -> dict[str, str]:
    """Return the values that `read` would read, as text, after variables and overrides were applied.

    Raises:
        PropertiesError: the file cannot be read, or names a variable that does not exist.
    """
    config = ConfigText(file, environment, overrides)
    config.raise_problems()
    return config.values


def _settings(config: ConfigText, values: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    fields = {SUPPORTED_KEYS[key].field: value for key, value in values.items() if SUPPORTED_KEYS[key].field}
    model_store = _model_store(config)
    for api in ("inference", "management"):
        host = config.text(f"grpc_{api}_address") or properties.DEFAULTS[f"grpc_{api}_address"]
        port = values.get(f"grpc_{api}_port") or int(properties.DEFAULTS[f"grpc_{api}_port"])
        fields[f"grpc_{api}"] = Address(host, port, tls=bool(values.get("enable_grpc_ssl")))
    if values.get("cors_allowed_origin"):
        fields["cors"] = Cors(*(config.text(f"cors_allowed_{suffix}") for suffix in ("origin", "methods", "headers")))
    if "disable_token_authorization" in values:
        fields["tokens"] = not values["disable_token_authorization"]
    if protocol := environment.get("TS_OPEN_INFERENCE_PROTOCOL"):  # TorchServe always reads this variable
        fields["ts_open_inference_protocol"] = protocol == "oip"
    fields["fixed_tokens"] = credentials.fixed_tokens(config, values, environment)
    fields["grpc_ages"] = {key: value for key, value in values.items() if "_max_connection_age" in key}
    fields["number_of_gpu"] = min(gpus.count(environment), values.get("number_of_gpu", 1 << 20))
    fields.setdefault("allowed_urls", (pattern(f"{re.escape(model_store.as_uri())}/.*"),))
    settings = Settings(model_store=model_store, file=config.file, **fields)
    credentials.check_tls(config, settings)
    return settings


def _model_store(config: ConfigText) -> Path:
    store = Path(config.text("model_store")).resolve()
    if not config.text("model_store"):
        prefix = f"{config.file}: " if config.file else ""
        config.problem(
            f"{prefix}model_store is missing",
            "write it like model_store=/srv/model_store, or name it with --model-store",
        )
    elif "://" in config.text("model_store"):
        config.problem(
            f"{config.origin('model_store')}: not a folder, but a URL",
            "copy the archives to a folder, or name their URLs in load_models",
        )
    elif not store.is_dir():
        config.problem(f"{config.origin('model_store')}: not a folder", "make it, or name the one with the archives")
    return store


def _key_warnings(config: ConfigText) -> list[str]:
    warnings = []
    if ignored := sorted(IGNORED_KEYS.keys() & config.values.keys()):
        warnings.append(f"without meaning here: {', '.join(ignored)}")
    for key in sorted(config.values.keys() - SUPPORTED_KEYS.keys() - IGNORED_KEYS.keys()):
        close = suggest(key)
        prefix = f"{config.file}: " if config.file else ""
        warnings.append(f"{prefix}unknown key {key}{f'; did you mean {close}?' if close else ', which is ignored'}")
    return warnings
