"""Attacks and normal requests, as a client sends them to an application behind torchmar.guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import requests

AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
SQL = "7' UNION SELECT login, password FROM users-- "
# Far from the threshold: a model trained on another processor gives other probabilities.
SCRIPT = "nice <script>alert(document.cookie)</script>"

# The parts of a request: method, path, and arguments of requests.
ATTACKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sql": ("GET", "/products", {"params": {"category": "shoes", "id": SQL}}),
    "path": ("GET", "/download", {"params": {"file": "../../../../etc/shadow"}}),
    "command": ("GET", "/ping", {"params": {"host": "127.0.0.1; cat /etc/passwd"}}),
    "form": ("POST", "/comments", {"data": {"author": "ada", "text": SCRIPT}}),
    "json": ("POST", "/comments", {"json": {"author": "ada", "text": SCRIPT}}),
}
NORMAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "page": ("GET", "/blog/2026/11/29/how-we-moved/", {}),
    "search": ("GET", "/search", {"params": {"q": "where to select a union", "page": "2"}}),
    "form": ("POST", "/contact", {"data": {"name": "Seán O'Brien", "message": "It's fine -- thanks; bye (for now)!"}}),
    "json": ("POST", "/api/posts", {"json": {"title": "News", "body": "<p>It's <b>here</b>: 3 < 4 & so on</p>"}}),
    "file": ("PUT", "/photos/1.png", {"data": b"\x89PNG\r\n" + SQL.encode(), "headers": {"Content-Type": "image/png"}}),
}

Send = Callable[[str, str, dict[str, Any]], requests.Response]


def sender(port: int) -> Send:
    def send(method: str, path: str, arguments: dict[str, Any]) -> requests.Response:
        headers = {"User-Agent": AGENT, **arguments.get("headers", {})}
        return requests.request(
            method, f"http://127.0.0.1:{port}{path}", timeout=30, **{**arguments, "headers": headers}
        )

    return send


def check(send: Send) -> None:
    """Send attacks and normal requests; the answer to a permitted request is its body."""
    for name, request in ATTACKS.items():
        response = send(*request)
        assert (response.status_code, response.text) == (403, "Forbidden\n"), name
    for name, request in NORMAL.items():
        response = send(*request)
        assert response.status_code == 200, name
        body = response.request.body or b""
        assert response.content == (body.encode() if isinstance(body, str) else body), name
