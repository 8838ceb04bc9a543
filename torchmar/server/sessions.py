"""Sessions of the console: one-time codes and tokens are exchanged for cookies that only this server knows.

A session has the rights of its token, which is that of management or of a reader. It ends after a time without a
request, after at most twelve hours, and with a fixed token that is no longer valid.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from torchmar.server.api_error import ApiError
from torchmar.server.tokens import Right, Tokens

CODE_SECONDS = 600.0
_LONGEST_SECONDS = 12 * 3600.0
_BYTES = 24  # length of codes and sessions, so that they cannot be guessed
_MOST_CODES, _MOST_SESSIONS = 20, 200  # limits, beyond which the oldest are dropped


@dataclass(slots=True)
class _Session:
    right: Right
    authorization: str  # header with a fixed token; empty: the token is random, and may be renewed
    opened: float
    used: float


class Sessions:
    """The codes and sessions of a server.

    Args:
        tokens: the tokens that open sessions.
        idle_s: seconds without a request that end a session.
        clock: returns the time in seconds.
    """

    def __init__(self, tokens: Tokens, idle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens, self._idle_s, self._clock = tokens, idle_s, clock
        self._codes: dict[str, tuple[_Session, float]] = {}
        self._sessions: dict[str, _Session] = {}

    def __repr__(self) -> str:
        return f"<Sessions: {len(self._sessions)}>"

    def new_code(self, authorization: str) -> str:
        """Return a code that opens one session, within ten minutes.

        Args:
            authorization: header with a token of management or of a reader.

        Raises:
            ApiError: the token is wrong.
        """
        session = self._session(authorization)
        while len(self._codes) >= _MOST_CODES:
            del self._codes[next(iter(self._codes))]
        code = secrets.token_urlsafe(_BYTES)
        self._codes[code] = session, self._clock() + CODE_SECONDS
        return code

    def open_with_code(self, code: str) -> str:
        """Return a new session for a code, which cannot be used again.

        Raises:
            ApiError: 401, the code is unknown, was used, or is too old.
        """
        session, end = self._codes.pop(code, (None, 0.0))
        if session is None or self._clock() > end:
            message = (
                "This link was used already, or is older than ten minutes. Sign in with a token, or get a new one."
            )
            raise unauthorized(message)
        session.opened = session.used = self._clock()
        return self._add(session)

    def open_with_token(self, token: str) -> str:
        """Return a new session for a token of management or of a reader.

        Raises:
            ApiError: 401, the token is neither of management nor of a reader.
        """
        try:
            return self._add(self._session(f"Bearer {token}"))
        except ApiError:
            message = "This is neither the management token nor one that may read, or it has expired."
            raise unauthorized(message) from None

    def right(self, session_id: str) -> Right | None:
        """Return the right of a session, and extend it; None: there is no such session."""
        session = self._sessions.get(session_id)
        if session is None:
            return None
        now = self._clock()
        if now - session.used > self._idle_s or now - session.opened > _LONGEST_SECONDS or not self._valid(session):
            del self._sessions[session_id]
            return None
        session.used = now
        return session.right

    def close(self, session_id: str) -> None:
        """End a session."""
        self._sessions.pop(session_id, None)

    def _session(self, authorization: str) -> _Session:
        right = self._tokens.right(authorization)
        fixed = authorization if self._tokens.is_fixed(right) else ""
        return _Session(right, fixed, self._clock(), self._clock())

    def _valid(self, session: _Session) -> bool:
        if not session.authorization:
            return True
        try:
            self._tokens.check(session.authorization, session.right)
        except ApiError:
            return False
        return True

    def _add(self, session: _Session) -> str:
        while len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session_id = secrets.token_urlsafe(_BYTES)
        self._sessions[session_id] = session
        return session_id


def unauthorized(message: str) -> ApiError:
    """Return the error for a browser without a session (401)."""
    return ApiError(401, "InvalidKeyException", message)
