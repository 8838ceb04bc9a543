"""Every archive of this repository keeps its contract behind the real TorchServe, among other clients' requests."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support.paths import DIGITS, ROOT, SAMPLES
from torchmar import archive, comparison, exchange, handler_names, properties, recipe
from torchmar.connection import Connection
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import ServerError
from torchmar.exchange import Request, Response
from torchmar.inference import InferenceClient
from torchmar.recipe import Recipe, Sample

NAMES = sorted(file.parent.name for file in (ROOT / "archives").glob("*/archive.yaml"))
SEVEN = SAMPLES / "seven.png"
SEVEN_IN_BASE64 = base64.b64encode(SEVEN.read_bytes()).decode()


@pytest.fixture(scope="module", params=[name for name in NAMES if name != "digits"])
def served(request: pytest.FixtureRequest, server: TorchServe) -> Iterator[Recipe]:
    """Register an archive with batches that several clients fill; yield its recipe."""
    written, folder = recipe.read(ROOT / "archives" / request.param)
    config = written.config.model_copy(update={"batchSize": 4, "maxBatchDelay": 200})
    path = server.model_store / f"{written.name}-{written.version}.mar"
    archive.pack(archive.collect_members(written.model_copy(update={"config": config}), folder), path)
    server.management.register(path.name)
    yield written
    server.management.unregister(written.name)
    path.unlink()


def samples_of(written: Recipe) -> list[Sample]:
    """Return the samples of an archive; of the pages, of which each takes a second, only the smallest with text."""
    large = ("samples/invoice.png", "samples/turned.png") if written.name == "page" else ()
    return [sample for sample in written.samples if sample.input not in large]


def sent(written: Recipe, sample: Sample) -> Request:
    if sample.input is None:
        return Request(json.dumps(sample.json_body).encode(), "application/json", sample.explain)
    return exchange.read(ROOT / "archives" / written.name / sample.input, explain=sample.explain)


def send(server: TorchServe, name: str, request: Request) -> Response:
    try:
        return InferenceClient(server.server).request(name, request)
    except ServerError as error:
        return Response(error.status, error.message.encode())


def test_an_archive_keeps_its_contract_among_bad_requests(server: TorchServe, served: Recipe) -> None:
    bad = Request(b'{"instances": [{}, null', "application/json")
    samples = samples_of(served)
    requests_ = [sent(served, sample) for sample in samples]
    with ThreadPoolExecutor(8) as pool:
        mixed = [sent_request for request in requests_ for sent_request in (request, bad)]
        answers = list(pool.map(lambda request: send(server, served.name, request), mixed))
    for sample, answer in zip(samples, answers[::2], strict=True):
        # The client raises an error with the message; the whole body of errors is compared by parity.
        expected = sample if sample.status < 400 else sample.model_copy(update={"expect": None})
        assert comparison.differences(expected, answer) == [], sample
    assert {answer.status for answer in answers[1::2]} <= {200, 400, 413}


def test_an_explanation_is_requested_by_header_or_form_field(server: TorchServe) -> None:
    client = Connection(server.server, "inference")
    explanation = client.request(
        "POST", "/explanations/digits", body=SEVEN.read_bytes(), headers={"Explain-Method": "saliency"}
    ).json()
    assert explanation["method"] == "saliency"
    keys = json.loads(server.server.key_file.read_text()) if server.server.key_file else {}
    form = requests.post(
        f"{server.server.inference}/explanations/digits",
        files={"data": SEVEN.read_bytes()},
        data={"target": "3", "n_steps": "8"},
        headers={"Authorization": f"Bearer {keys['inference']['key']}"},
        timeout=60,
    ).json()
    assert (form["method"], form["label"], form["n_steps"]) == ("integrated_gradients", "3", 8)


def test_kserve_requests_need_no_envelope(server: TorchServe) -> None:
    client = Connection(server.server, "inference")
    for path in ("/predictions/digits", "/v1/models/digits:predict"):
        body = json.dumps({"instances": [{"b64": SEVEN_IN_BASE64}] * 2}).encode()
        document = client.request("POST", path, body=body, headers={"Content-Type": "application/json"}).json()
        assert [next(iter(prediction)) for prediction in document["predictions"]] == ["7", "7"], path


def test_metrics_of_a_handler_are_in_the_servers_metrics(server: TorchServe) -> None:
    client = InferenceClient(server.server)
    client.request("digits", exchange.read(SEVEN))
    with pytest.raises(ServerError):
        client.request("digits", Request(b"no image"))
    address = properties.read(server.folder / "config.properties").get("metrics_address")
    wanted = {"DecodeTime", "InferenceTime", "PostprocessTime", "HandlerTime", "RequestBatchSize", "RejectedRequests"}
    for _ in range(50):
        metrics_text = requests.get(f"{address}/metrics", timeout=5).text
        if all(f'{name}{{ModelName="digits"' in metrics_text for name in wanted):
            return
        time.sleep(0.1)
    raise AssertionError(metrics_text)


def test_every_handler_has_a_recipe() -> None:
    handlers = [recipe.read(ROOT / "archives" / name)[0].handler.rpartition(".") for name in NAMES]
    used = {name for package, _, name in handlers if package == handler_names.CARRIED_PACKAGE}
    # `torchmar import` writes the recipes of the others.
    assert used == set(handler_names.carried_handlers()) - {"mlflow", "sagemaker"}
    assert DIGITS.name in NAMES
