"""HTTP/1.1 and 1.0 on httptools and asyncio: bytes to requests, responses to bytes; independent of models.

`request_parser.py` converts bytes to requests, `request.py` is the request for an app, `responses.py` converts
responses to bytes; `connection.py` is one client, `listener.py` the socket with all its clients, `context.py` their
shared state; `unix.py` binds Unix sockets, `access.py` has the events of the access log.
"""

from torchmar.server.http.access import Access
from torchmar.server.http.context import App, OnHead
from torchmar.server.http.limits import Limits
from torchmar.server.http.listener import Listener, listen
from torchmar.server.http.request import Request
from torchmar.server.http.responses import Cors

__all__ = ["Access", "App", "Cors", "Limits", "Listener", "OnHead", "Request", "listen"]
