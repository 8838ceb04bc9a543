"""Requests to a server that is starting."""

from __future__ import annotations

from pathlib import Path

import requests

from torchmar import properties

SECONDS = 120  # seconds for a request on a busy machine


OK = "def handle(rows, context):\n    return ['ok'] * len(rows or [])\n"


OPEN = {"disable_token_authorization": "true", "default_workers_per_model": "1"}


def address(config: Path, api: str = "inference") -> str:
    return properties.read(config).url(f"{api}_address")


def post(url: str) -> requests.Response:
    return requests.post(url, data=b"x", timeout=SECONDS)
