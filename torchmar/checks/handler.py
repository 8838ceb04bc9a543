"""Check that TorchServe's worker can find, import and call a handler, without running any of it."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator

import yaml

from torchmar.checks import import_time, imports, signatures
from torchmar.checks.finding import Code, Content, Finding
from torchmar.checks.modules import Module, Modules, dotted, read_member
from torchmar.handler_names import STOCK_HANDLERS

# Further modules in TorchServe's folder of handlers that a manifest can name.
_STOCK = {*STOCK_HANDLERS, "base_handler", "dali_image_classifier", "densenet_handler", "trt_llm_handler"}
_STOCK |= {"text_handler", "vision_handler", "vllm_handler"}

_VLLM = ("vllm_handler", "ts.torch_handler.vllm_handler")

# Calls that create a class in the module that makes them.
_MAKE_CLASSES = {"collections.namedtuple", "typing.NamedTuple", "typing.TypedDict", "enum.Enum", "enum.IntEnum"}
_MAKE_CLASSES |= {"enum.Flag", "enum.IntFlag", "enum.StrEnum"}


def check(
    content: Content, handler: str, requirements: str | None = None, config_file: str | None = None
) -> list[Finding]:
    """Return all problems of the handler of an archive.

    The source of the handler and of all modules of the archive that it imports is read; nothing is
    imported or run. Neither torch nor TorchServe need to be installed.

    Args:
        content: the members of the archive.
        handler: name of the handler in the manifest: ``handler.py``, ``handler:function``, ``package.module``
            or a handler that TorchServe ships.
        requirements: the member that lists the packages to install; None: there is none.
        config_file: the member that is the configuration; None: there is none.
    """
    modules = Modules(content)
    # The loader's own steps: split at the first colon, drop the suffix, then the folders.
    file, _, function = handler.partition(":")
    name = file.removesuffix(".py").rpartition("/")[2]
    provided = imports.distributions(content, requirements)
    if name in _VLLM and name not in modules:
        return [_of_vllm(file, f"the handler is {name}")]
    if problem := _not_there(modules, content, file, name, provided):
        return [problem]
    shadow = imports.shadowing(modules, name)
    reached, findings = imports.reach(modules, name, provided)
    for module in reached:
        findings += import_time.check(module)
        if any(f"{imported}.".startswith(f"{_VLLM[-1]}.") for imported in module.imports.values()):
            findings.append(_of_vllm(module.file, f"imports {_VLLM[-1]}"))
    entry = modules.read(name)
    if isinstance(entry, Module):
        findings += _entry_point(modules, entry, function or "handle", _asynchronous(content, config_file))
    # A file at the top level takes the place of a worker's module even if no module of the archive imports it.
    others = (imports.shadowing(modules, root, reached=False) for root in modules if "." not in root and root != name)
    return list(dict.fromkeys([*filter(None, [shadow, *others]), *findings]))


def _of_vllm(place: str, subject: str) -> Finding:
    # The cause contains the command, because the response to a registration must contain it, too.
    cause = f"{subject}, which runs with vLLM 0.6 only; torchmar export vllm has the command for a vLLM of today"
    remedy = "serve the model with vLLM itself"
    return Finding(Code.MAR311, place, cause, remedy)


def _not_there(modules: Modules, content: Content, file: str, name: str, provided: set[str]) -> Finding | None:
    """Return the reason why TorchServe does not find the module; None: it finds the module."""
    outer = name.rpartition(".")[0]
    if name in modules and (not outer or modules.is_package(outer)):
        return None
    remedy = ""
    if name in modules.folders:
        cause = f"{name.replace('.', '/')}/ is a folder without __init__.py, in which TorchServe finds no class"
        if name in _STOCK:
            cause = f"{cause}; it hides TorchServe's own handler {name}"
        remedy = "rename the folder, or name a file"
    elif name in _STOCK or (name and imports.installed(name, provided)):
        return None
    elif outer and not file.endswith(".py") and name.partition(".")[0] not in {*modules, *modules.folders}:
        cause = f"the archive has no module {name}: it has to be installed on the server"
        return Finding(Code.MAR308, file, cause, f"add the package of {name} to the requirements", works=True)
    elif file in content.sizes and "/" in file:
        cause = f"TorchServe drops the folder and finds no {file.rpartition('/')[2]} at the archive's top level"
        remedy = f"name it {file.removesuffix('.py').replace('/', '.')}, or put the file at the top level"
    elif file in content.sizes:
        cause = f"TorchServe takes {name} for a module in a package {outer}"
        remedy = "name the file without dots"
    else:
        cause = f"the archive has no module {name}, and TorchServe ships no handler of that name"
        module_files = {**{inner: modules.file(inner) for inner in modules}, **{stock: stock for stock in _STOCK}}
        if close := difflib.get_close_matches(name, sorted(module_files), n=1, cutoff=0.6):
            inner = close[0]
            remedy = f"did you mean {module_files[inner] if '.' not in inner else inner}?"
        else:
            remedy = f"name a Python file of the archive, or one of {', '.join(STOCK_HANDLERS)}"
    return Finding(Code.MAR308, file, cause, remedy)


def _entry_point(modules: Modules, module: Module, function: str, asynchronous: bool) -> Iterator[Finding]:
    names = modules.names(module)
    if function in module.bindings or (names is not None and function in names):
        yield from _function(modules, module, function, asynchronous)
        return
    if names is None:
        return  # only running the module would show its names
    classes = _classes(module)
    if function != "handle":
        yield _no_function(module, function, names, list(classes))
    elif len(classes) != 1:
        yield _not_one_class(modules, module, classes)
    else:
        (entry_point,) = classes.values()
        if isinstance(entry_point, ast.ClassDef):
            yield from signatures.check_class(modules, module, entry_point, asynchronous)


def _function(modules: Modules, module: Module, name: str, asynchronous: bool) -> Iterator[Finding]:
    definition = modules.definition(module, name)
    if isinstance(definition, str):
        return
    owner, node = definition
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from signatures.check_function(owner, node, asynchronous)
    elif isinstance(node, ast.ClassDef) and not signatures.is_list(modules, owner, node):
        cause = f"{name} is a class; TorchServe calls {name}(data, context) and expects a list"
        remedy = f"name the file alone, without :{name}, if that is its only class"
        yield Finding(Code.MAR302, owner.place(node), cause, remedy)


def _no_function(module: Module, function: str, names: set[str], classes: list[str]) -> Finding:
    cause = f"does not define {function}"
    code = Code.MAR302
    if len(classes) == 1:
        code, cause = Code.MAR310, f"{cause}; TorchServe takes the class {classes[0]} in its place without a warning"
    close = difflib.get_close_matches(function, sorted(names), n=1, cutoff=0.6)
    remedy = f"did you mean {close[0]}?" if close else "name a function that is defined or imported at its top level"
    return Finding(code, module.file, cause, remedy)


def _classes(module: Module) -> dict[str, ast.AST]:
    """Return the classes that TorchServe counts: every name of a class made in this module, aliases included."""
    classes: dict[str, ast.AST] = {}
    for name, nodes in module.bindings.items():
        for node in nodes:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if isinstance(node, ast.ClassDef):
                classes[name] = node
            elif isinstance(value, ast.Name) and value.id in classes:
                classes[name] = classes[value.id]
            elif isinstance(value, ast.Call):
                maker = module.full_name(value.func)
                if maker in _MAKE_CLASSES or (maker == "type" and len(value.args) == 3):
                    classes[name] = node
    return classes


def _not_one_class(modules: Modules, module: Module, classes: dict[str, ast.AST]) -> Finding:
    if classes:
        handler = max(classes, key=lambda name: _looks_like_a_handler(classes[name]))
        others = [name for name in classes if name != handler]
        cause = f"defines {len(classes)} classes ({', '.join(classes)}); TorchServe loads exactly one"
        remedy = f"move {', '.join(others)} into a module of {'its' if len(others) == 1 else 'their'} own, "
        return Finding(Code.MAR301, module.place(classes[others[0]]), cause, f"{remedy}or expose a handle() function")
    for name in module.imports:
        definition = modules.definition(module, name)
        imported = (
            isinstance(definition, tuple)
            and isinstance(definition[1], ast.ClassDef)
            and definition[0].name != module.name
        )
        if imported or (
            isinstance(definition, str) and definition.startswith("ts.torch_handler.") and name[:1].isupper()
        ):
            cause = f"defines no class ({name} is imported, which does not count); TorchServe loads exactly one"
            return Finding(Code.MAR301, module.file, cause, f"write: class Handler({name}): pass")
    cause = "defines no class; TorchServe loads exactly one"
    remedy = "define a class with initialize() and handle(), or a function handle(data, context)"
    return Finding(Code.MAR301, module.file, cause, remedy)


def _looks_like_a_handler(node: ast.AST) -> int:
    """Rank a class of a module by the number of a handler's methods that it has."""
    if not isinstance(node, ast.ClassDef):
        return 0
    methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
    bases = [dotted(base) for base in node.bases]
    steps = {"initialize", "handle", "preprocess", "inference", "postprocess"}
    return len(methods & steps) + 2 * any(base.endswith(("Handler", "Classifier")) for base in bases)


def _asynchronous(content: Content, config_file: str | None) -> bool:
    """Return whether the archive's configuration makes TorchServe await the entry point."""
    if config_file not in content.sizes:
        return False
    try:
        config = yaml.safe_load(read_member(content, str(config_file), 16 << 20) or b"")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("asyncCommunication") is True
