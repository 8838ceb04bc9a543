"""Real text that every machine has: the source of Python's standard library, read but never imported.

What the library's authors wrote differs a little between versions of Python, so that nothing here
counts on a certain file: a module that is missing or cannot be parsed gives nothing.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

_LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "__pycache__"}
_APART = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtle", "turtledemo", "venv"}
_CODE = re.compile(r"^\s*(>>>|\.\.\.|[$%] )|[=*#_~+-]{4,}")
_Described = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def modules(left_out: Sequence[str] = (), folder: Path | None = None) -> list[str]:
    """Return the names of all modules and packages but those ``left_out``, and those that distributions pack apart."""
    root = folder or Path(sysconfig.get_path("stdlib"))
    found = {file.stem for file in root.glob("*.py")} | {file.parent.name for file in root.glob("*/__init__.py")}
    return sorted(found.difference(_LEFT_OUT, _APART, left_out))


def sources(*modules: str, folder: Path | None = None) -> Iterator[str]:
    """Yield the text of modules and of all that is in packages, in the order of their paths; tests are left out.

    Args:
        modules: names with dots, of modules or packages; those that do not exist give nothing.
        folder: the standard library to read; that of the Python that runs unless given.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    for module in modules:
        place = root.joinpath(*module.split("."))
        files = [place.with_suffix(".py"), *sorted(place.rglob("*.py"))]
        for file in files:
            if file.is_file() and not _LEFT_OUT.intersection(file.relative_to(root).parts):
                yield file.read_text(encoding="utf-8", errors="replace")


def parse(source: str) -> ast.Module | None:
    """Return the tree of a source; None where this Python cannot parse it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that Python is about to forbid
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return None


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """Yield the name of every module, class and function with a docstring, and that docstring, indented no more.

    A module's name is empty.
    """
    tree = parse(source)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, _Described) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", ""), text


def comments(source: str) -> Iterator[str]:
    """Yield the blocks of comments that stand on lines of their own, without their ``#``."""
    block: list[str] = []
    last = -1
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
                continue
            if block and token.start[0] != last + 1:
                yield "\n".join(block)
                block = []
            block.append(token.string.lstrip("#"))
            last = token.start[0]
    except (tokenize.TokenError, SyntaxError):
        pass
    if block:
        yield "\n".join(block)


def paragraphs(texts: Iterator[str] | Sequence[str], shortest: int = 40, longest: int = 600) -> Iterator[str]:
    """Yield the paragraphs of texts that are prose: their lines joined, code and rulers left out.

    Args:
        texts: docstrings or comments.
        shortest: characters of a paragraph at the least.
        longest: characters of a paragraph at the most.
    """
    for text in texts:
        for part in re.split(r"\n\s*\n", inspect.cleandoc(text)):
            lines = [line.strip() for line in part.splitlines() if not _CODE.search(line)]
            joined = " ".join(" ".join(lines).split())
            letters = sum(letter.isalpha() or letter == " " for letter in joined)
            if shortest <= len(joined) <= longest and letters >= 0.8 * len(joined):
                yield joined


def share(text: str, purpose: str = "") -> float:
    """Return a number from 0 to 1 that depends on these texts alone, to choose the same ones on every machine."""
    return int.from_bytes(hashlib.sha256(f"{purpose}{text}".encode()).digest()[:4], "big") / 2**32
