"""Whether others than this machine reach a server, and what keeps them from having it run their code."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torchmar.address import Address
from torchmar.diagnosis.finding import Finding, error, ok, warning
from torchmar.engines import DEFAULT, EngineName
from torchmar.errors import PropertiesError
from torchmar.properties import Properties

# Seen with 0.12.0: /models answers 405 where enable_model_api is off, and /workflows registers what it is told to.
_WORKFLOWS = "POST /workflows on it runs code, even with enable_model_api=false"
_REGISTER = "RegisterModel on it runs code"
# Archives that no real rule would list: if these match, anything does.
_ANYTHING = ("https://example.com/a/b/anything.mar", "http://203.0.113.7/x.mar", "file:///etc/passwd", "s3://any/x.mar")


def check(config: Properties, engine: EngineName = DEFAULT) -> Iterator[Finding]:
    """Yield who reaches a server with this configuration, and how far."""
    try:
        addresses = config.addresses()
    except PropertiesError:
        return  # which is a finding about ports
    seen = list(_addresses(config, addresses, engine))
    seen += [*_tokens(config, bool(seen), engine), *_urls(config)]
    yield from seen
    if not seen:
        yield ok("exposure", "loopback only, with tokens, archives of the model store only")


def _addresses(config: Properties, addresses: list[Address], engine: EngineName) -> Iterator[Finding]:
    for address in addresses:
        if address.loopback:
            continue
        key = address.key
        where = f"{config.file}: {key.replace('_port', '_address')} ({address.host}) is open to other machines"
        if "management" in key:
            yield error(
                "exposure",
                f"{where}; {_danger(config, key, engine)}",
                "listen at 127.0.0.1; reach it through SSH or a proxy that knows its users",
            )
        elif key == "metrics_address":
            yield warning(
                "exposure", f"{where}, and wants no token", "listen at 127.0.0.1, or let a firewall choose who asks"
            )
        elif not address.tls:
            remedy = (
                "enable_grpc_ssl=true"
                if key.startswith("grpc")
                else "https:// with certificate_file and private_key_file"
            )
            yield warning(
                "exposure",
                f"{where} without TLS: tokens and data travel in plain text",
                f"{remedy}, or a proxy with TLS before it",
            )


def _danger(config: Properties, key: str, engine: EngineName) -> str:
    if engine == "torchserve":
        return _REGISTER if key.startswith("grpc") else _WORKFLOWS
    if config.flag("enable_model_api"):
        return "a registration on it runs code"
    return "models can be scaled to nothing and their defaults changed on it"


def _tokens(config: Properties, reached: bool, engine: EngineName) -> Iterator[Finding]:
    if not config.flag("disable_token_authorization"):
        return
    remedy = "disable_token_authorization=false; torchmar's clients find the tokens by themselves"
    if reached:
        yield error("exposure", f"{config.file}: no tokens are asked for, and other machines reach the server", remedy)
    else:
        may = "register models" if engine == "torchserve" or config.flag("enable_model_api") else "scale and use models"
        yield warning(
            "exposure",
            f"{config.file}: no tokens are asked for: any process of this machine may {may}",
            remedy,
        )


def _urls(config: Properties) -> Iterator[Finding]:
    allowed = config.get("allowed_urls")
    if not allowed:
        return  # torchmar serve closes it
    for pattern in allowed.split(","):
        try:
            matched = next((url for url in _ANYTHING if re.fullmatch(pattern, url)), None)
        except re.error as problem:
            yield error(
                "exposure", f"{config.file}: allowed_urls: {pattern} is no regular expression: {problem}", "mend it"
            )
            continue
        if matched:
            yield warning(
                "exposure",
                f"{config.file}: allowed_urls lets {matched} be loaded, whose code the server would run",
                "name the hosts and folders of your archives, or leave it out: torchmar serve allows the model store",
            )
