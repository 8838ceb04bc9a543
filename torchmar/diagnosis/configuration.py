"""Whether ``config.properties`` says what it is meant to say: known keys, values of their type."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from torchmar.diagnosis.finding import Finding, Severity, ok
from torchmar.diagnosis.keys import FLAGS, KEYS, NUMBERS
from torchmar.properties import Properties

_MODES = ("prometheus", "log", "legacy")
_KEY = re.compile(r"^\s*((?:[^#!\s=:\\]|\\.)(?:[^\s=:\\]|\\.)*)")


def check(config: Properties) -> Iterator[Finding]:
    """Yield what is wrong with the keys and values of a configuration."""
    if config.file is None:
        yield ok("config", "no config.properties here: a server starts with torchmar's defaults")
        return
    lines = _lines(config)
    found = [*_unknown(config), *_values(config), *_traps(config), *_twice(lines)]
    for severity, key, cause, remedy in found:
        number = f":{lines[key][-1]}" if key in lines else ""
        yield Finding(severity, "config", f"{config.file}{number}: {cause}", remedy)
    if not any(severity == "error" for severity, *_ in found):
        count = len(config.values)
        yield ok("config", f"{config.file}: {count} key{'' if count == 1 else 's'}")


_Told = tuple[Severity, str, str, str]  # severity, key, cause, remedy


def _unknown(config: Properties) -> Iterator[_Told]:
    for key in config.values:
        if key in KEYS:
            continue
        # TorchServe's documentation and its variables write keys in several ways.
        near = difflib.get_close_matches(re.sub(r"[-.]", "_", key.lower()), KEYS, 1, 0.75)
        remedy = f"did you mean {near[0]}?" if near else "remove it; TorchServe ignores it"
        yield "warning", key, f"TorchServe knows no key {key!r}", remedy


def _values(config: Properties) -> Iterator[_Told]:
    for key, value in config.values.items():
        text = value.strip()
        if key in FLAGS and text.lower() not in ("true", "false"):
            yield "warning", key, f"{key}={value} counts as false", "write true or false"
        elif key in NUMBERS and not re.fullmatch(r"-?\d+", text):
            yield (
                "error",
                key,
                f"{key}={value} is no whole number: TorchServe would not start, or would take its default",
                "write a number, or leave it out",
            )
    if config.get("metrics_mode") not in ("", *_MODES):
        yield "warning", "metrics_mode", "metrics_mode is none of prometheus, log, legacy: log is taken", "prometheus"


def _traps(config: Properties) -> Iterator[_Told]:
    if config.flag("install_py_dep_per_model"):
        yield (
            "warning",
            "install_py_dep_per_model",
            "a registration runs pip, and never ends once pip prints more than 64 KiB",
            "install what handlers need beside TorchServe, and set it to false",
        )
    if config.get("service_envelope") in ("kserve", "kservev2"):
        yield (
            "warning",
            "service_envelope",
            "TorchServe's KServe envelopes answer every request of a batch from its first one",
            "remove it; torchmar's handlers speak KServe without",
        )
    if config.get("plugins_path"):
        yield "warning", "plugins_path", "torchmar serve loads no plugins", "start the server with torchserve itself"
    if config.flag("enable_envvars_config"):
        yield (
            "warning",
            "enable_envvars_config",
            "environment variables (TS_ALLOWED_URLS, TS_DISABLE_TOKEN_AUTHORIZATION, ...) go before this file",
            "set it to false, unless the environment is as well guarded as the file",
        )


def _twice(lines: dict[str, list[int]]) -> Iterator[_Told]:
    for key, numbers in lines.items():
        if len(numbers) > 1:
            places = ", ".join(map(str, numbers[:-1]))
            yield "warning", key, f"{key} stands on line {places} too; the last one counts", "remove the others"


def _lines(config: Properties) -> dict[str, list[int]]:
    """Return the lines on which each key stands."""
    if config.file is None:
        return {}
    found: dict[str, list[int]] = {}
    continued = False
    for number, line in enumerate(config.file.read_text(encoding="utf-8").splitlines(), 1):
        match = None if continued else _KEY.match(line)
        if match:
            found.setdefault(match[1], []).append(number)
        is_comment = not continued and line.lstrip().startswith(("#", "!"))
        trailing = len(line) - len(line.rstrip("\\"))
        continued = trailing % 2 == 1 and not is_comment
    return found
