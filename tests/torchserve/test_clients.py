"""torchmar.management and torchmar.inference send requests to the real server and return its responses."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.support.paths import SAMPLES
from tests.support.servers import on_both_engines
from torchmar import exchange
from torchmar.connection import Endpoint
from torchmar.engines.addresses import free_ports
from torchmar.engines.engine import Engine
from torchmar.errors import ConflictError, ConnectError, NotFoundError, ServerError, TorchmarError, UnauthorizedError
from torchmar.exchange import Request
from torchmar.inference import InferenceClient, Tensor
from torchmar.management import ManagementClient

pytestmark = [on_both_engines, pytest.mark.usefixtures("engine")]

Make = Callable[..., Path]
SEVEN = exchange.read(SAMPLES / "seven.png")


def test_a_model_is_registered_scaled_described_and_removed(
    server: Engine, client: InferenceClient, make: Make
) -> None:
    management = server.management
    for version in ("1.0", "2.0"):
        path = make(name="life", version=version, store=server.model_store)
        assert "registered" in management.register(path.name, initial_workers=1, batch_size=3, max_batch_delay=7)
    first, second = sorted(management.describe("life", "all"), key=lambda model: model.version)
    assert (first.name, first.version, first.url) == ("life", "1.0", "life-1.0.mar")
    assert (first.batch_size, first.max_batch_delay, first.ready) == (3, 7, 1)
    assert second.version == "2.0"
    assert management.describe("life")[0].version == "1.0"
    assert "2.0" in management.set_default("life", "2.0")
    assert management.describe("life")[0].version == "2.0"
    assert management.scale("life", "1.0", min_worker=2)
    assert management.describe("life", "1.0")[0].ready == 2
    assert json.loads(client.request("life", Request(b"x", "text/plain"), "1.0").body) == {"body": "x"}
    with pytest.raises(ConflictError):
        management.register("life-1.0.mar")
    with pytest.raises(ServerError) as caught:
        management.unregister("life", "2.0")  # the default, while another is there
    assert caught.value.status == 403
    management.unregister("life", "1.0")
    management.unregister("life")
    assert "life" not in list(management.names())
    for version in ("1.0", "2.0"):
        with pytest.raises(NotFoundError):
            management.describe("life", version)


def test_the_list_of_models_has_every_page(server: Engine, make: Make) -> None:
    names = [f"page{number:03}" for number in range(105)]
    path = make(name="page", store=server.model_store)
    for name in names:
        server.management.register(path.name, model_name=name, initial_workers=0)
    assert sorted(server.management.names()) == ["digits", *names]
    for name in names:
        server.management.unregister(name)


def test_a_describe_answer_has_its_types(server: Engine) -> None:
    (digits,) = server.management.describe("digits", "1.0")
    assert (digits.url, digits.runtime, digits.device_type, digits.device_ids) == (
        "digits-1.0.mar",
        "python",
        "cpu",
        (),
    )
    assert (digits.job_queue.pending_requests, digits.job_queue.remaining_capacity) == (0, 100)
    assert (digits.startup_timeout, digits.loaded_at_startup, digits.customized) == (120, False, None)
    (worker,) = digits.workers
    assert (worker.status, worker.gpu, worker.gpu_usage, worker.memory_usage >= 0) == ("READY", False, "N/A", True)
    assert worker.start_time
    assert worker.start_time.utcoffset() == timedelta(0)
    assert worker.start_time < datetime.now(timezone.utc)


def test_registration_passes_on_every_parameter(server: Engine, make: Make) -> None:
    other = "def handle(rows, context):\n    return rows and ['other'] * len(rows)"
    path = make(name="documented", store=server.model_store, disk={"other.py": other}, files={"other.py": "other.py"})
    server.management.register(
        path.name,
        model_name="renamed",
        handler="other.py",
        runtime="python",  # python3 would be that of the PATH, which need not have TorchServe
        initial_workers=1,
        batch_size=2,
        max_batch_delay=3,
        response_timeout=44,
        startup_timeout=55,
        s3_sse_kms=True,
    )
    (model,) = server.management.describe("renamed")
    assert (model.runtime, model.batch_size, model.max_batch_delay) == ("python", 2, 3)
    assert (model.response_timeout, model.startup_timeout) == (44, 55)
    assert InferenceClient(server.server).predict("renamed", b"x") == "other"
    assert "Processing" in server.management.scale("renamed", min_worker=2, synchronous=False)
    server.management.unregister("renamed")
    with pytest.raises(ServerError, match="RuntimeType value: cobol"):
        server.management.register(path.name, runtime="cobol")


def test_a_handler_may_describe_itself(server: Engine, make: Make) -> None:
    code = """
def handle(rows, context):
    if rows is None:
        return None
    headers = [context.get_request_header(index, "describe") for index in range(len(rows))]
    return [{"classes": 3} if header == "True" else "no" for header in headers]
"""
    server.load(make(code, name="talking", store=server.model_store))
    assert server.management.describe("talking", customized=True)[0].customized == {"classes": 3}
    assert server.management.describe("talking", "1.0", customized=True)[0].customized == {"classes": 3}
    assert server.management.describe("talking")[0].customized is None
    server.management.unregister("talking")


def test_a_model_is_ready_when_it_has_workers(server: Engine, make: Make) -> None:
    assert server.management.ready("digits")
    path = make(name="idle", store=server.model_store)
    server.management.register(path.name, initial_workers=0)
    assert not server.management.ready("idle")
    server.management.unregister("idle")
    with pytest.raises(NotFoundError):
        server.management.ready("idle")


def test_a_token_is_renewed_on_demand(server: Engine) -> None:
    assert server.server.key_file
    before = json.loads(server.server.key_file.read_text())
    server.management.renew_token("management")
    after = json.loads(server.server.key_file.read_text())
    assert before["management"]["key"] != after["management"]["key"]
    assert before["inference"] == after["inference"]
    assert "digits" in list(server.management.names())
    with pytest.raises(TorchmarError, match="key file"):
        ManagementClient(replace(server.server, key_file=None)).renew_token("management")


def test_the_server_describes_its_apis(server: Engine, client: InferenceClient) -> None:
    assert "/models" in server.management.api_description()["paths"]
    assert server.management.api_description("digits")["info"]["title"].endswith("digits")
    assert server.management.api_description("digits", "1.0")["info"]["title"].endswith("digits")
    assert "/ping" in client.api_description()["paths"]
    assert client.api_description("digits", "1.0")["info"]["title"].endswith("digits")


def test_a_script_needs_three_lines(server: Engine, tmp_path: Path) -> None:
    script = """
from torchmar.management import ManagementClient
with ManagementClient() as client:
    print(*client.names())
"""
    (tmp_path / ".torchmar").symlink_to(server.folder)
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ran.stdout == "digits\n"


def test_values_are_sent_and_returned(client: InferenceClient) -> None:
    file = SAMPLES / "seven.png"
    prediction = client.predict("digits", file)
    assert next(iter(prediction)) == "7"
    assert client.predict("digits", file.read_bytes(), "1.0", headers={"X-Mine": "1"}, timeout=30) == prediction
    explained = client.explain("digits", file, target=3, n_steps=5)
    assert explained["label"] == "3"
    assert client.explain("digits", file, accept="image/png").startswith(b"\x89PNG")


def test_many_are_predicted_at_once_and_one_bad_input_is_its_own_problem(client: InferenceClient) -> None:
    names = ("zero", "one", "two", "three", "four")
    inputs: list[object] = [SAMPLES / f"{name}.png" for name in names]
    inputs.insert(2, b"no picture")
    results = list(client.predict_many("digits", inputs, jobs=3))
    assert [data for data, _ in results] == inputs
    assert isinstance(results.pop(2)[1], ServerError)
    assert [next(iter(document)) for _, document in results] == list("01234")


def test_kserves_protocols_are_spoken(client: InferenceClient, server: Engine, make: Make) -> None:
    picture = base64.b64encode((SAMPLES / "seven.png").read_bytes()).decode()
    (prediction,) = client.predict_instances("digits", [{"b64": picture}])
    assert next(iter(prediction)) == "7"
    (explanation,) = client.predict_instances("digits", [{"b64": picture}], explain=True)
    assert explanation["label"] == "7"
    code = """
def handle(rows, context):
    if rows is None:
        return None
    bodies = [row["body"] for row in rows]
    return [{"id": body.get("id"), "outputs": [*body["inputs"], *body.get("outputs", [])][:1]} for body in bodies]
"""
    server.load(make(code, name="tensors", store=server.model_store))
    tensor = Tensor.of("x", [[1.5, 2.0]])
    assert client.infer("tensors", [tensor], id="7", outputs=["x"]) == [tensor]
    server.management.unregister("tensors")
    server.load(make(name="echo", store=server.model_store))
    for ask in (lambda: client.predict_instances("echo", [1]), lambda: client.infer("echo", [tensor])):
        with pytest.raises(TorchmarError, match="is not of"):
            ask()
    server.management.unregister("echo")


def test_a_prediction_and_its_explanation(client: InferenceClient) -> None:
    answer = client.request("digits", SEVEN)
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert next(iter(json.loads(answer.body))) == "7"
    explained = client.request("digits", replace(SEVEN, explain=True, accept="image/png"))
    assert explained.content_type == "image/png"
    assert explained.body.startswith(b"\x89PNG")
    assert client.ping() == "Healthy"


def test_a_missing_model_is_not_found_with_the_servers_message(client: InferenceClient) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        client.request("nothing", SEVEN)
    with pytest.raises(NotFoundError, match=r"9\.9"):
        client.request("digits", SEVEN, "9.9")
    with pytest.raises(NotFoundError):
        client.request("a/b c?d", SEVEN)


def test_a_name_that_no_path_leads_to_is_not_registered(server: Engine) -> None:
    with pytest.raises(TorchmarError, match="a name with a slash"):
        server.management.register("digits-1.0.mar", model_name="a/b")
    server.management.register("digits-1.0.mar", model_name="zähler 1")
    assert server.management.describe("zähler 1")[0].name == "zähler 1"
    assert next(iter(InferenceClient(server.server).predict("zähler 1", SAMPLES / "seven.png"))) == "7"
    server.management.unregister("zähler 1")


def test_an_unknown_path_has_a_hint_at_the_address(server: Engine) -> None:
    elsewhere = replace(server.server, inference=f"{server.server.inference}/below")
    with pytest.raises(NotFoundError) as caught:
        InferenceClient(elsewhere).request("digits", SEVEN)
    assert caught.value.hint == "is this the address of the inference API?"


def test_a_url_that_is_not_allowed_is_reported_with_its_key(server: Engine) -> None:
    with pytest.raises(ServerError) as caught:
        server.management.register("https://models.example/a.mar")
    assert "allowed_urls" in caught.value.hint


def test_a_handlers_own_error_is_raised(client: InferenceClient) -> None:
    with pytest.raises(ServerError, match="the body is empty") as caught:
        client.request("digits", Request(b""))
    assert (caught.value.status, caught.value.type) == (400, "BadRequestException")


def test_a_wrong_or_missing_token_is_a_clear_error(server: Engine, tmp_path: Path) -> None:
    assert server.server.key_file
    keys = json.loads(server.server.key_file.read_text())
    keys["inference"]["key"] = "wrong"
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    for key_file in (tmp_path / "keys.json", None):
        with pytest.raises(UnauthorizedError) as caught:
            InferenceClient(replace(server.server, key_file=key_file)).request("digits", SEVEN)
        assert "wrong" not in str(caught.value)


def test_an_expired_token_is_renewed_with_the_api_key(server: Engine, client: InferenceClient) -> None:
    file = server.server.key_file
    assert file
    keys = json.loads(file.read_text())
    old = keys["inference"]["key"]
    keys["inference"]["expiration time"] = "2020-01-01T00:00:00.123456789Z"
    file.write_text(json.dumps(keys))
    assert client.request("digits", SEVEN).status == 200
    assert json.loads(file.read_text())["inference"]["key"] != old


def test_an_expired_token_that_cannot_be_renewed_is_unauthorized(server: Engine, tmp_path: Path) -> None:
    expired = {"key": "x", "expiration time": "2020-01-01T00:00:00Z"}
    (tmp_path / "keys.json").write_text(json.dumps({"inference": expired, "API": {"key": "wrong"}}))
    with pytest.raises(UnauthorizedError, match="could not be renewed"):
        InferenceClient(replace(server.server, key_file=tmp_path / "keys.json")).request("digits", SEVEN)


def test_no_server_is_unreachable_with_a_hint() -> None:
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(ConnectError, match="connection refused") as caught:
        InferenceClient(Endpoint(inference=address)).request("digits", SEVEN)
    assert caught.value.hint
    with pytest.raises(ConnectError):
        list(ManagementClient(Endpoint(management=address)).names())


def test_a_slow_answer_is_a_timeout_not_a_hang(server: Engine, make: Make) -> None:
    code = "import time\ndef handle(rows, context):\n    return rows and (time.sleep(3) or ['late'])"
    server.load(make(code, name="slow", store=server.model_store))
    with pytest.raises(ConnectError, match="did not answer within 1 s"):
        InferenceClient(server.server, timeout=1).request("slow", Request(b"x"))
    server.management.unregister("slow")


def test_an_invalid_key_file_is_reported(server: Engine, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("not json")
    with pytest.raises(TorchmarError, match="not a TorchServe key file"):
        InferenceClient(replace(server.server, key_file=tmp_path / "keys.json")).ping()
