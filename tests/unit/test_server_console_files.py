"""torchmar.server.api.console.files: what the console adds to the wheel."""

from __future__ import annotations

import zlib

from tests.support.paths import ROOT
from torchmar.server.api.console.files import FOLDER, INDEX, LINK_ONLY, load

MOST = 200_000  # bytes


def test_the_console_adds_at_most_200_kb_to_the_wheel() -> None:
    package = ROOT / "torchmar"
    folders = (FOLDER, package / "server" / "api" / "console", package / "remote_console")
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(len(zlib.compress(file.read_bytes())) for file in files) < MOST


def test_the_page_of_a_link_differs_in_its_sign_in_only() -> None:
    page, link = load()[INDEX].body, load()[LINK_ONLY].body
    assert link.replace(b' data-sign-in="link"', b"") == page and link != page
