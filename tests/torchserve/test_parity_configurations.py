"""The built-in server answers as TorchServe does, but for the differences that are documented: the protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.outcomes import mismatches
from torchmar import parity
from torchmar.parity import cases, engine_pair


@pytest.mark.parametrize(
    "config",
    [
        {},
        # Together, since none of them hides another: each concerns other requests.
        {"disable_token_authorization": "true", "metrics_mode": "log", "service_envelope": "json"},
        {"enable_model_api": "false"},
    ],
    ids=lambda config: ",".join(f"{key}={value}" for key, value in config.items()) or "default",
)
def test_the_protocol_is_torchserves_in_every_configuration(config: dict[str, str]) -> None:
    with engine_pair(config=config) as pair:
        assert mismatches(pair.protocol()) == []


@pytest.mark.parametrize("envelope", ["kserve", "kservev2"])
def test_requests_of_a_model_are_torchserves_in_kserves_envelopes(envelope: str, make: Callable[..., Path]) -> None:
    # Tokens and management, most of the protocol, do not depend on what is around a handler.
    echo = Path(parity.__file__).with_name("echo.py").read_text()
    path = make(echo, name="enveloped", samples=[{"json": {"data": [1, 2.5, "three"]}}])
    with engine_pair(config={"service_envelope": envelope}) as pair:
        assert mismatches(pair.archive(path, more=cases.SERVER)) == []
