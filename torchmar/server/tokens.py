"""Tokens of clients, and the key file that contains them.

The file is ``key_file.json`` as TorchServe 0.12.0 writes it: a key for each API, which expires, and one that renews
these and does not expire. Tokens that the configuration fixes are also in the file, so that torchmar's clients can read
them; they never expire and are never renewed. If an API has several fixed tokens, each is accepted, and the first
is in the file. The fixed token of a reader is only in its own file.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from torchmar.atomic import temporary_path
from torchmar.server.api_error import ApiError

Kind = Literal["inference", "management", "read", "key"]
Right = Literal["management", "read"]

FILE = "key_file.json"
_INVALID = "Token {} failed. Token either incorrect, expired, or not provided correctly"
# The scheme is case-insensitive (RFC 9110, 11.1).
_BEARER = re.compile(r"bearer\s+(\S+)", re.ASCII | re.IGNORECASE)
_KEY_BYTES = 24  # TorchServe's keys have 6
_NEVER = datetime(9999, 12, 31, tzinfo=timezone.utc).timestamp()  # because clients expect a time in the file


class _Token(NamedTuple):
    key: str
    header: bytes
    end: float  # seconds since 1970


class Tokens:
    """The tokens of a server that has just started; an existing key file is replaced, as in TorchServe.

    Tokens are not written to any other place.

    Args:
        file: path of the key file; None: all tokens are fixed, and there is no file.
        enabled: whether requests need tokens; if not, there is no file, and every check succeeds.
        minutes: lifetime of the APIs' tokens.
        fixed: tokens by API, in place of random ones that expire; with those under ``read``, the management API
            can only be read.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        enabled: bool = True,
        minutes: float = 60.0,
        fixed: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self.file, self.enabled = file, enabled
        self._life = minutes * 60
        self._fixed = frozenset(fixed)
        self._tokens: dict[str, tuple[_Token, ...]] = {}
        if enabled:
            ends = {"management": self._end(), "inference": self._end(), "key": float("inf")}
            tokens = {kind: (_new(end),) for kind, end in ends.items()}
            self._replace({"read": (), **tokens, **_of(fixed)})

    def __repr__(self) -> str:
        return f"<Tokens of {self.file}>"

    def check(self, authorization: str, kind: Kind) -> None:
        """Check the token of a request; called for every request.

        Args:
            authorization: header of the request, ``Bearer KEY``, with the scheme in any case; empty if there is none.
            kind: the API, ``read`` for the parts of management that change nothing, or ``key`` for the token that
                renews the others.

        Raises:
            ApiError: 400, the token is missing, wrong or expired; 403, it is a reader's.
        """
        if not self.enabled:
            return
        if self._accepts("management" if kind == "read" else kind, authorization):
            return
        if self._tokens["read"] and kind in ("read", "management") and self._accepts("read", authorization):
            if kind == "read":
                return
            raise ApiError(403, "InvalidKeyException", "Authorization failed. This token may read and change nothing.")
        raise _invalid(kind)

    def _accepts(self, kind: str, authorization: str) -> bool:
        encoded = authorization.encode("utf-8", "replace")
        for _, expected, end in self._tokens[kind]:
            if hmac.compare_digest(encoded, expected):
                return time.time() < end
        match = _BEARER.fullmatch(authorization)  # several spaces are allowed
        if not match or authorization == f"Bearer {match[1]}":
            return False
        return self._accepts(kind, f"Bearer {match[1]}")

    def replace_fixed(self, fixed: Mapping[str, Sequence[str]]) -> None:
        """Replace the fixed tokens; the previous ones are no longer accepted.

        Args:
            fixed: tokens by API. An API that no longer has fixed tokens gets a random one, which expires.

        Raises:
            OSError: the key file cannot be written; the previous tokens stay valid.
        """
        if not self.enabled:
            return
        random = {kind: (_new(self._end()),) for kind in self._fixed - fixed.keys() - {"read"}}
        self._replace({**self._tokens, "read": (), **random, **_of(fixed)})
        self._fixed = frozenset(fixed)

    def right(self, authorization: str) -> Right:
        """Return whether a token is that of management or of a reader.

        Raises:
            ApiError: 400, it is neither of them, or has expired.
        """
        self.check(authorization, "read")
        try:
            self.check(authorization, "management")
        except ApiError:
            return "read"
        return "management"

    def is_fixed(self, kind: Kind) -> bool:
        """Return whether the tokens of an API are fixed by the configuration."""
        return kind in self._fixed

    def renew(self, kind: str) -> None:
        """Write a new token of an API into the file; the previous one becomes invalid.

        Raises:
            ApiError: 400, ``kind`` is not an API; 409, the token is fixed.
            OSError: the file cannot be written; the previous token stays valid.
        """
        if kind not in ("inference", "management"):
            raise _invalid("key")
        if kind in self._fixed:
            message = (
                f"The {kind} token is fixed by the server's configuration; change it there, and send SIGHUP to the "
                "server."
            )
            raise ApiError(409, "ConflictStatusException", message)
        self._replace({**self._tokens, kind: (_new(self._end()),)})

    def _end(self) -> float:
        return time.time() + self._life

    def _replace(self, tokens: dict[str, tuple[_Token, ...]]) -> None:
        if self.file is None:
            self._tokens = tokens
            return
        document = {
            kind: {"key": tokens[kind][0].key, "expiration time": _instant(tokens[kind][0].end)}
            for kind in ("management", "inference")
        }
        text = json.dumps({**document, "API": {"key": tokens["key"][0].key}}, indent=2)
        part = temporary_path(self.file)
        try:
            # Created with mode 0600, so that no other user can ever read it.
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
                stream.write(text)
            part.replace(self.file)
        finally:
            part.unlink(missing_ok=True)
        self._tokens = tokens  # only now: the previous token is valid until clients can read the new one


def _of(fixed: Mapping[str, Sequence[str]]) -> dict[str, tuple[_Token, ...]]:
    return {kind: tuple(_token(key, _NEVER) for key in keys) for kind, keys in fixed.items()}


def _new(end: float) -> _Token:
    return _token(secrets.token_urlsafe(_KEY_BYTES), end)


def _token(key: str, end: float) -> _Token:
    return _Token(key, f"Bearer {key}".encode(), end)


def _instant(seconds: float) -> str:
    """Return a time in Java's format, to the microsecond."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _invalid(kind: str) -> ApiError:
    return ApiError(400, "InvalidKeyException", _INVALID.format("Authentication" if kind == "key" else "Authorization"))
