"""torchmar.worker runs an archive in a process of its own and shows the errors of its handler."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from tests.support.paths import SAMPLES
from torchmar import exchange
from torchmar.archive import Archive
from torchmar.errors import LoadError, WorkerError
from torchmar.exchange import Request
from torchmar.worker import Worker

Make = Callable[..., Path]


def test_every_sample_of_the_digits_gets_the_answer_it_expects(digits: Path) -> None:
    with Archive(digits) as archive:
        samples = archive.samples
    with Worker(digits) as worker:
        for sample in samples:
            (answer,) = worker.predict_batch(
                [exchange.read(SAMPLES.parent / str(sample.input), explain=sample.explain)]
            )
            document = json.loads(answer.body)
            assert answer.status == sample.status
            for key, value in sample.expect.items():
                assert document[key] == (value if sample.explain else pytest.approx(value, abs=sample.tolerance))


def test_a_batch_is_answered_in_order_with_bodies_as_torchserve_decodes_them(make: Make) -> None:
    requests = [
        Request(b'{"a": [1]}', "application/json"),
        Request("\u00e4".encode(), "text/plain"),
        Request(b'"quoted"', "application/json"),
    ]
    with Worker(make()) as worker:
        answers = worker.predict_batch(requests)
        assert [json.loads(answer.body) for answer in answers] == [
            {"body": {"a": [1]}},
            {"body": "\u00e4"},
            {"body": "quoted"},
        ]
        assert worker.predict_batch([]) == []


def test_status_and_headers_of_a_handler_reach_the_client(make: Make) -> None:
    code = """
    def handle(rows, context):
        if rows is None: return
        context.set_response_status(418, "teapot", 1)
        context.set_response_content_type(0, "text/csv; charset=utf-8")
        context.set_response_header(0, "X-Mine", context.get_request_header(0, "Accept"))
        return ["a,b", b"no coffee"]
    """
    with Worker(make(dedent(code))) as worker:
        first, second = worker.predict_batch([Request(b"", accept="text/csv"), Request(b"")])
    assert (first.status, first.content_type, first.headers["x-mine"]) == (200, "text/csv", "text/csv")
    assert (second.status, second.body) == (418, b"no coffee")


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        ("ValueError('x')", 503, "Prediction failed"),
        ("MemoryError()", 507, "Out of resources"),
        ("PredictionException('mine', 422)", 422, "mine"),
    ],
)
def test_an_exception_of_a_stock_style_handler_fails_the_batch_as_on_torchserve(
    make: Make, raised: str, status: int, message: str
) -> None:
    code = f"""
    from ts.utils.util import PredictionException
    def handle(rows, context):
        if rows is not None: raise {raised}
    """
    with Worker(make(dedent(code))) as worker:
        answers = worker.predict_batch([Request(b"1"), Request(b"2")])
        assert "Traceback" in worker.log()
    assert [answer.status for answer in answers] == [status, status]
    assert json.loads(answers[0].body)["message"] == message


@pytest.mark.parametrize(
    ("code", "last_line"),
    [
        ("import no_such_module\nclass H: ...", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("from json import no_such_name\nclass H: ...", "ImportError: cannot import name 'no_such_name' from 'json'"),
        ("class H:\n    def initialize(self, c): raise ValueError('boom')\n    handle = None", "ValueError: boom"),
        ("class A: ...\nclass B: ...", "Expected only one class"),
        ("raise SystemExit('no')", "SystemExit: no"),
    ],
)
def test_a_handler_that_does_not_load_shows_its_own_traceback(make: Make, code: str, last_line: str) -> None:
    with pytest.raises(LoadError) as caught:
        Worker(make(code))
    trace = caught.value.traceback
    assert last_line in trace.splitlines()[-1]
    assert "torchmar/worker" not in trace
    assert "ts.torch_handler" not in trace
    # TorchServe's own error has no line of the handler.
    assert ("handler.py" in trace) is (last_line != "Expected only one class")


def test_a_package_inside_the_archive_wins_over_an_installed_one(make: Make) -> None:
    code = """
    import requests
    def handle(rows, context):
        return None if rows is None else [requests.whose] * len(rows)
    """
    path = make(dedent(code), disk={"requests.py": "whose = 'the archive'"}, files={"requests.py": "requests.py"})
    with Worker(path) as worker:
        assert worker.predict_batch([Request(b"")])[0].body == b"the archive"


def test_a_worker_that_dies_or_hangs_is_reported_and_leaves_no_process(make: Make) -> None:
    before = set(psutil.Process().children())
    dies = "import os\ndef handle(rows, context):\n    rows is None or os._exit(7)"
    with Worker(make(dies)) as worker, pytest.raises(WorkerError, match="ended with exit code 7"):
        worker.predict_batch([Request(b"")])
    hangs = "import time\ndef handle(rows, context):\n    rows is None or time.sleep(600)"
    with Worker(make(hangs, config={"responseTimeout": 1})) as worker:
        for message in ("within 1 s", "ended"):  # a late answer is not that to the next batch
            with pytest.raises(WorkerError, match=message):
                worker.predict_batch([Request(b"1")])
    assert set(psutil.Process().children()) <= before


def test_a_missing_python_is_reported(digits: Path) -> None:
    with pytest.raises(WorkerError, match="cannot be started"):
        Worker(digits, python="/no/python")


def test_threads_can_be_limited_while_it_runs(make: Make) -> None:
    code = """\
import torch
class H:
    def initialize(self, context): torch.set_num_threads(4)
    def handle(self, rows, context): return [torch.get_num_threads()] * len(rows or [])
"""
    with Worker(make(code)) as worker:
        assert worker.predict_batch([Request(b"")])[0].body == b"4"
        worker.limit_threads(1)
        assert worker.predict_batch([Request(b"")])[0].body == b"1"
