"""CRC-32C of parts joined is that of the whole, and is the one that others compute."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.engine.digest import combined_crc32c, crc32c


@pytest.mark.parametrize(
    ("body", "digest"),
    [
        (b"", 0x00000000),
        (b"a", 0xC1D04330),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_known_digests(body, digest):
    """Source: RFC 3720, appendix B.4, and the check value of CRC-32C."""
    assert crc32c(body) == digest
    assert crc32c(bytearray(body)) == digest
    assert crc32c(memoryview(body)) == digest


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_parts_joined_are_the_whole(body, cuts):
    edges = sorted({0, len(body), *(min(cut, len(body)) for cut in cuts)})
    parts = [body[a:b] for a, b in itertools.pairwise(edges)]
    assert combined_crc32c((crc32c(part), len(part)) for part in parts) == crc32c(body)


@given(st.binary(min_size=1, max_size=100), st.binary(min_size=1, max_size=100))
def test_the_order_of_parts_counts(first, second):
    joined = combined_crc32c([(crc32c(first), len(first)), (crc32c(second), len(second))])
    assert joined == crc32c(first + second)


def test_no_parts():
    assert combined_crc32c([]) == 0
