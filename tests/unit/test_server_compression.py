"""torchmar.server.http.compression encodes answers as clients accept them."""

from __future__ import annotations

import gzip
import zlib

import pytest

from torchmar.server.http import compression


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("", ""),
        ("identity", ""),
        ("br", ""),
        ("*", ""),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "deflate"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q=0", ""),
        ("gzip;q=x", ""),
        ("gzip;q=nan", ""),
        (",;,", ""),
    ],
)
def test_the_encoding_is_the_one_that_the_client_prefers(header: str, encoding: str) -> None:
    assert compression.accepted(header) == encoding


def test_bodies_can_be_read_again() -> None:
    body = b"a body" * 1000
    assert gzip.decompress(compression.encode(body, "gzip")) == body
    assert zlib.decompress(compression.encode(body, "deflate")) == body
    assert len(compression.encode(body, "gzip")) < 200
