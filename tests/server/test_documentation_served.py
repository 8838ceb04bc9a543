"""The commands, curl lines and Python code of the how-to pages work with one server, and print the shown output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import torchmar
from tests.support import documents
from tests.support.servers import write_config
from torchmar import archive, grpc, properties
from torchmar.engines.builtin import Builtin

PAGES = [file for file in documents.FILES if any("server" in block.marks for block in documents.blocks(file))]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of the pages' example, with a server that has loaded its archive."""
    folder = tmp_path_factory.mktemp("project")
    documents.write_project(folder)
    store = folder / "model_store"
    built = archive.build(folder / "archives" / "lengths", store)
    with Builtin(write_config(folder), store, folder / ".torchmar") as server:
        server.load(built.path)
        yield folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_works(page: Path, project: Path) -> None:
    values = properties.read(project / "config.properties").values
    addresses = {properties.DEFAULTS[f"{api}_address"]: values[f"{api}_address"] for api in ("inference", "management")}
    for block in documents.blocks(page):
        if "server" in block.marks:
            documents.run(block, project, addresses)


CLIENTS = [getattr(torchmar, name) for name in documents.SERVER_EXAMPLES]
CLIENTS += [grpc.GrpcInference, grpc.GrpcManagement, grpc.GrpcOpenInference]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_examples_of_clients_work(client: type, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    assert documents.run_examples(client, client.__name__)
