"""Findings about optimised weights: the section ``optimized`` of a handler's options, its files and their proof."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from torchmar import optimized_section
from torchmar.checks import formats
from torchmar.checks.finding import Code, Content, Finding, printable
from torchmar.handler_names import CARRIED_PACKAGE
from torchmar.manifest import Model
from torchmar.optimized_section import KEY, PROOF

_MODULE = f"{CARRIED_PACKAGE}/weights/optimized.py"  # module that reads the section
_MAX = 16 << 20  # bytes of a configuration or a proof
_AGAIN = "run torchmar optimize again, or remove the section optimized"


def sections(content: Content, model: Model) -> list[tuple[str, Any]]:
    """Return the place and content of each section ``optimized`` in the options of the handler and of its stages.

    A handler that is not built on torchmar's has no such section: its options are its own.
    """
    carried = any(member.startswith(f"{CARRIED_PACKAGE}/") for member in content.sizes)
    if not carried and not model.handler.startswith(f"{CARRIED_PACKAGE}."):
        return []
    config = _config(content, str(model.config_file))
    options = config.get("handler") if isinstance(config, Mapping) else None
    places = [("handler", options)]
    places += [
        (f"handler.stages[{index}].options", stage.get("options")) for index, stage in enumerate(_stages(config))
    ]
    return [
        (f"{place}.{KEY}", options[KEY])
        for place, options in places
        if isinstance(options, Mapping) and options.get(KEY) is not None
    ]


def check(content: Content, model: Model) -> list[Finding]:
    """Return the problems of the optimised weights of an archive.

    Args:
        content: the members of the archive.
        model: the model in the manifest.
    """
    entries = sections(content, model)
    findings: list[Finding] = []
    for place, section in entries:
        works = not model.handler.startswith(f"{CARRIED_PACKAGE}.")
        findings += _section(content, str(model.config_file), place, section, works=works)
    if entries:
        findings += _proof(content, model, any(_weights(section) for _, section in entries))
    return [printable(finding) for finding in findings]


def files(content: Content, model: Model) -> list[str]:
    """Return the existing members that the sections of an archive name as optimised weights."""
    names = (_weights(section) for _, section in sections(content, model))
    return [name for name in names if name in content.sizes]


def describe(content: Content, model: Model) -> list[str]:
    """Return a line about each of the optimised weights of an archive; an empty list: it has none.

    Args:
        content: the members of the archive.
        model: the model in the manifest.
    """
    return [_described(content, section) for _, section in sections(content, model)]


def original_digests(content: Content, model: Model) -> dict[str, str]:
    """Return the SHA-256 of every file that affects the answers of an archive's original weights, by its name.

    These are the weights, the files with their tensors, the model file, and the modules that the model file may import.
    Optimised weights belong only to original weights with these digests.

    Args:
        content: the members of the archive.
        model: the model in the manifest.
    """
    return {name: _sha256(content, name) for name in sorted(set(_original(content, model))) if name in content.sizes}


def _section(content: Content, name: str, place: str, section: Any, *, works: bool) -> Iterator[Finding]:
    for problem in optimized_section.problems(section):
        remedy = "correct it: `torchmar schema` has the options of the section"
        yield Finding(Code.MAR513, name, f"{place}: {problem}", remedy, works)
    if _MODULE not in content.sizes and any(member.startswith(f"{CARRIED_PACKAGE}/") for member in content.sizes):
        cause = f"{place}: the handlers in the archive are of a torchmar that does not know the section"
        remedy = f"leave {CARRIED_PACKAGE}/ out of the recipe: the build packs those of this torchmar"
        yield Finding(Code.MAR513, name, cause, remedy, works)
    file = _weights(section)
    if file and file not in content.sizes:
        remedy = f"name it under `files:` in the recipe, or {_AGAIN}"
        yield Finding(Code.MAR409, name, f"{place}.weights: there is no file {file} in the archive", remedy, works)


def _proof(content: Content, model: Model, has_weights: bool) -> Iterator[Finding]:
    """Yield a finding if the optimised weights were made of other original weights, or if this is unknown."""
    expected = _document(content, PROOF).get("original")
    if not isinstance(expected, Mapping) or not expected:
        if has_weights:
            cause = f"what the optimised weights were made of is not known: the archive has no {PROOF}"
            remedy = "run torchmar optimize with --write, which adds it"
            yield Finding(Code.MAR410, str(model.config_file), cause, remedy, works=True)
        return
    now = original_digests(content, model)
    if now != expected:
        changed_members = sorted(member for member in {*now, *expected} if now.get(member) != expected.get(member))
        cause = f"the optimised weights were made of another {', '.join(changed_members)} than that in the archive"
        # Without files, the section has options alone: they apply to the archive's weights, but measurements may be
        # stale.
        yield Finding(Code.MAR410, PROOF, cause, _AGAIN, works=not has_weights)


def _described(content: Content, section: Any) -> str:
    file, options = _weights(section), dict(section) if isinstance(section, Mapping) else {}
    parts = [file or "the original weights"]
    if file in content.sizes:
        with content.open(file) as stream:
            parts.append(formats.identify(stream, file).description)
    needs = options.pop("needs", None)
    parts += [f"{key} {value}" for key, value in options.items() if key != "weights"]
    if isinstance(needs, list) and needs:
        parts.append(f"needs {' and '.join(map(str, needs))}")
    return ", ".join(parts)


def _weights(section: Any) -> str:
    file = section.get("weights") if isinstance(section, Mapping) else None
    return str(PurePosixPath(file)) if isinstance(file, str) and file else ""


def _original(content: Content, model: Model) -> Iterator[str]:
    if name := model.serialized_file:
        yield name
        if name in content.sizes:
            with content.open(name) as stream:
                for external in formats.identify(stream, name).external:
                    yield str(PurePosixPath(name).parent / external)
        if name.endswith(".json"):  # the index of weights in several safetensors files
            yield from (other for other in content.sizes if other.endswith(".safetensors"))
    if model.model_file:
        yield model.model_file
        handler = f"{model.handler.partition(':')[0].removesuffix('.py')}.py"
        for name in content.sizes:
            if name.endswith(".py") and name != handler and not name.startswith(f"{CARRIED_PACKAGE}/"):
                yield name
    for stage in _stages(_config(content, str(model.config_file))):
        yield from (str(stage[key]) for key in ("weights", "model_file") if stage.get(key))


def _stages(config: Any) -> list[Mapping[str, Any]]:
    """Return the stages of the handler ``cascade``, each with weights of its own."""
    options = config.get("handler") if isinstance(config, Mapping) else None
    stages = options.get("stages") if isinstance(options, Mapping) else None
    return [stage if isinstance(stage, Mapping) else {} for stage in stages] if isinstance(stages, list) else []


def _config(content: Content, name: str) -> Any:
    try:
        return yaml.safe_load(_read(content, name))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None  # a finding about the configuration reports it


def _document(content: Content, name: str) -> Mapping[str, Any]:
    try:
        document = json.loads(_read(content, name))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, Mapping) else {}


def _read(content: Content, name: str) -> bytes:
    if name not in content.sizes or content.sizes[name] > _MAX:
        return b""
    with content.open(name) as stream:
        return stream.read(_MAX)


def _sha256(content: Content, name: str) -> str:
    with content.open(name) as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
