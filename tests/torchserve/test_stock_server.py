"""An archive of torchmar runs on a stock TorchServe without torchmar in its environment."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.support.environments import environment_without
from tests.support.paths import SAMPLES
from tests.support.servers import write_config
from torchmar import exchange
from torchmar.engines.torchserve import TorchServe
from torchmar.inference import InferenceClient

pytestmark = pytest.mark.unforked


@pytest.fixture(scope="module")
def stock_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with all that is installed here except torchmar."""
    return environment_without(tmp_path_factory.mktemp("stock") / "venv", ("torchmar", "__editable__"))


def test_the_environment_has_torchserve_and_nothing_of_ours(stock_python: Path, tmp_path: Path) -> None:
    code = "import importlib.util as u; print([bool(u.find_spec(n)) for n in ('ts', 'torchmar', 'torchmar_handlers')])"
    output = subprocess.run([stock_python, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[True, False, False]"


def test_predictions_and_explanations_work_in_a_stock_server(stock_python: Path, digits: Path, tmp_path: Path) -> None:
    with TorchServe(write_config(tmp_path), digits.parent, tmp_path / "run", python=str(stock_python)) as server:
        model = server.load(digits)
        assert psutil.Process(model.workers[0].pid).cmdline()[0] == str(stock_python)
        client = InferenceClient(server.server)
        assert next(iter(json.loads(client.request("digits", exchange.read(SAMPLES / "five.png")).body))) == "5"
        explained = client.request("digits", exchange.read(SAMPLES / "five.png", explain=True, accept="image/png"))
        assert explained.body.startswith(b"\x89PNG")
