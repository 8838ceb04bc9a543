"""The parameters of a handler: whether TorchServe's calls fit them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

from torchmar.checks.finding import Code, Finding
from torchmar.checks.modules import Module, Modules, bindings, dotted
from torchmar.handler_names import CARRIED_PACKAGE

Function = ast.FunctionDef | ast.AsyncFunctionDef
Lineage = list[tuple[Module, ast.ClassDef] | str]

_LOADER = {"__init__": (), "initialize": ("context",), "handle": ("data", "context")}
# Methods that the `handle` of TorchServe's and torchmar's handlers calls.
_STEPS = {"preprocess": ("data",), "inference": ("data",), "postprocess": ("data",)}
_PLAIN_DECORATORS = {"abstractmethod", "classmethod", "final", "inference_mode", "no_grad", "override", "staticmethod"}


def check_function(module: Module, function: Function, asynchronous: bool) -> Iterator[Finding]:
    """Check the function that TorchServe calls with the rows of a batch and its context."""
    yield from _check(module, function, ("data", "context"), bound=False, asynchronous=asynchronous)


def check_class(modules: Modules, module: Module, handler: ast.ClassDef, asynchronous: bool) -> Iterator[Finding]:
    """Check the methods that TorchServe calls, in whichever module of the archive a base class defines them."""
    lineage = list(_lineage(modules, module, handler))
    for name, arguments in _LOADER.items():
        method = _method(lineage, name)
        if method:
            yield from _check_method(*method, arguments, asynchronous=asynchronous and name == "handle")
        elif name != "__init__" and not handler.decorator_list and not _may_have(lineage, name):
            call = f"{name}({', '.join(arguments)})"
            cause = f"{handler.name} has no method {name}; TorchServe calls {call}"
            remedy = f"define {name}(self, {', '.join(arguments)}), or extend ts.torch_handler.base_handler.BaseHandler"
            yield Finding(Code.MAR306, module.place(handler), cause, remedy)
    owner = _method(lineage, "handle")
    if owner:
        by_torchserve = owner[0].name.partition(".")[0] == CARRIED_PACKAGE
    else:
        by_torchserve = any(isinstance(base, str) and base.startswith("ts.") for base in lineage)
    for name, arguments in _STEPS.items() if by_torchserve else ():
        if method := _method(lineage, name):
            yield from _check_method(*method, arguments, asynchronous=False)


def is_list(modules: Modules, module: Module, class_def: ast.ClassDef) -> bool:
    """Return whether calling a class may return a list, which TorchServe expects of a function."""
    for base in _lineage(modules, module, class_def):
        if isinstance(base, str):
            if base in ("list", ""):
                return True
        elif base[1].keywords or "__new__" in bindings(base[1].body):
            return True
    return False


def _lineage(modules: Modules, module: Module, class_def: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef] | str]:
    """Yield a class and its bases, the nearest first; for a base outside of the archive, its full name."""
    waiting: Lineage = [(module, class_def)]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop()
        yield current
        if isinstance(current, str) or id(current[1]) in seen:
            continue
        seen.add(id(current[1]))
        bases: Lineage = []
        for node in current[1].bases:
            base = modules.definition(current[0], dotted(node.value if isinstance(node, ast.Subscript) else node))
            if isinstance(base, str):
                bases.append(base)
            else:
                bases.append((base[0], base[1]) if isinstance(base[1], ast.ClassDef) else "")
        waiting += bases[::-1]


def _method(lineage: Lineage, name: str) -> tuple[Module, Function] | None:
    """Return the method of a class with that name; None: it is not in the archive."""
    for base in lineage:
        if isinstance(base, str):
            if _provides_methods(base):
                return None
        elif nodes := bindings(base[1].body).get(name):
            return (base[0], nodes[-1]) if isinstance(nodes[-1], Function) else None
    return None


def _may_have(lineage: Lineage, name: str) -> bool:
    """Return whether a class may have an attribute, by inheritance or assignment."""
    for base in lineage:
        if isinstance(base, str):
            if _provides_methods(base):
                return True
        else:
            defined = bindings(base[1].body)
            assigned = {
                node.attr
                for node in ast.walk(base[1])
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            }
            if name in defined or name in assigned or "__getattr__" in defined or base[1].keywords:
                return True
    return False


def _provides_methods(base: str) -> bool:
    """Return whether a base class outside of the archive may have the methods that TorchServe calls."""
    if not base:
        return True
    builtin = "." not in base or base.partition(".")[0] in sys.stdlib_module_names
    return not builtin and base not in ("torch.nn.Module", "torch.nn.modules.module.Module")


def _check_method(
    module: Module, method: Function, arguments: tuple[str, ...], asynchronous: bool
) -> Iterator[Finding]:
    static = any(dotted(decorator) == "staticmethod" for decorator in method.decorator_list)
    yield from _check(module, method, arguments, bound=not static, asynchronous=asynchronous)


def _check(
    module: Module, function: Function, arguments: tuple[str, ...], *, bound: bool, asynchronous: bool
) -> Iterator[Finding]:
    if not all(_keeps_parameters(decorator) for decorator in function.decorator_list):
        return
    first = ["cls" if any(dotted(node) == "classmethod" for node in function.decorator_list) else "self"]
    signature = f"{function.name}({', '.join([*(first if bound else []), *arguments])})"
    if not _accepts(function.args, len(arguments) + bound):
        call = f"({', '.join(arguments)})" + (" on an instance" if bound else "")
        cause = f"{function.name} takes ({_shown(function.args)}); TorchServe calls it with {call}"
        yield Finding(Code.MAR306, module.place(function), cause, f"define it as {signature}")
    if function.name != "__init__" and not asynchronous:
        if isinstance(function, ast.AsyncFunctionDef):
            cause = f"{function.name} is a coroutine function; TorchServe does not await it"
            remedy = "write def in place of async def, or set asyncCommunication: true if this is the entry point"
            yield Finding(Code.MAR306, module.place(function), cause, remedy)
        elif function.name not in ("preprocess", "inference") and _yields(function):
            cause = f"{function.name} is a generator; TorchServe does not iterate over it"
            remedy = "return the whole in place of yielding its parts"
            if bound:
                remedy += ", or serve with torchmar's server alone, which sends each part"
            # The first call of a function loads the model; of a generator, it would run nothing.
            yield Finding(Code.MAR306, module.place(function), cause, remedy, works=bound)


def required_arguments(parameters: ast.arguments) -> list[str]:
    """Return the names of the parameters without a default, ``self`` included."""
    positional = [parameter.arg for parameter in [*parameters.posonlyargs, *parameters.args]]
    required = positional[: len(positional) - len(parameters.defaults)]
    defaults = zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True)
    return required + [parameter.arg for parameter, default in defaults if default is None]


def _accepts(parameters: ast.arguments, count: int) -> bool:
    positional = len(parameters.posonlyargs) + len(parameters.args)
    required = positional - len(parameters.defaults)
    keyword_only = any(default is None for default in parameters.kw_defaults)
    return required <= count and (count <= positional or parameters.vararg is not None) and not keyword_only


def _shown(parameters: ast.arguments) -> str:
    names = [parameter.arg for parameter in [*parameters.posonlyargs, *parameters.args]]
    if parameters.vararg:
        names.append(f"*{parameters.vararg.arg}")
    elif parameters.kwonlyargs:
        names.append("*")
    names += [parameter.arg for parameter in parameters.kwonlyargs]
    if parameters.kwarg:
        names.append(f"**{parameters.kwarg.arg}")
    return ", ".join(names)


def _keeps_parameters(decorator: ast.expr) -> bool:
    # Any other decorator may replace the function by one with other parameters.
    name = dotted(decorator.func if isinstance(decorator, ast.Call) else decorator)
    return name.rpartition(".")[2] in _PLAIN_DECORATORS


def _yields(function: Function) -> bool:
    waiting: list[ast.AST] = [*function.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return False
