"""torchmar.server.http.content_coding decodes gzip and deflate within a limit, however the body is cut into pieces."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchmar.server.api_error import ApiError
from torchmar.server.http.content_coding import decoder

LIMIT = 100_000


def raw(content: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(content) + compressor.flush()


ENCODED = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, " Deflate ": raw}


def decoded(body: bytes, coding: str, size: int = 1 << 30, limit: int = LIMIT) -> bytes:
    body_decoder = decoder(coding, limit)
    assert body_decoder is not None
    parts = [part for start in range(0, len(body), size) for part in body_decoder.decode(body[start : start + size])]
    body_decoder.finish()
    return b"".join(parts)


@given(content=st.binary(max_size=300), coding=st.sampled_from(list(ENCODED)), size=st.integers(1, 400))
def test_a_body_is_decoded_in_pieces_of_any_size(content: bytes, coding: str, size: int) -> None:
    assert decoded(ENCODED[coding](content), coding, size) == content


def test_gzip_may_have_several_members_but_not_thousands() -> None:
    assert decoded(gzip.compress(b"a") + gzip.compress(b"b"), "gzip") == b"ab"
    with pytest.raises(ApiError, match="bytes follow its end"):
        decoded(gzip.compress(b"") * 1000, "gzip")


@pytest.mark.parametrize("coding", list(ENCODED))
def test_a_bomb_is_decoded_no_further_than_the_limit(coding: str) -> None:
    assert len(decoded(ENCODED[coding](bytes(LIMIT)), coding)) == LIMIT
    with pytest.raises(ApiError, match="larger than 100000 bytes") as caught:
        decoded(ENCODED[coding](bytes(5_000_000)), coding)
    assert caught.value.status == 413


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize(
    "body",
    [b"\x1f", b"plain text", gzip.compress(b"x" * 99)[:-9], zlib.compress(b"x") + b"more"],
    ids=["a byte", "a text", "truncated", "more behind it"],  # gzip has the time in it, which would be part of the id
)
def test_content_that_is_not_of_the_coding_is_rejected(coding: str, body: bytes) -> None:
    with pytest.raises(ApiError, match=f"The body is not {coding}, its Content-Encoding") as caught:
        decoded(body, coding)
    assert caught.value.status == 400


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "x" * 500])
def test_other_codings_are_not_supported(coding: str) -> None:
    with pytest.raises(ApiError) as caught:
        decoder(coding, LIMIT)
    assert (caught.value.status, caught.value.headers) == (415, {"Accept-Encoding": "gzip, deflate"})


@pytest.mark.parametrize("coding", ["", "identity", " Identity "])
def test_a_body_without_a_coding_needs_no_decoder(coding: str) -> None:
    assert decoder(coding, LIMIT) is None
