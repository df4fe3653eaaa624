"""What of an object passes through the client, compared with a map that tells of every byte what becomes of it."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.formats.frame import make_frame
from reshard.planning.limits import Limits
from reshard.planning.outputs.streamed import CopiedRange, Streamed, split_evenly, whole_copies
from reshard.tensor import ByteRange


@st.composite
def frames(draw):
    """Objects as .ckpt lays them out: tensors of several extents, with known bytes before some of them."""
    pieces = []
    for slot in range(draw(st.integers(0, 4))):
        itemsize, reached = draw(st.sampled_from([1, 2, 4])), 0
        for _ in range(draw(st.integers(1, 3))):
            count = draw(st.integers(1, 9))
            pieces.append((slot, bytes(draw(st.sampled_from([0, 0, 3, 7]))), reached, count, itemsize))
            reached += count
    return make_frame(pieces, bytes(draw(st.sampled_from([0, 5]))))


@st.composite
def streams(draw):
    """A frame, some of whose elements are copied: ranges of whole elements, some of them next to each other."""
    frame = draw(frames())
    copied: list[CopiedRange] = []
    for extent in frame.extents:
        if draw(st.booleans()):
            a = draw(st.integers(0, extent.element_count - 1))
            b = draw(st.integers(a + 1, extent.element_count))
            start, stop = extent.start + a * extent.itemsize, extent.start + b * extent.itemsize
            is_joined = copied and copied[-1].stop == start and draw(st.booleans())
            copied.append(CopiedRange(copied.pop().start if is_joined else start, stop, draw(st.integers(0, 1)), 7))
    return Streamed(frame, tuple(copied))


def streamed_bytes(streamed):
    """Every byte of the object that is streamed, in order: its place is its position here."""
    gone = {byte for item in streamed.copied for byte in range(item.start, item.stop)}
    return [byte for byte in range(streamed.frame.nbytes) if byte not in gone]


def places(streamed):
    """Streamed bytes before every byte of the object, and before its end."""
    kept = set(streamed_bytes(streamed))
    return list(accumulate((byte in kept for byte in range(streamed.frame.nbytes)), initial=0))


def copied_before(streamed, byte):
    return sum(item.stop <= byte for item in streamed.copied)


def elements(frame):
    """The byte of every element of every tensor."""
    return {
        (extent.slot, extent.first_element + i): extent.start + i * extent.itemsize
        for extent in frame.extents
        for i in range(extent.element_count)
    }


@given(streams())
def test_places_count_what_is_streamed(streamed):
    frame, place = streamed.frame, places(streamed)
    assert streamed.nbytes == len(streamed_bytes(streamed))
    assert list(streamed.seams) == [place[item.start] for item in streamed.copied]
    for (slot, element), byte in elements(frame).items():
        assert streamed.address(slot, element) == place[byte]
        itemsize = next(each.itemsize for each in frame.extents if each.slot == slot)
        assert streamed.end_of(slot, element + 1) == place[byte + itemsize]


@given(streams(), st.data())
def test_ranges_are_the_bytes_at_their_places(streamed, data):
    bytes_of = streamed_bytes(streamed)
    start = data.draw(st.integers(0, len(bytes_of)))
    stop = data.draw(st.integers(start, len(bytes_of)))
    found = list(streamed.ranges(start, stop))
    assert [byte for _, span in found for byte in range(span.start, span.stop)] == bytes_of[start:stop]
    assert [segment for segment, _ in found] == [copied_before(streamed, span.start) for _, span in found]
    assert all(span.nbytes for _, span in found)
    # One for each stretch, so that a step never has two parts with the same number of copied ranges before them.
    assert len({segment for segment, _ in found}) == len(found)


@given(streams(), st.data())
def test_spans_are_the_elements_that_are_streamed(streamed, data):
    frame, kept = streamed.frame, set(streamed_bytes(streamed))
    for slot in sorted({extent.slot for extent in frame.extents}):
        where = {element: byte for (each, element), byte in elements(frame).items() if each == slot}
        itemsize = next(extent.itemsize for extent in frame.extents if extent.slot == slot)
        first = data.draw(st.integers(0, len(where)))
        stop = data.draw(st.integers(first, len(where)))
        found = list(streamed.spans(slot, first, stop))
        assert [e for a, b, *_ in found for e in range(a, b)] == [e for e in range(first, stop) if where[e] in kept]
        for a, b, segment, origin in found:
            assert [where[e] for e in range(a, b)] == [origin + e * itemsize for e in range(a, b)]
            assert segment == copied_before(streamed, where[a])


@given(streams(), st.data())
def test_parts_may_end_where_it_is_aligned(streamed, data):
    """The first place from which all parts since the start, and the one that begins there, are long enough."""
    edges = [0, *streamed.seams]
    shortest = min((b - a for a, b in pairwise(edges) if b > a), default=30)
    least = data.draw(st.integers(1, shortest))

    def following(end):
        return next((seam - end for seam in edges if seam > end), least)

    start = data.draw(st.sampled_from([end for end in range(streamed.nbytes + 1) if following(end) >= least]))
    at = data.draw(st.integers(start, streamed.nbytes))

    def is_fine(end):
        before = max(edge for edge in [start, *edges] if edge <= end)
        return (end == before or end - before >= least) and following(end) >= least

    found = streamed.aligned(start, at, least)
    assert found == next(end for end in range(at, at + streamed.nbytes + 2 * least) if is_fine(end))


def test_nothing_copied_is_the_frame_itself():
    frame = make_frame([(0, b"head", 0, 8, 2), (1, b"lead", 0, 3, 1)], b"tail")
    streamed = Streamed(frame)
    assert (streamed.nbytes, streamed.seams) == (frame.nbytes, ())
    assert list(streamed.ranges(2, 9)) == [(0, ByteRange(2, 9))]
    assert list(streamed.spans(0, 2, 5)) == [(a, b, 0, origin) for a, b, origin in frame.spans(0, 2, 5)]


@given(st.integers(1, 2000), st.integers(1, 300), st.integers(0, 50))
def test_split_evenly(nbytes, most, first):
    parts = split_evenly(CopiedRange(10, 10 + nbytes, 3, first), most)
    assert [part.start for part in parts] == [10, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == 10 + nbytes
    assert all(part.object == 3 and part.first - first == part.start - 10 for part in parts)
    assert len(parts) == -(-nbytes // most)
    lengths = [part.nbytes for part in parts]
    assert max(lengths) <= most
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [(1, [1]), (100, [100]), (101, [50, 51]), (250, [83, 83, 84]), (4000, [1000] * 4)],
)
def test_whole_copies(nbytes, expected):
    limits = Limits(copy_bytes=100, min_part_bytes=10, max_part_count=4)
    assert [span.nbytes for span in whole_copies(nbytes, limits)] == expected


def test_halves_of_what_is_too_long_for_one_copy_are_parts():
    limits = Limits(copy_bytes=1, min_part_bytes=10)
    assert all(span.nbytes >= 10 for nbytes in range(21, 99) for span in whole_copies(nbytes, limits))
    assert all(
        part.nbytes >= 10
        for nbytes in range(10, 99)
        for part in split_evenly(CopiedRange(0, nbytes, 0, 0), limits.most_copied_bytes)
    )
