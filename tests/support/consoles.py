"""Clients of a console: a browser without a window, `torchmar console` as a process, and the check of its documents."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests

from tests.support import event_stream

ROOT = "/console/api/v1"
CHANGE = {"X-Torchmar-Console": "1"}


class Page:
    """A session of a console, opened by its link.

    Attributes:
        received: bodies and headers of all answers, to search for data that no browser should get.
    """

    def __init__(self, link: str) -> None:
        self.address, _, code = link.partition("/console?code=")
        self.link, self.session, self.received = link, requests.Session(), list[str]()
        self.session.headers.update(CHANGE)
        answer = self.send("POST", "/sign-in", json={"code": code})
        assert answer.status_code == 200, answer.text

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        answer = self.session.request(method, f"{self.address}{ROOT}{path}", timeout=60, **options)
        self.received.append(f"{answer.headers} {answer.text}")
        return answer

    def get(self, path: str) -> Any:
        answer = self.send("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @contextlib.contextmanager
    def stream(self, query: str = "") -> Iterator[Iterator[tuple[str, Any]]]:
        cookies = "; ".join(f"{name}={value}" for name, value in self.session.cookies.items())
        with events(self.address, f"/stream{query}", Cookie=cookies) as received:
            yield received


@contextlib.contextmanager
def events(address: str, path: str, **headers: str) -> Iterator[Iterator[tuple[str, Any]]]:
    """Yield the events of a console with their documents, as they arrive."""
    with contextlib.closing(http.client.HTTPConnection(address.rpartition("/")[2], timeout=60)) as connection:
        connection.request("GET", f"{ROOT}{path}", headers=headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        yield ((event.type, json.loads(event.data)) for event in event_stream.parse(iter(response.read1, b"")))


@contextlib.contextmanager
def served(*arguments: object, cwd: Path) -> Iterator[str]:
    """Run ``torchmar console`` as a process that serves a page, and yield its link."""
    command = [sys.executable, "-m", "torchmar", "console", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        assert process.wait(20) == 0


def check(value: Any, schema: Mapping[str, Any], schemas: Mapping[str, Any], place: str) -> None:
    """Check a value by a schema of an OpenAPI document."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if value is None:
        assert schema.get("nullable"), place
    elif schema.get("type") == "object":
        if "properties" in schema:
            assert value.keys() == schema["properties"].keys(), place
        for key, inner in schema.get("properties", {}).items():
            check(value[key], inner, schemas, f"{place}.{key}")
    elif schema.get("type") == "array":
        for item in value:
            check(item, schema["items"], schemas, f"{place}[]")
    elif "enum" in schema:
        assert value in schema["enum"], place
    elif schema.get("type"):
        types: dict[str, Any] = {"string": str, "number": (int, float), "integer": int, "boolean": bool}
        assert isinstance(value, types[schema["type"]]), (place, value)


def documents(description: Mapping[str, Any], **names: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the paths below `ROOT` that return a document by GET, with its schema.

    Args:
        description: the answer to ``GET /console/api/v1``.
        names: values of the parameters in paths; paths with other parameters are omitted.
    """
    for path, operations in description["paths"].items():
        response = operations.get("get", {}).get("responses", {}).get("200", {})
        schema = response.get("content", {}).get("application/json", {}).get("schema", {})
        with contextlib.suppress(KeyError):
            if "$ref" in schema:
                yield path.removeprefix(ROOT).format(**names), schema
