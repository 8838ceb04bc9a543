"""The console in a real browser: each page against a live server, in all the states that it can be in."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import requests

from tests.support.browser import Browser
from tests.support.packing import pack_handler
from tests.support.paths import ROOT, SAMPLES
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar import archive
from torchmar.cli.console import link
from torchmar.engines.builtin import Builtin

pytestmark = pytest.mark.oracle

HOSTILE = "<img src=x onerror=alert(1)>"
SAYS = """
def handle(rows, context):
    if rows is None:
        return None
    print("<script>alert(2)</script> in a log line", flush=True)
    print("Traceback (most recent call last):\\\\n  File <b>", flush=True)
    return ["<script>alert(3)</script>"] * len(rows)
"""
THEMES = ("light", "dark")
READER = "the-token-of-a-reader"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Iterator[Builtin]:
    folder = tmp_path_factory.mktemp("console")
    for name in ("digits", "topics", "tumours"):
        archive.build(ROOT / "archives" / name, folder / "store")
    for version in ("1.0", "2.0"):
        pack_handler(folder / "store", SAYS, name="says", version=version, description=HOSTILE)
    (folder / "reader").write_text(READER)
    config = write_config(folder, torchmar_read_token_file=str(folder / "reader"))
    with Builtin(config, folder / "store", folder / "run") as running:
        for name in ("digits", "topics", "tumours"):
            running.load(folder / "store" / f"{name}-1.0.mar")
        running.management.register("says-1.0.mar", model_name=HOSTILE, initial_workers=1)
        yield running


@pytest.fixture
def page(browser: Browser, server: Builtin) -> Iterator[Browser]:
    """Return a page that is signed in; whatever it did, no page of another place was requested, and nothing failed."""
    browser.size(1400, 900)
    browser.theme("light")
    browser.forget()
    browser.goto(link(server.server))
    browser.wait("table.models tbody tr")
    yield browser
    origin = str(server.server.management)
    assert [url for url in browser.requests() if not url.startswith((origin, "blob:" + origin))] == []
    assert browser.problems() == []
    browser.goto("about:blank")  # first: a page without its session asks the server on, and logs the status 401
    browser.clear_cookies()


def show(page: Browser, server: Builtin, path: str, selector: str) -> None:
    page.goto(f"{server.server.management}/console#/{path}")
    page.wait(selector)


def test_the_link_signs_in_and_shows_every_model(page: Browser, server: Builtin) -> None:
    assert page.url() == f"{server.server.management}/console"
    assert page.count("table.models tbody tr") == 4
    assert "Ready" in page.text("table.models tbody tr")
    page.fill("input[type=search]", "tum")
    page.wait("table.models tbody tr:only-child")
    assert "tumours" in page.text("table.models tbody")
    page.fill("input[type=search]", "nothing like it")
    page.wait("text=No model matches")


@pytest.mark.parametrize(
    "path",
    [
        *("models", "models/digits", "live", "live/digits", "try/digits", "try/tumours", "logs"),
        *("rollout", "archives", "archives/digits-1.0.mar"),
    ],
)
def test_each_page_is_accessible_in_both_themes_and_on_a_narrow_screen(
    page: Browser, server: Builtin, path: str
) -> None:
    show(page, server, path, "h1")
    if path.startswith("try"):
        page.wait(".samples, .row-form")
    if path == "rollout":
        page.click("button:has-text('Show the difference')")
        page.wait(".problems")  # no deployment can name the hostile model
    if path.startswith("archives"):
        page.wait("table.archives, .samples-table")
    for theme in THEMES:
        page.theme(theme)
        for width in (1400, 400):
            page.size(width, 900)
            assert page.violations() == [], (theme, width)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (theme, width)


def test_a_picture_is_classified_and_explained(page: Browser, server: Builtin) -> None:
    show(page, server, "try/digits", ".sample-image.selected")
    page.click("button.sample-image:has-text('seven')")
    page.wait("img.preview")
    page.click("text=Run")
    page.wait(".answer .bars")
    assert page.text(".answer .bars th") == "7"
    page.wait(".answer img.picture")
    assert {"Queue", "Preprocess", "Inference", "Postprocess"} <= set(
        page.text(".timing .legend").replace("\n", " ").split()
    )
    assert "--data-binary @'seven.png'" in page.text(".snippets pre")


def test_a_file_and_a_drawing_are_classified(page: Browser, server: Builtin) -> None:
    show(page, server, "try/digits", ".samples")
    page.upload("input[type=file]", SAMPLES / "four.png")
    page.click("text=Run")
    page.wait(".answer .bars")
    assert page.text(".answer .bars th") == "4"
    page.click(".segments >> text=Draw")
    page.draw("canvas[role=img]", [[0.5, 0.15], [0.5, 0.85]])
    page.click("text=Run")
    page.wait(".answer .bars")


def test_a_text_shows_its_words_and_a_row_its_columns(page: Browser, server: Builtin) -> None:
    show(page, server, "try/topics", "textarea")
    page.fill("textarea", "The coroutine runs until the event loop is closed.")
    page.click("text=Run")
    page.wait(".words mark.for")
    assert "asyncio" in page.text(".answer .bars")
    show(page, server, "try/tumours", ".row-form input")
    assert page.count(".row-form input") == 30
    page.click("text=Run")
    page.wait(".bars.signed .bar")
    assert page.count(".answer .bars:not(.signed) tr") == 2


def test_what_the_model_rejects_is_said(page: Browser, server: Builtin) -> None:
    show(page, server, "try/tumours", ".row-form")
    page.click(".segments >> text=JSON")
    page.fill("textarea", '{"mean radius": "wide"')
    page.wait("text=This is not JSON yet")
    assert page.evaluate("document.querySelector('.run button').disabled")
    page.fill("textarea", '{"mean radius": "wide"}')
    page.click("text=Run")
    page.wait(".answer .notice-bad")
    assert "Status 4" in page.text(".answer .notice-bad")
    # The status is that of the model's answer; the browser logs it, though nothing of the console failed.
    page.forget()


def test_requests_are_drawn_while_they_happen(page: Browser, server: Builtin) -> None:
    show(page, server, "live/digits", ".u-over")
    body = (SAMPLES / "seven.png").read_bytes()
    token = json.loads((server.folder / "key_file.json").read_text())["inference"]["key"]
    for _ in range(30):
        requests.post(
            f"{server.server.inference}/predictions/digits",
            body,
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        )
    page.wait(".bars .bar")
    page.click(".numbers summary")
    page.wait(".numbers td >> text=/^[1-9].*[/]s$/")
    page.click("button:has-text('Pause')")
    page.wait("button:has-text('Go on')")


def test_a_killed_worker_is_seen(page: Browser, server: Builtin) -> None:
    show(page, server, "models/digits", ".version-card tbody tr")
    os.kill(server.management.describe("digits")[0].workers[0].pid, signal.SIGKILL)
    page.wait(".events li:has-text('ended while it served')")
    until(lambda: server.management.describe("digits")[0].ready == 1)
    page.wait(".events li:has-text('Worker started')")
    show(page, server, "live/digits", ".events strong.bad:has-text('Worker died')")


def test_a_version_is_scaled_after_a_question(page: Browser, server: Builtin) -> None:
    show(page, server, "models/topics", ".card-actions button")
    page.click("button:has-text('Scale')")
    page.fill("dialog input", "2")
    page.click("dialog button:has-text('Set to 2 workers')")
    page.wait(".version-card tbody tr:nth-child(2)")
    page.wait(".events li:has-text('scaled from 1 to 2 workers')")
    server.management.scale("topics", min_worker=1)
    page.wait(".events li:has-text('scaled from 2 to 1 worker')")
    page.press("Escape")


def test_versions_are_compared_and_the_default_is_switched_and_switched_back(page: Browser, server: Builtin) -> None:
    server.management.register("says-1.0.mar", initial_workers=1)
    try:
        show(page, server, "archives/says-2.0.mar", "button:has-text('Register')")
        page.click("button:has-text('Register')")
        page.click("dialog button:has-text('Register')")
        page.wait(".comparison tbody tr:nth-child(2)")
        page.wait(".version-card:has-text('Version 2.0') .pill-good")
        page.click("button:has-text('Make it the default')")
        page.click("dialog button:has-text('Make it the default')")
        page.wait(".comparison tr:has-text('2.0') .badge-accent")
        page.click("button:has-text('Switch back to 1.0')")
        page.click("dialog button:has-text('Make it the default')")
        page.wait(".events li:has-text('Default switched back')")
        show(page, server, "try/says", ".bench-form")
        page.select("select:near(:text('Compare with'))", "2.0")
        page.click(".segments >> text=Text")
        page.fill("textarea", "x")
        page.click("text=Run")
        page.wait(".side-by-side .result:nth-child(2) .code")
    finally:
        server.management.unregister("says", "2.0")
        server.management.unregister("says")


def test_a_deployment_is_compared_applied_and_rolled_back(page: Browser, server: Builtin) -> None:
    server.management.register("says-1.0.mar", initial_workers=1)
    try:
        show(page, server, "rollout", ".deployment textarea:not([disabled])")
        page.fill("textarea", "models: {says: {versoins: {}}}")
        page.click("button:has-text('Show the difference')")
        page.wait(".problems li:has-text('Line 1')")
        page.fill("textarea", 'models: {says: {versions: {"2.0": {min_workers: 1}}}}')
        page.click("button:has-text('Show the difference')")
        page.wait(".plan-steps li:has-text('Make 2.0 the default version of says in place of 1.0.')")
        page.click("button:has-text('Apply')")
        assert page.violations() == []
        page.click("dialog button:has-text('Apply')")
        page.wait(".operation .pill-good:has-text('Done')")
        assert page.count(".steps .done-step") == 4
        page.wait("text=The server is as this deployment says")
        page.click("button:has-text('Roll back to 1.0')")
        page.wait("dialog p:has-text('Requests that name no version go to 1.0 at once')")
        page.click("dialog button:has-text('Roll back')")
        page.wait(".operation:has-text('Roll says back to 1.0') .pill-good")
        page.click("button:has-text('Promote 2.0')")
        page.click("dialog input[type=checkbox]")
        page.click("dialog button:has-text('Promote')")
        page.wait(".operation:has-text('Promote says 2.0') .pill-good")
        assert page.violations() == []
    finally:
        server.management.unregister("says", "1.0")
        server.management.unregister("says")


def test_a_reader_sees_the_difference_and_cannot_apply_it(page: Browser, server: Builtin) -> None:
    page.clear_cookies()
    page.reload()
    page.fill("input[type=password]", READER)
    page.click("form button")
    page.wait(".strip:has-text('You are signed in as a reader')")
    show(page, server, "rollout", ".deployment textarea:not([disabled])")
    page.fill("textarea", "models: {}\nprune: true")
    page.click("button:has-text('Show the difference')")
    page.wait("text=Applying it needs the right to manage models")
    assert page.count("button:has-text('Apply'), button:has-text('Promote')") == 0
    page.forget()  # the status 401 of the page without a session


def test_samples_are_sent_and_an_archive_is_dropped_and_registered(
    page: Browser, server: Builtin, tmp_path: Path
) -> None:
    show(page, server, "archives/topics-1.0.mar", "button:has-text('Send')")
    page.click("button:has-text('Send')")
    page.wait(".samples-table .good")
    page.wait(".card-head .pill-good:has-text('right')")
    pack_handler(tmp_path, name="dropped")
    show(page, server, "archives", ".drop")
    page.upload("input[type=file]", tmp_path / "dropped-1.0.mar")
    page.click(".card button:has-text('Register')")
    page.wait("dialog p:has-text('It is put into the model store')")
    page.click("dialog button:has-text('Register')")
    page.wait("h1:has-text('dropped')")
    page.wait(".version-card .pill-good")
    server.management.unregister("dropped")


def test_hostile_names_texts_and_log_lines_run_nothing(page: Browser, server: Builtin) -> None:
    name = quote(HOSTILE, safe="")
    for path, selector in ((f"models/{name}", ".version-card"), (f"live/{name}", ".u-over"), ("logs", ".entry")):
        show(page, server, path, selector)
    show(page, server, f"try/{name}", ".bench-form")
    page.click(".segments >> text=Text")
    page.fill("textarea", HOSTILE)
    page.click("text=Run")
    page.wait(".answer .code:has-text('<script>alert(3)</script>')")
    show(page, server, "logs", ".entry:has-text('<script>alert(2)</script>')")
    assert page.count("#app script, #app img[src='x']") == 0


def test_logs_are_filtered_and_followed(page: Browser, server: Builtin) -> None:
    show(page, server, "logs?model=digits", ".entry")
    assert page.count(".entry .source:not(:has-text('digits'))") == 0
    page.fill("input[type=search]", "no entry has this")
    page.wait("text=No entry matches")


def test_a_session_that_has_ended_says_so(page: Browser, server: Builtin) -> None:
    page.clear_cookies()
    page.reload()
    page.wait("h1:has-text('Sign in')")
    assert page.violations() == []
    page.fill("input[type=password]", "wrong")
    page.click("form button")
    page.wait(".notice-bad:has-text('neither the management token')")
    page.forget()  # the browser logs the statuses 401


def test_a_token_that_expires_ends_the_open_page(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    reader = tmp_path / "reader"
    reader.write_text("the-first-token-of-a-reader")
    config = write_config(tmp_path, torchmar_read_token_file=str(reader))
    with Builtin(config, tmp_path / "store", tmp_path / "run") as running:
        browser.goto(f"{running.server.management}/console")
        browser.fill("input[type=password]", reader.read_text())
        browser.click("form button")
        browser.wait(".strip:has-text('signed in as a reader')")
        reader.write_text("the-second-token-of-a-reader")
        running.reload()
        browser.wait(".notice-warn:has-text('The session has ended')")
        browser.goto("about:blank")
    browser.forget()  # the browser logs the statuses 401


def test_a_server_that_is_stopped_and_started_again(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    config = write_config(tmp_path, disable_token_authorization="true")
    with Builtin(config, tmp_path / "store", tmp_path / "run") as running:
        address = running.server.management
        browser.goto(f"{address}/console")
        browser.wait("text=No model is registered yet")
    browser.wait(".strip-bad:has-text('has not answered')")
    browser.wait("text=No connection")
    with Builtin(config, tmp_path / "store", tmp_path / "run"):
        browser.wait(".strip-bad", "detached")
        browser.wait(".pill-good:has-text('Healthy')")


def test_two_hundred_models_are_shown_and_found(browser: Browser, tmp_path: Path) -> None:
    pack_handler(tmp_path / "store", name="m")
    config = write_config(tmp_path, disable_token_authorization="true")
    with Builtin(config, tmp_path / "store", tmp_path / "run") as running:
        for number in range(200):
            running.management.register("m-1.0.mar", model_name=f"model-{number:03}", initial_workers=0)
        browser.goto(f"{running.server.management}/console")
        browser.wait("table.models tbody tr:nth-child(200)")
        browser.fill("input[type=search]", "model-123")
        browser.wait("table.models tbody tr:only-child")
    browser.goto("about:blank")
