"""The state that a listener shares with its connections and requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torchmar.server.http.limits import Limits
from torchmar.server.http.responses import ResponseHeads

if TYPE_CHECKING:
    from torchmar.server.http.access import OnAccess
    from torchmar.server.http.request import Request

App = Callable[["Request"], None]
#: Called with a request before its body arrives; the callback may respond to it.
OnHead = Callable[["Request"], None]


@dataclass(slots=True, kw_only=True)
class Context:
    """Shared state of a listener.

    Attributes:
        app: called in the loop with every request.
        limits: limits on sizes and times of a client.
        heads: cached heads of responses.
        on_head: called with a request with a long body before the body arrives; it may respond, and the app then does
            not get the request. None: there is no such callback.
        on_access: called with an access event for every answered request; None: there is no access log.
        closing: whether each response is the last of its connection.
    """

    app: App
    limits: Limits
    heads: ResponseHeads
    on_head: OnHead | None = None
    on_access: OnAccess | None = None
    closing: bool = False
