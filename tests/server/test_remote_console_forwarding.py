"""`torchmar console --serve` passes the requests of its page on to a server with a console of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.consoles import Page, served
from tests.support.servers import write_config
from torchmar.engines.builtin import Builtin


@pytest.fixture
def page(tmp_path: Path, make: Callable[..., Path]) -> Iterator[Page]:
    path = make()
    # Browsers do not reach this socket.
    config = write_config(tmp_path, management_address=f"unix:{tmp_path}/m.sock")
    with Builtin(config, path.parent, tmp_path / "run") as running:
        running.load(path)
        with served("--run-folder", running.folder, cwd=tmp_path) as link:
            opened = Page(link)
            yield opened
            key = (running.folder / "key_file.json").read_text().split('"')[5]
            assert key and not [text for text in opened.received if key in text]


def test_all_of_its_api_is_there(page: Page) -> None:
    assert page.get("/server")["engine"] == "torchmar"
    with page.stream("?model=made") as events:
        kind, snapshot = next(events)
        assert kind == "snapshot" and snapshot["models"][0]["name"] == "made"
        answer = page.send("POST", "/models/made/1.0/predict", json={"a": 1})
        assert answer.json() == {"body": {"a": 1}} and "handle;dur=" in answer.headers["Server-Timing"]
        assert page.send("PUT", "/management/models/made/1.0?min_worker=2").status_code == 202
        scaled = (tick for _, tick in events if any(event["kind"] == "scaled" for event in tick["events"]))
        assert next(scaled)["row"]["wanted"] >= 1
        assert page.send("GET", "/models/nobody").status_code == 404
        page.send("POST", "/sign-out")
        assert [kind for kind, _ in events][-1] == "signed-out"
    assert page.send("GET", "/server").status_code == 401
