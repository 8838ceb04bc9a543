"""torchmar.file_lock: a lock that is removed by its last user does not count for the next."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from torchmar import file_lock


def test_a_lock_is_shared_or_exclusive(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    first, second = (file_lock.acquire(path, fcntl.LOCK_SH) for _ in range(2))
    with pytest.raises(BlockingIOError):
        file_lock.acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(first)
    os.close(second)
    os.close(file_lock.acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB))


def test_who_waited_for_a_file_that_was_removed_gets_the_lock_of_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    first = file_lock.acquire(path, fcntl.LOCK_EX)
    acquired: list[int] = []
    waiting = threading.Thread(target=lambda: acquired.append(file_lock.acquire(path, fcntl.LOCK_EX)))
    waiting.start()
    path.unlink()
    os.close(first)
    waiting.join()
    assert path.exists() and os.path.samestat(os.fstat(acquired[0]), path.stat())
    os.close(acquired[0])


def test_a_lock_in_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_lock.acquire(tmp_path / "none" / "a.lock", fcntl.LOCK_SH)
