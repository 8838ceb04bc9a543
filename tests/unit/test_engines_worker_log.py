"""torchmar.engines.worker_log reports how and how often the workers of a model die."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchmar.engines import worker_log

STARTS = "s_name_part0=/tmp/x/.ts.sock, s_name_part1=9000, pid=1"
DIES = ["Backend worker process died.", "Traceback (most recent call last):", '  File "h.py"', "ValueError: boom"]


def write(folder: Path, *texts: str, name: str = "m", worker: str = "9000") -> None:
    (folder / "logs").mkdir(exist_ok=True)
    lines = [
        f"2026-11-20T10:00:{number:02},000 W-{worker}-{name}_1.0-stdout - {text}\n" for number, text in enumerate(texts)
    ]
    with (folder / "logs" / "workers.log").open("a") as stream:
        stream.writelines(lines)


@pytest.mark.parametrize(
    ("texts", "deaths", "reason"),
    [
        ([STARTS, *DIES], 1, "ValueError: boom"),
        ([STARTS, *DIES, STARTS, *DIES], 2, "ValueError: boom"),
        # It has been started again, and the result is not known yet.
        ([STARTS, *DIES, STARTS], 1, "ValueError: boom"),
        # A worker that is killed logs nothing about it.
        ([STARTS, "all is well", STARTS], 1, "it ended without any output"),
        # The one before the last lived until it was killed: the deaths before that are over.
        ([STARTS, *DIES, STARTS, "all is well", STARTS], 1, "it ended without any output"),
    ],
)
def test_a_worker_that_dies_is_reported_with_its_last_traceback(
    tmp_path: Path, texts: list[str], deaths: int, reason: str
) -> None:
    write(tmp_path, *texts)
    failure = worker_log.failures(tmp_path)["m", "1.0"]
    assert (failure.deaths, failure.reason) == (deaths, reason)


@pytest.mark.parametrize("texts", [[], [STARTS], [STARTS, "Traceback (most recent call last):", "KeyError: 1"]])
def test_a_running_worker_has_no_failure_even_if_a_request_failed(tmp_path: Path, texts: list[str]) -> None:
    write(tmp_path, *texts)
    assert worker_log.failures(tmp_path) == {}


def test_the_worker_with_a_traceback_is_reported(tmp_path: Path) -> None:
    write(tmp_path, STARTS, STARTS, worker="9000")
    write(tmp_path, STARTS, *DIES, worker="9001")
    write(tmp_path, STARTS, name="other", worker="9002")
    failures = worker_log.failures(tmp_path)
    assert set(failures) == {("m", "1.0")}
    assert failures["m", "1.0"].traceback.endswith("ValueError: boom")


def test_a_folder_without_a_log_has_no_failures(tmp_path: Path) -> None:
    assert worker_log.failures(tmp_path) == {}
    assert worker_log.traceback(tmp_path, "m", "1.0") == ""


def test_the_error_that_torchserves_loader_hides_is_reported() -> None:
    lines = [
        "Backend worker process died.",
        "Traceback (most recent call last):",
        '  File "handler.py", line 1',
        "ModuleNotFoundError: No module named 'no_such_module'",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "Traceback (most recent call last):",
        '  File "ts/model_loader.py", line 9',
        "ModuleNotFoundError: No module named 'ts.torch_handler.handler'",
    ]
    log = "".join(f"2026-11-20T10:00:00,000 W-9000-m_1.0-stdout - {line}\n" for line in lines)
    assert worker_log.last_traceback(log, "m", "1.0").endswith("No module named 'no_such_module'")
