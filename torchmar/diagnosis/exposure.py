"""The check whether other machines can reach a server, and which rights they have."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torchmar.address import Address
from torchmar.diagnosis.finding import Finding, error, ok, warning
from torchmar.engines import DEFAULT, EngineName
from torchmar.errors import PropertiesError
from torchmar.properties import Properties

# Observed with 0.12.0: without enable_model_api, /models answers 405, but /workflows still registers archives.
_WORKFLOWS = "POST /workflows runs code, even with enable_model_api=false"
_REGISTER = "RegisterModel runs code"
# Archives that no reasonable pattern matches: a pattern that matches one of them matches anything.
_ANYTHING = ("https://example.com/a/b/anything.mar", "http://203.0.113.7/x.mar", "file:///etc/passwd", "s3://any/x.mar")


def check(config: Properties, engine: EngineName = DEFAULT) -> Iterator[Finding]:
    """Yield the APIs that other machines can reach, and missing protection."""
    try:
        addresses = config.addresses()
    except PropertiesError:
        return  # the check of ports reports it
    findings = list(_addresses(config, addresses, engine))
    findings += [*_tokens(config, bool(findings), engine), *_urls(config)]
    yield from findings
    if not findings:
        yield ok("exposure", "loopback only, with tokens, archives of the model store only")


def _addresses(config: Properties, addresses: list[Address], engine: EngineName) -> Iterator[Finding]:
    for address in addresses:
        if address.loopback:
            continue
        key = address.key
        cause = f"{config.file}: {key.replace('_port', '_address')} ({address.host}) is open to other machines"
        if "management" in key:
            yield error(
                "exposure",
                f"{cause}; {_danger(config, key, engine)}",
                "listen at 127.0.0.1; reach it through SSH or a proxy that authenticates users",
            )
        elif key == "metrics_address":
            yield warning(
                "exposure", f"{cause}, and needs no token", "listen at 127.0.0.1, or restrict access by a firewall"
            )
        elif not address.tls:
            remedy = (
                "enable_grpc_ssl=true"
                if key.startswith("grpc")
                else "https:// with certificate_file and private_key_file"
            )
            yield warning(
                "exposure",
                f"{cause} without TLS: tokens and data are sent in plain text",
                f"{remedy}, or a proxy with TLS in front",
            )


def _danger(config: Properties, key: str, engine: EngineName) -> str:
    if engine == "torchserve":
        return _REGISTER if key.startswith("grpc") else _WORKFLOWS
    if config.flag("enable_model_api"):
        return "a registration runs code"
    return "clients can remove all workers of models and change their defaults"


def _tokens(config: Properties, reached: bool, engine: EngineName) -> Iterator[Finding]:
    if not config.flag("disable_token_authorization"):
        return
    remedy = "disable_token_authorization=false; torchmar's clients find the tokens by themselves"
    if reached:
        yield error("exposure", f"{config.file}: tokens are off, and other machines can reach the server", remedy)
    else:
        can = "register models" if engine == "torchserve" or config.flag("enable_model_api") else "scale and use models"
        yield warning(
            "exposure",
            f"{config.file}: tokens are off: any process of this machine can {can}",
            remedy,
        )


def _urls(config: Properties) -> Iterator[Finding]:
    allowed = config.get("allowed_urls")
    if not allowed:
        return  # torchmar serve allows only the model store
    for pattern in allowed.split(","):
        try:
            matched = next((url for url in _ANYTHING if re.fullmatch(pattern, url)), None)
        except re.error as problem:
            yield error(
                "exposure", f"{config.file}: allowed_urls: {pattern} is no regular expression: {problem}", "correct it"
            )
            continue
        if matched:
            yield warning(
                "exposure",
                f"{config.file}: allowed_urls allows {matched}, whose code the server would run",
                "name the hosts and folders of your archives, or remove the key: torchmar serve allows the model store",
            )
