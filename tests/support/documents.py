"""The documents, and the code blocks in them."""

from __future__ import annotations

import doctest
import inspect
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.paths import ROOT

#: The public names whose examples need a server with the archive of the how-to pages, or a worker process.
SERVER_EXAMPLES = ("InferenceClient", "ManagementClient")
PROCESS_EXAMPLES = ("Worker", "run_samples")
_GENERATED = (ROOT / "docs" / "reference", ROOT / "docs" / "project")
#: The documents that are written by hand.
FILES = (
    *sorted(ROOT.glob("*.md")),
    *(file for file in sorted((ROOT / "docs").rglob("*.md")) if not set(_GENERATED) & set(file.parents)),
)
_BLOCK = re.compile(
    r"""(?:^<!--\ test:\ (?P<marks>[\w, ]+)\ -->\n)?
        ^```(?P<language>\w+)(?:\ title="(?P<title>[^"]+)")?\n
        (?P<code>.*?)^```$""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)

_SEPARATOR = "=end="


class Block(NamedTuple):
    """A code block.

    Attributes:
        file: the document.
        line: number of its first line of code.
        language: language, such as ``python``.
        title: name of the file in the block; empty: the block has no title.
        marks: marks in the comment ``<!-- test: run, server -->`` above it.
        code: the content.
    """

    file: Path
    line: int
    language: str
    title: str
    marks: frozenset[str]
    code: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(file: Path) -> Iterator[Block]:
    """Yield the code blocks of a document."""
    text = file.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        marks = frozenset((match["marks"] or "").replace(" ", "").split(",")) - {""}
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(file, line, match["language"], match["title"] or "", marks, match["code"])


def write_project(folder: Path) -> None:
    """Write the files of the example in all how-to pages, from docs/how-to/package-a-model.md."""
    write_titled(ROOT / "docs" / "how-to" / "package-a-model.md", folder, "archives/")


def write_titled(file: Path, folder: Path, prefix: str) -> None:
    """Write the files of a document whose titles begin with a folder."""
    for block in blocks(file):
        if block.title.startswith(prefix):
            target = folder / block.title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.code, encoding="utf-8")


def run(block: Block, folder: Path, replacements: Mapping[str, str] | None = None) -> None:
    """Run the commands of a block in one shell, or its Python code; compare the output of commands with the shown one.

    Args:
        block: a block of ``console`` or ``python``; a line ``...`` of output matches any lines.
        folder: the current folder of the commands.
        replacements: replacements of texts in the block, such as the port of a server.
    """
    code = block.code
    for text, replacement in (replacements or {}).items():
        code = code.replace(text, replacement)
    if block.language == "python":
        _shell([sys.executable, "-c", code], folder, block)
        return
    commands = re.findall(r"^\$ (.*(?:\\\n.*)*)\n((?:(?!\$ ).*\n)*)", code, re.MULTILINE)
    script = "".join(f"{command}\nprintf '\\n%s\\n' {_SEPARATOR}\n" for command, _ in commands)
    outputs = _shell(["bash", "-euo", "pipefail", "-c", script], folder, block).split(f"\n{_SEPARATOR}\n")
    for (command, expected), actual in zip(commands, outputs, strict=False):
        pattern = re.escape(expected.rstrip()).replace(r"\.\.\.", r"(?:.*\n?)*")
        assert re.fullmatch(pattern, actual.rstrip()), f"{block}: {command} prints\n{actual}"


def _shell(command: list[str], folder: Path, block: Block) -> str:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "COLUMNS": "80"}
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)
    assert process.returncode == 0, f"{block}: {process.stdout}{process.stderr}"
    return process.stdout


def run_examples(value: Any, name: str) -> int:
    """Run the examples in the docstrings of a module, class or function; return their number."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report = io.StringIO()
    for test in doctest.DocTestFinder(recurse=not inspect.ismodule(value)).find(value, name, module=False, globs={}):
        runner.run(test, out=report.write, clear_globs=False)
    assert not runner.failures, report.getvalue()
    return runner.tries
