"""The built-in server answers as TorchServe does, but for the differences that are documented: archives."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import strange_archives
from tests.support.outcomes import mismatches
from tests.support.parity_archives import COMPARED, MODELS, compare_archive, compare_model
from tests.support.paths import SAMPLES
from torchmar.parity import EnginePair, engine_pair
from torchmar.parity.cases import Case


@pytest.fixture(scope="module")
def pair() -> Iterator[EnginePair]:
    with engine_pair() as running:
        yield running


@pytest.mark.parametrize("name", MODELS)
def test_an_archive_of_another_tool_gives_the_same_answers(pair: EnginePair, name: str, tmp_path: Path) -> None:
    assert mismatches(compare_model(pair, name, tmp_path)) == []


@pytest.mark.parametrize("name", COMPARED)
def test_an_archive_of_this_repository_gives_the_same_answers(
    pair: EnginePair, name: str, tmp_path: Path, weights: None
) -> None:
    assert mismatches(compare_archive(pair, name, tmp_path)) == []


def test_torchserves_own_image_handler_gives_the_same_answers(pair: EnginePair, tmp_path: Path) -> None:
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    image = (SAMPLES / "seven.png").read_bytes()
    more = (Case("image", "POST", "/predictions/{name}", image, {"Content-Type": "image/png"}),)
    assert mismatches(pair.archive(strange_archives.images(tmp_path), more=more)) == []


@pytest.mark.parametrize("name", strange_archives.ODD_MANIFESTS)
def test_an_archive_with_an_odd_manifest_is_registered_or_rejected_as_by_torchserve(
    pair: EnginePair, name: str, tmp_path: Path
) -> None:
    assert mismatches(pair.archive(strange_archives.odd(tmp_path, name), corners=False)) == []
