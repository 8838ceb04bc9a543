"""Objects of Kubernetes as YAML: one document for each, blocks for texts of several lines, a comment at the top."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from torchmar.errors import TorchmarError

Manifest = Mapping[str, Any]

# Texts that kubectl reads as booleans or numbers; PyYAML, whose rules are older, would not quote them.
_NOT_TEXT_IN_GO = re.compile(r"[yYnN]|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+|[-+]?0[oO][0-7_]+")

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i?)?")
_IMAGE = re.compile(r"[a-z0-9][\w./:@-]*", re.ASCII)


def show(objects: Sequence[Manifest], comment: str = "") -> str:
    """Return the text of a file for ``kubectl apply -f``.

    Args:
        objects: objects, in the order of the file.
        comment: lines of text for the head of the file.
    """
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    documents = [
        yaml.dump(_plain(item), Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True) for item in objects
    ]
    return head + "---\n".join(documents)


def check_name(text: str, option: str, longest: int = 63) -> str:
    """Return a name of an object, which is a label of DNS names, too (RFC 1035).

    Raises:
        TorchmarError: the name is not valid; the message contains ``option``.
    """
    if not _NAME.fullmatch(text) or len(text) > longest:
        raise TorchmarError(
            f"{option} {text}: no name of an object of Kubernetes",
            hint=f"at most {longest} small letters, digits and -, a letter first and no - last",
        )
    return text


def check_quantity(text: str, option: str) -> str:
    """Return a quantity such as ``2``, ``500m`` or ``4Gi``.

    Raises:
        TorchmarError: it is no quantity; the message contains ``option``.
    """
    if not _QUANTITY.fullmatch(text) or not re.search("[1-9]", text):
        raise TorchmarError(f"{option} {text}: no quantity of Kubernetes", hint="write it like 2, 500m or 4Gi")
    return text


def check_image(text: str) -> str:
    """Return the reference of an image.

    Raises:
        TorchmarError: it is no reference of an image.
    """
    if not _IMAGE.fullmatch(text):
        raise TorchmarError(f"--image {text}: no image", hint="write it like registry.example.com/torchmar:1.0")
    return text


class _Dumper(yaml.SafeDumper):
    """A dumper that indents lists below their key, as the examples of Kubernetes do."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True  # people would have to resolve aliases


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else "'" if _NOT_TEXT_IN_GO.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _plain(value: Any) -> Any:
    """Return a value as dicts and lists, without the keys whose value is None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
