"""The Python modules of an archive: found by their names and read as syntax trees, never imported."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from torchmar.archive.member_streams import READ_ERRORS
from torchmar.checks import carried
from torchmar.checks.finding import Code, Content, Finding
from torchmar.errors import TorchmarError

MAX_SOURCE = 5_000_000  # bytes of a source file

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_TRIES = (ast.Try, getattr(ast, "TryStar", ast.Try))
_CATCH_IMPORT_ERROR = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_MANY = 20  # re-exports of one name, after which the search for its definition stops


@dataclass(frozen=True)
class Module:
    """A module: its full name, the member that contains its source, and its syntax tree."""

    name: str
    file: str
    package: bool
    tree: ast.Module

    def place(self, node: ast.AST) -> str:
        """Return the place of a finding about ``node``."""
        return f"{self.file}:{getattr(node, 'lineno', 1)}"

    @cached_property
    def bindings(self) -> dict[str, list[ast.AST]]:
        """The statements that bind each name of the module, in the order of the source."""
        nodes = bindings(self.tree.body)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Global):
                for name in node.names:
                    nodes.setdefault(name, [node])
        return nodes

    @cached_property
    def certain_imports(self) -> list[ast.Import | ast.ImportFrom]:
        """The imports that certainly run when the module is imported, and must not fail."""
        return [
            node
            for node, certain in executed(self.tree.body)
            if certain and isinstance(node, ast.Import | ast.ImportFrom)
        ]

    @cached_property
    def changes_path(self) -> bool:
        """Whether the module may change ``sys.path``."""
        return any(isinstance(node, ast.Attribute) and dotted(node) == "sys.path" for node in ast.walk(self.tree))

    @cached_property
    def imports(self) -> dict[str, str]:
        """The full name of every imported object, by its name in this module."""
        imported = {}
        for node, _ in executed(self.tree.body, classes=False):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    head = alias.name.partition(".")[0]
                    imported[alias.asname or head] = alias.name if alias.asname else head
            elif isinstance(node, ast.ImportFrom) and (origin := self.origin(node)):
                imported.update({alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names})
        return imported

    @cached_property
    def stars(self) -> list[ast.ImportFrom]:
        """Every ``from ... import *``."""
        return [
            node
            for node, _ in executed(self.tree.body, classes=False)
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        ]

    @cached_property
    def open_ended(self) -> bool:
        """Whether the module may define names or submodules that its source does not show."""
        return bool({"__getattr__", "__path__"} & self.bindings.keys()) or any(
            (isinstance(node, ast.Call) and dotted(node.func) in ("globals", "vars", "locals", "setattr", "exec"))
            or (isinstance(node, ast.Attribute) and dotted(node) == "sys.modules")
            for node, _ in executed(self.tree.body)
        )

    def origin(self, node: ast.ImportFrom) -> str | None:
        """Return the full name of the module that ``node`` imports from; None: it is above the archive's top level."""
        if not node.level:
            return node.module
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.package]
        return ".".join([*parts, *filter(None, [node.module])]) if parts else None

    def full_name(self, node: ast.AST) -> str:
        """Return the full name of a called function, ``torch.hub.load``; empty: it is neither imported nor built in."""
        head, dot, rest = dotted(node).partition(".")
        if head in self.imports:
            return self.imports[head] + dot + rest
        return "" if head in self.bindings else head + dot + rest


class Modules:
    """The modules of an archive, by their full names: ``package.module``."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._ranked: dict[str, tuple[int, str]] = {}
        self._read: dict[str, Module | Finding | None] = {}
        self._names: dict[str, set[str] | None] = {}
        self.folders: set[str] = set()
        for member in content.sizes:
            *folders, last = member.split("/")
            stem, _, suffix = last.partition(".")
            self.folders.update(".".join(folders[: depth + 1]) for depth in range(len(folders)))
            # Python's own order: a package before a file, an extension before a source file, a source file before
            # bytecode.
            rank = {"py": 1, "pyc": 2}.get(suffix, 0 if suffix.endswith(("so", "pyd")) else None)
            if rank is None or any("." in folder for folder in folders):
                continue
            is_package = stem == "__init__" and bool(folders)
            name = ".".join(folders if is_package else [*folders, stem])
            candidate = rank if is_package else rank + 3, member
            self._ranked[name] = min(self._ranked.get(name, candidate), candidate)

    def __contains__(self, name: str) -> bool:
        return name in self._ranked

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranked)

    def file(self, name: str) -> str:
        """Return the member that contains a module."""
        return self._ranked[name][1]

    def is_package(self, name: str) -> bool:
        """Return whether a module may have submodules; a folder without ``__init__.py`` may, too."""
        return self._ranked[name][0] < 3 if name in self._ranked else name in self.folders

    @cached_property
    def handlers_are_installed(self) -> bool:
        """Whether the archive carries torchmar's handlers as installed, which import no other module of the archive."""
        roots = {name.partition(".")[0] for name in (*self._ranked, *self.folders)}
        return carried.is_installed(self._content, roots)

    def read(self, name: str) -> Module | Finding | None:
        """Return a module, or the reason why Python cannot read it; None: there is no source."""
        if name not in self._ranked or not self.file(name).endswith(".py"):
            return None
        if name not in self._read:
            self._read[name] = self._parse(name)
        return self._read[name]

    def names(self, module: Module) -> set[str] | None:
        """Return the names that a module has after its import; None: only running it would show them."""
        if module.name not in self._names:
            self._names[module.name] = self._collected_names(module)
        return self._names[module.name]

    def _collected_names(self, module: Module) -> set[str] | None:
        names_in_module: set[str] = set()
        waiting, seen = [module], set()
        while waiting:
            current = waiting.pop()
            seen.add(current.name)
            if current.open_ended:
                return None
            names_in_module.update(current.bindings)
            for star in current.stars:
                other = self.read(current.origin(star) or "")
                if not isinstance(other, Module):
                    return None
                if other.name not in seen:
                    waiting.append(other)
        return names_in_module

    def definition(self, module: Module, name: str, hops: int = 0) -> tuple[Module, ast.AST] | str:
        """Return the definition of ``name`` in a module.

        The result is the place in the archive where the name is bound, the full name of an object that
        is not in the archive, or an empty text if the definition is unknown.
        """
        head, dot, rest = name.partition(".")
        nodes = module.bindings.get(head)
        if nodes and not isinstance(nodes[-1], ast.Import | ast.ImportFrom):
            return "" if rest else (module, nodes[-1])
        if head not in module.imports:
            for star in module.stars:
                other = self.read(module.origin(star) or "")
                if isinstance(other, Module) and head in other.bindings and hops < _MANY:
                    return self.definition(other, name, hops + 1)
            return "" if self.names(module) is None else name
        parts = (module.imports[head] + dot + rest).split(".")
        for cut in range(len(parts) - 1, 0, -1):
            outer = ".".join(parts[:cut])
            if outer in self:
                other = self.read(outer)
                if isinstance(other, Module) and hops < _MANY:
                    return self.definition(other, ".".join(parts[cut:]), hops + 1)
                return ""
        return ".".join(parts)

    def _parse(self, name: str) -> Module | Finding | None:
        file = self.file(name)

        def finding(line: int | None, cause: str, remedy: str, works: bool = False) -> Finding:
            return Finding(Code.MAR303, f"{file}:{line}" if line else file, cause, remedy, works)

        python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
        source = read_member(self._content, file, MAX_SOURCE + 1)
        if source is None:
            return None
        if len(source) > MAX_SOURCE:
            mega = MAX_SOURCE // 1_000_000
            return finding(None, f"is larger than {mega} MB and was not read", "keep data in files of their own", True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a warning of Python's is no failure
                # Errors that only the compiler finds (a return outside of a function) make an import fail as well.
                compile(source, "<member>", "exec", dont_inherit=True)
                tree = ast.parse(source)
        except (RecursionError, MemoryError):
            return finding(None, f"is nested too deeply for {python}", "break its longest expression into several")
        except (SyntaxError, ValueError) as error:
            line, cause = (error.lineno, error.msg) if isinstance(error, SyntaxError) else (None, str(error))
            remedy = f"correct it, or check with the Python of the server if that is not {python}"
            return finding(line, f"is not {python}: {cause}", remedy)
        return Module(name, file, self.is_package(name), tree)


def read_member(content: Content, name: str, limit: int) -> bytes | None:
    """Return the first ``limit`` bytes of a member; None: it is damaged, which is a finding about the layout."""
    try:
        with content.open(name) as stream:
            return stream.read(limit)
    except (TorchmarError, *READ_ERRORS):
        return None


def dotted(node: ast.AST) -> str:
    """Return a name as it is written, ``a.b.c``; empty for any other expression."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    return ".".join([node.id, *attributes]) if isinstance(node, ast.Name) else ""


def bindings(body: Iterable[ast.AST]) -> dict[str, list[ast.AST]]:
    """Return the definitions, imports and assignments that bind each name when ``body`` is executed."""
    nodes: dict[str, list[ast.AST]] = {}
    for node, _ in executed(body, classes=False):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            nodes.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                if name != "*":
                    nodes.setdefault(name, []).append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and node.value:
                    nodes.setdefault(target.id, []).append(node)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            nodes.setdefault(node.id, [node])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Del):
            nodes.pop(node.id, None)
        elif isinstance(node, ast.MatchAs | ast.MatchStar) and node.name:
            nodes.setdefault(node.name, [node])
        elif isinstance(node, ast.MatchMapping) and node.rest:
            nodes.setdefault(node.rest, [node])
    return nodes


def executed(body: Iterable[ast.AST], *, classes: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Yield each node that runs with ``body``, in order, and whether it certainly runs and must not fail.

    Functions are not entered, nor are statements that only type checkers or ``python handler.py`` run.

    Args:
        body: statements.
        classes: whether to enter classes.
    """
    # An explicit stack: a tree may be deeper than Python's stack.
    waiting = [(node, True) for node in body][::-1]
    while waiting:
        node, certain = waiting.pop()
        yield node, certain
        waiting += [(child, certain and always) for child, always in _children(node, classes)][::-1]


def _children(node: ast.AST, classes: bool) -> list[tuple[ast.AST, bool]]:
    def all_of(nodes: Iterable[ast.AST | None], always: bool = True) -> list[tuple[ast.AST, bool]]:
        return [(child, always) for child in nodes if child is not None]

    if isinstance(node, _FUNCTIONS):
        decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
        return all_of([*decorators, *node.args.defaults, *node.args.kw_defaults])
    if isinstance(node, ast.ClassDef) and not classes:
        return all_of([*node.decorator_list, *node.bases, *node.keywords])
    if isinstance(node, ast.If):
        if _never(node.test):
            return all_of(node.orelse)
        # The branch that runs may depend on the machine, its Python or the installed packages.
        return all_of([node.test]) + all_of([*node.body, *node.orelse], False)
    if isinstance(node, _TRIES):
        always = not any(_catches_import_error(handler) for handler in node.handlers)
        handled = [part for handler in node.handlers for part in (handler.type, *handler.body)]
        return all_of(node.body, always) + all_of(handled, False) + all_of(node.orelse, always) + all_of(node.finalbody)
    if isinstance(node, ast.With):
        always = not any(
            isinstance(item.context_expr, ast.Call) and dotted(item.context_expr.func).endswith("suppress")
            for item in node.items
        )
        return all_of(node.items) + all_of(node.body, always)
    return all_of(ast.iter_child_nodes(node))


def _never(test: ast.expr) -> bool:
    """Return whether an ``if`` is for type checkers, or for a module that is run as a script."""
    if isinstance(test, ast.Compare):
        return dotted(test.left) == "__name__"
    return dotted(test).rpartition(".")[2] == "TYPE_CHECKING"


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or dotted(kind).rpartition(".")[2] in _CATCH_IMPORT_ERROR for kind in kinds)
