"""CRC-32C of parts joined is that of the whole, and is the one that others compute."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.storage.checksums import crc_of, joined_crc


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
    assert crc_of(body) == digest
    assert crc_of(bytearray(body)) == digest
    assert crc_of(memoryview(body)) == digest


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_parts_joined_are_the_whole(body, cuts):
    edges = sorted({0, len(body), *(min(cut, len(body)) for cut in cuts)})
    parts = [body[a:b] for a, b in itertools.pairwise(edges)]
    assert joined_crc((crc_of(part), len(part)) for part in parts) == crc_of(body)


@given(st.binary(min_size=1, max_size=100), st.binary(min_size=1, max_size=100))
def test_the_order_of_parts_counts(first, second):
    joined = joined_crc([(crc_of(first), len(first)), (crc_of(second), len(second))])
    assert joined == crc_of(first + second)


def test_no_parts():
    assert joined_crc([]) == 0
