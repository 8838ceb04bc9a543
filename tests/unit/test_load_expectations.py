"""The expected answers of a measurement."""

from __future__ import annotations

import pytest

from torchmar.exchange import Response
from torchmar.load.expectations import of_reference


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        (b'{"p": 0.75}', b'{"p": 0.7504}', True),
        (b'{"p": 0.75}', b'{"p": 0.76}', False),
        (b'{"p": 0.0002, "class": 281}', b'{"p": 0.0009, "class": 281}', False),
        (b"[1e-5, 2e-5]", b"[2e-5, 1e-5]", False),
        (b"[1e-5, 2e-5]", b"[1e-5, 2.00001e-5]", True),
        (b"[3, 4]", b"[3, 5]", False),
        (b"text", b"other", False),
    ],
)
def test_answers_are_compared_in_proportion_to_their_numbers(reference: bytes, answer: bytes, right: bool) -> None:
    """An answer may have small numbers alone, all of which an absolute tolerance would allow to be others."""
    first = Response(200, reference)
    difference = of_reference(lambda body: body, first, first)
    assert difference is not None
    assert (difference(200, answer) == "") == right
