"""A page in Chromium, driven by lines of JSON: ``["goto", "http://..."]`` in, ``{"value": ...}`` out.

It runs in an environment of its own; `tests.support.browser` is the other end.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from typing import Any

from playwright.sync_api import BrowserContext, Error, Page, sync_playwright

_FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]


class Driver:
    """The commands on one page; what it requested and logged is kept."""

    def __init__(self, context: BrowserContext) -> None:
        self._context = context
        self._page: Page = context.new_page()
        self._requests: list[str] = []
        self._problems: list[str] = []
        context.on("request", lambda request: self._requests.append(request.url))
        self._page.on("console", lambda message: self._log(message.type, message.text))
        self._page.on("pageerror", lambda error: self._problems.append(str(error)))
        self._page.on("dialog", lambda dialog: (self._problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def _log(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self._problems.append(f"{kind}: {text}")

    def goto(self, url: str) -> None:
        self._page.goto(url)

    def reload(self) -> None:
        self._page.reload()

    def wait(self, selector: str, state: str = "visible", seconds: float = 20) -> None:
        self._page.locator(selector).first.wait_for(state=state, timeout=seconds * 1000)  # type: ignore[arg-type]

    def click(self, selector: str) -> None:
        self._page.locator(selector).first.click()

    def fill(self, selector: str, text: str) -> None:
        self._page.locator(selector).first.fill(text)

    def select(self, selector: str, value: str) -> None:
        self._page.locator(selector).first.select_option(value)

    def upload(self, selector: str, path: str) -> None:
        self._page.locator(selector).first.set_input_files(path)

    def press(self, key: str) -> None:
        self._page.keyboard.press(key)

    def draw(self, selector: str, points: list[list[float]]) -> None:
        box = self._page.locator(selector).bounding_box()
        assert box
        mouse = self._page.mouse
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        mouse.move(*places[0])
        mouse.down()
        for place in places[1:]:
            mouse.move(*place, steps=5)
        mouse.up()

    def text(self, selector: str) -> str:
        return str(self._page.locator(selector).first.inner_text())

    def count(self, selector: str) -> int:
        return self._page.locator(selector).count()

    def evaluate(self, script: str) -> Any:
        return self._page.evaluate(script)

    def url(self) -> str:
        return self._page.url

    def size(self, width: int, height: int) -> None:
        self._page.set_viewport_size({"width": width, "height": height})

    def theme(self, name: str) -> None:
        self._page.emulate_media(color_scheme=name)  # type: ignore[arg-type]

    def screenshot(self, path: str, whole: bool = False) -> None:
        self._page.screenshot(path=path, full_page=whole)

    def cookies(self) -> list[dict[str, Any]]:
        return [dict(cookie) for cookie in self._context.cookies()]

    def clear_cookies(self) -> None:
        self._context.clear_cookies()

    def requests(self) -> list[str]:
        return self._requests

    def problems(self) -> list[str]:
        return self._problems

    def forget(self) -> None:
        self._requests.clear()
        self._problems.clear()

    def violations(self) -> list[str]:
        """Return what axe-core finds wrong, by the rules of WCAG 2.1 A and AA."""
        script = (resources.files("axe_playwright_python") / "axe.min.js").read_text()
        self._page.evaluate(script)
        found = self._page.evaluate(
            "() => axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})"
        )["violations"]
        return [f"{one['id']}: {node['html'][:200]} {node['failureSummary']}" for one in found for node in one["nodes"]]


def main() -> None:
    """Answer the lines of the standard input until it ends."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=sys.argv[1], args=_FLAGS)
        context = browser.new_context(viewport={"width": 1400, "height": 900}, reduced_motion="reduce")
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        driver = Driver(context)
        print(json.dumps({"value": browser.version}), flush=True)
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            try:
                answer = {"value": getattr(driver, name)(*arguments)}
            except (Error, AssertionError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
        browser.close()


main()
