"""torchmar.checks.runtime judges the environment that an archive asks for, and torchmar.archive.runtime reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchmar import archive, checks, recipe
from torchmar.archive import Archive
from torchmar.checks import runtime as runtimes
from torchmar.errors import ArchiveError, RecipeError

Make = Callable[..., Path]

HASH = f"--hash=sha256:{'0' * 64}"
COMPLETE = f"torch==2.8.0 {HASH}\ntorchserve==0.12.0 \\\n    {HASH} \\\n    {HASH}\n# via nothing\n"


def problems(path: Path) -> list[str]:
    return [finding.cause for finding in checks.check(path) if finding.code.name == "MAR514"]


def made(make: Make, lock: str, files: dict[str, str] | None = None, **more: Any) -> Path:
    runtime = {"python": "3.11", "requirements": "sub/lock.txt", **more}
    return make(disk={"sub/lock.txt": lock, **(files or {})}, runtime=runtime)


def test_a_complete_lock_file_is_good_and_is_torchserves_requirements_file(make: Make) -> None:
    path = made(
        make,
        COMPLETE,
        {"wheels/torch-2.8.0-py3-none-any.whl": "", "wheels/torchserve-0.12.0-py3-none-any.whl": ""},
        wheels="wheels",
    )
    assert problems(path) == []
    with Archive(path) as opened:
        assert opened.manifest.model.requirements_file == "lock.txt"
        assert opened.runtime == recipe.Runtime(python="3.11", requirements="lock.txt", wheels="wheels")
        assert "wheels/torch-2.8.0-py3-none-any.whl" in opened


@pytest.mark.parametrize(
    ("lock", "more", "cause"),
    [
        (f"torch==2.8.0 {HASH}\n", {}, "it has no torchserve, which workers need"),
        ("torch==2.8.0\n", {}, "'torch==2.8.0' has no hash"),
        (f"torch>=2 {HASH}\n", {}, "'torch>=2' has no exact version"),
        (f"torch==2.* {HASH}\n", {}, "'torch==2.*' has no exact version"),
        ("-r other.txt\n", {}, "a lock file has no -r"),
        ("-e .\n", {}, "a lock file has no -e"),
        (f"./x.whl {HASH}\n", {}, "'./x.whl' is no package with a version"),
        (f"x @ git+https://example.com/x {HASH}\n", {}, "'x @ git+https://example.com/x' is no wheel"),
        (COMPLETE, {"python": "3.9"}, "Python 3.9 is too old for workers"),
    ],
)
def test_what_is_wrong_is_reported(make: Make, lock: str, more: dict[str, Any], cause: str) -> None:
    assert cause in problems(made(make, lock, **more))


def test_packages_of_the_server_need_not_be_locked(make: Make) -> None:
    assert problems(made(make, f"tiny==1.0 {HASH}\n", server_packages=True)) == []


def test_a_wheel_that_is_missing_is_named(make: Make) -> None:
    lock = f"{COMPLETE}tiny==1.0 {HASH}\nother==1.0 ; sys_platform == 'win32' {HASH}\n"
    names = ("torch-2.8.0+cpu", "torchserve-0.12.0", "tiny-1.1")
    path = made(make, lock, {f"wheels/{name}-py3-none-any.whl": "" for name in names}, wheels="wheels")
    assert problems(path) == ["wheels/ has no wheel of tiny==1.0"]


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"python": 3.11, "requirements": "r.txt"}', '{"python": "3.11", "requirements": "../x"}']
)
def test_a_description_that_cannot_be_read_is_an_error(make: Make, text: str) -> None:
    content = checks.Composed({"MAR-INF/RUNTIME.json": text.encode(), "../x": b""})
    assert [finding.code.name for finding in runtimes.check(content)] == ["MAR514"]


def test_a_recipe_names_its_packages_once_and_its_files_exist(tmp_path: Path) -> None:
    text = 'name: m\nversion: "1"\nhandler: image_classifier\n'
    text += 'runtime: {python: "3.11", requirements: lock.txt, wheels: w}\n'
    with pytest.raises(RecipeError) as caught:
        recipe.parse(text, folder=tmp_path)
    assert [problem.hint for problem in caught.value.problems] == [
        f"torchmar lock {tmp_path} writes it",
        f"torchmar lock {tmp_path} fills it",
    ]
    with pytest.raises(RecipeError, match="give one of the two"):
        recipe.parse(text + "requirements: r.txt\n")
    with pytest.raises(RecipeError, match="python"):
        recipe.parse(text.replace('"3.11"', "3.11"))


def test_an_imported_archive_can_be_built_again(make: Make, tmp_path: Path) -> None:
    wheels = {f"wheels/{name}-py3-none-any.whl": "" for name in ("torch-2.8.0", "torchserve-0.12.0")}
    path = made(make, COMPLETE, wheels, wheels="wheels")
    folder, lost = archive.import_archive(path, tmp_path / "imported")
    assert lost == []
    again = archive.build(folder, tmp_path / "again").path
    with Archive(path) as first, Archive(again) as second:
        assert first.runtime == second.runtime
        assert {member.name for member in first.members} == {member.name for member in second.members}


def test_a_derived_archive_keeps_its_runtime(make: Make, tmp_path: Path) -> None:
    derived = archive.derive(made(make, COMPLETE), tmp_path / "derived", version="1.1").path
    with Archive(derived) as opened:
        assert opened.runtime is not None


def test_an_archive_without_the_named_file_has_no_runtime_to_make(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "content"
    with Archive(made(make, COMPLETE)) as opened:
        opened.extract(folder)
    (folder / "lock.txt").unlink()
    with Archive(folder, allow_flaws=True) as opened, pytest.raises(ArchiveError, match=r"names lock\.txt"):
        _ = opened.runtime
