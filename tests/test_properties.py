"""torchmar.properties reads config.properties as TorchServe does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from torchmar import properties
from torchmar.errors import PropertiesError


def test_the_projects_configuration_listens_on_loopback_with_tokens_on() -> None:
    read = properties.read(ROOT / "config.properties")
    assert {address.host for address in read.addresses()} == {"127.0.0.1"}
    assert len({address.port for address in read.addresses()}) == 5
    assert not read.flag("disable_token_authorization")
    assert read.flag("enable_model_api")


def test_what_is_shown_is_read_back(tmp_path: Path) -> None:
    values = {"a": "1", "models": '{"x": {"1.0": true}}', "key with space": "\\d+ ä\n", "b": ""}
    (tmp_path / "c").write_text(properties.show(values))
    assert properties.read(tmp_path / "c").values == values


@pytest.mark.parametrize(
    "line",
    [
        "inference_address=127.0.0.1:8080",
        "inference_address=http://127.0.0.1:port",
        "management_address=ftp://x",
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


def test_a_missing_file_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(PropertiesError, match="does not exist"):
        properties.read(tmp_path / "nothing")
