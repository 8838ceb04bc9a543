"""torchmar.server.models.venvs: models with different versions of a package are in one server, each with its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.support.packing import pack_handler
from tests.support.servers import write_config
from tests.support.waiting import until
from tests.support.wheels import lock_of, write_wheel
from torchmar.engines.builtin import Builtin
from torchmar.errors import ServerError
from torchmar.exchange import Request
from torchmar.inference import InferenceClient
from torchmar.recipe import Runtime
from torchmar.server.models import venvs
from torchmar.worker.venvs import folder

pytest.importorskip("uv")

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
HANDLER = dedent("""
    import os, sys, tiny, torch

    def handle(rows, context):
        if rows is None: return
        return [{"tiny": tiny.VALUE, "prefix": sys.prefix, "torch": torch.__file__} for _ in rows]
""")
OWN = {"python": HERE, "requirements": "lock.txt", "wheels": "wheels", "server_packages": True}


def pack(place: Path, name: str, tiny: str, *, lock: str | None = None, **keys: Any) -> Path:
    """Pack an archive with a wheel of ``tiny``."""
    content = place / f"recipe-{name}"
    wheel = write_wheel(content / "wheels", "tiny", tiny, f"VALUE = {tiny!r}\n")
    (content / "lock.txt").write_text(lock_of(wheel) if lock is None else lock)
    packed = pack_handler(place / "store", HANDLER, name=name, folder=content, **(keys or {"runtime": OWN}))
    return packed.rename(packed.with_name(f"{name}.mar"))


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builtin]:
    place = tmp_path_factory.mktemp("venvs")
    (place / "store").mkdir()
    keys = {"install_py_dep_per_model": "true", "torchmar_venv_folder": str(place / "venvs")}
    with Builtin(write_config(place, **keys), place / "store", place / "run") as running:
        yield running


def ask(builtin: Builtin, name: str) -> dict[str, str]:
    with InferenceClient(builtin.server) as client:
        return dict(json.loads(client.request(name, Request(b"")).body))


def test_models_with_two_versions_of_a_package_are_in_one_server(builtin: Builtin, tmp_path: Path) -> None:
    store = builtin.model_store.parent
    answers = {}
    for name, version in (("first", "1.0"), ("second", "2.0"), ("third", "1.0")):
        builtin.load(pack(store, name, version))
        answers[name] = ask(builtin, name)
        assert answers[name]["tiny"] == version
    assert answers["first"] == answers["third"]  # one environment for one lock file
    assert len(folder.entries(store / "venvs")) == 2
    assert {Path(answer["prefix"]).parent for answer in answers.values()} == {store / "venvs"}

    # It stays when no model uses it any more, and may be removed then.
    builtin.management.unregister("second")
    until(lambda: [entry.packages for entry in folder.entries(store / "venvs") if not entry.in_use] == [("tiny==2.0",)])

    # Another server that must not install anything uses what is there.
    async def prepare(runtime: Runtime, lock: str) -> None:
        (tmp_path / "lock.txt").write_text(lock)
        venv = await venvs.prepare(
            runtime,
            content=tmp_path,
            place=store / "venvs",
            may_build=False,
            model_name="m",
            environment=os.environ,
        )
        venv.close()

    runtime = Runtime.model_validate(OWN)
    locked = (store / "recipe-first" / "lock.txt").read_text()
    asyncio.run(prepare(runtime, locked))
    with pytest.raises(venvs.VenvError, match="must not build: set install_py_dep_per_model=true"):
        asyncio.run(prepare(runtime, locked.replace("1.0", "9.0")))


def test_a_registration_whose_environment_cannot_be_built_is_rejected(builtin: Builtin) -> None:
    store = builtin.model_store.parent
    before = sorted((store / "venvs").glob("*"))
    pack(store, "tampered", "5.0", lock=f"tiny==5.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ServerError, match=r"(?is)environment of model tampered cannot be used.*hash") as caught:
        builtin.management.register("tampered.mar")
    assert caught.value.status == 400
    assert sorted((store / "venvs").glob("*")) == before
    assert "tampered" not in [model.name for model in builtin.management.models()]


def test_an_archive_with_use_venv_has_its_requirements_in_front_of_the_servers_packages(builtin: Builtin) -> None:
    store = builtin.model_store.parent
    wheel = "wheels/tiny-3.0-py3-none-any.whl"
    # numpy is the server's, and is not installed again.
    lock = f"--no-index\n./{wheel}\nnumpy\n"
    builtin.load(
        pack(
            store,
            "torchserves",
            "3.0",
            lock=lock,
            requirements="lock.txt",
            files={wheel: wheel},
            config={"useVenv": True},
        )
    )
    answer = ask(builtin, "torchserves")
    assert (answer["tiny"], Path(answer["prefix"]).is_relative_to(store / "run")) == ("3.0", True)
    assert not list(Path(answer["prefix"]).glob("lib/python*/site-packages/numpy"))
    builtin.management.unregister("torchserves")
