"""torchmar.server.api.bodies splits bodies as TorchServe does, and rejects parts that TorchServe loses silently."""

from __future__ import annotations

import os

import pytest

from torchmar.server.api.bodies import inputs
from torchmar.server.api_error import ApiError
from torchmar.server.workers.jobs import Part

FORM = "application/x-www-form-urlencoded"
PARTS = "multipart/form-data; boundary=x"


def part(disposition: str, content: bytes, *headers: str) -> bytes:
    lines = [f"Content-Disposition: form-data; {disposition}", *headers]
    return b"--x\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + content + b"\r\n"


def fields(body: bytes, content_type: str) -> dict[str, bytes]:
    return {part.name: part.content for part in inputs(body, content_type)}


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("", ""),
        ("application/json", "application/json"),
        ("application/json; charset=utf-8", "application/json"),
        ("application/json ; charset=utf-8", "application/json"),
        ("Application/JSON", "Application/JSON"),
        ("image/png", "image/png"),
        ("multipart/mixed; boundary=x", "multipart/mixed"),
        ("multipart/form-data", "multipart/form-data"),
        ("garbage", "garbage"),
    ],
)
def test_a_body_that_is_no_form_is_passed_as_body(content_type: str, kind: str) -> None:
    assert inputs(b'{"a": 1', content_type) == [Part("body", kind, b'{"a": 1')]


def test_nothing_is_a_body_too() -> None:
    assert inputs(b"", "") == [Part("body", "", b"")]


@pytest.mark.parametrize(
    ("body", "row"),
    [
        (b"a=1&b=x+y%21", {"a": b"1", "b": b"x y!"}),
        (b"a=%ff%C3%A9", {"a": b"\xff\xc3\xa9"}),
        (b"caf%C3%A9=1", {"café": b"1"}),
        (b"a=&b", {"a": b""}),
        (b"a=1;b=2", {"a": b"1;b=2"}),
        (b"a=1&&b=2", {"a": b"1", "b": b"2"}),
        (b"a=%zz", {"a": b"%zz"}),
        (b"a=b=c\r\n", {"a": b"b=c"}),
        (b'{"a": 1}', {}),
        (b"", {}),
    ],
)
def test_a_form_is_its_fields(body: bytes, row: dict[str, bytes]) -> None:
    assert fields(body, FORM) == row
    assert fields(body, "Application/X-WWW-Form-Urlencoded; charset=latin-1") == row


def test_files_have_a_content_type_and_fields_have_none() -> None:
    body = (
        part('name="picture"; filename="a.png"', b"\x89PNG", "Content-Type: image/png")
        + part('name="table"; filename="a.json"', b"{}", "content-type: application/json; charset=utf-8")
        + part('name="unknown"; filename="a"', b"?")
        + part('name="empty"; filename=""', b"")
        + part('name="text"', b"hello", "Content-Type: text/plain")
        + part("name=bare", "é".encode())
        + part('name="é"', b"")
        + b"--x--\r\n"
    )
    assert inputs(body, PARTS) == [
        Part("picture", "image/png", b"\x89PNG"),
        Part("table", "application/json", b"{}"),
        Part("unknown", "application/octet-stream", b"?"),
        Part("empty", "application/octet-stream", b""),
        Part("text", "", b"hello"),
        Part("bare", "", "é".encode()),
        Part("é", "", b""),
    ]


@pytest.mark.parametrize("content_type", [PARTS, 'Multipart/Form-Data; charset=utf-8; boundary="x"'])
def test_the_boundary_is_found_in_any_notation(content_type: str) -> None:
    assert fields(part('name="a"', b"1") + part('name="b"', b"2") + b"--x--", content_type) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"a=1&b=2&a=3", FORM),
        (part('name="a"', b"1") + part('name="a"; filename="x"', b"2") + b"--x--", PARTS),
    ],
    ids=["urlencoded", "multipart"],
)
def test_two_parts_of_one_name_are_rejected(body: bytes, content_type: str) -> None:
    with pytest.raises(ApiError, match="The form has 2 parts called 'a', of which a handler would see one") as caught:
        inputs(body, content_type)
    assert caught.value.status == 400


def test_a_form_may_be_empty() -> None:
    assert inputs(b"--x--\r\n", PARTS) == []


def test_content_that_looks_like_a_boundary_is_content() -> None:
    content = b"\r\n--\r\n-\r\n--X\r\n" + os.urandom(1 << 20).replace(b"\r\n--x", b"") + b"\r\n--"
    assert fields(part('name="a"; filename="b"', content) + b"--x--\r\n", PARTS) == {"a": content}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"--x\r\n",
        part('name="a"', b"cut off")[:-6],
        part('name="a"', b"no end"),
        part('filename="nameless"', b"") + b"--x--\r\n",
        b"--x\r\nContent-Type: text/plain\r\n\r\nnameless\r\n--x--\r\n",
        b"--x\r\nno header\r\n\r\n\r\n--x--\r\n",
        b"--x\r\n" + b"X-Many: 1\r\n" * 100 + b"\r\n\r\n--x--\r\n",
        b"--x\r\nX-Long: " + b"1" * 100_000 + b"\r\n\r\n\r\n--x--\r\n",
    ],
)
def test_a_broken_form_is_rejected(body: bytes) -> None:
    with pytest.raises(ApiError, match=r"^The form cannot be read: .*\.$") as caught:
        inputs(body, PARTS)
    assert (caught.value.status, caught.value.type) == (400, "BadRequestException")


@pytest.mark.parametrize("boundary", ["", '""', "é" * 200])
def test_an_odd_boundary_is_rejected(boundary: str) -> None:
    with pytest.raises(ApiError, match="The form cannot be read"):
        inputs(b"--x--\r\n", f"multipart/form-data; boundary={boundary}")


def test_a_form_of_very_many_fields_is_rejected() -> None:
    assert len(inputs(b"&".join(b"%d=1" % number for number in range(1000)), FORM)) == 1000
    with pytest.raises(ApiError, match="more than 1000 fields"):
        inputs(b"&" * 1_000_000, FORM)
    assert len(inputs(b"".join(part(f'name="{number}"', b"") for number in range(1000)) + b"--x--", PARTS)) == 1000
    with pytest.raises(ApiError, match="more than 1000 fields"):
        inputs(part('name="a"', b"") * 1001 + b"--x--", PARTS)
