"""Take the pictures of the console for the documentation: docs/console-*.png.

A server with three models gets requests for a minute, a worker is killed, and Chromium takes the screenshots. It needs
Chromium, and the trained models: scripts/run trains them.

    python scripts/console_pictures.py
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.browser import Browser  # noqa: E402
from torchmar import archive, properties  # noqa: E402
from torchmar.cli.console import link  # noqa: E402
from torchmar.engines.addresses import free_addresses  # noqa: E402
from torchmar.engines.builtin import Builtin  # noqa: E402
from torchmar.errors import TorchmarError  # noqa: E402
from torchmar.inference import InferenceClient  # noqa: E402

MODELS = ("digits", "topics", "tumours")
SECONDS = 60
WIDTH, HEIGHT = 1200, 760
DEPLOYMENT = """\
models:
  digits:
    drain_seconds: 5
    versions:
      "1.0":
        min_workers: {workers}
        batch_size: 8
  topics:
    versions:
      "1.0":
        min_workers: 1
"""


def main() -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in MODELS:
            archive.build(ROOT / "archives" / model, folder / "store")
        config = folder / "config.properties"
        config.write_text(properties.show({**free_addresses(), "enable_model_api": "true"}))
        with Builtin(config, folder / "store", folder / "run") as running:
            for model in MODELS:
                running.load(folder / "store" / f"{model}-1.0.mar")
            running.management.scale("digits", min_worker=2)
            stop = threading.Event()
            senders = [threading.Thread(target=_send, args=(running, stop)) for _ in range(2)]
            for sender in senders:
                sender.start()
            time.sleep(SECONDS - 5)
            os.kill(running.management.describe("digits")[0].workers[0].pid, signal.SIGKILL)
            time.sleep(5)
            with Browser() as browser:
                _take(browser, link(running.server), str(running.server.management))
            stop.set()
            for sender in senders:
                sender.join()


def _send(running: Builtin, stop: threading.Event) -> None:
    samples = sorted((ROOT / "archives" / "digits" / "samples").glob("*.png"))
    with InferenceClient(running.server) as client:
        while not stop.wait(random.expovariate(30)):
            try:
                client.predict("digits", random.choice(samples))
                if random.random() < 0.2:
                    client.predict("topics", "The coroutine runs until the event loop is closed.")
            except TorchmarError:
                continue  # from the killed worker


def _take(browser: Browser, url: str, address: str) -> None:
    browser.size(WIDTH, HEIGHT)
    browser.theme("light")
    browser.goto(url)
    browser.wait("table.models tbody tr")
    time.sleep(2)
    browser.screenshot(ROOT / "docs" / "console-models.png")
    browser.goto(f"{address}/console#/live/digits")
    browser.wait(".u-over")
    browser.click(".segments >> text=1 min")
    time.sleep(2)
    browser.screenshot(ROOT / "docs" / "console-live.png")
    browser.goto(f"{address}/console#/try/digits")
    browser.wait(".sample-image.selected")
    browser.click("button.sample-image:has-text('seven')")
    browser.click("text=Run")
    browser.wait(".answer img.picture")
    time.sleep(1)
    browser.evaluate("scrollTo(0, 0)")
    browser.screenshot(ROOT / "docs" / "console-try.png")
    browser.size(WIDTH, 900)
    browser.goto(f"{address}/console#/rollout")
    for workers, selector in ((3, "text=Nothing to do"), (1, ".plan-steps")):
        browser.wait(".deployment textarea:not([disabled])")
        browser.fill("textarea", DEPLOYMENT.format(workers=workers))
        browser.click("button:has-text('Show the difference')")
        browser.wait(".plan-steps")
        if workers == 3:
            browser.click("button:has-text('Apply')")
            browser.click("dialog button:has-text('Apply')")
            browser.wait(".operation .pill-good")
        browser.wait(selector)
    browser.screenshot(ROOT / "docs" / "console-rollout.png")


if __name__ == "__main__":
    main()
