"""A server and a browser without a window: the console's API with a token or a session."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import requests

from tests.support.consoles import CHANGE, ROOT, events
from torchmar.engines.builtin import Builtin


class Site:
    """A server and a browser without a window."""

    def __init__(self, engine: Builtin) -> None:
        self.engine = engine
        self.address = str(engine.server.management)
        keys = json.loads((engine.folder / "key_file.json").read_text())
        self.token, self.inference_token = keys["management"]["key"], keys["inference"]["key"]

    def session(self, token: str | None = None) -> requests.Session:
        session = requests.Session()
        answer = session.post(
            f"{self.address}{ROOT}/sign-in", json={"token": token or self.token}, headers=CHANGE, timeout=60
        )
        assert answer.status_code == 200, answer.text
        return session

    def get(self, path: str, session: requests.Session | None = None, **more: Any) -> requests.Response:
        headers = {} if session else {"Authorization": f"Bearer {self.token}"}
        return (session or requests).get(f"{self.address}{ROOT}{path}", headers={**headers, **more}, timeout=60)

    @contextlib.contextmanager
    def stream(self, path: str = "/stream") -> Iterator[Iterator[tuple[str, Any]]]:
        with events(self.address, path, Authorization=f"Bearer {self.token}") as received:
            yield received
