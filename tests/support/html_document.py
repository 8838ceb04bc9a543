"""The elements of an HTML document."""

from __future__ import annotations

from html.parser import HTMLParser

_BARE = {"meta", "br", "hr", "img", "link", "input"}


class Document(HTMLParser):
    """The elements of a document; parsing fails if they are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _BARE:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self._open[-1] if self._open else "", data))
