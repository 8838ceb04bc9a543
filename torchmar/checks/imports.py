"""The imports of a handler: the modules of the archive that it reaches, and the imports that nothing provides."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath

from torchmar.checks.finding import Code, Content, Finding
from torchmar.checks.modules import Module, Modules, read_member
from torchmar.handler_names import CARRIED_PACKAGE

SERVER = frozenset({"torch", "ts", "numpy", "packaging", "yaml", "psutil", "PIL", "typing_extensions"})
"""The packages of every server: those that TorchServe's worker and base handler import, and their requirements."""

# Python finds these before it searches the archive: a file of that name is never read.
_STARTUP = {"abc", "builtins", "codecs", "encodings", "importlib", "io", "itertools", "marshal", "os", "posixpath"}
_STARTUP |= {"site", "stat", "sys", "time", "zipimport"}

_WORKER_IMPORTS = """
    argparse ast asyncio base64 bisect bz2 calendar collections concurrent contextlib contextvars copy copyreg csv
    ctypes dataclasses datetime dis email enum fnmatch functools gettext glob gzip hashlib heapq http inspect
    ipaddress json keyword linecache locale logging lzma multiprocessing numbers operator pathlib pickle pickletools
    pkgutil platform pprint queue quopri random re reprlib selectors shutil signal socket ssl string struct
    subprocess sysconfig tarfile tempfile textwrap threading token tokenize traceback types typing unittest urllib
    uuid warnings weakref zipfile
"""

IMPORTED_BY_WORKER = frozenset(_WORKER_IMPORTS.split())
"""Python's modules that TorchServe's worker imports before the handler.

If the archive has a module with such a name, the worker imports it in place of Python's.
"""

# Packages that TorchServe and its handlers import; a single file with such a name is another module.
_REPLACED = (SERVER | {"captum", "torchvision"}) - {"typing_extensions"}

# Packages of modules with another name; `installed` knows the usual prefixes and suffixes without this table.
_DISTRIBUTIONS = {
    "Crypto": ("pycryptodome",),
    "MySQLdb": ("mysqlclient",),
    "attr": ("attrs",),
    "bs4": ("beautifulsoup4",),
    "cv2": (
        "opencv-python",
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
    "dateutil": ("python-dateutil",),
    "dotenv": ("python-dotenv",),
    "fitz": ("pymupdf",),
    "git": ("gitpython",),
    "google.protobuf": ("protobuf",),
    "grpc": ("grpcio",),
    "jwt": ("pyjwt",),
    "mpl_toolkits": ("matplotlib",),
    "pkg_resources": ("setuptools",),
    "pynvml": ("nvidia-ml-py",),
    "skimage": ("scikit-image",),
    "sklearn": ("scikit-learn",),
    "tree": ("dm-tree",),
    "whisper": ("openai-whisper",),
}
_SHARED = {"azure", "google"}  # folders into which many packages install
_IMPLICIT = {"__name__", "__doc__", "__file__", "__path__", "__spec__", "__loader__", "__package__", "__dict__"}
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def reach(modules: Modules, name: str, provided: set[str]) -> tuple[list[Module], list[Finding]]:
    """Return the modules that importing ``name`` executes, the handler's first, and their problems.

    The modules of torchmar's handlers are omitted if the archive carries them as installed: reading them takes
    longer than all other checks, and finds nothing.

    Args:
        modules: modules of the archive.
        name: name of the handler's module.
        provided: packages that the requirements install.
    """
    walk = _Walk(modules, provided)
    walk.enter(name)
    for module in walk.reached:  # `reached` grows in this loop
        for node in module.certain_imports:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    walk.follow(module, node, alias.name)
            else:
                walk.follow_from(module, node)
    return walk.reached, walk.findings


def shadowing(modules: Modules, name: str, reached: bool = True) -> Finding | None:
    """Return the problem of a module whose name Python or TorchServe uses for another module.

    Args:
        modules: modules of the archive.
        name: name of the module.
        reached: whether the handler imports it; a module that it does not import only matters if it replaces another.
    """
    root = name.partition(".")[0]
    if root not in modules:
        return None
    if root in _STARTUP and not reached:
        return None
    if root in _STARTUP:
        cause = f"Python has imported its own module {root} by then and takes that instead"
    elif root in IMPORTED_BY_WORKER:
        cause = f"Python has a module {root} of its own; the worker gets one in place of the other"
    elif root in sys.stdlib_module_names:
        cause = f"Python has a module {root} of its own; whatever imports that in the worker gets this file"
        return Finding(Code.MAR304, modules.file(root), cause, "give it another name", works=True)
    elif root in _REPLACED and not modules.is_package(root):
        cause = f"TorchServe's worker imports a package {root}; it gets this file in its place"
    else:
        return None
    return Finding(Code.MAR304, modules.file(root), cause, "give it another name")


def distributions(content: Content, requirements: str | None) -> set[str]:
    """Return the normalised names of the packages that a requirements file and its included files install."""
    names: set[str] = set()
    waiting, seen = [requirements] if requirements else [], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in content.sizes:
            continue
        seen.add(name)
        text = (read_member(content, name, 1 << 20) or b"").decode("utf-8", "replace")
        for line in re.sub(r"\\\r?\n", " ", text).splitlines():
            line = re.sub(r"(^|\s)#.*", "", line).strip()
            if included := re.fullmatch(r"(?:-r|--requirement)[ =]?\s*(\S+)", line):
                waiting.append(str(PurePosixPath(name).parent / included[1]))
            else:
                names.update(map(_normalised, _packages(line)))
    return names


def _packages(line: str) -> Iterator[str]:
    """Yield the package names that a line of a requirements file may mean."""
    line = re.sub(r"^(-e|--editable)[ =]\s*", "", line)
    if line.startswith("-"):
        return
    if egg := re.search(r"#egg=([\w.-]+)", line):
        yield egg[1]
    elif ("/" in line and not re.match(r"[\w.-]+(\[.*\])?\s*@", line)) or line.endswith((".whl", ".tar.gz")):
        # The file of a wheel and a repository have the name of their package.
        file = re.sub(r"(\.git)?(@[^/]*)?$", "", line).rpartition("/")[2]
        yield file.partition("-")[0] if file.endswith(".whl") else re.sub(r"-\d.*", "", file)
    elif match := _REQUIREMENT.match(line):
        yield match[0]


def satisfied(name: str, provided: set[str]) -> bool:
    """Return whether Python, TorchServe or one of the packages ``provided`` has a module."""
    root = name.partition(".")[0]
    return root in sys.stdlib_module_names or root == "__main__" or installed(name, provided)


def installed(name: str, provided: set[str]) -> bool:
    """Return whether TorchServe or one of the packages ``provided`` has a module."""
    if name.partition(".")[0] in SERVER:
        return True
    for outer in _outer(name):
        plain = _normalised(outer)
        # python-docx has docx, pyyaml has yaml, faiss-cpu has faiss, google-cloud-storage has google.cloud.storage
        names = {plain, f"python-{plain}", f"py{plain}", *_DISTRIBUTIONS.get(outer, ())}
        if names & provided or any(package.startswith(f"{plain}-") for package in provided):
            return True
    return False


def _outer(name: str) -> list[str]:
    """Return ``a``, ``a.b`` and ``a.b.c`` for ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class _Walk:
    """The modules reached so far and the findings about them."""

    def __init__(self, modules: Modules, provided: set[str]) -> None:
        self._modules = modules
        self._provided = provided
        self._seen: set[str] = set()
        self._told: set[str] = set()
        self.reached: list[Module] = []
        self.findings: list[Finding] = []

    def enter(self, name: str) -> None:
        """Add a module of the archive and the packages that contain it."""
        if name.partition(".")[0] == CARRIED_PACKAGE and self._modules.handlers_are_installed:
            return
        for outer in reversed(_outer(name)):
            module = self._modules.read(outer)
            if module and outer not in self._seen:
                self._seen.add(outer)
                if isinstance(module, Finding):
                    self.findings.append(module)
                else:
                    self.reached.append(module)

    def follow(self, module: Module, node: ast.AST, name: str, attribute: str = "") -> bool:
        """Follow an import of ``name`` (of ``attribute`` from it); return whether it is a module of the archive."""
        root = name.partition(".")[0]
        if root not in self._modules and (root not in self._modules.folders or satisfied(root, self._provided)):
            # A folder without __init__.py counts only if no other module has its name.
            self._outside(module, node, name, attribute)
            return False
        if root in self._modules and (shadow := shadowing(self._modules, root)):
            if shadow not in self.findings:
                self.findings.append(shadow)
            if not shadow.works:
                return False
        inner = root
        for outer in _outer(name)[1:]:
            package = self._modules.is_package(inner)
            if not package or (outer not in self._modules and outer not in self._modules.folders):
                if not self._open_ended(inner):
                    has_none = f"{_folder(inner)} has no module {outer.rpartition('.')[2]}"
                    reason = has_none if package else f"{self._modules.file(inner)} is no package"
                    self._fail(module, node, f"imports {name}, but {reason}", self._similar(outer))
                return False
            inner = outer
        self.enter(name)
        return True

    def follow_from(self, module: Module, node: ast.ImportFrom) -> None:
        """Follow ``from ... import ...``."""
        origin = module.origin(node)
        if origin is None:
            self._relative(module, node)
            return
        if not self.follow(module, node, origin, node.names[0].name):
            return
        source = self._modules.read(origin)
        names = self._modules.names(source) if isinstance(source, Module) else None
        for alias in node.names:
            inner = f"{origin}.{alias.name}"
            if self._modules.is_package(origin) and (inner in self._modules or inner in self._modules.folders):
                self.enter(inner)
            elif alias.name == "*" or alias.name in _IMPLICIT:
                continue
            elif isinstance(source, Module) and names is not None and alias.name not in names:
                remedy = _did_you_mean(alias.name, names)
                self._fail(module, node, f"imports {alias.name} from {source.file}, which does not define it", remedy)
            elif origin not in self._modules:
                cause = f"imports {alias.name} from {_folder(origin)}, which has no such module"
                self._fail(module, node, cause, self._similar(inner))

    def _open_ended(self, name: str) -> bool:
        """Return whether a module may have submodules that are no members of the archive, as extension modules may."""
        module = self._modules.read(name)
        return name in self._modules and (module.open_ended if isinstance(module, Module) else True)

    def _relative(self, module: Module, node: ast.ImportFrom) -> None:
        source = "." * node.level + (node.module or "")
        if "." in module.name or module.package:
            cause = f"imports from {source}, which is above the archive's top level"
        else:
            cause = f"imports from {source}, but {module.name} is in no package"
        names = ", ".join(alias.name for alias in node.names)
        statement = f"from {node.module} import {names}" if node.module else f"import {names}"
        self._fail(module, node, cause, f"write: {statement}")

    def _outside(self, module: Module, node: ast.AST, name: str, attribute: str) -> None:
        root = name.partition(".")[0]
        package = next((_DISTRIBUTIONS[outer][0] for outer in _outer(name) if outer in _DISTRIBUTIONS), None)
        package = package or ("-".join(name.split(".")) if root in _SHARED else root)
        if package in self._told or satisfied(f"{name}.{attribute}".rstrip("."), self._provided):
            return
        self._told.add(package)
        candidates = [self._modules.file(inner) for inner in self._modules if inner.endswith(f".{root}")]
        candidates += [_folder(folder) for folder in self._modules.folders if folder.endswith(f".{root}")]
        if candidates and any(module.changes_path for module in self.reached):
            return  # the archive adds a folder to the path; only running it would show which folder
        remedy = f"add {package} to the requirements or install it on the server"
        if candidates:
            remedy = f"import {candidates[0]} by its full name, or move it to the archive's top level"
        elif similar := self._similar(root):
            remedy = f"{similar} otherwise {remedy}"
        else:
            remedy = f"{remedy}; a module of your own belongs in the archive"
        cause = f"imports {name}, which neither the archive nor its requirements have"
        self.findings.append(Finding(Code.MAR309, module.place(node), cause, remedy))

    def _fail(self, module: Module, node: ast.AST, cause: str, remedy: str) -> None:
        remedy = remedy or "add it to the archive, or remove the import"
        self.findings.append(Finding(Code.MAR305, module.place(node), cause, remedy))

    def _similar(self, name: str) -> str:
        package, _, last = name.rpartition(".")
        siblings = {other.rpartition(".")[2] for other in self._modules if other.rpartition(".")[0] == package}
        return _did_you_mean(last, siblings)


def _folder(name: str) -> str:
    return name.replace(".", "/") + "/"


def _did_you_mean(name: str, names: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else ""
