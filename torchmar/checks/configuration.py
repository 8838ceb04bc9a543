"""Findings about the server configuration and the requirements that an archive carries."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import ValidationError

from torchmar.checks.finding import Code, Content, Finding
from torchmar.recipe import ServerConfig, are_stages
from torchmar.strict_yaml import lines_of_keys, meant

_MAX = 1 << 20  # bytes
_PACKAGES = (".whl", ".zip", ".tar.gz")  # what pip takes for a file, though it has no slash


def check(content: Content, name: str, gpus: int | None = None) -> Iterator[Finding]:
    """Yield what is wrong with the configuration ``name``.

    Args:
        content: the archive's members.
        name: the member.
        gpus: how many the server has; None is not known.
    """
    text = _text(content, name)
    if text is None:
        yield Finding(Code.MAR501, name, "it is not text, or larger than 1 MiB", "write it as YAML")
        return
    try:
        config = yaml.safe_load(text)
        lines = lines_of_keys(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        cause = getattr(error, "problem", None) or str(error) or "it is nested too deeply"
        yield Finding(Code.MAR501, place, cause, "TorchServe would stop at the same place: mend the YAML")
        return
    if config is None:
        cause = "it is empty: TorchServe answers 500 to the registration"
        yield Finding(Code.MAR501, name, cause, "leave the file out, and the manifest's configFile")
        return
    if not isinstance(config, dict):
        yield Finding(Code.MAR501, name, "it is no mapping of keys", "write it as keys, such as batchSize: 8")
        return
    for code, key, cause, remedy in (*_keys(config), *_traps(config, gpus)):
        yield Finding(code, f"{name}:{lines[key]}" if key in lines else name, cause, remedy)


def requirements(content: Content, name: str) -> Iterator[Finding]:
    """Yield what is wrong with the requirements file ``name``."""
    text = _text(content, name)
    if text is None:
        yield Finding(Code.MAR509, name, "it is not text, or larger than 1 MiB", "write one requirement a line")
        return
    for number, line in enumerate(text.splitlines(), 1):
        wanted = line.partition(" #")[0].strip()
        if not wanted or wanted.startswith(("#", "-", "http://", "https://", "git+", "file:")) or " @ " in wanted:
            continue
        path = re.split(r"[;\[]", wanted, maxsplit=1)[0].strip()
        if "/" in path or path.endswith(_PACKAGES):
            yield from _carried(content, path, f"{name}:{number}")
            continue
        if not re.match(r"^[A-Za-z0-9][\w.\-]*\s*(\[[^\]]*\])?\s*([=<>!~;(].*[\w.)*'\"])?$", wanted):
            yield Finding(Code.MAR509, f"{name}:{number}", f"pip cannot read {wanted!r}", "write NAME==VERSION")
        elif not re.search(r"={2,3}\s*[\w.]", wanted.partition(";")[0]):
            cause = f"{wanted!r} may be another version at every registration"
            yield Finding(Code.MAR508, f"{name}:{number}", cause, "pin it: NAME==VERSION")


def _carried(content: Content, file: str, place: str) -> Iterator[Finding]:
    """Yield what is wrong with a requirement that is a file or folder; pip runs where the archive was extracted."""
    path = posixpath.normpath(file)
    if path.startswith("/"):
        return  # the server's own
    if path not in content.sizes and not any(member.startswith(f"{path}/") for member in content.sizes):
        yield Finding(Code.MAR509, place, f"the archive has no {path}", "carry it: files: in archive.yaml")


Found = tuple[Code, str, str, str]


def _keys(config: dict[Any, Any]) -> Iterator[Found]:
    for key in config:
        if not isinstance(key, str):
            cause = f"the key {key!r} is no text: TorchServe answers 500 to the registration"
            yield Code.MAR503, str(key), cause, "write it in quotes"
        elif str(key) not in ServerConfig.model_fields and not isinstance(config[key], dict):
            if close := meant(str(key), ServerConfig):
                yield Code.MAR502, str(key), f"{key} is no key of TorchServe's; it is ignored", f"did you mean {close}?"
            else:
                cause = f"TorchServe does not know {key}; only the handler sees it"
                yield Code.MAR510, str(key), cause, "put options of the handler into a section, such as handler:"
    known = {key: value for key, value in config.items() if key in ServerConfig.model_fields}
    if not are_stages(known.get("stages")):
        known.pop("stages", None)
    for key in ("deviceType", "parallelType"):  # TorchServe reads them whatever their case
        if isinstance(known.get(key), str):
            known[key] = known[key].lower()
    try:
        ServerConfig.model_validate(known)
    except ValidationError as error:
        for detail in error.errors():
            if not detail["loc"]:
                yield Code.MAR505, "minWorkers", detail["msg"].removeprefix("Value error, "), "write them as a pair"
                continue
            key = str(detail["loc"][0])
            cause = f"{key} is {config[key]!r}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"
            if key == "stages":
                yield Code.MAR503, key, cause, "write stages: {preprocess: 2, inference: 1}; TorchServe ignores it"
                continue
            if key == "torchmar":
                yield Code.MAR503, key, cause, "write torchmar: {fork: true} or {fork: false}; TorchServe ignores it"
                continue
            yield Code.MAR503, key, cause, "TorchServe only warns, and goes on with its default"


def _traps(config: dict[Any, Any], gpus: int | None) -> Iterator[Found]:
    if config.get("responseTimeout") is None:
        cause = "without responseTimeout TorchServe takes 120 s, over what is asked at registration"
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
    beyond = [one for one in ids if isinstance(one, int) and gpus is not None and one >= gpus]
    if beyond:
        cause = f"deviceIds names GPU {beyond[0]}, and the server has {gpus}; TorchServe drops the whole list"
        yield Code.MAR506, "deviceIds", cause, "name GPUs that are there: they count from 0"


def _text(content: Content, name: str) -> str | None:
    if content.sizes[name] > _MAX:
        return None
    with content.open(name) as stream:
        try:
            text = stream.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            return None
    return None if "\0" in text else text
