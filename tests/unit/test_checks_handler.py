"""torchmar.checks.handler finds, without running a handler, why TorchServe would fail to load it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import pytest

from tests.support.paths import DIGITS, ROOT
from torchmar import archive, handler_names, manifest, recipe
from torchmar.checks import handler as checks
from torchmar.checks.finding import Finding
from torchmar.errors import ArchiveError, LoadError
from torchmar.exchange import Request
from torchmar.worker import Worker

Files = dict[str, str | bytes]
Expected = list[tuple[str, str, str]]

# The words of Python's own error.
_NOT_UTF_8 = "Non-UTF-8 code" if sys.version_info >= (3, 14) else "utf-8"
CLASS = """
class Digits:
    def initialize(self, context): ...
    def handle(self, data, context): return ["seven"] * len(data)
"""
FUNCTION = "def handle(data, context): return ['seven'] * len(data or [])\n"
BASE = "from ts.torch_handler.base_handler import BaseHandler\n"


class Members:
    """Members that are held in memory."""

    def __init__(self, files: Mapping[str, str | bytes]) -> None:
        self.files = {name: text if isinstance(text, bytes) else text.encode() for name, text in files.items()}

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(content) for name, content in self.files.items()}

    def open(self, name: str) -> IO[bytes]:
        return io.BytesIO(self.files[name])


def check(files: Mapping[str, str | bytes], handler: str = "handler.py") -> list[Finding]:
    requirements = "requirements.txt" if "requirements.txt" in files else None
    config = "model-config.yaml" if "model-config.yaml" in files else None
    return checks.check(Members(files), handler, requirements, config)


def agrees(findings: list[Finding], expected: Expected) -> bool:
    assert [(finding.code.name, finding.place) for finding in findings] == [row[:2] for row in expected], findings
    for finding, (_, _, cause) in zip(findings, expected, strict=True):
        assert cause in finding.cause, finding
        assert finding.remedy
    return True


# The handler's name, the members, the findings. TorchServe's own loader is compared with the same tables below.
FINDING: dict[str, tuple[str, Files, Expected]] = {
    "a file with one class": ("handler.py", {"handler.py": CLASS}, []),
    "a file in the spelling without suffix": ("handler", {"handler.py": CLASS}, []),
    "a package": ("handler", {"handler/__init__.py": CLASS}, []),
    "a module in a folder, with dots": ("src.handler", {"src/handler.py": CLASS}, []),
    "a name that TorchServe ships": ("image_classifier", {"model.pt": ""}, []),
    "a module of TorchServe": ("ts.torch_handler.vision_handler", {"model.pt": ""}, []),
    "a module that the requirements install": ("acme.handler", {"requirements.txt": "acme==1"}, []),
    "a file that is not there": (
        "handlr.py",
        {"handler.py": CLASS},
        [("MAR308", "handlr.py", "the archive has no module handlr")],
    ),
    "a stock name with a typing error": ("image_clasifier", {}, [("MAR308", "image_clasifier", "ships no handler")]),
    "no name": ("", {"handler.py": CLASS}, [("MAR308", "", "no module")]),
    "a file in a folder": (
        "src/handler.py",
        {"src/handler.py": CLASS},
        [("MAR308", "src/handler.py", "finds no handler.py at the archive's top level")],
    ),
    "a file name with dots": (
        "my.handler.py",
        {"my.handler.py": CLASS},
        [("MAR308", "my.handler.py", "a module in a package my")],
    ),
    "a folder that hides a stock name": (
        "base_handler",
        {"base_handler/labels.txt": ""},
        [("MAR308", "base_handler", "hides TorchServe's own handler")],
    ),
    "a module below what is no package": (
        "a.handler",
        {"a.py": "", "a/handler.py": CLASS},
        [("MAR308", "a.handler", "no module a.handler")],
    ),
    "the name of a module that Python has imported": (
        "os.py",
        {"os.py": CLASS},
        [("MAR304", "os.py", "its own module os by then")],
    ),
    "the name of a module of Python": (
        "json.py",
        {"json.py": CLASS},
        [("MAR304", "json.py", "one in place of the other")],
    ),
    "the name of a package of TorchServe": (
        "yaml.py",
        {"yaml.py": CLASS},
        [("MAR304", "yaml.py", "gets this file in its place")],
    ),
}

READING: dict[str, tuple[str, Files, Expected]] = {
    "what warns only": ("handler.py", {"handler.py": CLASS + "'\\d' is 1\n"}, []),
    "a declared encoding": (
        "handler.py",
        {"handler.py": b"# -*- coding: latin-1 -*-\nx = '\xe9'\n" + CLASS.encode()},
        [],
    ),
    "a name that is no Python name": ("my-handler.py", {"my-handler.py": CLASS}, []),
    "bytecode, which is not read": ("handler", {"handler.pyc": b"\xcb\r\r\n"}, []),
    "a parenthesis too few": (
        "handler.py",
        {"handler.py": "x = 1\nclass Digits(:\n    pass\n"},
        [("MAR303", "handler.py:2", f"is not Python 3.{sys.version_info.minor}: ")],
    ),
    "what only the compiler refuses": (
        "handler.py",
        {"handler.py": CLASS + "return 1\n"},
        [("MAR303", "handler.py:5", "'return' outside function")],
    ),
    "bytes that are not UTF-8": (
        "handler.py",
        {"handler.py": b"x = '\xe9'\n"},
        [("MAR303", "handler.py:1", _NOT_UTF_8)],
    ),
    "an encoding that does not exist": (
        "handler.py",
        {"handler.py": "# -*- coding: nope -*-\n"},
        [("MAR303", "handler.py", "unknown encoding: nope")],
    ),
    "a null byte": ("handler.py", {"handler.py": "x = 1\0"}, [("MAR303", "handler.py", "null bytes")]),
    "an expression without end": (
        "handler.py",
        {"handler.py": "x = " + "-" * 100_000 + "1"},
        [("MAR303", "handler.py", "nested too deeply")],
    ),
    "a module that the handler imports": (
        "handler.py",
        {"handler.py": "from a.b import c\n" + CLASS, "a/b.py": "c = 1\n", "a/__init__.py": "def"},
        [("MAR303", "a/__init__.py:1", "is not Python")],
    ),
}

ENTRIES: dict[str, tuple[str, Files, Expected]] = {
    "a class in try": ("handler.py", {"handler.py": f"try:{CLASS}".replace("\n", "\n    ") + "\nfinally: pass"}, []),
    "an imported class beside it": ("handler.py", {"handler.py": "from pathlib import Path\n" + CLASS}, []),
    "a class for type checkers only": (
        "handler.py",
        {"handler.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    class Row: ...\n" + CLASS},
        [],
    ),
    "a class that is deleted again": ("handler.py", {"handler.py": f"class Row: ...\n{CLASS}del Row\n"}, []),
    "a class in a function": ("handler.py", {"handler.py": "def row():\n    class Row: ...\n" + CLASS}, []),
    "a new type, which is no class": (
        "handler.py",
        {"handler.py": "import typing\nRow = typing.NewType('Row', int)\n" + CLASS},
        [],
    ),
    "two classes beside a function handle": ("handler.py", {"handler.py": f"class Row: ...\n{CLASS}{FUNCTION}"}, []),
    "an imported function handle": ("handler.py", {"handler.py": "from lib import handle", "lib.py": FUNCTION}, []),
    "a function handle by star import": ("handler.py", {"handler.py": "from lib import *", "lib.py": FUNCTION}, []),
    "handle as a bound method": ("handler.py", {"handler.py": f"{CLASS}class Row: ...\nhandle = Row.mro"}, []),
    "a function that is named": ("handler:answer", {"handler.py": FUNCTION.replace("handle", "answer")}, []),
    "a function that is named after the suffix": (
        "handler.py:answer",
        {"handler.py": FUNCTION.replace("handle", "answer")},
        [],
    ),
    "the function handle named, and one class": ("handler:handle", {"handler.py": CLASS}, []),
    "a dataclass beside the handler": (
        "handler.py",
        {"handler.py": f"from dataclasses import dataclass\n{CLASS}@dataclass\nclass Row:\n    a: int\n"},
        [("MAR301", "handler.py:7", "defines 2 classes (Digits, Row); TorchServe loads exactly one")],
    ),
    "an enumeration and an exception in if": (
        "handler.py",
        {"handler.py": f"import enum\nif True:\n    class _E(enum.Enum): ...\n    class Bad(Exception): ...\n{CLASS}"},
        [("MAR301", "handler.py:3", "3 classes (_E, Bad, Digits)")],
    ),
    "a named tuple": (
        "handler.py",
        {"handler.py": "from collections import namedtuple\nRow = namedtuple('Row', 'a b')\n" + CLASS},
        [("MAR301", "handler.py:2", "(Row, Digits)")],
    ),
    "a second name for the class": (
        "handler.py",
        {"handler.py": CLASS + "Alias = Digits\n"},
        [("MAR301", "handler.py:2", "2")],
    ),
    "no class": ("handler.py", {"handler.py": "x = 1\n"}, [("MAR301", "handler.py", "defines no class; TorchServe")]),
    "a class that is only imported": (
        "handler.py",
        {"handler.py": "from ts.torch_handler.image_classifier import ImageClassifier\n"},
        [("MAR301", "handler.py", "no class (ImageClassifier is imported, which does not count)")],
    ),
    "a class from another module of the package": (
        "handler",
        {"handler/__init__.py": "from .impl import Digits\n", "handler/impl.py": CLASS},
        [("MAR301", "handler/__init__.py", "(Digits is imported, which does not count)")],
    ),
    "a function that is not there, and no class": (
        "handler:anser",
        {"handler.py": "def answer(data, context): ...\n"},
        [("MAR302", "handler.py", "does not define anser")],
    ),
    "a class after the colon": (
        "handler:Digits",
        {"handler.py": CLASS},
        [("MAR302", "handler.py:2", "Digits is a class; TorchServe calls Digits(data, context)")],
    ),
}

IMPORTS: dict[str, tuple[str, Files, Expected]] = {
    "what every server has": (
        "handler.py",
        {"handler.py": "import json, torch, PIL.Image\nfrom ts.context import Context\nimport numpy as np\n" + CLASS},
        [],
    ),
    "modules and packages of the archive": (
        "handler.py",
        {
            "handler.py": "import a.b.c as d, flat\nfrom a.b.c import x, y\nfrom a import b\nfrom flat import n\n"
            + CLASS,
            "a/__init__.py": "from . import b\nfrom .b.c import x\n",
            "a/b/c.py": "from ..e import *\nx: int = 1\n",
            "a/e.py": "with open(__file__) as y: pass\n".replace(
                "open(__file__)", "__import__('contextlib').suppress()"
            ),
            "flat.py": "for n in range(3): pass\n",
        },
        [],
    ),
    "a name that only running would make": (
        "handler.py",
        {"handler.py": "from lib import x\n" + CLASS, "lib.py": "globals()['x'] = 1\n"},
        [],
    ),
    "what may be missing": (
        "handler.py",
        {
            "handler.py": "import contextlib, sys\n"
            "try:\n    import nowhere\nexcept ImportError:\n    import elsewhere\n"
            "with contextlib.suppress(ImportError):\n    import nowhere\n"
            "if sys.platform == 'nowhere':\n    import nowhere\n"
            "if __name__ == '__main__':\n    import nowhere\n"
            "def late():\n    import nowhere\n" + CLASS
        },
        [],
    ),
    "an empty folder in place of a package": (
        "handler.py",
        {"handler.py": "import torch\n" + CLASS, "torch/model.bin": ""},
        [],
    ),
    "a folder that the handler puts on the path": (
        "handler.py",
        {"handler.py": "import sys\nsys.path.append('src')\nimport model\n" + CLASS, "src/model.py": ""},
        [],
    ),
    "modules that an extension module brings": (
        "handler.py",
        {"handler.py": "import lib.fast.inner\n" + CLASS, "lib/__init__.py": "", "lib/fast.cpython-311.so": ""},
        [],
    ),
    "a module that takes its own place": (
        "handler.py",
        {"handler.py": "from lib import x\n" + CLASS, "lib.py": "import sys\nsys.modules[__name__] = object()\n"},
        [],
    ),
    "a package of the server that is a single file": (
        "handler.py",
        {"handler.py": "import typing_extensions\n" + CLASS, "typing_extensions.py": ""},
        [],
    ),
    "a relative import in a handler of its own": (
        "handler.py",
        {"handler.py": "from .lib import x\n" + CLASS, "lib.py": "x = 1\n"},
        [("MAR305", "handler.py:1", "imports from .lib, but handler is in no package")],
    ),
    "a relative import above the top": (
        "a.handler",
        {"a/__init__.py": "", "a/handler.py": "from ..lib import x\n" + CLASS, "lib.py": "x = 1\n"},
        [("MAR305", "a/handler.py:1", "above the archive's top level")],
    ),
    "a name that a module does not have": (
        "handler.py",
        {"handler.py": "from lib import nets\n" + CLASS, "lib.py": "net = 1\n"},
        [("MAR305", "handler.py:1", "imports nets from lib.py, which does not define it")],
    ),
    "a module that a package does not have": (
        "handler.py",
        {"handler.py": "import lib.net\n" + CLASS, "lib/__init__.py": ""},
        [("MAR305", "handler.py:1", "imports lib.net, but lib/ has no module net")],
    ),
    "a module that a folder does not have": (
        "handler.py",
        {"handler.py": "from lib import net\n" + CLASS, "lib/other.py": ""},
        [("MAR305", "handler.py:1", "imports net from lib/, which has no such module")],
    ),
    "a module below what is no package": (
        "handler.py",
        {"handler.py": "import lib.net\n" + CLASS, "lib.py": "", "lib/net.py": ""},
        [("MAR305", "handler.py:1", "but lib.py is no package")],
    ),
    "a broken import further on": (
        "handler.py",
        {"handler.py": "import one\n" + CLASS, "one.py": "\nimport two\n", "two.py": "\n\nfrom one import three\n"},
        [("MAR305", "two.py:3", "imports three from one.py")],
    ),
    "a helper with the name of a module of Python": (
        "handler.py",
        {"handler.py": "import json\nfrom json import mine\n" + CLASS, "json.py": "mine = 1\n"},
        [("MAR304", "json.py", "one in place of the other")],
    ),
    "a package that only the server can have": (
        "handler.py",
        {"handler.py": "import nowhere.inner\nimport nowhere\n" + CLASS},
        [("MAR309", "handler.py:1", "imports nowhere.inner, which neither the archive nor its requirements have")],
    ),
    "a module that lies in a folder": (
        "handler.py",
        {"handler.py": "import model\n" + CLASS, "src/model.py": ""},
        [("MAR309", "handler.py:1", "imports model")],
    ),
}

SIGNATURES: dict[str, tuple[str, Files, Expected]] = {
    "defaults and variable parameters": (
        "handler.py",
        {
            "handler.py": "class Digits:\n    def __init__(self, size=1): ...\n    def initialize(self, *args): ...\n"
            "    def handle(self, data, context=None, *, more=1, **rest): ...\n"
        },
        [],
    ),
    "static and class methods": (
        "handler.py",
        {
            "handler.py": "class Digits:\n    @staticmethod\n    def initialize(context): ...\n"
            "    @classmethod\n    def handle(cls, data, context): ...\n"
        },
        [],
    ),
    "methods that a base class has": (
        "handler.py",
        {"handler.py": "import base\nclass Digits(base.Base): ...\n", "base.py": CLASS.replace("Digits", "Base")},
        [],
    ),
    "methods of TorchServe's base handler": (
        "handler.py",
        {
            "handler.py": BASE + "class Digits(BaseHandler):\n    def initialize(self, context): ...\n"
            "    def preprocess(self, data): yield from data\n    def inference(self, data, *args): ...\n"
        },
        [],
    ),
    "a handle of its own, which calls what it likes": (
        "handler.py",
        {
            "handler.py": BASE + "class Digits(BaseHandler):\n    def initialize(self, context): ...\n"
            "    def handle(self, data, context): ...\n    def preprocess(self, data, context): ...\n"
        },
        [],
    ),
    "a decorator that may change the parameters": (
        "handler.py",
        {
            "handler.py": "from lib import wrap\n@wrap\ndef handle(data): ...\n",
            "lib.py": "def wrap(f): return lambda *a: f\n",
        },
        [],
    ),
    "methods that are assigned": (
        "handler.py",
        {
            "handler.py": "class Digits:\n    def __init__(self): self.initialize = print\n"
            "    def go(self, data, context): ...\n    handle = go\n"
        },
        [],
    ),
    "initialize without context": (
        "handler.py",
        {"handler.py": CLASS.replace("initialize(self, context)", "initialize(self)")},
        [("MAR306", "handler.py:3", "initialize takes (self); TorchServe calls it with (context) on an instance")],
    ),
    "handle without self": (
        "handler.py",
        {"handler.py": CLASS.replace("self, data", "data")},
        [("MAR306", "handler.py:4", "handle takes (data, context)")],
    ),
    "a keyword without default": (
        "handler.py",
        {"handler.py": CLASS.replace("self, context", "self, context, *, size")},
        [("MAR306", "handler.py:3", "initialize takes (self, context, *, size)")],
    ),
    "a constructor with parameters": (
        "handler.py",
        {"handler.py": CLASS + "    def __init__(self, size): ...\n"},
        [("MAR306", "handler.py:5", "__init__ takes (self, size); TorchServe calls it with ()")],
    ),
    "a method of a base class": (
        "handler.py",
        {
            "handler.py": "from base import Base as B\nclass Digits(B): ...\n",
            "base.py": CLASS.replace("Digits", "Base").replace("self, context", "self"),
        },
        [("MAR306", "base.py:3", "initialize takes (self)")],
    ),
    "no initialize": (
        "handler.py",
        {"handler.py": "class Digits:\n    def handle(self, data, context): ...\n"},
        [("MAR306", "handler.py:1", "Digits has no method initialize; TorchServe calls initialize(context)")],
    ),
    "a model in place of a handler": (
        "handler.py",
        {"handler.py": "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x): ...\n"},
        [
            ("MAR306", "handler.py:2", "Net has no method initialize"),
            ("MAR306", "handler.py:2", "Net has no method handle"),
        ],
    ),
    "a function with one parameter": (
        "handler.py",
        {"handler.py": "def handle(data): ...\n"},
        [("MAR306", "handler.py:1", "handle takes (data); TorchServe calls it with (data, context)")],
    ),
}

ANSWERS: dict[str, tuple[str, Files, Expected]] = {
    "a coroutine": (
        "handler.py",
        {"handler.py": CLASS.replace("def handle", "async def handle")},
        [("MAR306", "handler.py:4", "handle is a coroutine function")],
    ),
    "a generator": (
        "handler.py",
        {"handler.py": CLASS.replace("return", "yield")},
        [("MAR306", "handler.py:4", "handle is a generator")],
    ),
    "a class that is called like a function": (
        "handler:Digits",
        {"handler.py": CLASS + "    def __init__(self, data, context): ...\n"},
        [("MAR302", "handler.py:2", "Digits is a class")],
    ),
    "a preprocess with context": (
        "handler.py",
        {
            "handler.py": BASE + "class Digits(BaseHandler):\n    def initialize(self, context): self.context = None\n"
            "    def preprocess(self, data, context): ...\n"
        },
        [("MAR306", "handler.py:4", "preprocess takes (self, data, context); TorchServe calls it with (data)")],
    ),
}

TABLES = {
    f"{title}: {name}": case
    for title, table in {
        "finding": FINDING,
        "reading": READING,
        "entry": ENTRIES,
        "imports": IMPORTS,
        "signatures": SIGNATURES,
        "answers": ANSWERS,
    }.items()
    for name, case in table.items()
}


@pytest.mark.parametrize(("handler", "files", "expected"), TABLES.values(), ids=TABLES)
def test_a_handler_has_the_findings_that_torchserve_would_fail_at(
    handler: str, files: Files, expected: Expected
) -> None:
    assert agrees(check(files, handler), expected)


LOADS = (
    "finding: a package",
    "reading: a name that is no Python name",
    "entry: a class that is deleted again",
    "entry: a function handle by star import",
    "imports: modules and packages of the archive",
)
FAILS = (
    "finding: a folder that hides a stock name",
    "finding: the name of a package of TorchServe",
    "entry: a second name for the class",
    "entry: a named tuple",
    "imports: a relative import in a handler of its own",
    "signatures: no initialize",
)
CANNOT_ANSWER = ("answers: a coroutine", "answers: a class that is called like a function")


def load(folder: Path, handler: str, files: Mapping[str, str | bytes]) -> Worker:
    model = manifest.Model(model_name="made", model_version="1.0", handler=handler)
    members = {**Members(files).files, manifest.PATH: manifest.Manifest(model=model).to_json()}
    return Worker(archive.pack(members, folder / "made.mar").path)


@pytest.mark.process
@pytest.mark.parametrize("case", [*LOADS, *FAILS, *CANNOT_ANSWER])
def test_torchserves_own_loader_agrees(case: str, tmp_path: Path) -> None:
    handler, files, _ = TABLES[case]
    if case in FAILS:
        with pytest.raises(LoadError):
            load(tmp_path, handler, files)
    else:
        with load(tmp_path, handler, files) as worker:
            (answer,) = worker.predict_batch([Request(b"1")])
            assert answer.status == (503 if case in CANNOT_ANSWER else 200)


@pytest.mark.process
def test_a_missing_function_is_a_finding_although_torchserve_uses_the_class(tmp_path: Path) -> None:
    files = {"handler.py": CLASS}
    cause = "does not define answer; TorchServe takes the class Digits in its place without a warning"
    assert agrees(check(files, "handler:answer"), [("MAR310", "handler.py", cause)])
    with load(tmp_path, "handler:answer", files) as worker:
        assert worker.predict_batch([Request(b"1")])[0].body == b"seven"


@pytest.mark.parametrize(
    ("line", "requirements", "there"),
    [
        ("import transformers", "transformers", True),
        ("import transformers", "# transformers\ntorch", False),
        ("import transformers", "Transformers[torch]==4.40 ; python_version > '3.8'  # models", True),
        ("import transformers.models.bert", "transformers>=4 \\\n  --hash=sha256:00", True),
        ("import cv2", "opencv-python-headless", True),
        ("import cv2", "opencv", False),
        ("from sklearn import svm", "scikit_learn", True),
        ("import docx, jwt, faiss", "python-docx\nPyJWT\nfaiss-cpu", True),
        ("from google.cloud import storage", "google-cloud-storage", True),
        ("from google.protobuf import message", "protobuf", True),
        ("import acme_models", "git+https://example.com/acme/acme-models.git@v1", True),
        ("import acme_models", "-e git+https://example.com/x.git#egg=acme_models", True),
        ("import acme_models", "acme-models @ https://example.com/x.zip", True),
        ("import acme_models", "./wheels/acme_models-1.0-py3-none-any.whl", True),
        ("import acme_models", "--extra-index-url https://example.com/acme-models", False),
        ("import acme_models", "-r more/base.txt", True),
    ],
)
def test_requirements_satisfy_imports_under_the_names_of_packages(line: str, requirements: str, there: bool) -> None:
    files = {"handler.py": f"{line}\n{CLASS}", "requirements.txt": requirements, "more/base.txt": "acme-models"}
    assert agrees(check(files), [] if there else [("MAR309", "handler.py:1", line.split()[1])])


@pytest.mark.parametrize(
    ("line", "called"),
    [
        ("labels = open('labels.txt').read()", "open"),
        ("import requests as r\nr.get('http://example.com')", "requests.get"),
        ("from urllib.request import urlopen\nurlopen('http://example.com')", "urllib.request.urlopen"),
        ("import subprocess\nif True:\n    subprocess.run(['pip', 'install', 'x'])", "subprocess.run"),
        ("import torch\ntry:\n    model = torch.hub.load('a', 'b')\nfinally: pass", "torch.hub.load"),
        ("import os\nwith os.popen('ls') as s: pass", "os.popen"),
        ("import torch\nclass Digits:\n    model = torch.load('m.pt')\n", "torch.load"),
        ("def f(size=open('x').read()): ...", "open"),
        ("Model = object\nmodel = Model.from_pretrained('bert')", "Model.from_pretrained"),
        ("from pathlib import Path\ntext = (Path(__file__).parent / 'x').read_text()", "read_text"),
        ("if __name__ == '__main__':\n    open('x')", ""),
        ("def f(): return open('x')\ng = lambda: open('x')", ""),
        ("from lib import open\nopen('x')", ""),
        ("import os\nhome = os.path.join(os.getcwd(), 'x')", ""),
    ],
)
def test_work_at_import_is_a_finding_with_its_call(line: str, called: str) -> None:
    findings = check(
        {"handler.py": f"{line}\n{FUNCTION}", "lib.py": "def open(name): ...", "requirements.txt": "requests"}
    )
    assert [(f.code.name, f.cause) for f in findings] == [("MAR307", f"calls {called}() when it is imported")] * bool(
        called
    )


def test_work_at_import_of_an_imported_module_is_a_finding_of_that_module() -> None:
    files = {"handler.py": "import lib\n" + CLASS, "lib.py": "\nx = open('x')\n", "other.py": "open('x')"}
    assert agrees(check(files), [("MAR307", "lib.py:2", "calls open()")])


@pytest.mark.parametrize(
    ("files", "handler", "remedy"),
    [
        ({"handler.py": CLASS}, "handlr.py", "did you mean handler.py?"),
        ({}, "image_clasifier", "did you mean image_classifier?"),
        ({"torchmar_handlers/tagger.py": ""}, "torchmar_handlers.taggr", "did you mean torchmar_handlers.tagger?"),
        ({"a/handler.py": CLASS}, "a/handler.py", "name it a.handler, or put the file at the top level"),
        (
            {"handler.py": f"{CLASS}class Row: ..."},
            "handler.py",
            "move Row into a module of its own, or expose a handle() ",
        ),
        ({"handler.py": f"class Row: ...\n{CLASS}"}, "handler.py", "move Row into a module of its own"),
        ({"handler.py": f"{BASE}Base = BaseHandler"}, "handler.py", "write: class Handler(BaseHandler): pass"),
        ({"handler.py": FUNCTION}, "handler:handl", "did you mean handle?"),
        ({"handler.py": f"from .a import b\n{CLASS}"}, "handler.py", "write: from a import b"),
        ({"handler.py": f"from a import nets\n{CLASS}", "a.py": "net = 1"}, "handler.py", "did you mean net?"),
        ({"handler.py": f"import helper\n{CLASS}", "helpers.py": ""}, "handler.py", "did you mean helpers?"),
        ({"handler.py": f"import model\n{CLASS}", "src/model.py": ""}, "handler.py", "import src/model.py by its full"),
        (
            {"handler.py": f"import cv2\n{CLASS}"},
            "handler.py",
            "add opencv-python to the requirements or install it on",
        ),
        ({"handler.py": "def handle(data): ..."}, "handler.py", "define it as handle(data, context)"),
        ({"handler.py": CLASS.replace("self, context", "")}, "handler.py", "define it as initialize(self, context)"),
    ],
)
def test_a_remedy_has_the_next_step(files: Files, handler: str, remedy: str) -> None:
    (finding,) = check(files, handler)
    assert remedy in finding.remedy


@pytest.mark.parametrize(("config", "awaited"), [("asyncCommunication: true\n", True), ("handler: {}\n", False)])
def test_a_coroutine_is_fine_where_torchserve_awaits_it(config: str, awaited: bool) -> None:
    files = {"handler.py": CLASS.replace("def handle", "async def handle"), "model-config.yaml": config}
    assert (check(files) == []) is awaited


def test_a_file_too_large_to_be_a_handler_is_not_read() -> None:
    files = {"handler.py": CLASS + "#" * 5_000_001}
    assert agrees(check(files), [("MAR303", "handler.py", "larger than 5 MB")])


def test_a_member_that_is_damaged_is_left_to_the_checks_of_the_layout() -> None:
    class Damaged(Members):
        def open(self, name: str) -> IO[bytes]:
            raise ArchiveError(f"{name} is damaged")

    assert checks.check(Damaged({"handler.py": CLASS, "requirements.txt": "x"}), "handler.py", "requirements.txt") == []


@pytest.mark.usefixtures("weights")
def test_the_handlers_that_archives_carry_have_no_findings() -> None:
    written, folder = recipe.read(DIGITS)
    members = archive.collect_members(written, folder)
    content = Members(
        {name: source.read_bytes() if isinstance(source, Path) else source for name, source in members.items()}
    )
    for name in handler_names.carried_handlers():
        assert checks.check(content, f"torchmar_handlers.{name}") == []


def test_nothing_is_imported_that_is_checked(tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text("raise SystemExit('imported')")
    code = (
        "import io, sys\n"
        "from torchmar.checks.handler import check\n"
        "class Members:\n"
        "    sizes = {'handler.py': 1, 'lib.py': 1}\n"
        "    def open(self, name): return io.BytesIO(b'import torch, lib, handler')\n"
        "assert [found.code.name for found in check(Members(), 'handler.py')] == ['MAR301']\n"
        "assert not {'torch', 'ts', 'numpy', 'handler', 'lib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_generator_is_an_error_only_where_the_built_in_server_cannot_run_it() -> None:
    (method,) = check({"handler.py": CLASS.replace("return", "yield")}, "handler.py")
    (function,) = check({"handler.py": "def handle(data, context):\n    yield data\n"}, "handler:handle")
    assert (method.severity, function.severity) == ("warning", "error")
