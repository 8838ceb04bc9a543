"""torchmar_handlers.sagemaker runs the functions of packages, and answers as SageMaker's toolkit."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import oracles
from tests.support import sagemaker_packages
from torchmar import archive
from torchmar.errors import LoadError
from torchmar.exchange import Request, Response
from torchmar.importing import sagemaker
from torchmar.worker import Worker

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"
ROWS = [[1.0, 2.5, -3.0], [4.0, 5.0, 6.0]]
CSV_ROWS = "".join(f"{','.join(map(str, row))}\n" for row in ROWS).encode()


def npy(values: Any, dtype: str = "float32") -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, dtype=dtype))
    return file.getvalue()


BODIES = {JSON: json.dumps(ROWS).encode(), CSV: CSV_ROWS, NPY: npy(ROWS)}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return sagemaker_packages.write(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def workers(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    """Import and build each package, and load it in a worker."""
    folder = tmp_path_factory.mktemp("imported")
    started: dict[str, Worker] = {}
    for name, package in packages.items():
        imported = sagemaker.import_package(sagemaker_packages.packed(package), folder)
        started[name] = Worker(archive.build(imported.folder, folder / "store").path)
    yield started
    for worker in started.values():
        worker.close()


def ask(worker: Worker, body: bytes, content_type: str, accept: str = "*/*") -> Response:
    (response,) = worker.predict_batch([Request(body, content_type, accept=accept)])
    return response


def arrays(response: Response) -> np.ndarray:
    assert response.status == 200, response.body
    if response.content_type == NPY:
        return np.load(io.BytesIO(response.body), allow_pickle=False)
    if response.content_type == CSV:
        return np.loadtxt(io.BytesIO(response.body), delimiter=",")
    return np.array(json.loads(response.body))


@pytest.mark.parametrize("content_type", BODIES)
@pytest.mark.parametrize("accept", [JSON, CSV, NPY, "*/*", "text/html, text/csv;q=0.8"])
def test_default_functions_take_and_give_each_content_type(
    workers: dict[str, Worker], packages: dict[str, Path], content_type: str, accept: str
) -> None:
    response = ask(workers["plain"], BODIES[content_type], content_type, accept)
    expected = torch.jit.load(packages["plain"] / "model.pt")(torch.tensor(ROWS)).detach().numpy()
    assert response.content_type == {"*/*": JSON}.get(accept, CSV if "html" in accept else accept)
    np.testing.assert_allclose(arrays(response), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "status", "message"),
    [
        (b"GIF89a", "image/gif", "*/*", 415, "Content-Type image/gif is not supported"),
        (BODIES[JSON], JSON, "image/png", 406, "Accept image/png is not supported"),
        (b"1,2,x\n", CSV, "*/*", 400, "line 1 of the CSV, column 3: 'x' is no number"),
        (b"1,,3\n", CSV, "*/*", 400, "line 1 of the CSV, column 2: the number is missing"),
        (b"[[1, 2", JSON, "*/*", 400, "the body is not JSON"),
        (b'{"a": 1}', JSON, "*/*", 400, "no array of numbers"),
        (b"[[1, 2, 3], [4]]", JSON, "*/*", 400, "no array of one shape"),
        (npy([[1, 2, 3]])[:-3], NPY, "*/*", 400, "the .npy file is damaged"),
        (b"a=1", "application/x-www-form-urlencoded", "*/*", 415, "is not supported"),
    ],
)
def test_a_client_is_told_what_is_wrong(
    workers: dict[str, Worker], body: bytes, content_type: str, accept: str, status: int, message: str
) -> None:
    response = ask(workers["plain"], body, content_type, accept)
    assert (response.status, message in json.loads(response.body)["message"]) == (status, True), response.body


def test_an_array_of_objects_which_would_run_code_is_rejected(workers: dict[str, Worker]) -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert ask(workers["plain"], file.getvalue(), NPY).status == 400


def test_functions_of_a_script_get_what_the_toolkit_passes(workers: dict[str, Worker]) -> None:
    worker = workers["functions"]
    response = ask(worker, b'{"values": [[1, 2.5, -3]]}', JSON)
    assert response.content_type == JSON
    answer = json.loads(response.body)
    assert answer["folder"] == "code"
    as_text = ask(worker, b"1 2.5 -3", "text/plain")  # which gets bytes, as with the toolkit
    assert json.loads(as_text.body) == answer
    assert ask(worker, b"1 2.5 -3", "text/plain", CSV).body.decode() == ",".join(map(str, answer["scores"][0]))
    failed = ask(worker, b"x", "image/png")
    assert (failed.status, json.loads(failed.body)["message"]) == (
        500,
        "ValueError: Unsupported content type: image/png",
    )


def test_transform_fn_answers_alone_and_may_set_a_status(workers: dict[str, Worker]) -> None:
    response = ask(workers["transform"], b"four", "image/png", "text/html")
    order = ["pre_model_fn", "model_fn", "model_warmup_fn"]
    assert json.loads(response.body) == ["model", 4, "image/png", "text/html", order]
    refused = ask(workers["transform"], b"refuse", "image/png")
    assert (refused.status, json.loads(refused.body)["message"]) == (422, "no such customer")


def test_a_request_does_not_change_the_answers_of_its_batch(workers: dict[str, Worker]) -> None:
    requests = [Request(b"[", JSON), Request(BODIES[CSV], CSV), Request(BODIES[JSON], JSON)]
    first, second, third = workers["plain"].predict_batch(requests)
    assert [first.status, second.status, third.status] == [400, 200, 200]
    assert second.body == third.body


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def model_fn(): pass", "model_fn takes 0 arguments; 1, or 2 with context, are expected"),
        ("def model_fn(d): pass\nx = 1\ninput_fn = x", "input_fn is no function"),
    ],
)
def test_functions_that_cannot_be_called_keep_the_model_from_loading(
    make: Callable[..., Path], code: str, message: str
) -> None:
    made = make(handler="torchmar_handlers.sagemaker", disk={"code/inference.py": code}, files={"code": "code"})
    with pytest.raises(LoadError) as raised, Worker(made):
        pass
    assert message in raised.value.traceback


def test_a_script_that_a_module_of_python_hides_keeps_the_model_from_loading(make: Callable[..., Path]) -> None:
    script = "def model_fn(folder):\n    return 1\n"
    made = make(
        handler="torchmar_handlers.sagemaker",
        disk={"code/platform.py": script},
        files={"code": "code"},
        config={"handler": {"program": "platform.py"}},
    )
    with pytest.raises(LoadError) as raised, Worker(made):
        pass
    assert "the script platform.py has the name of a module of Python" in raised.value.traceback


def _requests() -> list[dict[str, str]]:
    accepts = (JSON, CSV, NPY, "*/*", "text/html,text/csv", "image/png")
    bodies = {**BODIES, "text/plain": b"1 2.5 -3", "image/png": b"x", f"{NPY} ": npy(ROWS, "float64")}
    more = [(JSON, b'{"values": [[1, 2, 3]]}'), (JSON, b"[1, 2, 3]"), (CSV, b"1,2,3"), (JSON, b"true"), (CSV, b"a,b,c")]
    sent = [(kind.strip(), body) for kind, body in bodies.items()] + more
    return [
        {"body": base64.b64encode(body).decode(), "content_type": kind, "accept": accept}
        for kind, body in sent
        for accept in accepts
    ]


COMPARED = ("plain", "functions", "transform")
REQUESTS = _requests()


@pytest.fixture(scope="module")
def of_the_toolkit(packages: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Return the toolkit's answers to `REQUESTS` by the name of the package, of one process that loads torch."""
    script = Path(oracles.__file__).with_name("sagemaker_toolkit.py")
    ran = subprocess.run(
        [oracles.python_of("sagemaker"), script, *(packages[name] for name in COMPARED)],
        input=json.dumps(REQUESTS),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TORCH": str(Path(torch.__file__).parents[1])},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = [line.partition("answers:")[2] for line in ran.stdout.splitlines() if "answers:" in line]
    return dict(zip(COMPARED, map(json.loads, lines), strict=True))


@pytest.mark.oracle
@pytest.mark.parametrize("name", COMPARED)
def test_answers_are_those_of_the_toolkit(
    workers: dict[str, Worker], of_the_toolkit: dict[str, list[dict[str, Any]]], name: str
) -> None:
    compared = 0
    for request, theirs in zip(REQUESTS, of_the_toolkit[name], strict=True):
        body = base64.b64decode(request["body"])
        ours = ask(workers[name], body, request["content_type"], request["accept"])
        expected = base64.b64decode(theirs["body"])
        if theirs["status"] == 200:
            # The toolkit answers with the whole header as the type, where it is a list.
            kind = "text/csv" if "text/html," in request["accept"] and name == "plain" else theirs["content_type"]
            kind = kind.partition(",")[0]
            assert (ours.status, ours.content_type, ours.body) == (200, kind, expected), request
            compared += 1
        else:
            # What is 500 there may be the client's mistake here, with a status that says so.
            assert ours.status >= 400, (request, ours.body, expected)
    assert compared >= 6
