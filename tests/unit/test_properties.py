"""torchmar.properties reads config.properties as TorchServe does."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from torchmar import properties
from torchmar.errors import PropertiesError


def test_the_projects_configuration_listens_on_loopback_with_tokens_on() -> None:
    read = properties.read(ROOT / "config.properties")
    assert {address.host for address in read.addresses()} == {"127.0.0.1"}
    assert len({address.port for address in read.addresses()}) == 5
    assert not read.flag("disable_token_authorization")
    assert read.flag("enable_model_api")


def test_written_text_is_read_back(tmp_path: Path) -> None:
    values = {"a": "1", "models": '{"x": {"1.0": true}}', "key with space": "\\d+ ä\n", "b": ""}
    (tmp_path / "c").write_text(properties.show(values))
    assert properties.read(tmp_path / "c").values == values


@pytest.mark.parametrize(
    "line",
    [
        "inference_address=127.0.0.1:8080",
        "inference_address=http://127.0.0.1:port",
        "management_address=ftp://x",
        "management_address=unix:relative",
        "metrics_address=unix:",
        "grpc_inference_port=seven",
        "grpc_management_port=70000",
    ],
)
def test_a_wrong_address_is_named_with_file_key_and_value(tmp_path: Path, line: str) -> None:
    file = tmp_path / "config.properties"
    file.write_text(line)
    with pytest.raises(PropertiesError) as caught:
        properties.read(file).addresses()
    assert str(file) in caught.value.message
    assert line in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(("scheme", "ports"), [("http", [80, 8081, 8082]), ("https", [443, 8444, 8445])])
def test_an_address_without_a_port_has_torchserves(scheme: str, ports: list[int]) -> None:
    keys = list(properties.PORTS)
    read = properties.Properties(None, dict.fromkeys(keys, f"{scheme}://[::1]"))
    assert [address.port for address in read.addresses()[:3]] == ports
    assert [read.url(key) for key in keys] == [f"{scheme}://[::1]:{port}" for port in ports]


@pytest.mark.torchserve
def test_those_ports_are_torchserves_own() -> None:
    spec = importlib.util.find_spec("ts")
    assert spec
    assert spec.submodule_search_locations
    with zipfile.ZipFile(Path(spec.submodule_search_locations[0]) / "frontend" / "model-server.jar") as jar:
        code = jar.read("org/pytorch/serve/util/Connector.class")
    # sipush, and bipush for what fits in a byte
    for plain, tls in properties.PORTS.values():
        assert b"\x11" + tls.to_bytes(2, "big") in code
        assert (b"\x10" + plain.to_bytes(1, "big") if plain < 128 else b"\x11" + plain.to_bytes(2, "big")) in code


def test_a_unix_socket_has_a_path_and_no_port_and_stays_on_this_machine() -> None:
    read = properties.Properties(None, {"inference_address": "unix:/run/a b.sock"})
    address = read.addresses()[0]
    assert (address.unix, address.host, address.port, address.loopback) == ("/run/a b.sock", "", 0, True)
    assert read.url("inference_address") == "unix:/run/a b.sock"


def test_a_missing_file_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(PropertiesError, match="does not exist"):
        properties.read(tmp_path / "nothing")
