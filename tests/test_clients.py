"""torchmar.management and torchmar.inference speak with the real server and pass on what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import SAMPLES, free_ports
from torchmar import exchange
from torchmar.connection import Server
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import Conflict, NotFound, Refused, TorchmarError, Unauthorized, Unreachable
from torchmar.exchange import Request
from torchmar.inference import InferenceClient
from torchmar.management import ManagementClient

Make = Callable[..., Path]
SEVEN = exchange.read(SAMPLES / "seven.png")


def test_a_model_lives_from_registration_to_removal(server: TorchServe, client: InferenceClient, make: Make) -> None:
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
    assert json.loads(client.ask("life", Request(b"x", "text/plain"), "1.0").body) == {"body": "x"}
    with pytest.raises(Conflict):
        management.register("life-1.0.mar")
    with pytest.raises(Refused) as caught:
        management.unregister("life", "2.0")  # the default, while another is there
    assert caught.value.status == 403
    management.unregister("life", "1.0")
    management.unregister("life")
    assert "life" not in list(management.names())
    for version in ("1.0", "2.0"):
        with pytest.raises(NotFound):
            management.describe("life", version)


def test_the_list_of_models_has_every_page(server: TorchServe, make: Make) -> None:
    names = [f"page{number:03}" for number in range(105)]
    path = make(name="page", store=server.model_store)
    for name in names:
        server.management.register(path.name, model_name=name, initial_workers=0)
    assert sorted(server.management.names()) == ["digits", *names]
    for name in names:
        server.management.unregister(name)


def test_a_prediction_and_its_explanation(client: InferenceClient) -> None:
    answer = client.ask("digits", SEVEN)
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert next(iter(json.loads(answer.body))) == "7"
    explained = client.ask("digits", replace(SEVEN, explain=True, accept="image/png"))
    assert explained.content_type == "image/png"
    assert explained.body.startswith(b"\x89PNG")
    assert client.ping() == "Healthy"


def test_what_does_not_exist_is_not_found_with_the_servers_words(client: InferenceClient) -> None:
    with pytest.raises(NotFound, match="nothing"):
        client.ask("nothing", SEVEN)
    with pytest.raises(NotFound, match=r"9\.9"):
        client.ask("digits", SEVEN, "9.9")
    with pytest.raises(NotFound):
        client.ask("a/b c?d", SEVEN)


def test_a_handlers_own_refusal_comes_through(client: InferenceClient) -> None:
    with pytest.raises(Refused, match="the body is empty") as caught:
        client.ask("digits", Request(b""))
    assert (caught.value.status, caught.value.type) == (400, "BadRequestException")


def test_a_wrong_or_missing_token_is_told_as_that(server: TorchServe, tmp_path: Path) -> None:
    assert server.server.key_file
    keys = json.loads(server.server.key_file.read_text())
    keys["inference"]["key"] = "wrong"
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    for key_file in (tmp_path / "keys.json", None):
        with pytest.raises(Unauthorized) as caught:
            InferenceClient(replace(server.server, key_file=key_file)).ask("digits", SEVEN)
        assert "wrong" not in str(caught.value)


def test_an_expired_token_is_renewed_with_the_api_key(server: TorchServe, client: InferenceClient) -> None:
    file = server.server.key_file
    assert file
    keys = json.loads(file.read_text())
    old = keys["inference"]["key"]
    keys["inference"]["expiration time"] = "2020-01-01T00:00:00.123456789Z"
    file.write_text(json.dumps(keys))
    assert client.ask("digits", SEVEN).status == 200
    assert json.loads(file.read_text())["inference"]["key"] != old


def test_an_expired_token_that_cannot_be_renewed_is_unauthorized(server: TorchServe, tmp_path: Path) -> None:
    expired = {"key": "x", "expiration time": "2020-01-01T00:00:00Z"}
    (tmp_path / "keys.json").write_text(json.dumps({"inference": expired, "API": {"key": "wrong"}}))
    with pytest.raises(Unauthorized, match="could not be renewed"):
        InferenceClient(replace(server.server, key_file=tmp_path / "keys.json")).ask("digits", SEVEN)


def test_no_server_is_unreachable_with_a_hint() -> None:
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(Unreachable, match="nobody listens there") as caught:
        InferenceClient(Server(inference=address)).ask("digits", SEVEN)
    assert caught.value.hint
    with pytest.raises(Unreachable):
        list(ManagementClient(Server(management=address)).names())


def test_a_slow_answer_is_a_timeout_not_a_hang(server: TorchServe, make: Make) -> None:
    code = "import time\ndef handle(rows, context):\n    return rows and (time.sleep(3) or ['late'])"
    server.load(make(code, name="slow", store=server.model_store))
    with pytest.raises(Unreachable, match="did not answer within 1 s"):
        InferenceClient(server.server, timeout=1).ask("slow", Request(b"x"))
    server.management.unregister("slow")


def test_a_key_file_that_is_none_is_told(server: TorchServe, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("not json")
    with pytest.raises(TorchmarError, match="not a TorchServe key file"):
        InferenceClient(replace(server.server, key_file=tmp_path / "keys.json")).ping()
