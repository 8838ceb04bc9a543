"""Tokens, keys and certificates of a configuration."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmar.errors import PropertiesError
from torchmar.server.config.config_text import ConfigText
from torchmar.server.config.keys import TOKEN_VARIABLES
from torchmar.server.config.settings import Settings
from torchmar.server.config.values import token

_MAKE_TOKEN = "openssl rand -hex 24"
_MAKE_KEY = "openssl req -x509 -newkey rsa:2048 -nodes -days 365 -keyout key.pem -out cert.pem makes both"


def fixed_tokens(
    config: ConfigText, values: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Return the configured tokens by API, those of readers under ``read``; a variable takes precedence over a file.

    Each line is a token, so that clients can switch from one to another at different times.

    Messages name the source, but never contain the text, which is secret.

    Args:
        config: configuration, for origins and problems.
        values: values of the keys.
        environment: environment with the variables.
    """
    tokens = {}
    for api, variable in TOKEN_VARIABLES.items():
        file: Path | None = values.get(f"torchmar_{api}_token_file")
        if environment.get(variable):
            source, text = variable, environment[variable]
        elif file:
            source = config.origin(f"torchmar_{api}_token_file")
            try:
                text = file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not text"
                config.problem(f"{source}: cannot be read: {reason}", f"make it: {_MAKE_TOKEN} > {file}")
                continue
        else:
            continue
        try:
            tokens[api] = tuple(token(line.strip()) for line in text.splitlines() if line.strip()) or (token(""),)
        except ValueError as error:
            config.problem(f"{source}: {error}", f"make one: {_MAKE_TOKEN}")
        if config.flag("disable_token_authorization"):
            config.warnings.append(f"{source}: without effect, since disable_token_authorization=true")
    return tokens


def check_tls(config: ConfigText, settings: Settings) -> None:
    """Record a problem if an address is encrypted but its key or certificate is missing."""
    addresses = (settings.inference, settings.management, settings.metrics, settings.grpc_inference)
    needs_tls = any(address.tls for address in addresses)
    if config.text("keystore"):
        keystore = config.text("keystore")
        if needs_tls and not (settings.private_key_file and settings.certificate_file):
            config.problem(
                f"{config.origin('keystore')}: a keystore is Java's",
                "in place of it, private_key_file=key.pem and certificate_file=cert.pem, which are made of it by "
                f"openssl pkcs12 -in {keystore} -nodes -nocerts -out key.pem; "
                f"openssl pkcs12 -in {keystore} -nokeys -out cert.pem "
                f"(a JKS first: keytool -importkeystore -srckeystore {keystore} -destkeystore key.p12 "
                "-deststoretype pkcs12)",
            )
        else:
            config.warnings.append(f"{config.origin('keystore')}: without effect here")
    elif needs_tls:
        for key in ("private_key_file", "certificate_file"):
            path: Path | None = getattr(settings, key)
            if path is None:
                config.problem(f"an address is https, and {key} is missing", _MAKE_KEY)
            elif not path.is_file():
                config.problem(f"{config.origin(key)}: there is no such file", _MAKE_KEY)


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Return the context of listeners with TLS; None if no key and certificate are configured.

    Raises:
        PropertiesError: the files cannot be read, or do not belong together.
    """
    if not settings.private_key_file or not settings.certificate_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without this, a key with a password would ask for it on the terminal.
        context.load_cert_chain(settings.certificate_file, settings.private_key_file, password=lambda: b"")
    except (OSError, ssl.SSLError) as error:
        raise PropertiesError(
            f"private_key_file={settings.private_key_file}, certificate_file={settings.certificate_file}: "
            f"not a key without password and its certificate, in PEM ({error.strerror or error})",
            hint=_MAKE_KEY,
        ) from None
    return context
