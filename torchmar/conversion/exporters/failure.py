"""The reason why a model could not be exported: the operation, and its line in the source."""

from __future__ import annotations

import linecache
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from torch.export import ExportedProgram

from torchmar.conversion.process import Rejected

# Packages whose lines do not belong to a model's source.
_TOOLS = ("torch", "torchmar", "torchmar_handlers", "onnx", "onnxscript", "onnx_ir", "openvino", "numpy", "sympy")
_NAMED = (
    re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'"),
    re.compile(r"Exporting the operator '([\w:]+)'"),
    re.compile(r"No conversion rule found for operations?: *([\w:., ]+)"),
    re.compile(r"call_function\[target=torch\.ops\.([\w.]+)\]"),
    re.compile(r"target: (aten[\w.]+)"),
    re.compile(r"Unknown builtin op: ([\w:]+)"),
    re.compile(r"\b(aten(?:\.|::)\w+(?:\.\w+)?)"),
)
_LINE = re.compile(r'File "([^"]+)", line (\d+)')


def rejection(error: BaseException, target: str, program: ExportedProgram | None = None, hint: str = "") -> Rejected:
    """Return an exporter's error as a rejection for the owner of the model.

    Args:
        error: exception of the exporter.
        target: format of the export, such as ``ONNX``.
        program: program of the model, to find the place of an operation.
        hint: advice for the user.
    """
    operation = operation_of(error)
    place = place_of(error) or (place_in(program, operation) if program is not None and operation else "")
    parts = [f"the operation {operation}" if operation else "", f"at {place}" if place else ""]
    context = " ".join(part for part in parts if part)
    return Rejected(f"{context + ': ' if context else ''}{reason(error)}", hint)


def operation_of(error: BaseException) -> str:
    """Return the operation in an error, such as ``aten.nonzero``; empty if it contains none."""
    texts = [str(link) for link in chain(error)]
    for pattern in _NAMED:
        for text in texts:
            if match := pattern.search(text):
                return match.group(1).strip().replace("::", ".")
    return ""


def place_of(error: BaseException) -> str:
    """Return the line of the model's source in an error's traceback: ``model.py:12: return x[mask]``; empty: none."""
    for link in chain(error):
        frames = [frame for frame in traceback.extract_tb(link.__traceback__) if _is_source(frame.filename)]
        if frames:
            return shown(frames[-1].filename, frames[-1].lineno or 0)
    for link in chain(error):
        if place := place_in_text(str(link)):
            return place
    return ""


def place_in_text(text: str) -> str:
    """Return the last line of a model's source in a text with a traceback; empty if it contains none."""
    lines = [(file, int(line)) for file, line in _LINE.findall(text) if _is_source(file)]
    return shown(*lines[-1]) if lines else ""


def place_in(program: ExportedProgram, operation: str) -> str:
    """Return the line of the model's source for an operation of a program; empty if it is unknown."""
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    base = operation.split(".")[1] if "." in operation else operation
    # If exporters split an operation, only a part of its name remains.
    for fits in (lambda name: name.startswith(f"{operation}."), lambda name: base in name):
        for node in nodes:
            place = place_in_text(str(node.meta.get("stack_trace") or ""))
            if place and fits(f"{node.target}."):
                return place
    return ""


def reason(error: BaseException) -> str:
    """Return the first meaningful line of an error; for an error with causes, that of the first cause."""
    for link in reversed(list(chain(error))):
        text = re.sub(r"\x1b\[[\d;]*m", "", str(link))
        for line in text.splitlines():
            line = line.strip().partition(" Failure message:")[0].rstrip(":")
            if line and not line.startswith(("Exception from ", "Check '", "Traceback", "File ")):
                return line if len(line) <= 300 else f"{line[:300]} ..."
    return type(error).__name__


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _is_source(file: str) -> bool:
    if file.startswith("<") or not file.endswith(".py"):
        return False
    path = Path(file)
    for root in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        if path.is_relative_to(root):
            return path.relative_to(root).parts[0] not in _TOOLS
    parts = path.parts
    return not (path.is_relative_to(sysconfig.get_path("stdlib")) or any(part in _TOOLS for part in parts[-6:-1]))


def shown(file: str, line: int) -> str:
    """Return a line of a source: ``model.py:12 (return x[mask])``."""
    code = linecache.getline(file, line).strip()
    folders = [folder for folder in sys.path if folder and Path(file).is_relative_to(folder)]
    name = min((str(Path(file).relative_to(folder)) for folder in folders), key=len, default=file)
    return f"{name}:{line}" + (f" ({code})" if code else "")
