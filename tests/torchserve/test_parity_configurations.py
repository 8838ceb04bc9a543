"""The built-in server answers as TorchServe does, but for the differences that are documented: the protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.outcomes import mismatches
from tests.support.servers import ENGINES
from torchmar import engines, parity
from torchmar.parity import cases, engine_pair
from torchmar.parity.cases import Case

# Requests with and without tokens, and those for new ones.
TOKENS = (*cases.TOKENS, *(case for case in cases.MANAGEMENT if case.path.startswith("/token")))


@pytest.fixture(autouse=True)
def _end_torchserve_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "named", ENGINES.__getitem__)


@pytest.mark.parametrize(
    "config",
    [{}, {"enable_model_api": "false"}],
    ids=lambda config: ",".join(f"{key}={value}" for key, value in config.items()) or "default",
)
def test_the_protocol_is_torchserves_in_every_configuration(config: dict[str, str]) -> None:
    with engine_pair(config=config) as pair:
        assert mismatches(pair.protocol()) == []


@pytest.mark.parametrize(
    ("envelope", "config", "more"),
    [
        # Together, since none of them hides another: each concerns other requests.
        ("json", {"disable_token_authorization": "true", "metrics_mode": "log"}, TOKENS),
        ("kserve", {}, ()),
        ("kservev2", {}, ()),
    ],
    ids=["json, without tokens and metrics", "kserve", "kservev2"],
)
def test_requests_of_a_model_are_torchserves_in_every_envelope(
    envelope: str, config: dict[str, str], more: tuple[Case, ...], make: Callable[..., Path]
) -> None:
    # Management, most of the protocol, does not depend on what is around a handler.
    echo = Path(parity.__file__).with_name("echo.py").read_text()
    path = make(echo, name="enveloped", samples=[{"json": {"data": [1, 2.5, "three"]}}])
    with engine_pair(config={"service_envelope": envelope, **config}) as pair:
        assert mismatches(pair.archive(path, more=(*cases.SERVER, *more))) == []
