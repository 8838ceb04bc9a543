"""The times of requests in access logs of several servers."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from torchmar.errors import TorchmarError
from torchmar.load import access_log

_TORCHSERVE = """\
2026-11-29T12:00:00,123 - /127.0.0.1:40000 "POST /predictions/digits HTTP/1.1" 200 12
2026-11-29T12:00:00,100 - /127.0.0.1:40000 "POST /predictions/digits/1.0 HTTP/1.1" 200 3.500 a-request-id
2026-11-29T12:00:01,000 - /127.0.0.1:40000 "POST /predictions/other HTTP/1.1" 200 1
2026-11-29T12:00:02,000 - /127.0.0.1:40000 "GET /models HTTP/1.1" 200 1
2026-11-29T12:00:02,500 - /127.0.0.1:40000 "POST /v1/models/digits:predict HTTP/1.1" 503 0
2026-11-29T12:00:03,000 - /127.0.0.1:40000 "POST /v2/models/digits/infer HTTP/1.1" 200 0
a line of another log
"""
_COMMON = """\
10.0.0.1 - - [29/Nov/2026:12:00:00 +0000] "POST /ts/predictions/digits?x=1 HTTP/1.1" 200 15 "-" "curl/8"
10.0.0.1 - - [29/Nov/2026:12:00:00 +0000] "POST /predictions/digits HTTP/2.0" 200 15
10.0.0.2 - - [29/Nov/2026:13:00:01 +0100] "POST /predictions/digits HTTP/1.1" 200 15
10.0.0.2 - - [29/Nov/2026:12:00:01 +0000] "POST /predictions/digitsmore HTTP/1.1" 200 15
"""
_JSON = """\
{"time": "2026-11-29T12:00:01.000+00:00", "method": "POST", "path": "/predictions/a%20b", "milliseconds": 250}
{"time": "2026-11-29T12:00:02.000+00:00", "method": "POST", "path": "/predictions/c", "milliseconds": 250}
{"level": "INFO", "message": "a line of another log"}
{not JSON
"""
_NOON = datetime(2026, 11, 29, 12, tzinfo=timezone.utc).timestamp()


def _times(tmp_path: Path, text: str, model: str) -> list[float]:
    file = tmp_path / "access.log"
    file.write_text(text)
    return list(access_log.times(file, model))


def test_torchserve_logs_the_end_and_the_duration(tmp_path: Path) -> None:
    local = datetime(2026, 11, 29, 12).timestamp()
    assert _times(tmp_path, _TORCHSERVE, "digits") == pytest.approx(
        [local + 0.0965, local + 0.111, local + 2.5, local + 3.0], abs=1e-5
    )


def test_whole_seconds_are_distributed(tmp_path: Path) -> None:
    assert _times(tmp_path, _COMMON, "digits") == pytest.approx([_NOON + 0.25, _NOON + 0.75, _NOON + 1.5])


def test_json_is_read_and_names_are_decoded(tmp_path: Path) -> None:
    assert _times(tmp_path, _JSON, "a b") == pytest.approx([_NOON + 0.75])


def test_a_log_without_the_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TorchmarError, match=r"access\.log has no request for nothing") as error:
        _times(tmp_path, _TORCHSERVE, "nothing")
    assert "nginx" in error.value.hint
    with pytest.raises(TorchmarError, match="cannot be read: No such file"):
        access_log.times(tmp_path / "none.log", "digits")
