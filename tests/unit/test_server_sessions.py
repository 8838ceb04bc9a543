"""torchmar.server.sessions turns codes and tokens into sessions, which end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torchmar.server.api_error import ApiError
from torchmar.server.sessions import Sessions
from torchmar.server.tokens import Tokens

READER = "a-token-of-a-dashboard"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "k", fixed={"read": [READER]})


def management(tokens: Tokens) -> str:
    return str(json.loads(tokens.file.read_text())["management"]["key"])


def test_a_code_opens_one_session_with_the_right_of_its_token(tokens: Tokens) -> None:
    sessions = Sessions(tokens, 3600)
    code = sessions.new_code(f"Bearer {management(tokens)}")
    session = sessions.open_with_code(code)
    assert sessions.right(session) == "management"
    assert code != session and management(tokens) not in (code, session)
    with pytest.raises(ApiError, match="used already") as caught:
        sessions.open_with_code(code)
    assert caught.value.status == 401
    reader = sessions.open_with_code(sessions.new_code(f"Bearer {READER}"))
    assert sessions.right(reader) == "read"


def test_wrong_tokens_and_codes_open_nothing(tokens: Tokens) -> None:
    sessions = Sessions(tokens, 3600)
    inference = json.loads(tokens.file.read_text())["inference"]["key"]
    for token in ("", "x", inference):
        with pytest.raises(ApiError):
            sessions.open_with_token(token)
        with pytest.raises(ApiError):
            sessions.new_code(f"Bearer {token}")
    with pytest.raises(ApiError):
        sessions.open_with_code("")
    assert sessions.right("") is None


def test_codes_and_sessions_end(tokens: Tokens) -> None:
    clock = Clock()
    sessions = Sessions(tokens, 3600, clock)
    code = sessions.new_code(f"Bearer {READER}")
    clock.now += 601
    with pytest.raises(ApiError, match="ten minutes"):
        sessions.open_with_code(code)
    used, idle = sessions.open_with_token(READER), sessions.open_with_token(READER)
    for _ in range(11):
        clock.now += 3599
        assert sessions.right(used) == "read"
    assert sessions.right(idle) is None
    clock.now += 3600
    sessions.right(used)
    clock.now += 1800
    assert sessions.right(used) is None  # twelve hours
    closed = sessions.open_with_token(READER)
    sessions.close(closed)
    assert sessions.right(closed) is None


def test_a_session_ends_with_its_fixed_token(tokens: Tokens) -> None:
    sessions = Sessions(tokens, 3600)
    session, other = sessions.open_with_token(READER), sessions.open_with_token(management(tokens))
    tokens.renew("management")
    tokens.replace_fixed({"read": ["another-token-of-a-reader"]})
    assert sessions.right(session) is None
    assert sessions.right(other) == "management"  # random tokens are renewed now and then


def test_codes_and_sessions_are_bounded(tokens: Tokens) -> None:
    sessions = Sessions(tokens, 3600)
    first_code = sessions.new_code(f"Bearer {READER}")
    first = sessions.open_with_token(READER)
    for _ in range(20):
        sessions.new_code(f"Bearer {READER}")
    for _ in range(200):
        last = sessions.open_with_token(READER)
    assert sessions.right(first) is None and sessions.right(last) == "read"
    with pytest.raises(ApiError):
        sessions.open_with_code(first_code)
