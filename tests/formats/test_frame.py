"""Frames: every question is answered as one would who had written the object down byte for byte."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.formats.frame import Extent, Frame, make_frame


class Written:
    """The object as a list of its bytes: a known byte, or (slot, element, byte of the element)."""

    def __init__(self, pieces, tail):
        self.bytes = []
        for slot, lead, first, count, itemsize in pieces:
            self.bytes += lead
            self.bytes += [(slot, first + i, b) for i in range(count) for b in range(itemsize)]
        self.bytes += tail

    def byte_of(self, slot, element, byte=0):
        return self.bytes.index((slot, element, byte))


@st.composite
def objects(draw):
    """Pieces of some tensors, in order, with known bytes between them; and a tail."""
    pieces = []
    for slot in draw(st.permutations(range(draw(st.integers(0, 4))))):
        itemsize, first = draw(st.integers(1, 4)), 0
        for _ in range(draw(st.integers(1, 4))):
            count = draw(st.integers(0, 5))
            pieces.append((slot, draw(st.binary(max_size=3)), first, count, itemsize))
            first += count
    return pieces, draw(st.binary(max_size=3))


def sizes(pieces):
    """Element count and itemsize of each tensor that has elements."""
    found = {}
    for slot, _, first, count, itemsize in pieces:
        if count:
            found[slot] = (first + count, itemsize)
    return found


@given(objects())
def test_literals_and_extents_are_the_object(made):
    frame, written = make_frame(*made), Written(*made)
    assert frame.nbytes == len(written.bytes)
    again = [None] * frame.nbytes
    for place, data in frame.literals:
        assert data
        assert again[place : place + len(data)] == [None] * len(data)
        again[place : place + len(data)] = data
    for extent in frame.extents:
        assert extent.element_count > 0
        elements = range(extent.first_element, extent.first_element + extent.element_count)
        again[extent.start : extent.stop] = [(extent.slot, i, b) for i in elements for b in range(extent.itemsize)]
    assert again == written.bytes
    places = [place for place, _ in frame.literals]
    starts = [extent.start for extent in frame.extents]
    assert (places, starts) == (sorted(set(places)), sorted(set(starts)))


@given(objects())
def test_literals_that_touch_are_one(made):
    for (place, data), (following, _) in itertools.pairwise(make_frame(*made).literals):
        assert place + len(data) < following


@given(objects())
def test_addresses_and_ends(made):
    frame, written = make_frame(*made), Written(*made)
    for slot, (count, itemsize) in sizes(made[0]).items():
        for element in range(count):
            start = written.byte_of(slot, element)
            assert frame.address(slot, element) == start
            assert frame.end_of(slot, element + 1) == start + itemsize
        assert frame.address(slot, count) == frame.end_of(slot, count)


@given(st.data(), objects())
def test_spans_cut_elements_at_the_extents(data, made):
    frame, written = make_frame(*made), Written(*made)
    for slot, (count, itemsize) in sizes(made[0]).items():
        first = data.draw(st.integers(0, count))
        stop = data.draw(st.integers(first, count))
        seen = []
        for a, b, origin in frame.spans(slot, first, stop):
            assert a < b
            seen += range(a, b)
            assert [origin + i * itemsize for i in range(a, b)] == [written.byte_of(slot, i) for i in range(a, b)]
        assert seen == list(range(first, stop))


@given(st.data(), objects())
def test_literals_of_a_range(data, made):
    frame, written = make_frame(*made), Written(*made)
    start = data.draw(st.integers(0, frame.nbytes))
    stop = data.draw(st.integers(start, frame.nbytes))
    again = {}
    for place, known in frame.literals_in(start, stop):
        assert len(known)
        again |= {place + i: byte for i, byte in enumerate(known)}
    assert again == {i: b for i, b in enumerate(written.bytes[start:stop], start) if isinstance(b, int)}


@given(objects())
def test_whose_a_byte_is(made):
    frame, written = make_frame(*made), Written(*made)
    for place, byte in enumerate(written.bytes):
        if isinstance(byte, int):
            assert frame.place_of(place) is None
        else:
            slot, element, at = byte
            assert frame.place_of(place) == (slot, element * sizes(made[0])[slot][1] + at)
    assert frame.place_of(frame.nbytes) is None


def test_nothing_at_all():
    assert make_frame(()) == Frame((), (), 0)
    assert make_frame((), b"x") == Frame(((0, b"x"),), (), 1)
    assert list(make_frame(()).literals_in(0, 0)) == []


def test_a_tensor_without_elements_leaves_its_lead_only():
    frame = make_frame([(0, b"ab", 0, 0, 4), (1, b"c", 0, 2, 4)], b"d")
    assert frame.literals == ((0, b"abc"), (11, b"d"))
    assert frame.extents == (Extent(1, 0, 2, 4, 3),)
    with pytest.raises(KeyError):
        frame.address(0, 0)
