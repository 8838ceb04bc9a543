"""Calls at import time of a module that use the network or write to the disk."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from torchmar.checks.finding import Code, Finding
from torchmar.checks.modules import Module, dotted, executed

_HTTP = {"delete", "get", "head", "options", "patch", "post", "put", "request"}
_WORK = {
    "": {"open"},
    "PIL.Image": {"open"},
    "cv2": {"imread", "imwrite"},
    "gdown": {"download", "download_folder"},
    "glob": {"glob"},
    "httpx": {*_HTTP, "stream"},
    "huggingface_hub": {"hf_hub_download", "login", "snapshot_download"},
    "io": {"open"},
    "joblib": {"dump", "load"},
    "nltk": {"download"},
    "numpy": {"fromfile", "genfromtxt", "load", "loadtxt", "save", "savez"},
    "onnx": {"load"},
    "onnxruntime": {"InferenceSession"},
    "openvino": {"Core", "compile_model"},
    "os": {"listdir", "makedirs", "mkdir", "popen", "remove", "removedirs", "rename", "replace", "rmdir", "scandir"}
    | {"symlink", "system", "unlink", "walk"},
    "pandas": {"read_csv", "read_excel", "read_json", "read_parquet", "read_pickle"},
    "pip": {"main"},
    "pip._internal": {"main"},
    "requests": _HTTP,
    "safetensors": {"safe_open"},
    "safetensors.torch": {"load_file"},
    "shutil": {"copy", "copy2", "copyfile", "copytree", "make_archive", "move", "rmtree", "unpack_archive"},
    "socket": {"create_connection", "create_server", "getaddrinfo", "gethostbyname", "socket"},
    "spacy": {"load"},
    "subprocess": {"Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput", "run"},
    "tempfile": {"NamedTemporaryFile", "TemporaryDirectory", "TemporaryFile", "mkdtemp", "mkstemp"},
    "torch": {"load", "save"},
    "torch.export": {"load"},
    "torch.hub": {"download_url_to_file", "list", "load", "load_state_dict_from_url"},
    "torch.jit": {"load"},
    "transformers": {"pipeline"},
    "urllib.request": {"urlopen", "urlretrieve"},
    "wget": {"download"},
}
# On any object.
_METHODS = {"from_pretrained", "read_bytes", "read_text", "write_bytes", "write_text"}


def check(module: Module) -> Iterator[Finding]:
    """Check the calls at the top level of a module and in the bodies of its classes."""
    for node, _ in executed(module.tree.body):
        if isinstance(node, ast.Call) and (name := _work(module, node.func)):
            cause = f"calls {name}() when it is imported"
            yield Finding(Code.MAR307, module.place(node), cause, "do it in initialize(), which runs once per worker")


def _work(module: Module, callee: ast.expr) -> str:
    """Return the name of a call that uses network or disk; empty for any other call."""
    if isinstance(callee, ast.Attribute) and callee.attr in _METHODS:
        return dotted(callee) or callee.attr
    name = module.full_name(callee)
    owner, _, function = name.rpartition(".")
    return name if function in _WORK.get(owner, ()) else ""
