"""Load the packages of processes of one kind, and fork processes for clients; run as a file.

Arguments: the kind, and the descriptor of the listening socket. The process ends when its standard input is closed.
"""

from __future__ import annotations

import array
import atexit
import builtins
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import marshal
import mimetypes
import os
import resource
import runpy
import select
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Mapping
from importlib._bootstrap_external import SourceLoader, _compile_bytecode  # type: ignore[attr-defined]
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

_IMPORTS = {
    # Imports of TorchServe's worker and torchmar's before they load a handler, imports of torchmar's handlers, which
    # are in archives, and imports of torch for an exported program. Without its telemetry, ONNX Runtime, which
    # base_handler imports, starts no thread.
    "workers": (
        *("numpy", "torch", "ts.model_service_worker", "ts.service", "ts.torch_handler.base_handler"),
        *("PIL.Image", "captum.attr", "orjson", "torch._export.serde.serialize"),
    ),
    # Imports of the commands and of torchmar's server, which use neither torch nor numpy.
    "commands": (
        *(
            "torchmar.cli.app",
            "torchmar.cli.endpoint",
            "torchmar.cli.many",
            "torchmar.cli.progress",
            "typer.rich_utils",
        ),
        *("rich.live", "rich.progress", "rich.table", "uvloop", "torchmar.server.app"),
        *("torchmar.checks", "torchmar.deployment.planning", "torchmar.deployment.executor", "torchmar.diagnosis"),
        *("torchmar.engines.builtin", "torchmar.engines.torchserve", "torchmar.grpc", "torchmar.load.session"),
        *("torchmar.server.grpc.listener", "torchmar.server.grpc.reflection", "torchmar.archive.building"),
        *("torchmar.cli.up_to_date", "torchmar.cli.findings", "torchmar.model_archiver.packaging"),
        *("typer._adapters", "rich._emoji_codes", "argparse", "encodings.utf_8_sig"),
    ),
    "conversions": ("torchmar.conversion.keras_alone", "h5py", "torch.export._trace", "torch._export.serde.serialize"),
    # Packages that write weights in other formats, and packages that compare them.
    "exports": (
        *("torch.export._trace", "torch._export.serde.serialize", "torch.onnx._internal.exporter._core"),
        *("torch.onnx._internal.exporter._onnx_program", "onnx", "onnxruntime", "onnxscript", "safetensors.torch"),
        *("openvino", "openvino.tools.ovc", "openvino.frontend.pytorch.fx_decoder", "torchmar_handlers.weights"),
        *("torchmar.conversion.exporters", "torchmar.conversion.process"),
    ),
}
# Variables that libraries and Python read when they are loaded.
_READ_WHEN_LOADED = (
    *("GOMP_", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_", "OMP_", "PYTHON", "PYTORCH", "TORCH_"),
    *("GRPC_", "PYDANTIC_", "TYPER_", "_TYPER_", "TERMINAL_WIDTH", "GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS"),
    *("KERAS_BACKEND", "ORT_"),
    *(("CUDA_",) if Path("/dev/nvidiactl").exists() else ()),
)
# Handlers set the second when they load ONNX Runtime, also in the process of a test; here it is always set. A forked
# process gets the others: scikit-learn sets the last two for LLVM's OpenMP, which torch's wheels do not have, when
# a test imports it, and later processes would otherwise not be forked.
_LEFT_OUT = (
    *("PYTHONPATH", "ORT_DISABLE_TELEMETRY", "PYTHONDONTWRITEBYTECODE"),
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),
)
_ENVIRONMENT = dict(os.environ)  # packages set variables when they are loaded
_HANDLERS = Path(__file__).parents[3] / "handlers" / "torchmar_handlers"
_START = Path(__file__).parents[3] / "torchmar" / "worker" / "start.py"
_MAX_MESSAGE = 1 << 20
_LARGE_PAGE = 2 << 20
_MADV_COLLAPSE = 25  # Linux 6.1; earlier versions refuse it
_MAX_FILES = 253  # files in one message, on Linux


def serve(kind: str, listener: socket.socket) -> dict[str, Any] | None:
    """Fork processes until standard input is closed; their packages are loaded for the first of them.

    Returns:
        In a forked process, the request; None in this process, at its end.
    """
    read, write = os.pipe()
    for descriptor in (read, write):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    events = select.poll()
    for descriptor in (0, read, listener.fileno()):
        events.register(descriptor, select.POLLIN)
    connections: dict[int, tuple[socket.socket, int]] = {}  # by descriptor, with the pid of the forked process
    loaded = False
    while True:
        for descriptor, _ in events.poll():
            if descriptor == 0:
                for _, pid in connections.values():
                    os.kill(pid, signal.SIGKILL)
                return None
            if descriptor == read:
                with contextlib.suppress(BlockingIOError):
                    os.read(read, 4096)
            elif descriptor == listener.fileno():
                connection, _ = listener.accept()
                request, files = _receive(connection)
                if not loaded:
                    load(kind)
                    loaded = True
                pid, reason = _fork(request)
                if reason:
                    _send(connection, {"objection": reason})
                    connection.close()
                elif not pid:
                    signal.set_wakeup_fd(-1)
                    for other in (listener, connection, *(connection for connection, _ in connections.values())):
                        other.detach()  # its number is closed below, and then belongs to another file
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    for number in request["ignored"]:
                        signal.signal(number, signal.SIG_IGN)
                    request["received"] = files
                    return request
                else:
                    with contextlib.suppress(OSError):
                        os.setpgid(pid, request["group"])
                    _send(connection, {"pid": pid})
                    connections[connection.fileno()] = connection, pid
                    events.register(connection, select.POLLIN)
                for file in files:
                    os.close(file)
            elif descriptor in connections:  # the client has ended
                events.unregister(descriptor)
                connection, pid = connections[descriptor]
                os.kill(pid, signal.SIGKILL)  # nobody has waited for it yet
                os.waitpid(pid, 0)
                connection.close()
                del connections[descriptor]
        _send_statuses(events, connections)


def _fork(request: dict[str, Any]) -> tuple[int, str]:
    """Fork for a request; return the pid, which is 0 in the forked process, and why there is none; empty: there is."""
    if not request:
        return -1, "no request"
    request["path"].insert(0, _first_of_path(request))
    if reason := objection(request):
        return -1, reason
    try:
        return os.fork(), ""
    except OSError as error:  # the machine has no room for a process now, but may have it for the next request
        return -1, f"cannot fork: {error.strerror}"


def objection(request: dict[str, Any]) -> str:
    """Return the reason why a process must be started and not be forked; empty: it may be forked."""
    if request["python"] != [sys.prefix, sys.version]:
        return "it is of another Python"
    limits = [resource.getrlimit(number) for number in _limits()]
    if request["limits"] != limits or request["nice"] != os.getpriority(os.PRIO_PROCESS, 0):
        return "it has other limits"
    requested, present = (loading_variables(variables) for variables in (request["environment"], _ENVIRONMENT))
    if requested != present:
        return f"these variables differ: {set(requested.items()) ^ set(present.items())}"
    folders = [*request["environment"].get("PYTHONPATH", "").split(os.pathsep), request["path"][0]]
    if request["arguments"][0].endswith("start.py"):
        message = json.loads(request["arguments"][1])
        folders.append(message.get("model", {}).get("model_dir", ""))
    # No module replaces one of Python's own, such as the folder /sys if the working folder is /.
    others = {"sitecustomize", "__main__", *sys.builtin_module_names}
    for folder in set(folders) - {"", *sys.path}:
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                name, _, suffix = entry.name.partition(".")
                if name not in sys.modules or name in others:
                    continue
                origin = getattr(sys.modules[name], "__file__", None) or ""
                # A script without a suffix is no module.
                if (suffix or entry.is_dir()) and not origin.startswith(entry.path):
                    return f"{entry.path} may be imported in place of what is loaded"
    return ""


def loading_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables on which loaded packages may depend: processes with other values are not forked."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_READ_WHEN_LOADED)
        and name not in _LEFT_OUT
        and (not name.startswith("KERAS_") or "keras" in sys.modules)
    }


def _first_of_path(request: dict[str, Any]) -> str:
    """Return the first folder of Python's module path: the script's, with links resolved, or the working folder."""
    script = request["arguments"][0]
    return str(request["folder"] if script in ("-m", "-c") else Path(request["folder"], script).resolve().parent)


def _limits() -> list[int]:
    return sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    files = array.array("i")
    try:
        data, ancillary, _, _ = connection.recvmsg(_MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FILES * files.itemsize))
    except OSError:  # the client was killed
        return {}, []
    for _, _, content in ancillary:
        files.frombytes(content[: len(content) - len(content) % files.itemsize])
    try:
        return marshal.loads(data), list(files)
    except (EOFError, TypeError, ValueError):
        return {}, list(files)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # if the client was killed, the next event of its connection shows it
        connection.send(marshal.dumps(message))


def _send_statuses(events: select.poll, connections: dict[int, tuple[socket.socket, int]]) -> None:
    for descriptor, (connection, pid) in list(connections.items()):
        reaped, status = os.waitpid(pid, os.WNOHANG)
        if reaped:
            events.unregister(descriptor)
            _send(connection, {"status": status})
            connection.close()
            del connections[descriptor]


def become(request: dict[str, Any]) -> None:
    """Give this process the properties of the request's process."""
    with contextlib.suppress(OSError):
        os.setpgid(0, request["group"])  # fails if the group belongs to another session
    _move_files(request["received"], request["files"])
    _open_streams()
    before, environment = dict(os.environ), request["environment"]
    for name in before.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if before.get(name) != value:  # each change copies pages of the memory
            os.environ[name] = value
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.sched_setaffinity(0, request["cores"])
    sys.dont_write_bytecode = bool(request["environment"].get("PYTHONDONTWRITEBYTECODE"))
    sys.orig_argv = [sys.executable, *request["arguments"]]
    sys.argv = list(request["arguments"])
    sys.path[:] = request["path"]
    if terminal := sys.modules.get("torchmar.cli.terminal"):
        # Its consoles read the environment and the terminal when they are created; other modules use them, too.
        consoles = dict(vars(terminal))
        for name, value in vars(importlib.reload(terminal)).items():
            if name in ("out", "lasting_out", "err"):
                consoles[name].__dict__ = value.__dict__
    # Python's own generator has another seed in each fork.
    if "torch" in sys.modules:
        sys.modules["numpy"].random.seed()
        sys.modules["torch"].default_generator.seed()


def _open_streams() -> None:
    """Open standard input, output and error again, as Python does when it starts: a terminal is flushed by lines."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream.write_through:  # PYTHONUNBUFFERED
            continue
        reopened = None
        with contextlib.suppress(OSError):  # it may be closed
            lines = stream.line_buffering or os.isatty(number)
            options = {"encoding": stream.encoding, "errors": stream.errors, "closefd": False}
            reopened = open(number, mode, buffering=1 if lines else -1, **options)
        setattr(sys, name, reopened)
        setattr(sys, f"__{name}__", reopened)


def _move_files(received: list[int], numbers: list[int]) -> None:
    """Give files the numbers that they have in the client, and close all others."""
    least = max([*received, *numbers, 2]) + 1
    copies = [fcntl.fcntl(file, fcntl.F_DUPFD, least) for file in received]  # different from all wanted numbers
    for copy, number in zip(copies, numbers, strict=True):
        os.dup2(copy, number)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) not in numbers:
            with contextlib.suppress(OSError):  # the folder itself
                os.close(int(name))


def load(kind: str) -> None:
    """Import the packages of processes of a kind, and exclude them from garbage collections of forks."""
    if kind == "workers":
        # TorchServe's base_handler would import it for torch.compile, which takes two seconds with OpenVINO.
        sys.modules["openvino.torch"] = None  # type: ignore[assignment]
    elif kind == "exports":
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    for name in _IMPORTS[kind]:
        with contextlib.suppress(ModuleNotFoundError):  # other versions of torch may have other modules
            importlib.import_module(name)
        if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
            raise RuntimeError(f"{name} has started a thread, which forks would not have")
    if "PIL.Image" in sys.modules:
        sys.modules["PIL.Image"].init()  # loads the readers of all formats
        mimetypes.init()  # reads files of the system
    if kind == "workers":
        runpy.run_path(str(_START))["load"]()  # so that start.py, which forked processes run, finds the modules
        _compile_handlers()
        _run_torchscript()
    # Forked processes list folders anew. To invalidate the entries in each of them would copy hundreds of pages.
    sys.path_importer_cache.clear()
    gc.collect()
    gc.freeze()
    _use_large_pages()


def _use_large_pages() -> None:
    """Move the memory into large pages: a fork, which copies the table of pages, then takes a third of the time."""
    if not sys.platform.startswith("linux"):
        return
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, _, _, file, *_ = line.split()
        if (access, file) == ("rw-p", "0"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            for page in range(-(-start // _LARGE_PAGE) * _LARGE_PAGE, end - _LARGE_PAGE + 1, _LARGE_PAGE):
                madvise(ctypes.c_void_p(page), ctypes.c_size_t(_LARGE_PAGE), _MADV_COLLAPSE)


def _compile_handlers() -> None:
    """Compile the handlers that archives carry: otherwise, Python would compile the copy in each archive."""
    compiled = {
        file.read_bytes(): marshal.dumps(compile(file.read_bytes(), str(file), "exec", dont_inherit=True))
        for file in _HANDLERS.rglob("*.py")
    }
    original = SourceLoader.source_to_code

    def source_to_code(loader: SourceLoader, data: Any, path: Any, *, _optimize: int = -1) -> Any:
        code = compiled.get(data) if isinstance(data, bytes) else None
        if code is None:
            return original(loader, data, path, _optimize=_optimize)
        return _compile_bytecode(code, None, None, path)  # as from a file below __pycache__

    SourceLoader.source_to_code = source_to_code  # type: ignore[method-assign, assignment]


def _run_torchscript() -> None:
    """Run a model in TorchScript: the first one sets the compiler up, a third of the time of loading a small model."""
    torch = sys.modules["torch"]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        model = torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1))
        for _ in range(2):  # the second time it is optimised
            model(torch.zeros(1, 1))


def run(arguments: list[str]) -> NoReturn:
    """Run the script or the module of a process, and exit like it.

    All steps of Python's end are run, except the destruction of the loaded objects.
    """
    sys.modules["__main__"] = module = ModuleType("__main__")
    try:
        if arguments[0] == "-m":
            del sys.argv[1]
            runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined] # what Python itself calls for -m
        elif arguments[0] == "-c":
            del sys.argv[1]
            exec(arguments[1], module.__dict__)
        else:
            module.__dict__.update(__file__=arguments[0], __builtins__=builtins)
            exec(compile(Path(arguments[0]).read_bytes(), arguments[0], "exec"), module.__dict__)
        code: Any = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it may be closed
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    sys.path.pop(0)  # no module is imported from the folder of this file
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the process that has started it
    request = serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
    if request:
        become(request)
        run(request["arguments"])
