"""Findings about the configuration in an archive, read as TorchServe's frontend and worker read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.constructor import SafeConstructor

from torchmar.checks.finding import Code, Content, Finding
from torchmar.server_config import ServerConfig, are_stages
from torchmar.strict_yaml import lines_of_keys, meant, repeated_keys

_MAX = 16 << 20  # bytes of a configuration
# SnakeYAML's own limits in TorchServe's frontend: characters, depth, aliases of lists and mappings.
_MAX_CHARACTERS, _MAX_DEPTH, _MAX_ALIASES = 3 << 20, 51, 50


# Keys of torchmar's server, with an example of their values.
_OURS = {
    "stages": "stages: {preprocess: 2, inference: 1, postprocess: 1}",
    "torchmar": "torchmar: {fork: false}, or {replica: {cpus: 2}}",
}


def check(content: Content, name: str, gpus: int | None = None) -> Iterator[Finding]:
    """Yield the problems of the configuration ``name``.

    Args:
        content: the archive's members.
        name: name of the member.
        gpus: number of GPUs of the server; None: not known.
    """
    text = _text(content, name)
    if text is None:
        yield Finding(Code.MAR501, name, "it is not text in UTF-8: the worker cannot read it", "save it as UTF-8")
        return
    if len(text) > _MAX:
        cause = f"it has more than {_MAX >> 20} MiB and was not read"
        yield Finding(Code.MAR511, name, cause, "keep data in a file of its own")
        return
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        # In this order: the constructor copies the keys of a merge into the mapping that contains it.
        lines, repeated = lines_of_keys(root), repeated_keys(root)
        config = SafeConstructor().construct_document(root) if root else None
        unread = _unread(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        cause = getattr(error, "problem", None) or str(error) or "it is nested too deeply"
        yield Finding(Code.MAR501, place, cause, "the worker stops at the same place: correct the YAML")
        return
    if config is None:
        cause = "it is empty: TorchServe answers 500 to the registration"
        yield Finding(Code.MAR501, name, cause, "leave the file out, and the manifest's configFile")
        return
    if not isinstance(config, dict):
        yield Finding(Code.MAR501, name, "it is no mapping of keys", "write it as keys, such as batchSize: 8")
        return
    for key, line in repeated:
        cause = f"{key} is given twice; every reader keeps the last without a warning"
        yield Finding(Code.MAR512, f"{name}:{line}", cause, "leave one of the two")
    if unread:
        cause = f"TorchServe's frontend does not read it ({unread}), and takes its defaults; the worker does"
        yield Finding(Code.MAR511, name, cause, "keep the server's keys in it, and data in a file of its own")
    for code, key, cause, remedy in (*_keys(config), *_traps(config, gpus)):
        # Only a key that is no text ends the registration.
        works = code is Code.MAR503 and remedy != _QUOTE
        yield Finding(code, f"{name}:{lines[key]}" if key in lines else name, cause, remedy, works)


def _without_last_comments(text: str) -> str:
    lines = text.splitlines(keepends=True)
    while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return "".join(lines)


_QUOTE = "write it in quotes"


def _unread(text: str) -> str:
    """Return the reason why SnakeYAML, with TorchServe's limits, does not read a file that Python reads."""
    if len(text) > _MAX_CHARACTERS and len(_without_last_comments(text)) > _MAX_CHARACTERS:
        return f"it is longer than {_MAX_CHARACTERS} characters"
    depth = aliases = 0
    collections: set[str] = set()
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if event.anchor:
                collections.add(event.anchor)
            if depth > _MAX_DEPTH:
                return f"it is nested more than {_MAX_DEPTH} deep"
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent) and event.anchor in collections:
            aliases += 1
            if aliases > _MAX_ALIASES:
                return f"it has more than {_MAX_ALIASES} aliases"
    return ""


Found = tuple[Code, str, str, str]


def _keys(config: dict[Any, Any]) -> Iterator[Found]:
    for key in config:
        if not isinstance(key, str):
            cause = f"the key {key!r} is not text: TorchServe answers 500 to the registration"
            yield Code.MAR503, str(key), cause, _QUOTE
        elif str(key) not in ServerConfig.model_fields and not isinstance(config[key], dict):
            if close := meant(str(key), ServerConfig):
                yield Code.MAR502, str(key), f"{key} is no key of TorchServe's; it is ignored", f"did you mean {close}?"
            else:
                cause = f"TorchServe does not know {key}; only the handler sees it"
                yield Code.MAR510, str(key), cause, "put options of the handler into a section, such as handler:"
    if isinstance(torchrun := config.get("torchrun"), dict) and not all(isinstance(key, str) for key in torchrun):
        cause = "a key of torchrun is not text: TorchServe answers 500 to the registration"
        yield Code.MAR503, "torchrun", cause, _QUOTE
    # Not in TorchServe's model: `handler` is a section that torchmar's handlers read.
    checked = {key: value for key, value in config.items() if key in ServerConfig.model_fields and key != "handler"}
    if isinstance(checked.get("torchrun"), dict):
        checked.pop("torchrun")  # its keys are torchrun's
    if not are_stages(checked.get("stages")):
        checked.pop("stages", None)
    for key in ("deviceType", "parallelType"):  # TorchServe reads these values in any case
        if isinstance(checked.get(key), str):
            checked[key] = checked[key].lower()
    try:
        ServerConfig.model_validate(checked)
    except ValidationError as error:
        for detail in error.errors():
            if not detail["loc"]:
                yield Code.MAR505, "minWorkers", detail["msg"].removeprefix("Value error, "), "write them as a pair"
                continue
            key = str(detail["loc"][0])
            reason = detail["msg"].removeprefix("Value error, ")
            cause = f"{'.'.join(map(str, detail['loc']))} is {detail['input']!r}: {reason[:1].lower()}{reason[1:]}"
            if key in _OURS:
                yield Code.MAR503, key, cause, f"write {_OURS[key]}; TorchServe ignores the key"
                continue
            yield Code.MAR503, key, cause, "TorchServe only warns, and uses its default"


def _traps(config: dict[Any, Any], gpus: int | None) -> Iterator[Found]:
    if config.get("responseTimeout") is None:
        cause = "without responseTimeout TorchServe takes 120 s, over the value of the registration"
        yield Code.MAR504, "", cause, "set responseTimeout, in seconds"
    delay, batch = config.get("maxBatchDelay"), config.get("batchSize")
    if isinstance(delay, int) and delay > 0 and batch in (None, 1):
        cause = (
            f"maxBatchDelay is {delay} and batchSize is {batch or 'not set, which is 1'}: a batch of one is always full"
        )
        yield Code.MAR507, "maxBatchDelay", cause, "set batchSize, or drop maxBatchDelay"
    ids = config.get("deviceIds")
    if not isinstance(ids, list):
        return
    if config.get("deviceType") == "cpu":
        yield Code.MAR506, "deviceIds", "deviceIds is set and deviceType is cpu", "drop one of them"
    beyond = [id_ for id_ in ids if isinstance(id_, int) and gpus is not None and id_ >= gpus]
    if beyond:
        cause = f"deviceIds names GPU {beyond[0]}, and the server has {gpus}; TorchServe drops the whole list"
        yield Code.MAR506, "deviceIds", cause, "name GPUs that are there: they count from 0"


def _text(content: Content, name: str) -> str | None:
    with content.open(name) as stream:
        try:
            return stream.read(_MAX + 1).decode("utf-8-sig")
        except UnicodeDecodeError:
            return None
