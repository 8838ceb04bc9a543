"""Findings about an archive's weights: their format, whether they load, whether loading runs code."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from torchmar.checks import imports
from torchmar.checks.finding import Code, Content, Finding, printable
from torchmar.checks.formats import EMPTY, Format, Weights, identify
from torchmar.checks.pickled_files import Inspector, may_hold_pickles
from torchmar.checks.pickles import BROKEN, Budget, shown
from torchmar.checks.signatures import required_arguments
from torchmar.handler_names import CARRIED_PACKAGE, STOCK_HANDLERS

_SAVED_BY_TORCH = {Format.SAVED, Format.LEGACY}
_OF_TORCH = {*_SAVED_BY_TORCH, Format.TORCHSCRIPT, Format.PACKAGE}

_SUFFIXES = {
    ".pt": _OF_TORCH,
    ".pth": _OF_TORCH,
    ".ts": {Format.TORCHSCRIPT},
    ".ckpt": _OF_TORCH,
    # Suffixes that other programs use, too: raw numbers in such a file are no error.
    ".bin": {*_OF_TORCH, Format.PICKLE, Format.OTHER},
    ".onnx": {Format.ONNX},
    ".xml": {Format.OPENVINO},
    ".safetensors": {Format.SAFETENSORS},
    ".pt2": {Format.EXPORTED, Format.AOTINDUCTOR},
    ".so": {Format.LIBRARY},
}

# Formats that torchmar's own handlers load in addition to TorchScript: alone, and with the class of a model file.
_OURS_ALONE = {Format.TORCHSCRIPT, Format.ONNX, Format.OPENVINO, Format.EXPORTED, Format.AOTINDUCTOR}
_OURS_INTO_A_MODEL = {*_SAVED_BY_TORCH, Format.SAFETENSORS}

# Handlers whose weights are named by their options or by the package that they run.
_NAMES_ITS_OWN = tuple(f"{CARRIED_PACKAGE}.{name}" for name in ("cascade", "mlflow", "sagemaker"))

_IMPOSTORS = ("a git-lfs pointer file", "a web page")  # content that is no weights, for no suffix and no handler

# The newest versions that torch 2.13 writes and reads.

_MAX_SOURCE = 4 << 20

Loads = Callable[[str, Weights, "str | None", str], Iterator[Finding]]

_TORCHSCRIPT_REMEDY = "save the model with torch.jit.save, or its state dict with torch.save and name a model_file"
_TRUST_REMEDY = (
    "save the state dict alone, torch.save(model.state_dict(), ...), or the model with torch.jit.save or as safetensors"
)
_OUR_REMEDY = f"use one of torchmar's handlers ({CARRIED_PACKAGE}.image_classifier, ...), which load it"
_OTHERS_REMEDY = "loading it runs what it names: trust whoever made it, or keep plain data, such as JSON or safetensors"


def check(
    content: Content,
    serialized_file: str | None,
    model_file: str | None,
    handler: str,
    requirements: str | None = None,
    optimized: Sequence[str] = (),
) -> list[Finding]:
    """Return all problems of an archive's weights and of its other members that may be pickles.

    Args:
        content: the archive's members.
        serialized_file: member with the weights, as the manifest names it.
        model_file: member with the class that a state dict fills, as the manifest names it.
        handler: name of the handler in the manifest; the formats that torchmar's and TorchServe's own load
            are known; another may load any format, or nothing: its findings are warnings.
        requirements: the member that lists the packages to install; None: there is none.
        optimized: members that are served in place of the weights if they can be loaded: a finding about them is a
            warning.
    """
    loads = None
    if is_known(handler, content):
        loads = _loads_with_ours if _is_ours(handler) else _loads_with_torchserve
    stock = loads is not None
    budget = Budget()
    findings: list[Finding] = []
    if serialized_file in content.sizes:
        name = str(serialized_file)
        problems = list(_serialized(content, name, model_file, loads, budget))
        findings += problems if stock else (replace(finding, works=True) for finding in problems)
        if _is_ours(handler) and not problems:
            findings += _needs_openvino(content, name, requirements)
    elif stock and serialized_file is None and _module(handler) not in _NAMES_ITS_OWN:
        findings.append(_without_weights(model_file))
    if stock and model_file in content.sizes:
        findings += _model_file(content, str(model_file))
    for name in optimized:
        problems = list(_serialized(content, name, model_file, _loads_optimized, budget))
        findings += (replace(finding, works=True) for finding in problems)
        if not problems:
            findings += _needs_openvino(content, name, requirements, optimized=True)
    findings += _other_pickles(content, (serialized_file, *optimized), budget)
    return [printable(finding) for finding in findings]


def _without_weights(model_file: str | None) -> Finding:
    code, cause = Code.MAR404, "the archive has neither weights nor a model file: the worker dies"
    if model_file:
        code, cause = Code.MAR407, "a model file without weights: unless it fills itself, it answers at random"
    remedy = "name the weights as `weights:` in the recipe (--serialized-file of torchmar-archiver)"
    return Finding(code, "MAR-INF/MANIFEST.json", cause, remedy)


def _other_pickles(content: Content, weights: Collection[str | None], budget: Budget) -> Iterator[Finding]:
    """Yield the imports of pickles in members that are no weights."""
    inspector = Inspector(Code.MAR603, Code.MAR603, _OTHERS_REMEDY, budget)
    for name in sorted(content.sizes):
        if name in weights or not may_hold_pickles(name):
            continue
        try:
            with content.open(name) as stream:
                scripted = identify(stream, name).format is Format.TORCHSCRIPT
                stream.seek(0)
                yield from inspector.file(stream, name, torchscript=scripted)
        except BROKEN as error:
            cause = f"what it imports is not known: it cannot be read ({shown(str(error))})"
            yield Finding(Code.MAR603, name, cause, _OTHERS_REMEDY)


def _module(handler: str) -> str:
    return handler.partition(":")[0].removesuffix(".py")


def is_known(handler: str, content: Content) -> bool:
    """Return whether the formats that a handler loads are known: the handler is torchmar's or TorchServe's."""
    return _is_ours(handler) or _is_torchserves(handler, content)


def _is_ours(handler: str) -> bool:
    return _module(handler).startswith(f"{CARRIED_PACKAGE}.")


def _is_torchserves(handler: str, content: Content) -> bool:
    """Return whether TorchServe's own base handler loads the weights."""
    module = _module(handler)
    # TorchServe searches the archive first: a file of that name is a handler of the user's.
    return module in (*STOCK_HANDLERS, "base_handler") and f"{module}.py" not in content.sizes


def _serialized(
    content: Content, name: str, model_file: str | None, loads: Loads | None, budget: Budget
) -> Iterator[Finding]:
    inspector = Inspector(Code.MAR601, Code.MAR602, _TRUST_REMEDY, budget)
    try:
        with content.open(name) as stream:
            weights = identify(stream, name)
            stream.seek(0)
            pickled = list(inspector.file(stream, name, torchscript=weights.format is Format.TORCHSCRIPT))
    except BROKEN as error:
        yield _damaged(name, f"it cannot be read ({shown(str(error))})")
        return
    if weights.damage:
        yield _damaged(name, weights.damage)
    elif problem := _suffix(name, weights):
        yield problem
    elif loads:
        yield from loads(name, weights, model_file, inspector.beyond)
    if weights.too_new:
        cause = f"{name} has {weights.too_new}; torch 2.13, the newest that torchmar knows, does not write it yet"
        yield Finding(Code.MAR405, name, cause, "install on the server a torch as new as the one that saved the file")
    folder = PurePosixPath(name).parent
    for external in weights.external:
        if str(folder / external) not in content.sizes:
            cause = f"{name} keeps tensors in {shown(external)}, which is not in the archive"
            remedy = "name it under `files:` in the recipe, or save the model with its tensors inside"
            yield Finding(Code.MAR406, name, cause, remedy)
    # Damage is reported once.
    yield from (finding for finding in pickled if not (weights.damage and finding.code is Code.MAR602))


def _damaged(name: str, damage: str) -> Finding:
    if damage == EMPTY:
        return Finding(
            Code.MAR406, name, f"{name} is empty", "pack the weights, or leave the file out if none are read"
        )
    return Finding(Code.MAR406, name, f"{name} is not whole: {damage}", "save or copy it again, and compare its size")


def _suffix(name: str, weights: Weights) -> Finding | None:
    suffix = PurePosixPath(name).suffix.lower()
    if weights.format in _SUFFIXES.get(suffix, {weights.format}) and weights.description not in _IMPOSTORS:
        return None
    expected = _SUFFIXES.get(suffix, set())
    suffixes = [ending for ending, formats in _SUFFIXES.items() if weights.format in formats and ending != ".bin"]
    remedy = weights.remedy or "name the file that was meant"
    if suffixes and expected:
        remedy = f"name it {PurePosixPath(name).stem}{suffixes[0]}, or save it anew as what its suffix says"
    return Finding(Code.MAR401, name, f"{name} is {weights.description}", remedy)


def _loads_with_ours(name: str, weights: Weights, model_file: str | None, beyond: str) -> Iterator[Finding]:
    """Yield the reasons why torchmar's handlers do not load weights that are complete and have the right suffix."""
    kind = weights.format
    if kind in _OURS_ALONE and model_file:
        cause = f"{name} is {weights.description}, and a model file is for a state dict or safetensors"
        yield Finding(Code.MAR402, name, cause, "leave model_file out: the weights hold the model's code")
    elif kind in _OURS_INTO_A_MODEL and not model_file:
        cause = f"{name} is {weights.description}, which needs the class that it fills"
        yield Finding(Code.MAR402, name, cause, "name the file with the model's class as model_file")
    elif kind in _SAVED_BY_TORCH and beyond:
        yield _beyond(name, beyond)
    elif kind not in _OURS_ALONE | _OURS_INTO_A_MODEL:
        cause = f"{name} is {weights.description}, which torchmar's handlers do not load"
        yield Finding(Code.MAR403, name, cause, weights.remedy or _TORCHSCRIPT_REMEDY)


def _loads_optimized(name: str, weights: Weights, model_file: str | None, beyond: str) -> Iterator[Finding]:
    """Yield the reasons why torchmar's handlers do not load optimised weights; those without code need a model file."""
    needed_model_file = None if weights.format in _OURS_ALONE else model_file
    yield from _loads_with_ours(name, weights, needed_model_file, beyond)


def _needs_openvino(
    content: Content, name: str, requirements: str | None, *, optimized: bool = False
) -> Iterator[Finding]:
    """Yield a finding if weights for OpenVINO need a package that the archive does not list."""
    if name.endswith(".xml") and not imports.installed("openvino", imports.distributions(content, requirements)):
        consequence = (
            "the original is served without the package openvino"
            if optimized
            else "the server needs the package openvino"
        )
        cause = f"{name} is an OpenVINO model: {consequence}, which the archive does not list"
        remedy = "install openvino on the server, or list it in a requirements file (requirements: of the recipe)"
        yield Finding(Code.MAR408, name, cause, remedy)


def _beyond(name: str, beyond: str) -> Finding:
    cause = f"its pickle has {beyond}, which torch.load of torch 2.6 and newer does not read"
    return Finding(Code.MAR403, name, cause, "save it with the pickle_protocol that torch.save has by default")


def _loads_with_torchserve(name: str, weights: Weights, model_file: str | None, beyond: str) -> Iterator[Finding]:
    """Yield the reasons why TorchServe's base handler does not load weights that are complete and well named."""
    kind = weights.format
    if kind is Format.LIBRARY and name.endswith(".so"):
        return  # loaded if the configuration has pt2: {export: {aot_compile: true}}
    if kind in _SAVED_BY_TORCH:
        if not model_file:
            cause = f"{name} is {weights.description}, and without a model file TorchServe loads TorchScript only"
            remedy = "name the file with the model's class as model_file, or save the model with torch.jit.save"
            yield Finding(Code.MAR402, name, cause, remedy)
        elif beyond:
            yield _beyond(name, beyond)
    elif kind is Format.TORCHSCRIPT:
        if model_file:
            cause = f"{name} is {weights.description}, and with a model file TorchServe loads state dicts only"
            yield Finding(Code.MAR402, name, cause, "leave model_file out: a TorchScript archive holds its own code")
        elif not name.endswith(".pt"):
            cause = f"TorchServe loads TorchScript only from names that end in .pt, and this one is {name}"
            yield Finding(Code.MAR403, name, cause, f"rename it to {PurePosixPath(name).stem}.pt")
    elif kind is Format.ONNX and name.endswith(".onnx") and not model_file:
        cause = "TorchServe's handlers load ONNX, and then call it in a way that ONNX Runtime does not have"
        yield Finding(Code.MAR403, name, cause, _OUR_REMEDY)
    else:
        cause = f"{name} is {weights.description}, which TorchServe's handlers do not load"
        if kind is Format.SAFETENSORS and model_file:
            cause += "; torch.load does since torch 2.13, where the safetensors package is installed"
        has_handler = kind in _OURS_ALONE | _OURS_INTO_A_MODEL
        yield Finding(Code.MAR403, name, cause, weights.remedy or (_OUR_REMEDY if has_handler else _TORCHSCRIPT_REMEDY))


def _model_file(content: Content, name: str) -> Iterator[Finding]:
    """Yield the reasons why TorchServe does not take exactly one class from a model file."""
    try:
        with content.open(name) as stream:
            source = stream.read(_MAX_SOURCE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in strings, which are no errors
            tree = ast.parse(source)
        classes = sorted(set(_classes(tree.body)))
    except (SyntaxError, RecursionError, MemoryError, *BROKEN) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        cause = f"{name} is not Python that can be read: {shown(str(error))}"
        yield Finding(Code.MAR402, f"{name}{line}", cause, "correct it: TorchServe could not import it either")
        return
    if len(classes) == 1:
        yield from _constructor(name, tree, classes[0])
        module = name.partition(".")[0]
        if name != f"{module}.py":
            cause = f"TorchServe imports {module} in place of {name}: it cuts the name at its first dot"
            yield Finding(Code.MAR402, name, cause, "name the file without dots")
        return
    if not classes and _is_configuration(tree):
        cause = f"{name} is a configuration in Python, as the tools of OpenMMLab write it, and defines no class"
        remedy = "use the handler that these tools pack (such as mmdet_handler.py), which builds the model from it"
        yield Finding(Code.MAR402, name, cause, remedy)
        return
    problem = f"defines {len(classes)} classes ({shown(', '.join(classes))})" if classes else "defines no class"
    remedy = "leave the model's class in it and move the others to a module of their own, under `files:`"
    if not classes:
        remedy = "define the model's class in the file itself; one that it imports does not count"
    yield Finding(Code.MAR402, name, f"{name} {problem}; TorchServe loads exactly one", remedy)


def _constructor(name: str, tree: ast.Module, model: str) -> Iterator[Finding]:
    """Yield a finding if the only class cannot be built without arguments because its own constructor requires some."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name != model or node.decorator_list:
            continue
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__" and not method.decorator_list:
                required = required_arguments(method.args)[1:]
                if required:
                    cause = f"{model} is built without arguments, and its __init__ requires {', '.join(required)}"
                    remedy = "give them defaults, those of the weights"
                    yield Finding(Code.MAR402, f"{name}:{method.lineno}", cause, remedy)


def _is_configuration(tree: ast.Module) -> bool:
    """Return whether a module has assignments alone, among them those of OpenMMLab's configurations."""
    names = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return bool(names & {"model", "_base_", "data", "test_pipeline", "test_dataloader", "default_scope"})


def _classes(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names of the classes that a module defines, including those under an ``if`` or a ``try``."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.If | ast.Try | ast.With):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            for clause in getattr(node, "handlers", []):
                inner += clause.body
            yield from _classes(inner)
