"""Every command and flag that messages, help and documents name exists."""

from __future__ import annotations

import argparse
import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import documents
from tests.support.command_tree import Command, command_tree
from tests.support.paths import ROOT
from torchmar.cli import archiver, tensorflow_serving_flags, torchserve_flags

_PLACEHOLDER = "VALUE"  # of what a message fills in
_PHRASE = re.compile(r"\b(torchmar(?:-archiver|-serve|-tfserving)?)((?: +(?:--?[\w-]+(?:=\S+)?|[\w./:{}<>\[\]|-]+))*)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
# Programs of others, whose flags stand in hints, too.
_OTHERS = re.compile(
    r"\b(pip|openssl|nvidia-smi|docker|torchserve|curl|git|apt\w*|dnf|journalctl|systemctl|keytool|pytest|pip-compile"
    r"|torch-model-archiver|python|poetry|pg|wrk|ray|useradd|vllm|aws|gcloud|kubectl)\b"
)
# Those of curl, scripts/ask.py, aws and vllm, where these are not named beside.
_FLAGS_OF_OTHERS = {
    *("--data-binary", "--protocol", "--target-model"),
    *("--enable-lora", "--lora-modules", "--chat-template", "--enable-log-requests", "--runner", "--convert"),
}
_DEFAULTS = {"torchmar bench": "torchmar bench measure"}  # commands that a group runs without their name
_SCRIPTS = re.compile(r"\b(?:scripts|benchmarks)/|\bbench\b")


class Place(NamedTuple):
    where: str
    text: str


def _options(command: Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def _commands() -> dict[str, set[str]]:
    """Return the flags of each command, by the words of its call."""
    flags = {" ".join(("torchmar", *words)): {*_options(command), "--help", "-h"} for words, command in command_tree()}
    for words, parser in (
        ("torchmar-serve", torchserve_flags.argument_parser()),
        ("torchmar-archiver", archiver.argument_parser()),
        ("torchmar-tfserving", tensorflow_serving_flags.argument_parser()),
    ):
        flags[words] = _flags(parser)
    return flags


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


COMMANDS = _commands()
GROUPS = {words.rpartition(" ")[0] for words in COMMANDS if " " in words}
EVERY_FLAG = set().union(*COMMANDS.values())


def _text(node: ast.expr) -> str | None:
    """Return the text of a literal, with `_PLACEHOLDER` for each value in an f-string; None for another expression."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_text(value) or _PLACEHOLDER for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (_text(left) or _PLACEHOLDER) + (_text(right) or _PLACEHOLDER)
    return None


@functools.cache
def _trees() -> dict[Path, ast.Module]:
    """Return the parsed modules of the library."""
    files = sorted((ROOT / "torchmar").rglob("*.py"))
    return {file: ast.parse(file.read_text()) for file in files if not file.name.endswith("_pb2.py")}


@functools.cache
def _messages() -> tuple[Place, ...]:
    """Return every text of the library, docstrings of modules and functions but those of commands left out."""
    return tuple(_read_messages())


def _read_messages() -> Iterator[Place]:
    for file, tree in _trees().items():
        nodes = list(ast.walk(tree))
        docstrings = {
            id(node.body[0].value)
            for node in nodes
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        parts = {
            id(inner)
            for node in nodes
            if isinstance(node, ast.JoinedStr | ast.BinOp)
            for inner in ast.walk(node)
            if inner is not node
        }
        for node in nodes:
            if isinstance(node, ast.expr) and id(node) not in parts and id(node) not in docstrings:
                text = _text(node)
                # Arguments of programs, patterns and style sheets are no sentences.
                if (
                    text
                    and "var(--" not in text
                    and ("torchmar" in text or "--" in text)
                    and re.search(r"[a-z] [a-z]|--\S+ [a-z]", text)
                ):
                    yield Place(f"{file.relative_to(ROOT)}:{node.lineno}", text)


def _helps() -> Iterator[Place]:
    for words, command in command_tree():
        texts = [command.help, command.epilog, *(getattr(param, "help", "") for param in command.params)]
        yield from (Place(" ".join(("torchmar", *words, "--help")), text) for text in texts if text)


def _documents() -> Iterator[Place]:
    """Yield the code of the documents: spans, and lines of blocks that begin with a prompt or a command."""
    for file in documents.FILES:
        text = file.read_text()
        blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for block in blocks:
            for line in block.replace("\\\n", " ").splitlines():
                command = line.removeprefix("$ ").partition(" #")[0].strip()
                if command.startswith("torchmar"):
                    yield Place(file.name, command)
        for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
            if span.startswith(("torchmar", "--")):
                yield Place(file.name, span)


def _problems(place: Place, *, is_command: bool) -> Iterator[str]:
    """Yield the commands and flags in a text that do not exist.

    Args:
        place: the text.
        is_command: whether ``torchmar WORD`` can be nothing but a command.
    """
    rest = place.text
    for program, words in _PHRASE.findall(place.text):
        command_line = (program + words).strip()
        typed = shlex.split(command_line.replace("'", "").replace('"', ""))
        command = typed[0]
        for word in typed[1:]:
            if command in GROUPS and f"{command} {word}" in COMMANDS:
                command = f"{command} {word}"
            else:
                break
        depth = len(command.split())
        command = _DEFAULTS.get(command, command) if len(typed) > depth else command
        if command in GROUPS and is_command and len(typed) > depth and re.fullmatch("[a-z][a-z-]*", typed[depth]):
            yield f"{place.where}: {command_line}: no such command"
            continue
        if command not in COMMANDS:
            continue
        for word in typed[1:]:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in COMMANDS[command]:
                yield f"{place.where}: {command_line}: {command} has no {flag}"
        rest = rest.replace(command_line, "", 1)
    if not _OTHERS.search(place.text) and not _SCRIPTS.search(place.text):
        for flag in _FLAG.findall(rest):
            if flag not in EVERY_FLAG | _FLAGS_OF_OTHERS:
                yield f"{place.where}: {place.text!r}: no command has {flag}"


@pytest.mark.parametrize(
    "text",
    [
        "torchmar serv --port 1",
        "torchmar serve --prt 1",
        "--no-such-flag names another folder",
        "torchmar-serve --port 1",
    ],
)
def test_commands_that_do_not_exist_are_found(text: str) -> None:
    assert list(_problems(Place("here", text), is_command=True))


def test_messages_name_commands_and_flags_that_exist() -> None:
    assert not [problem for place in _messages() for problem in _problems(place, is_command=False)]


def test_help_names_commands_and_flags_that_exist() -> None:
    assert not [problem for place in _helps() for problem in _problems(place, is_command=False)]


def test_documents_name_commands_and_flags_that_exist() -> None:
    assert not [problem for place in _documents() for problem in _problems(place, is_command=True)]


def test_hints_begin_with_commands_that_exist() -> None:
    """A hint that begins with torchmar is a command to run."""
    problems = []
    for file, tree in _trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in ("hint", "remedy") and (text := _text(node.value)):
                where = Place(f"{file.relative_to(ROOT)}:{node.value.lineno}", text)
                problems += _problems(where, is_command=text.startswith("torchmar"))
    assert not problems


def test_every_document_that_hints_name_exists() -> None:
    for place in _messages():
        for name in re.findall(r"\b(?:docs/[\w-]+\.md|README\.md|scripts/[a-z]+)\b", place.text):
            assert Path(ROOT, name).exists() or name == "README.md", f"{place.where}: {name}"
