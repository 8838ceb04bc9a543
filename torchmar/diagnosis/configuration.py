"""The check of ``config.properties``: known keys, values of the right type, keys with surprising effects."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torchmar.archive import file_digest
from torchmar.diagnosis.finding import Finding, Severity, ok
from torchmar.engines import DEFAULT, EngineName
from torchmar.properties import Properties
from torchmar.server.config import startup_models, values
from torchmar.server.config.keys import IGNORED_KEYS, SUPPORTED_KEYS, TORCHSERVE_KINDS, suggest
from torchmar.server.models import archive_urls, storage_file

_KEY = re.compile(r"^\s*((?:[^#!\s=:\\]|\\.)(?:[^\s=:\\]|\\.)*)")
_MODES = ("prometheus", "log", "legacy")


def check(config: Properties, engine: EngineName = DEFAULT) -> Iterator[Finding]:
    """Yield findings about the keys and values of a configuration.

    Args:
        config: the configuration.
        engine: the server that reads it.
    """
    if config.file is None:
        yield ok("config", "no config.properties here: a server starts with torchmar's defaults")
        return
    lines = _lines(config)
    builtin = engine != "torchserve"
    values = _builtin_values(config) if builtin else _torchserve_values(config)
    traps = _builtin_traps(config) if builtin else _torchserve_traps(config)
    problems = [*_unknown(config, engine), *values, *_traps(config), *traps, *_repeated(lines)]
    for severity, key, cause, remedy in problems:
        number = f":{lines[key][-1]}" if key in lines else ""
        yield Finding(severity, "config", f"{config.file}{number}: {cause}", remedy)
    if builtin and (ignored := sorted(IGNORED_KEYS.keys() & config.values.keys())):
        yield ok("config", f"{config.file}: without effect on the built-in server: {', '.join(ignored)}")
    if not any(severity == "error" for severity, *_ in problems):
        count = len(config.values)
        yield ok("config", f"{config.file}: {count} key{'' if count == 1 else 's'}")


_Problem = tuple[Severity, str, str, str]  # severity, key, cause, remedy


def _unknown(config: Properties, engine: EngineName) -> Iterator[_Problem]:
    for key in config.values:
        if key in TORCHSERVE_KINDS:
            continue
        if key in SUPPORTED_KEYS:
            if engine == "torchserve":
                remedy = "torchmar serve --engine builtin reads it; TorchServe ignores it"
                yield "warning", key, f"{key} is a key of the built-in server", remedy
            continue
        close = suggest(key)
        yield "warning", key, f"unknown key {key!r}", f"did you mean {close}?" if close else "remove it; it is ignored"


def _builtin_values(config: Properties) -> Iterator[_Problem]:
    for key, value in config.values.items():
        entry, text = SUPPORTED_KEYS.get(key), value.strip()
        if entry is None or not text or "$$" in text:  # only the server's environment has the value of the variable
            continue
        if entry.kind == "flag":
            yield from _check_flag(key, value)
            continue
        try:
            entry.read(text)
        except ValueError as problem:
            yield "error", key, f"{key}={value}: {problem}", f"write it like {key}={entry.example}"


def _torchserve_values(config: Properties) -> Iterator[_Problem]:
    for key, value in config.values.items():
        kind = TORCHSERVE_KINDS.get(key)
        if kind == "flag":
            yield from _check_flag(key, value)
        elif kind == "number" and not re.fullmatch(r"-?\d+", value.strip()):
            yield (
                "error",
                key,
                f"{key}={value} is no whole number: TorchServe does not start, or uses its default",
                "write a number, or remove the key",
            )
    if config.get("metrics_mode") not in ("", *_MODES):
        yield "warning", "metrics_mode", "metrics_mode is none of prometheus, log, legacy: log is used", "prometheus"


def _check_flag(key: str, value: str) -> Iterator[_Problem]:
    if value.strip().lower() not in ("true", "false"):
        yield "warning", key, f"{key}={value} counts as false", "write true or false"


def _torchserve_traps(config: Properties) -> Iterator[_Problem]:
    if config.flag("install_py_dep_per_model"):
        yield (
            "warning",
            "install_py_dep_per_model",
            "a registration runs pip, and never ends if pip prints more than 64 KiB",
            "install the packages that handlers need, and set it to false; the built-in server has no such limit",
        )
    if config.get("plugins_path"):
        yield (
            "warning",
            "plugins_path",
            "torchmar serve loads no plugins",
            "start the server by the torchserve command",
        )


def _builtin_traps(config: Properties) -> Iterator[_Problem]:
    """Yield the URLs of models that the server would not download."""
    try:
        models = startup_models.parse_load_models(config.get("load_models").strip())
        patterns = values.patterns(config.get("allowed_urls").strip())
    except ValueError:
        return  # the check of values reports the problem
    for _, entry in models if models != "all" else ():
        url, _ = file_digest.split(entry)
        if not archive_urls.is_url(url) or "$$" in url or url.lower().startswith("file:"):
            continue
        shown_url = archive_urls.without_secrets(url)
        if not any(pattern.fullmatch(url) for pattern in patterns):
            yield (
                "error",
                "load_models",
                f"load_models names {shown_url}, and no pattern of allowed_urls matches it",
                "add one, such as s3://BUCKET/.* for a bucket",
            )
        elif archive_urls.is_object(url) and (missing := storage_file.missing_package(url)):
            remedy = f"pip install 'torchmar[{missing.extra}]'"
            yield "error", "load_models", f"load_models names {shown_url}, which needs {missing.name}", remedy


def _traps(config: Properties) -> Iterator[_Problem]:
    if config.get("service_envelope") in ("kserve", "kservev2"):
        yield (
            "warning",
            "service_envelope",
            "TorchServe's KServe envelopes take one request; of a batch with several, each gets 503",
            "remove it; torchmar's handlers understand KServe without it",
        )
    if config.flag("enable_envvars_config"):
        yield (
            "warning",
            "enable_envvars_config",
            "environment variables (TS_ALLOWED_URLS, TS_DISABLE_TOKEN_AUTHORIZATION, ...) override this file",
            "set it to false, unless the environment is as well protected as the file",
        )


def _repeated(lines: dict[str, list[int]]) -> Iterator[_Problem]:
    for key, numbers in lines.items():
        if len(numbers) > 1:
            others = ", ".join(map(str, numbers[:-1]))
            yield "warning", key, f"{key} is also on line {others}; the last one counts", "remove the others"


def _lines(config: Properties) -> dict[str, list[int]]:
    """Return the line numbers of each key."""
    if config.file is None:
        return {}
    numbers: dict[str, list[int]] = {}
    continued = False
    for number, line in enumerate(config.file.read_text(encoding="utf-8").splitlines(), 1):
        match = None if continued else _KEY.match(line)
        if match:
            numbers.setdefault(match[1], []).append(number)
        is_comment = not continued and line.lstrip().startswith(("#", "!"))
        trailing = len(line) - len(line.rstrip("\\"))
        continued = trailing % 2 == 1 and not is_comment
    return numbers
