"""Archives without torchmar's handlers, each made from a few lines of code."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

# A model whose handler does the action in the request.
MOODS = """
import os, sys, threading, time
import numpy, torch
from ts.utils.util import PredictionException

class Odd:
    pass

def raises(context): raise ValueError("odd weather")
def raises_in_several_lines(context): raise ValueError("one\\ntwo")
def raises_nothing(context): raise Exception
def refuses(context): raise PredictionException("not today", 513)
def refuses_by_default(context): raise PredictionException("not today")
def refuses_with_a_low_code(context): raise PredictionException("not today", 404)
def is_full(context): raise MemoryError("no room")
def has_no_cuda(context): raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
def interrupts(context): raise KeyboardInterrupt
def exits(context): sys.exit(3)
def exits_well(context): sys.exit(0)
def dies(context): os._exit(1)
def aborts(context): os.abort()
def is_late(context):
    time.sleep(0.5)
    return ["late"]
def exhausts(context):
    import resource
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), limits[1]))
    try:
        return [len(bytearray(1 << 30))]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)

def too_many(context): return ["one", "two"]
def too_few(context): return []
def nothing(context): return None
def a_text(context): return "text"
def a_single(context): return "t"
def a_dict(context): return {"a": 1}
def a_tuple(context): return ("one",)
def a_generator(context): return (one for one in ["one"])
def a_tensor(context): return torch.tensor([[1.5, 2.5]])
def an_array(context): return numpy.array([[1.5, 2.5]])
def a_number(context): return 7

def of_none(context): return [None]
def of_text(context): return ["Käse \\u2603"]
def of_no_text(context): return [""]
def of_bytes(context): return [b"\\x00\\xff"]
def of_a_bytearray(context): return [bytearray(b"\\x00\\xff")]
def of_a_memoryview(context): return [memoryview(b"ab")]
def of_a_tensor(context): return [torch.tensor([1.5, 2.5])]
def of_an_array(context): return [numpy.array([1.5, 2.5])]
def of_a_numpy_number(context): return [numpy.float32(1.5)]
def of_an_object(context): return [Odd()]
def of_a_set(context): return [{1}]
def of_a_tuple(context): return [(1, 2)]
def of_nan(context): return [{"nan": float("nan"), "inf": float("inf")}]
def of_a_number(context): return [1.25]
def of_a_bool(context): return [True]
def of_keys_that_are_numbers(context): return [{1: "a", None: "b", True: "c"}]
def of_keys_that_are_none(context): return [{(1, 2): "a"}]
def of_a_large_integer(context): return [10 ** 30]
def of_half_a_character(context): return [{"half": "\\ud800"}]
def of_half_a_character_alone(context): return ["\\ud800"]
def of_much(context): return ["a" * 1_000_000]
def of_itself(context):
    ring = []
    ring.append(ring)
    return [ring]
def of_unsorted_keys(context): return [{"b": 1, "a": 2}]

def sets_a_status(context):
    context.set_response_status(code=201, phrase="Made", idx=0)
    return [{"made": True}]
def sets_an_error(context):
    context.set_response_status(code=418, idx=0)
    return ["short and stout"]
def sets_a_server_error(context):
    context.set_response_status(code=599, idx=0)
    return ["mine"]
def sets_no_content(context):
    context.set_response_status(code=204, idx=0)
    return [""]
def sets_a_status_for_all(context):
    context.set_all_response_status(code=202)
    return ["later"]
def sets_an_odd_status(context):
    context.set_response_status(code=999, idx=0)
    return ["odd"]
def sets_a_status_with_a_word_that_is_none(context):
    context.set_response_status(code=201, reason_phrase="Made", idx=0)
    return ["never"]
def sets_a_status_of_another(context):
    context.set_response_status(code=201, idx=1)
    return ["of another"]
def sets_a_type(context):
    context.set_response_content_type(0, "image/png")
    return [b"png"]
def sets_a_type_in_capitals(context):
    context.set_response_header(0, "Content-Type", "text/html; charset=utf-8")
    return ["<p>"]
def sets_headers(context):
    context.set_response_header(0, "X-One", "1")
    context.set_response_header(0, "x-two", "zwei")
    context.set_response_header(0, "Cache-Control", "max-age=60")
    return ["headers"]
def sets_a_header_twice(context):
    context.set_response_header(0, "X-One", "1")
    context.set_response_header(0, "X-One", "2")
    return ["headers"]
def sets_the_request_id(context):
    context.set_response_header(0, "x-request-id", "mine")
    return ["headers"]
def sets_a_length(context):
    context.set_response_header(0, "Content-Length", "3")
    return ["four"]
def sets_two_lines(context):
    context.set_response_header(0, "X-One", "a\\r\\nX-Two: b")
    return ["headers"]
def reads(context):
    headers = context.get_all_request_header(0)
    return [{"one": context.get_request_header(0, "X-Given"), "none": context.get_request_header(0, "X-None"),
             "lower": context.get_request_header(0, "x-given"), "id": context.get_request_id(0),
             "many": len(headers.keys() - {"Authorization"})}]

def prints(context):
    print("a line")
    return ["printed"]
def prints_much(context):
    for number in range(3_000):  # more than a pipe holds
        print(number, "a long line without content, repeated many times")
    return ["printed"]
def prints_a_long_line(context):
    print("x" * 1_000_000)
    return ["printed"]
def prints_no_end(context):
    sys.stdout.write("no end")
    sys.stderr.write("no end here either")
    return ["printed"]
def prints_bytes(context):
    os.write(1, b"\\xff\\xfe\\x00 bytes\\n")
    os.write(2, b"\\xff\\xfe\\x00 bytes\\n")
    return ["printed"]
def calls_a_program(context):
    import subprocess
    return [subprocess.run(["echo", "hello"], capture_output=True, text=True).stdout]
def starts_a_thread(context):
    found = []
    thread = threading.Thread(target=lambda: found.append(1))
    thread.start()
    thread.join()
    return [found]
def closes_its_output(context):
    os.close(1)
    return ["closed"]
def changes_folder(context):
    os.chdir("/")
    return ["changed"]
def imports_later(context):
    import colorsys
    return [colorsys.rgb_to_hsv(1, 0, 0)]

def handle(rows, context):
    if rows is None:
        return None
    body = rows[0].get("body") or rows[0].get("data")
    return globals()[body if isinstance(body, str) else bytes(body).decode()](context)
"""

# The words of requests; the last ones end the worker.
MOOD_NAMES = tuple(
    line.split("(")[0].removeprefix("def ")
    for line in MOODS.splitlines()
    if line.startswith("def ") and "(context)" in line
)

# A model that answers all requests except one.
HANGING = """
import time

def handle(rows, context):
    if rows is None:
        return None
    if "hangs" in str(rows[0]):
        time.sleep(600)
    return ["answered"]
"""

STREAM = """
import time
from ts.handler_utils.utils import send_intermediate_predict_response

def handle(rows, context):
    if rows is None:
        return None
    body = rows[0].get("body") or rows[0].get("data")
    text = body if isinstance(body, str) else bytes(body).decode()
    if text == "typed":
        context.set_response_content_type(0, "text/event-stream")
        context.set_response_header(0, "X-One", "1")
    for number in range(0 if text == "none" else 3):
        send_intermediate_predict_response(
            ["part %d " % number] * len(rows), context.request_ids, "Intermediate", 200, context
        )
        if text == "breaks" and number == 1:
            raise ValueError("in the middle")
        if text == "dies" and number == 1:
            import os
            os._exit(1)
    return ["end"] * len(rows)
"""

EAGER = """
import torch

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.line(x.float())
"""

OF_LINES = """
import torch
from ts.torch_handler.base_handler import BaseHandler

class OfLines(BaseHandler):
    def preprocess(self, data):
        return super().preprocess([row.get("body") or row.get("data") for row in data])
"""

CLASS = """
from ts.torch_handler.base_handler import BaseHandler

class Adds(BaseHandler):
    def initialize(self, context):
        self.initialized = True
        self.add = context.model_yaml_config.get("handler", {}).get("add", 1)

    def preprocess(self, data):
        return [row.get("body") or row.get("data") for row in data]

    def inference(self, data):
        return [[one + self.add for one in numbers] for numbers in data]

    def postprocess(self, data):
        return data

    def explain_handle(self, data, raw):
        return [{"because": one} for one in data]

    def describe_handle(self):
        return {"adds": self.add}
"""

METRICS = """
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

def handle(rows, context):
    if rows is None:
        return None
    metrics = context.metrics
    metrics.add_counter("Seen", len(rows))
    metrics.add_time("Pondered", 1.5, unit="ms")
    metrics.add_size("Weighed", 3, unit="MB")
    metrics.add_percent("Sure", 75.0)
    metrics.add_error("Doubts", 1)
    made = metrics.add_metric_to_cache("Made", "count", ["ModelName", "Where"], MetricTypes.COUNTER)
    made.add_or_update(2, ["measures", "here"])
    spread = metrics.add_metric_to_cache("Spread", "s", ["ModelName"], MetricTypes.HISTOGRAM)
    spread.add_or_update(0.02, ["measures"])
    return ["measured"] * len(rows)
"""

ECHO = "def answer(rows, context):\n    return None if rows is None else [str(row.get('body')) for row in rows]\n"


def write(folder: Path, name: str, files: Mapping[str, str | bytes], *, manifest: object = None, **model: str) -> Path:
    """Write an archive as torch-model-archiver does: members deflated, a manifest with a time in it.

    Args:
        folder: folder of the archive.
        name: name of the model and the file; the version is 1.0.
        files: members of the archive.
        manifest: manifest in place of the usual one; False: no manifest.
        model: further keys of the manifest's model: ``handler``, ``serializedFile``, ``modelFile``, ``configFile``.
    """
    path = folder / f"{name}.mar"
    usual = {
        "createdOn": "20/11/2026 10:00:00",
        "runtime": "python",
        "model": {"modelName": name, "modelVersion": "1.0", **model},
        "archiverVersion": "0.12.0",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        if manifest is not False:
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(usual if manifest is None else manifest))
    return path


def config(**keys: object) -> str:
    """Return a ``model-config.yaml`` for one worker and short waits."""
    # JSON is YAML.
    return json.dumps({"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "maxBatchDelay": 1, **keys})


def function(folder: Path) -> Path:
    """A handler that is a function with another name."""
    return write(folder, "function", {"service.py": ECHO}, handler="service:answer")


def moods(folder: Path) -> Path:
    """A model whose requests name the behaviour of its handler, good or bad."""
    files = {"moods.py": MOODS, "model-config.yaml": config(responseTimeout=60)}
    return write(folder, "moods", files, handler="moods.py", configFile="model-config.yaml")


def hanging(folder: Path) -> Path:
    """A model that does not answer a request within its three seconds."""
    files = {"hanging.py": HANGING, "model-config.yaml": config(responseTimeout=3)}
    return write(folder, "hanging", files, handler="hanging.py", configFile="model-config.yaml")


def stream(folder: Path) -> Path:
    """A model that answers in parts."""
    files = {"parts.py": STREAM, "model-config.yaml": config(responseTimeout=10)}
    return write(folder, "stream", files, handler="parts.py", configFile="model-config.yaml")


def adds(folder: Path) -> Path:
    """A handler with a class that extends TorchServe's own, and options in its configuration."""
    files = {"adds.py": CLASS, "model-config.yaml": config(handler={"add": 2})}
    return write(folder, "adds", files, handler="adds.py", configFile="model-config.yaml")


def staged(folder: Path) -> Path:
    """The handler of `adds` in stages, which TorchServe ignores."""
    stages = {"preprocess": 1, "inference": 1, "postprocess": 1}
    files = {"adds.py": CLASS, "model-config.yaml": config(handler={"add": 2}, stages=stages)}
    return write(folder, "staged", files, handler="adds.py", configFile="model-config.yaml")


def measures(folder: Path) -> Path:
    """A model that reports metrics."""
    return write(folder, "measures", {"measures.py": METRICS}, handler="measures.py")


def eager(folder: Path) -> Path:
    """A state dict and the file of its model, with a handler that leaves both to TorchServe's base handler."""
    import torch

    torch.manual_seed(0)
    weights = io.BytesIO()
    torch.save({"line.weight": torch.randn(2, 3), "line.bias": torch.randn(2)}, weights)
    files: dict[str, str | bytes] = {"line.py": EAGER, "line.pt": weights.getvalue(), "lines.py": OF_LINES}
    return write(folder, "eager", files, handler="lines.py", serializedFile="line.pt", modelFile="line.py")


def scripted(folder: Path) -> Path:
    """TorchScript with TorchServe's base handler by name."""
    import torch

    torch.manual_seed(0)
    weights = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), weights)
    files = {"line.pt": weights.getvalue()}
    return write(folder, "scripted", files, handler="base_handler", serializedFile="line.pt")


def images(folder: Path) -> Path:
    """TorchServe's image classifier by name, with a network that takes any image."""
    import torch

    torch.manual_seed(0)
    layers = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 6))
    weights = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Sequential(*layers).eval()), weights)
    names = json.dumps({str(number): f"class {number}" for number in range(6)})
    files: dict[str, str | bytes] = {"net.pt": weights.getvalue(), "index_to_name.json": names}
    return write(folder, "images", files, handler="image_classifier", serializedFile="net.pt")


# Archives that do not load, or load unexpectedly: members and the manifest's model, by name.
BROKEN: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "absent": ({}, {"handler": "absent.py"}),
    "nameless": ({"service.py": ECHO}, {}),
    "syntax": ({"service.py": "def answer(:"}, {"handler": "service.py"}),
    "importing": ({"service.py": "import no_such_module"}, {"handler": "service.py"}),
    "exiting": ({"service.py": "raise SystemExit(3)"}, {"handler": "service.py"}),
    "failing": (
        {"service.py": "def handle(rows, context): raise ValueError('from the start')"},
        {"handler": "service.py"},
    ),
    "empty": ({"service.py": ""}, {"handler": "service.py"}),
    "two": ({"service.py": "class A: ...\nclass B: ..."}, {"handler": "service.py"}),
    "wrongly": ({"service.py": ECHO}, {"handler": "service:question"}),
    "dotted": ({"package/service.py": ECHO.replace("answer", "handle")}, {"handler": "package/service.py"}),
    "shadowing": ({"json.py": ECHO.replace("answer", "handle")}, {"handler": "json.py"}),
}


def broken(folder: Path, name: str) -> Path:
    """One of `BROKEN`."""
    files, model = BROKEN[name]
    return write(folder, name, files, **model)


# Manifests of files that are hardly archives.
ODD_MANIFESTS: dict[str, object] = {
    "none": False,
    "void": {},
    "listed": [],
    "anonymous": {"runtime": "python", "model": {"handler": "service:answer", "modelVersion": "1.0"}},
    "lua": {"runtime": "lua", "model": {"modelName": "lua", "handler": "service:answer", "modelVersion": "1.0"}},
    "unversioned": {"runtime": "python", "model": {"modelName": "unversioned", "handler": "service:answer"}},
    "numbered": {"model": {"modelName": "numbered", "handler": "service:answer", "modelVersion": 1.0}},
    "more": {
        "runtime": "python3",
        "colour": "red",
        "model": {"modelName": "more", "handler": "service:answer", "modelVersion": "1.0", "colour": "red"},
    },
}


def odd(folder: Path, name: str) -> Path:
    """An archive with one of `ODD_MANIFESTS`."""
    return write(folder, name, {"service.py": ECHO}, manifest=ODD_MANIFESTS[name])
