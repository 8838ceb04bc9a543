"""HTTP/1.1 and 1.0 on httptools and asyncio: requests in, answers out; knows nothing of models.

`answers.py` are the bytes of answers, `request.py` what the app is handed, `connection.py` one client, `listener.py`
the socket with all its clients, `unix.py` sockets that are files, `access.py` access events.
"""

from torchmar.server.http.access import Access
from torchmar.server.http.limits import Limits
from torchmar.server.http.listener import App, Listener, listen
from torchmar.server.http.request import Request
from torchmar.server.http.responses import Cors

__all__ = ["Access", "App", "Cors", "Limits", "Listener", "Request", "listen"]
