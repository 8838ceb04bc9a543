"""torchmar.engines.logs puts the lines of a log together into entries, and reads on through rolling."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from torchmar.engines import logs
from torchmar.engines.logs import Follower

LOG = """\
2026-11-20T10:00:00,000 W-9000-m_1.0-stdout - Torch worker started.
2026-11-20T10:00:00,001 W-9000-m_1.0-stdout - Traceback (most recent call last):
2026-11-20T10:00:00,001 W-9001-my_model_2.0rc1-stdout - Traceback (most recent call last):
2026-11-20T10:00:00,001 W-9000-m_1.0-stdout -   File "h.py", line 1, in handle
2026-11-20T10:00:00,001 W-9001-my_model_2.0rc1-stdout -   File "other.py", line 7
2026-11-20T10:00:00,002 W-9000-m_1.0-stdout -     raise KeyError('x')
2026-11-20T10:00:00,002 W-9000-m_1.0-stdout - KeyError: 'x'
2026-11-20T10:00:00,002 W-9001-my_model_2.0rc1-stdout - RuntimeError: CUDA error: an illegal memory access
2026-11-20T10:00:00,002 W-9001-my_model_2.0rc1-stdout - CUDA kernel errors might be reported later.
2026-11-20T10:00:00,002 W-9000-m_1.0-stdout - <nothing>
2026-11-20T10:00:00,002 W-9000-m_1.0-stdout - During handling of the above exception, another exception occurred:
2026-11-20T10:00:00,002 W-9000-m_1.0-stdout - <nothing>
2026-11-20T10:00:00,002 W-9000-m_1.0-stdout - Traceback (most recent call last):
2026-11-20T10:00:00,002 W-9000-m_1.0-stdout -   File "h.py", line 3, in handle
2026-11-20T10:00:00,002 W-9000-m_1.0-stdout - ValueError: no x
2026-11-20T10:00:01,500 W-9000-m_1.0-stdout - the next request
2026-11-20T10:00:01,600 W-9001-my_model_2.0rc1-stdout - another request
""".replace("<nothing>", "")
SERVER_LOG = """\
2026-11-20T10:00:00,900 [ERROR] W-9000-m_1.0 WorkerThread - Backend worker error
org.pytorch.serve.wlm.WorkerInitializationException: Backend worker did not respond in given time
\tat org.pytorch.serve.wlm.WorkerThread.run(WorkerThread.java:247) [model-server.jar:?]
2026-11-20T10:00:02,000 [WARN ] main ModelServer - logged by no worker
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "workers.log").write_text(LOG)
    (tmp_path / "logs" / "server.log").write_text(SERVER_LOG)
    return tmp_path


def test_the_worker_of_a_line_is_a_number_or_a_replica_of_ray() -> None:
    (line,) = logs.parse(["2026-11-30T01:11:09,512 W-b1ia8j3m-my-model_1.0-stdout - loaded"])
    assert (line.worker, line.model, line.version, line.text) == ("b1ia8j3m", "my-model", "1.0", "loaded")


def test_a_traceback_is_one_entry_despite_lines_of_others() -> None:
    entries = list(logs.parse(LOG.splitlines()))
    assert [(entry.model, entry.version, entry.worker, entry.text.count("\n")) for entry in entries] == [
        ("m", "1.0", "9000", 0),
        ("m", "1.0", "9000", 9),
        ("my_model", "2.0rc1", "9001", 3),
        ("m", "1.0", "9000", 0),
        ("my_model", "2.0rc1", "9001", 0),
    ]
    chained = entries[1].text
    assert chained.startswith("Traceback")
    assert chained.endswith("ValueError: no x")
    assert "KeyError: 'x'\n\nDuring handling" in chained
    assert entries[2].text.endswith(
        "RuntimeError: CUDA error: an illegal memory access\nCUDA kernel errors might be reported later."
    )


def test_a_stack_trace_of_java_belongs_to_the_line_above_it() -> None:
    first, second = logs.parse(SERVER_LOG.splitlines())
    assert (first.level, first.model, first.worker) == ("ERROR", "m", "9000")
    assert first.text.splitlines()[-1].startswith("\tat org.pytorch")
    assert (second.level, second.model, second.text) == ("WARN", "", "main ModelServer - logged by no worker")


def test_recent_entries_of_both_logs_are_sorted_by_time(folder: Path) -> None:
    texts = [entry.text.splitlines()[0] for entry in logs.recent(folder, 4)]
    assert texts[0] == "WorkerThread - Backend worker error"
    assert texts[1:] == ["the next request", "another request", "main ModelServer - logged by no worker"]


def test_entries_are_chosen_by_model_version_and_worker(folder: Path) -> None:
    assert len(logs.recent(folder, 50)) == 7
    assert len(logs.recent(folder, 50, "m")) == 4
    assert len(logs.recent(folder, 50, "my_model", "2.0rc1")) == 2
    assert len(logs.recent(folder, 50, "my_model", "1.0")) == 0
    assert len(logs.recent(folder, 50, "", "", "9001")) == 2
    assert logs.recent(folder, 0) == []


def test_files_that_python_rolled_are_read_from_the_oldest_on(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    names = ("server.log.2", "server.log.1", "server.log")
    for name in (*names, "server.log.part", "workers.log.1"):
        (tmp_path / "logs" / name).touch()
    assert [file.name for file in logs.files(tmp_path, "server.log")] == list(names)


def test_recent_entries_reach_back_into_files_that_were_rolled(folder: Path) -> None:
    oldest = "2026-11-20T09:00:00,000 W-9000-m_1.0-stdout - oldest"
    (folder / "logs" / "workers.1.log").write_text(oldest + "\n")
    (folder / "logs" / "workers.2.log").write_text(oldest.replace("oldest", "older") + "\n")
    assert [file.name for file in logs.files(folder, "workers.log")] == [
        "workers.1.log",
        "workers.2.log",
        "workers.log",
    ]
    assert [entry.text for entry in logs.recent(folder, 50, "m")[:2]] == ["oldest", "older"]
    assert logs.tail(folder, "workers.log").startswith("2026-11-20T09")


def test_a_follower_reads_new_entries_through_rotation_and_a_restart(folder: Path) -> None:
    follower, log = Follower(folder), folder / "logs" / "workers.log"

    def heard() -> list[str]:
        texts: list[str] = []
        # A line that may start a traceback is returned after the next line, or after a wait without one.
        for _ in range(100):
            texts += [entry.text for entry in follower.read()]
            if texts:
                break
            time.sleep(0.02)
        return texts

    def write_line(text: str) -> None:
        with log.open("a") as stream:
            stream.write(f"2026-11-20T11:00:00,000 W-9000-m_1.0-stdout - {text}\n")

    assert follower.read() == []
    write_line("one")
    assert heard() == ["one"]
    log.rename(log.with_name("workers.1.log"))
    write_line("two")
    assert heard() == ["two"]
    log.unlink()
    (folder / "logs" / "server.log").unlink()
    write_line("three")
    assert heard() == ["three"]
