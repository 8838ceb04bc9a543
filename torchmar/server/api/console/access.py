"""Access to the console's API for clients with a token and browsers with a session.

The cookie of a session is sent only to paths below ``/console``, and not from pages of other sites. A request that
makes a change must also have a header that a form cannot send, and must come from a page of this server.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie

from torchmar.server.api_error import ApiError
from torchmar.server.http import Request
from torchmar.server.sessions import Sessions, unauthorized
from torchmar.server.tokens import Right, Tokens

#: The header of every request from the console that makes a change.
HEADER = "x-torchmar-console"
_READS = ("GET", "HEAD", "OPTIONS")
_READER = "You are signed in as a reader, who may look and change nothing."


class Access:
    """The check of every request to the API.

    Args:
        tokens: tokens of clients.
        sessions: sessions of browsers.
        cookie: name of the cookie, which differs for each server of a host, because cookies are shared by all its
            ports.
        secure: whether the server's address has TLS.
    """

    def __init__(self, tokens: Tokens, sessions: Sessions, cookie: str, *, secure: bool) -> None:
        self._tokens, self._sessions, self._cookie, self._secure = tokens, sessions, cookie, secure

    def check(self, request: Request, *, change: bool | None = None) -> Right:
        """Return the rights of a request.

        Args:
            request: request with a token in ``Authorization``, or with the cookie of a session.
            change: whether it makes a change; None: unless its method only reads.

        Raises:
            ApiError: 400, its token is wrong; 401, it has neither a token nor a session; 403, it may only read, or it
                may come from a page of another site.
        """
        change = request.method not in _READS if change is None else change
        if authorization := request.header("authorization"):
            self._tokens.check(authorization, "management" if change else "read")
            return self._tokens.right(authorization)
        if request.method not in _READS:
            check_origin(request)
        if not self._tokens.enabled:
            return "management"
        session = self.session(request)
        right = self._sessions.right(session) if session else None
        if right is None:
            raise unauthorized("The session has ended. Sign in again." if session else "Sign in first.")
        if change and right == "read":
            raise ApiError(403, "InvalidKeyException", _READER)
        return right

    def session(self, request: Request) -> str:
        """Return the session of a request; empty: it has no session."""
        try:
            morsel = SimpleCookie(request.header("cookie")).get(self._cookie)
        except CookieError:
            return ""
        return morsel.value if morsel else ""

    def cookie(self, session: str) -> tuple[str, str]:
        """Return the header that sets the cookie of a session; an empty one removes it."""
        attributes = "; HttpOnly; SameSite=Strict; Path=/console" + ("; Secure" if self._secure else "")
        age = "" if session else "; Max-Age=0"
        return "Set-Cookie", f"{self._cookie}={session}{age}{attributes}"


def check_origin(request: Request) -> None:
    """Check that a request that makes a change comes from a page of this server, or from no page.

    Raises:
        ApiError: 403, the request may come from a page of another site.
    """
    site, origin = request.header("sec-fetch-site"), request.header("origin")
    if site:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = bool(origin) and origin.partition("://")[2] != request.header("host")
    if foreign or not request.header(HEADER):
        message = f"A change needs the header {HEADER}: 1, and must not be sent by a page of another site."
        raise ApiError(403, "InvalidKeyException", message)
