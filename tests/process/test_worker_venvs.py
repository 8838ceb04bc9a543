"""torchmar.worker.venvs makes environments from lock files: once, with the right packages, or not at all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.command import torchmar
from tests.support.packing import pack_handler
from tests.support.waiting import until
from tests.support.wheels import lock_of, write_wheel
from torchmar import archive
from torchmar.errors import ArchiveError, TorchmarError, WorkerError
from torchmar.exchange import Request
from torchmar.recipe import Runtime
from torchmar.worker import Worker
from torchmar.worker.venvs import building, folder, interpreters, locking, specification

pytest.importorskip("uv")

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
ARRIVED = "VALUE = {version!r}\n"
HANDLER = dedent("""
    import sys, tiny, torch

    def handle(rows, context):
        return None if rows is None else [{"tiny": tiny.VALUE, "prefix": sys.prefix} for _ in rows]
""")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of environments of this module's tests."""
    place = tmp_path_factory.mktemp("venvs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(folder.VARIABLE, str(place))
        yield place


def content(path: Path, version: str, *, lock: str | None = None, **more: object) -> tuple[Runtime, Path]:
    """Write a lock file and a folder of wheels; return them as an archive's runtime and content."""
    wheel = write_wheel(path / "wheels", "tiny", version, ARRIVED.format(version=version))
    (path / "lock.txt").write_text(lock_of(wheel) if lock is None else lock)
    facts = {"python": HERE, "requirements": "lock.txt", "wheels": "wheels", "server_packages": True, **more}
    return Runtime.model_validate(facts), path


def packed(path: Path, version: str) -> Path:
    """Pack an archive with an environment of its own."""
    path.mkdir()
    runtime, _ = content(path, version)
    return pack_handler(path / "store", HANDLER, version=version, folder=path, runtime=runtime)


def builder(place: Path, runtime: Runtime, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torchmar.worker.venvs", str(path), runtime.model_dump_json(), str(place)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_worker_has_the_packages_of_its_lock_file_and_the_commands_show_its_environment(
    place: Path, tmp_path: Path
) -> None:
    path = packed(tmp_path / "made", "1.0")
    assert f"Python {HERE}, the packages of lock.txt" in torchmar("inspect", path, cwd=tmp_path).stdout
    assert "lock.txt" in torchmar("venv", "build", path, cwd=tmp_path).stdout
    (built,) = folder.entries(place)
    with Worker(path) as worker:
        (response,) = worker.predict_batch([Request(b"")])
        assert json.loads(response.body) == {"tiny": "1.0", "prefix": str(built.folder)}
        (listed,) = json.loads(torchmar("venv", "list", "--json", cwd=tmp_path).stdout)
        assert (listed["packages"], listed["in_use"]) == (["tiny==1.0"], True)
        assert "removed 0 environments" in torchmar("venv", "clean", cwd=tmp_path).stdout
    (entry,) = folder.entries(place)
    assert not entry.in_use


def test_a_build_that_was_killed_is_begun_again_once_for_all_that_wait(place: Path, tmp_path: Path) -> None:
    runtime, path = content(tmp_path, "3.0")
    target = place / specification.read(runtime, path).key
    killed = builder(place, runtime, path)
    until(lambda: (target / "pyvenv.cfg").exists())
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not folder.is_complete(target)
    outputs = [builder.communicate()[0] for builder in [builder(place, runtime, path) for _ in range(2)]]
    assert sum("building" in output for output in outputs) == 1
    assert {json.loads(output.splitlines()[-1])["folder"] for output in outputs} == {str(target)}
    assert folder.is_complete(target)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"lock": f"tiny==5.0 --hash=sha256:{'0' * 64}\n"}, "(?i)hash"),
        ({"lock": f"absent==5.0 --hash=sha256:{'0' * 64}\n"}, "absent"),
        ({"lock": "tiny==5.0\n"}, "has no hash"),
        ({"python": "3.99", "server_packages": False}, "this machine has no Python 3.99"),
        ({"python": "3.9", "server_packages": False}, "Python 3.9 is too old"),
        ({"python": "3.99"}, "cannot use the server's packages"),
        ({"server_packages": False}, "workers cannot start .* No module named 'torch'"),
    ],
)
def test_what_cannot_be_built_is_an_error_and_leaves_nothing(
    place: Path, tmp_path: Path, more: dict[str, object], error: str
) -> None:
    lock = more.pop("lock", None)
    runtime, path = content(tmp_path, "5.0", lock=str(lock) if lock else None, **more)
    before = sorted(place.iterdir())
    with pytest.raises((WorkerError, ArchiveError), match=error):
        building.build(specification.read(runtime, path), place)
    assert sorted(place.iterdir()) == before


def test_unused_environments_are_removed_and_used_ones_stay(tmp_path: Path) -> None:
    used, unused = (tmp_path / name for name in ("used", "unused"))
    for each in (used, unused):
        (each / "bin").mkdir(parents=True)
        (each / "bin" / "python").symlink_to(sys.executable)
        with folder.building(each):
            folder.complete(each, {"python": HERE, "packages": []})
    venv = folder.use(used)
    assert venv
    assert [entry.folder for entry in folder.clean(tmp_path, unused_seconds=3600)] == []
    assert [entry.folder for entry in folder.clean(tmp_path)] == [unused]
    venv.close()
    assert [entry.folder for entry in folder.clean(tmp_path)] == [used]
    assert list(tmp_path.iterdir()) == []


def test_one_whose_interpreter_was_removed_is_not_used(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    (broken / "bin").mkdir(parents=True)
    (broken / "bin" / "python").symlink_to(tmp_path / "removed")
    with folder.building(broken):
        folder.complete(broken, {"python": HERE, "packages": []})
    assert folder.use(broken) is None


def test_a_lock_file_has_hashes_and_wheels_and_is_kept_if_it_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    wheels = [write_wheel(index, "tiny", version, "") for version in ("1.0", "1.1")]
    monkeypatch.setenv("UV_FIND_LINKS", str(index))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    made = tmp_path / "archives" / "made"
    made.mkdir(parents=True)
    text = f"""\
name: made # a comment
version: "1.0"
handler: handler.py
runtime:
  python: "{HERE}"
  requirements: lock.txt
  requires: ["tiny==1.0"]
  server_packages: true
"""
    (made / "handler.py").write_text("def handle(rows, context): return rows\n")
    (made / "archive.yaml").write_text(text)
    locked = locking.lock(made, wheelhouse=True)
    assert (locked.path, locked.packages, locked.wheels) == (made / "lock.txt", 1, made / "wheels")
    lock = locked.path.read_text()
    assert lock_of(wheels[0]).split()[1] in lock
    assert (made / "archive.yaml").read_text() == f"{text}  wheels: wheels\n"
    built = archive.build(made, tmp_path / "store").path
    with archive.Archive(built) as opened:
        assert "wheels/tiny-1.0-py3-none-any.whl" in opened
    # Wheels that are not locked any more do not travel.
    (made / "archive.yaml").write_text((made / "archive.yaml").read_text().replace("tiny==1.0", "tiny>=1.1"))
    assert locking.lock(made).wheels
    assert [wheel.name for wheel in (made / "wheels").iterdir()] == ["tiny-1.1-py3-none-any.whl"]
    lock = locked.path.read_text()
    (made / "archive.yaml").write_text((made / "archive.yaml").read_text().replace("tiny>=1.1", "tiny==9"))
    with pytest.raises(TorchmarError, match="cannot be resolved"):
        locking.lock(made)
    assert locked.path.read_text() == lock
    assert [wheel.name for wheel in (made / "wheels").iterdir()] == ["tiny-1.1-py3-none-any.whl"]


def test_interpretersof_pyenv_are_found_whichever_is_active(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("3.10.2", "3.10.13", "3.10-dev", "3.9.1"):
        (tmp_path / "versions" / version / "bin").mkdir(parents=True)
        (tmp_path / "versions" / version / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert interpreters.of_pyenv("3.10") == str(tmp_path / "versions" / "3.10.13" / "bin" / "python")
    assert interpreters.of_pyenv("3.1") is None
