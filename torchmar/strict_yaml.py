"""Strict reading of YAML files: all problems of a file at once, each with its line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from torchmar.errors import Problem, RecipeError


class StrictModel(BaseModel):
    """A mapping that permits only known keys, and values of the declared types without conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


@dataclass(frozen=True)
class Document:
    """A mapping from YAML, and the place of each part in its file.

    Attributes:
        file: name of the file in error messages.
        data: the mapping.
        root: the mapping as YAML's nodes, which have their lines.
    """

    file: str
    data: dict[str, Any]
    root: yaml.Node | None

    def find(self, location: Sequence[str | int]) -> tuple[int, yaml.Node | None]:
        """Return the line and the node at ``location``, or those of the nearest place above it."""
        line, node = 1, self.root
        for part in location:
            if isinstance(node, yaml.MappingNode):
                matches = [(key, value) for key, value in node.value if _is_key(key, part)]
                if not matches:
                    break
                line, node = matches[-1][0].start_mark.line + 1, matches[-1][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line, node

    def written(self, location: Sequence[str | int]) -> list[str]:
        """Return the keys of a location as they are written: YAML reads 1.10 as the number 1.1, and ``on`` as true."""
        keys = []
        for depth, part in enumerate(location):
            _, node = self.find(location[:depth])
            matches = [key for key, _ in node.value if _is_key(key, part)] if isinstance(node, yaml.MappingNode) else []
            keys.append(str(matches[-1].value if matches else part))
        return keys

    def problem(self, location: Sequence[str | int], message: str, hint: str = "") -> Problem:
        """Return a problem at a place."""
        line, place = self.find(location)[0], ".".join(map(str, location))
        return Problem(file=self.file, line=line, place=place, message=message, hint=hint)

    def repeated(self) -> list[Problem]:
        """Return a problem for every key that occurs twice in a mapping."""
        return [
            Problem(file=self.file, line=line, place=place, message="this key is given twice; YAML keeps only the last")
            for place, line in repeated_keys(self.root)
        ]


def _is_key(key: yaml.Node, part: str | int) -> bool:
    if key.value == str(part):
        return True
    if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:str":
        return False
    try:
        value = yaml.safe_load(key.value)
    except (yaml.YAMLError, ValueError):
        return False
    return bool(value == part or str(value) == str(part))


def read(file: Path, missing: str) -> str:
    """Return the text of a file; ``missing`` is the hint if the file does not exist.

    Raises:
        RecipeError: the file is missing or cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError([Problem(file=str(file), line=0, message="does not exist", hint=missing)]) from None
    except UnicodeDecodeError:
        message = "is no text in UTF-8, which YAML is"
        raise RecipeError([Problem(file=str(file), line=0, message=message, hint=missing)]) from None
    except OSError as error:
        raise RecipeError([Problem(file=str(file), line=0, message=f"cannot be read: {error.strerror}")]) from None


def parse(text: str, file: str, otherwise: str) -> Document:
    """Return the mapping in ``text``; ``otherwise`` is the problem of a text that is no mapping.

    Raises:
        RecipeError: the text is no YAML, or no mapping.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        cause = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = mark.line + 1 if mark else 1
        raise RecipeError([Problem(file=file, line=line, message=f"not YAML: {cause}")]) from None
    except (ValueError, TypeError, RecursionError) as error:
        # An impossible date (2026-13-45), a list as a key, or a document nested without end.
        raise RecipeError([Problem(file=file, line=1, message=f"not YAML: {error}")]) from None
    if not isinstance(data, dict):
        raise RecipeError([Problem(file=file, line=1, message=otherwise)])
    return Document(file, data, root)


def lines_of_keys(root: yaml.Node | None) -> dict[str, int]:
    """Return the line of every top-level key of a mapping."""
    nodes = root.value if isinstance(root, yaml.MappingNode) else []
    return {str(key.value): key.start_mark.line + 1 for key, _ in nodes}


def meant(key: str, model: type[BaseModel]) -> str:
    """Return the key of ``model`` that ``key`` probably means; empty: none is similar."""
    names = [field.alias or name for name, field in model.model_fields.items()]
    # Keys are compared without case and underscores: batch_size means batchSize.
    plain = {re.sub("[^a-z]", "", name.lower()): name for name in names}
    close = difflib.get_close_matches(re.sub("[^a-z]", "", key.lower()), plain, n=1, cutoff=0.75)
    return plain[close[0]] if close else ""


def unknown(key: str, model: type[BaseModel]) -> str:
    """Return the problem of a key that ``model`` does not have."""
    close = meant(key, model)
    return f"no key is called {key!r}" + (f"; did you mean {close!r}?" if close else "")


def repeated_keys(root: yaml.Node | None) -> list[tuple[str, int]]:
    """Return every key that occurs twice in a mapping, at any depth, as ``outer.inner``, with its second line."""
    repetitions: list[tuple[str, int]] = []
    waiting: list[tuple[yaml.Node | None, str]] = [(root, "")]
    visited: set[int] = set()  # an alias is its anchor's node, which may contain the alias itself
    while waiting:
        node, place = waiting.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen: set[tuple[str, str]] = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                path = f"{place}.{key.value}".lstrip(".")
                merge = key.tag == "tag:yaml.org,2002:merge"  # several mappings can be merged, and each is read
                if (key.tag, key.value) in seen and not merge:
                    repetitions.append((path, key.start_mark.line + 1))
                seen.add((key.tag, key.value))
                waiting.append((value, path))
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(value, f"{place}.{index}".lstrip(".")) for index, value in enumerate(node.value)]
    return sorted(repetitions, key=lambda repeated: repeated[1])
