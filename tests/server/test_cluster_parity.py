"""A cluster answers as the built-in server does, but for the differences that are documented: archives.

With TORCHMAR_ALL_ARCHIVES=1 all archives of this repository are compared, which takes a quarter of an hour.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.outcomes import mismatches
from tests.support.parity_archives import ALL, MODELS, compare_archive, compare_model
from tests.support.ray_cluster import LOOPBACK, ray_cluster, start_front
from tests.support.servers import write_config
from torchmar.engines.builtin import Builtin
from torchmar.parity import EnginePair
from torchmar.parity.engine_client import EngineClient

pytestmark = [pytest.mark.oracle, pytest.mark.unforked]
EVERYTHING = bool(os.environ.get("TORCHMAR_ALL_ARCHIVES"))
# Streams, the time limit of a response, answers and errors of every kind, and stages.
FEW = ("stream", "hanging", "moods", "staged")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnginePair]:
    folder = tmp_path_factory.mktemp("parity")
    store = folder / "store"
    store.mkdir()
    config = write_config(folder)
    with (
        pytest.MonkeyPatch.context() as patch,
        ray_cluster(3) as cluster,
        Builtin(config, store, folder / "run") as builtin,
        ThreadPoolExecutor(2) as threads,
    ):
        for name, value in LOOPBACK.items():
            patch.setenv(name, value)
        with start_front(cluster, folder / "front", store) as front:
            clients = [EngineClient(builtin), EngineClient(front)]
            yield EnginePair(clients, ("builtin", "ray"), store, threads, lambda step: None)


@pytest.mark.parametrize("name", MODELS if EVERYTHING else FEW)
def test_an_archive_of_another_tool_gives_the_same_answers(pair: EnginePair, name: str, tmp_path: Path) -> None:
    assert mismatches(compare_model(pair, name, tmp_path)) == []


@pytest.mark.parametrize("name", ALL if EVERYTHING else ("clinic",))
def test_an_archive_of_this_repository_gives_the_same_answers(
    pair: EnginePair, name: str, tmp_path: Path, weights: None
) -> None:
    assert mismatches(compare_archive(pair, name, tmp_path)) == []
