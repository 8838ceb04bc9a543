"""torchmar.byte_sizes reads sizes in bytes, with their units."""

from __future__ import annotations

import pytest

from torchmar import byte_sizes


def test_a_size_is_a_number_of_bytes_or_has_a_unit() -> None:
    sizes = {"512": 512, "8GiB": 8 << 30, "2GB": 2 * 10**9, " 1.5 mib": 3 << 19, "4 GiB": 4 << 30, "1TiB": 1 << 40}
    assert {text: byte_sizes.parse(text) for text in sizes} == sizes
    assert byte_sizes.parse("80kB", unit_required=True) == 80_000


@pytest.mark.parametrize(
    "text", ["", "much", "0", "0GiB", "0.1B", "-1GiB", "80GiBs", "8 G", "1_000", "GiB", "nan", "9" * 400]
)
def test_what_is_no_size_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="no size; write a number and its unit"):
        byte_sizes.parse(text)


def test_a_number_without_a_unit_is_rejected_where_it_might_be_meant_in_another() -> None:
    with pytest.raises(ValueError, match="no size; write a number and its unit"):
        byte_sizes.parse("80", unit_required=True)
