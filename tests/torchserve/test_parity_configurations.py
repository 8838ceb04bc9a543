"""The built-in server answers as TorchServe does, but for the differences that are documented: the protocol."""

from __future__ import annotations

import pytest

from tests.support.outcomes import mismatches
from torchmar.parity import engine_pair


@pytest.mark.parametrize(
    "config",
    [
        {},
        # Together, since none of them hides another: each concerns other requests.
        {"disable_token_authorization": "true", "metrics_mode": "log", "service_envelope": "json"},
        {"enable_model_api": "false"},
        {"service_envelope": "kserve"},
        {"service_envelope": "kservev2"},
    ],
    ids=lambda config: ",".join(f"{key}={value}" for key, value in config.items()) or "default",
)
def test_the_protocol_is_torchserves_in_every_configuration(config: dict[str, str]) -> None:
    with engine_pair(config=config) as pair:
        assert mismatches(pair.protocol()) == []
