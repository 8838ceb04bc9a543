"""Set and remove keys in the text of a YAML file, with its comments and layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from torchmar.errors import TorchmarError

#: The value of a key that is removed.
REMOVED = object()
_STEP = 2  # spaces for each level of new keys


def edit(text: str, changes: Mapping[Sequence[str], Any], name: str) -> str:
    """Return YAML with other values for some keys; the rest, comments included, is unchanged.

    Args:
        text: a mapping in YAML.
        changes: new values by the path of their keys, such as ``("config", "batchSize")``; `REMOVED` removes a key.
            Mappings on the way are added.
        name: name of the file, for errors.

    Raises:
        TorchmarError: the layout of the file cannot be edited; the hint contains the values.
    """
    expected = yaml.safe_load(text) or {}
    for path, value in changes.items():
        expected = _merged(expected, list(path), value)
        try:
            text = _edit_one(text, list(path), value)
        except (yaml.YAMLError, _NoPlaceError) as error:
            raise _unwritable(name, changes) from error
    try:
        edited = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise _unwritable(name, changes) from error
    if edited != expected:
        raise _unwritable(name, changes)
    return text


class _NoPlaceError(Exception):
    """There is no place for a key."""


def _unwritable(name: str, changes: Mapping[Sequence[str], Any]) -> TorchmarError:
    values = ", ".join(f"{'.'.join(path)}: {_scalar(value)}" for path, value in changes.items() if value is not REMOVED)
    return TorchmarError(f"{name} is written in a way that cannot be edited", hint=f"set these by hand: {values}")


def _merged(document: Any, path: list[str], value: Any) -> dict[str, Any]:
    result = dict(document) if isinstance(document, dict) else {}
    key, *rest = path
    if rest:
        if value is not REMOVED or isinstance(result.get(key), dict):
            result[key] = _merged(result.get(key), rest, value)
    elif value is REMOVED:
        result.pop(key, None)
    else:
        result[key] = value
    return result


def _edit_one(text: str, path: list[str], value: Any) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        if value is REMOVED:
            return text
        return text + ("" if not text or text.endswith("\n") else "\n") + _lines(path, value, 0)
    node: yaml.Node = root
    for depth, key in enumerate(path):
        if not isinstance(node, yaml.MappingNode):
            raise _NoPlaceError
        entry = next(((name, child) for name, child in node.value if name.value == key), None)
        if entry is None:
            return text if value is REMOVED else _add(text, node, path[depth:], value)
        name, child = entry
        if depth == len(path) - 1:
            return _remove(text, node, name, child) if value is REMOVED else _replace(text, child, value)
        if isinstance(child, yaml.ScalarNode) and not child.value:  # "config:" without a value
            if value is REMOVED:
                return text
            end = _line_end(text, name.end_mark.index)
            column = name.start_mark.column + _STEP
            return text[:end] + _lines(path[depth + 1 :], value, column) + text[end:]
        node = child
    return text


def _replace(text: str, node: yaml.Node, value: Any) -> str:
    start, end = node.start_mark.index, node.end_mark.index
    # The end of a block is the beginning of the next node.
    source = text[start:end]
    trailing = source[len(source.rstrip()) :]
    if "#" in source and not isinstance(node, yaml.ScalarNode):
        raise _NoPlaceError  # comments inside would be lost
    return text[:start] + _scalar(value) + trailing + text[end:]


def _add(text: str, node: yaml.MappingNode, path: list[str], value: Any) -> str:
    if node.flow_style:
        inner = _scalar(_nested(path[1:], value))
        end = node.end_mark.index - 1  # position of the closing brace
        separator = ", " if node.value else ""
        return text[:end].rstrip() + f"{separator}{path[0]}: {inner}" + text[end:]
    last = node.value[-1][1] if node.value else None
    if last is None:
        raise _NoPlaceError
    column = node.value[0][0].start_mark.column
    end = _line_end(text, _content_end(text, last))
    before = text[:end] if text[:end].endswith("\n") else text[:end] + "\n"
    return before + _lines(path, value, column) + text[end:]


def _remove(text: str, parent: yaml.MappingNode, name: yaml.Node, child: yaml.Node) -> str:
    if parent.flow_style or len(parent.value) == 1:
        raise _NoPlaceError
    start = text.rfind("\n", 0, name.start_mark.index) + 1
    return text[:start] + text[_line_end(text, _content_end(text, child)) :]


def _content_end(text: str, node: yaml.Node) -> int:
    """Return the end of a value, without the empty lines and comments after it."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return max(
        node.start_mark.index, node.start_mark.index + len(text[node.start_mark.index : node.end_mark.index].rstrip())
    )


def _line_end(text: str, index: int) -> int:
    """Return the beginning of the line after a position."""
    end = text.find("\n", index)
    return len(text) if end < 0 else end + 1


def _lines(path: list[str], value: Any, column: int) -> str:
    """Return a key with its value as lines of block style."""
    lines = [f"{' ' * (column + _STEP * depth)}{key}:\n" for depth, key in enumerate(path[:-1])]
    return "".join(lines) + f"{' ' * (column + _STEP * (len(path) - 1))}{path[-1]}: {_scalar(value)}\n"


def _nested(path: list[str], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _scalar(value: Any) -> str:
    """Return a value in flow style, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_scalar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str) and yaml.safe_load(value) == value and not set(value) & set("#:{}[],&*!|>'\"%@`"):
        return value
    return json.dumps(value)
