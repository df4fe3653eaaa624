"""Where a group may be cut: every output has a part's worth, or nothing."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.formats.frame import make_frame
from reshard.planning.limits import Limits
from reshard.planning.outputs.output import Output, TargetTensor
from reshard.planning.outputs.streamed import CopiedRange, Streamed
from reshard.planning.outputs.walk import Slice, WalkItem, walk
from reshard.planning.steps.cuts import find_cuts
from reshard.planning.steps.draft import Cut
from reshard.tensor import Box, DType, TensorSpec


def rows(tensor, *shares):
    """A tensor of a walk; each share is ``(member, rows, bytes a row)``, none for an output that has none of it."""
    made = tuple(Slice(member, tensor, Box((0,), (n * m,)), n, m) for member, n, m in shares)
    return WalkItem(tensor, 1, max(n for _, n, _ in shares), made)


def frames_of(items, heads, leads=None, tails=None):
    """An object for each output: ``heads`` bytes first, ``leads`` before every other tensor, ``tails`` at the end."""
    made = []
    for member, head in enumerate(heads):
        held = [(item, share) for item in items for share in item.slices if share.member == member]
        lead = bytes((leads or [0] * len(heads))[member])
        pieces = [
            (item.tensor, bytes(head) if not i else lead, 0, share.row_count * share.row_elements, 1)
            for i, (item, share) in enumerate(held)
        ]
        tail = bytes((tails or [0] * len(heads))[member])
        made.append(make_frame(pieces, tail if pieces else bytes(head) + tail))
    return made


def streams(frames):
    return [Streamed(frame) for frame in frames]


def pieces(items, frames, cuts):
    """Bytes of every output between the cuts, each with what its object puts before them."""
    edges = [(0, 0), *((cut.item, cut.row) for cut in cuts), (len(items), 0)]
    found = []
    for number, (begin, end) in enumerate(itertools.pairwise(edges), start=1):
        held = [0] * len(frames)
        for index, item in enumerate(items):
            low = begin[1] if index == begin[0] else (0 if index > begin[0] else item.row_count)
            high = end[1] if index == end[0] else (item.row_count if index < end[0] else 0)
            for share in item.slices:
                if low < high:
                    first, last = item.element_of(share, low), item.element_of(share, high)
                    held[share.member] += last - first
                    if first == 0 < last:
                        held[share.member] += lead_of(frames[share.member], share.slot)
        if number == len(edges) - 1:
            tails = [frame.nbytes - (frame.extents[-1].stop if frame.extents else 0) for frame in frames]
            held = [a + b for a, b in zip(held, tails, strict=True)]
        found.append(held)
    return found


def lead_of(frame, slot):
    """Bytes that stand right before a tensor."""
    index = next(i for i, extent in enumerate(frame.extents) if extent.slot == slot)
    return frame.extents[index].start - (frame.extents[index - 1].stop if index else 0)


@pytest.mark.parametrize(
    ("items", "headers", "part_bytes", "least", "expected"),
    [
        # One output: as soon as there is enough.
        ([rows(0, (0, 10, 10))], [0], 30, 10, [[30], [30], [30], [10]]),
        ([rows(0, (0, 10, 10))], [5], 30, 10, [[35], [30], [30], [10]]),
        ([rows(0, (0, 10, 10))], [0], 101, 10, [[100]]),
        ([rows(0, (0, 10, 10))], [0], 100, 10, [[100]]),  # a cut at the very end is none
        ([rows(0, (0, 10, 10))], [100], 50, 10, [[110], [50], [40]]),  # a header is not cut off from what follows
        ([rows(0, (0, 2, 10)), rows(1, (0, 3, 7))], [0], 25, 5, [[27], [14]]),  # over the border of two tensors
        # Several outputs: when the last has enough.
        ([rows(0, (0, 6, 10), (1, 6, 5))], [0, 0], 20, 10, [[40, 20], [20, 10]]),
        ([rows(0, (0, 6, 10), (1, 3, 10))], [0, 0], 20, 10, [[40, 20], [20, 10]]),  # rows of the largest share
        ([rows(0, (0, 6, 10), (1, 1, 10))], [0, 0], 20, 10, [[60, 10]]),
        # An output that does not take part: nothing of it, or a smallest part.
        ([rows(0, (0, 6, 10))], [0, 0], 20, 10, [[20, 0], [20, 0], [20, 0]]),
        ([rows(0, (0, 6, 10))], [0, 9], 20, 10, [[20, 0], [20, 0], [20, 9]]),  # of known bytes alone: at the end
        ([rows(0, (1, 1, 9)), rows(1, (0, 6, 10))], [0, 0], 20, 10, [[60, 9]]),
        ([rows(0, (1, 1, 10)), rows(1, (0, 6, 10))], [0, 0], 20, 10, [[20, 10], [20, 0], [20, 0]]),
        ([rows(0, (0, 6, 10)), rows(1, (1, 4, 10))], [0, 9], 20, 10, [[20, 0], [20, 0], [20, 0], [0, 29], [0, 20]]),
    ],
)
def test_cuts(items, headers, part_bytes, least, expected):
    frames = frames_of(items, headers)
    found = find_cuts(items, streams(frames), part_bytes, least)
    assert pieces(items, frames, found.cuts) == expected
    assert found.step_bytes == max(map(sum, expected))
    assert found.part_bytes == max(map(max, expected))


def test_bytes_at_the_end_have_no_step_of_their_own():
    items = [rows(0, (0, 4, 10))]
    frames = frames_of(items, [0], tails=[7])
    found = find_cuts(items, streams(frames), 20, 5)
    assert pieces(items, frames, found.cuts) == [[20], [27]]
    assert (found.step_bytes, found.part_bytes) == (27, 27)


def test_bytes_before_a_tensor_count_only_with_it():
    """Ten bytes before the second tensor would make a part of the nine before them, but they are not yet there."""
    items = [rows(0, (0, 1, 9)), rows(1, (0, 2, 5))]
    frames = frames_of(items, [0], leads=[10])
    found = find_cuts(items, streams(frames), 15, 10)
    assert pieces(items, frames, found.cuts) == [[24], [5]]


def test_nothing_but_a_header():
    found = find_cuts([], streams(frames_of([], [24, 16])), 5, 5)
    assert (found.cuts, found.step_bytes, found.part_bytes) == ((), 40, 24)


@st.composite
def walks(draw):
    member_count = draw(st.integers(1, 4))
    items = []
    for tensor in range(draw(st.integers(0, 5))):
        members = sorted(draw(st.sets(st.integers(0, member_count - 1), min_size=1)))
        row_bytes = draw(st.integers(1, 9))
        items.append(rows(tensor, *[(member, draw(st.integers(1, 12)), row_bytes) for member in members]))
    heads, leads, tails = ([draw(st.integers(0, most)) for _ in range(member_count)] for most in (60, 20, 20))
    least = draw(st.integers(1, 40))
    return items, frames_of(items, heads, leads, tails), draw(st.integers(least, 80)), least


@given(walks())
def test_any_cuts_are_legal(case):
    items, frames, part_bytes, least = case
    found = find_cuts(items, streams(frames), part_bytes, least)
    steps = pieces(items, frames, found.cuts)
    assert list(found.cuts) == sorted(set(found.cuts))
    for member, frame in enumerate(frames):
        parts = [step[member] for step in steps]
        assert sum(parts) == frame.nbytes
        filled = [nbytes for nbytes in parts if nbytes]
        assert all(nbytes >= least for nbytes in filled[:-1])
    # All steps but the last end at a cut: there every output that has nothing below the least waits for nobody.
    assert all(nbytes == 0 or nbytes >= least for step in steps[:-1] for nbytes in step)
    assert any(steps[-1]) or not found.cuts
    assert (found.step_bytes, found.part_bytes) == (max(map(sum, steps)), max(map(max, steps)))


@st.composite
def seamed_walks(draw):
    """A walk some of whose bytes are copied: every copied range, and every stretch between two, is a part."""
    items, frames, part_bytes, least = draw(walks())
    found = []
    for frame in frames:
        copied = []
        for extent in frame.extents:
            end = copied[-1].stop if copied else 0
            if draw(st.booleans()) and extent.stop - extent.start >= least:
                start = draw(st.integers(extent.start, extent.stop - least))
                stop = draw(st.integers(start + least, extent.stop))
                if start == end or start - end >= least:
                    copied.append(CopiedRange(start, stop, 0, 0))
        found.append(Streamed(frame, tuple(copied)))
    return items, found, part_bytes, least


def parts_of(items, streamed, member, cuts):
    """Bytes of one output that each step fills, one list a step, cut where copied bytes lie between."""
    gone = {byte for copy in streamed.copied for byte in range(copy.start, copy.stop)}
    edges = [0]
    for cut in cuts:
        reached = edges[-1]
        for index, item in enumerate(items[: cut.item + 1]):
            for share in (share for share in item.slices if share.member == member):
                last = item.element_of(share, cut.row if index == cut.item else item.row_count)
                if last:
                    reached = max(reached, streamed.frame.end_of(share.slot, last))
        edges.append(reached)
    edges.append(streamed.frame.nbytes)
    found = []
    for a, b in itertools.pairwise(edges):
        kept = [byte for byte in range(a, b) if byte not in gone]
        found.append([])
        for byte, before in zip(kept, [None, *kept], strict=False):
            if before is None or byte - before > 1:
                found[-1].append([])
            found[-1][-1].append(byte)
    return found


@given(seamed_walks())
def test_any_cuts_are_legal_between_copies(case):
    items, streams, part_bytes, least = case
    found = find_cuts(items, streams, part_bytes, least)
    assert list(found.cuts) == sorted(set(found.cuts))
    filled = [parts_of(items, streamed, member, found.cuts) for member, streamed in enumerate(streams)]
    for streamed, steps in zip(streams, filled, strict=True):
        parts = [part for step in steps for part in step]
        assert sum(map(len, parts)) == streamed.nbytes
        assert all(len(part) >= least or part[-1] == streamed.frame.nbytes - 1 for part in parts)
    step_bytes = [sum(len(part) for steps in filled for part in steps[i]) for i in range(len(found.cuts) + 1)]
    assert step_bytes[-1] or not found.cuts
    assert found.step_bytes == max(step_bytes)
    # What one step fills of an output counts as one part, however many lie between its seams: never too few bytes.
    longest = max(sum(map(len, step)) for steps in filled for step in steps)
    assert found.part_bytes == longest


def test_a_part_ends_at_a_seam_or_far_enough_from_it():
    """Of 100 bytes 40 are copied: 30 before, 30 after. A first part of 25 would leave 5, so it takes them too."""
    items = [rows(0, (0, 100, 1))]
    [frame] = frames_of(items, [0])
    streamed = Streamed(frame, (CopiedRange(30, 70, 0, 0),))
    found = find_cuts(items, [streamed], 25, 10)
    assert [[len(part) for part in step] for step in parts_of(items, streamed, 0, found.cuts)] == [[30], [25], [5]]
    found = find_cuts(items, [streamed], 20, 10)
    lengths = [[len(part) for part in step] for step in parts_of(items, streamed, 0, found.cuts)]
    assert lengths == [[20], [10, 10], [20]]


@given(walks())
def test_one_output_is_cut_as_soon_as_can_be(case):
    items, _, part_bytes, least = case
    own = [
        WalkItem(item.tensor, 1, share.row_count, (share,))
        for item in items
        for share in item.slices
        if share.member == 0
    ]
    frames = frames_of(own, [3])
    found = find_cuts(own, streams(frames), part_bytes, least)
    longest_row = max((share.row_elements for item in own for share in item.slices), default=0)
    parts = [step[0] for step in pieces(own, frames, found.cuts)]
    assert all(nbytes >= part_bytes for nbytes in parts[:-1])
    assert all(nbytes < part_bytes + longest_row + 3 for nbytes in parts)


def one_output(shapes, key="o"):
    specs = [TensorSpec(name, DType(dtype), shape) for name, (dtype, shape) in shapes.items()]
    boxes = tuple(Box.whole(spec.shape) for spec in specs)
    return Output((key,), tuple(range(len(specs))), boxes, tuple(specs), {}), [TargetTensor(spec, ()) for spec in specs]


def test_tensors_are_walked_in_the_order_of_the_file():
    shapes = {"b": ("F16", (2,)), "a": ("F16", (2,)), "z": ("I64", (2,)), "none": ("F32", (0, 3)), "s": ("U8", ())}
    output, tensors = one_output(shapes)
    names = [tensors[item.tensor].spec.name for item in walk([output], tensors, Limits())]
    assert names == ["z", "a", "b", "s"]


@pytest.mark.parametrize(
    ("shape", "row_bytes", "row_count", "row_elements"),
    [
        ((), 1, 1, 1),
        ((7,), 1, 7, 1),
        ((6, 5, 4), 80, 6, 20),  # one index of the first axis
        ((6, 5, 4), 79, 30, 4),  # too long: of the first two
        ((6, 5, 4), 16, 30, 4),
        ((6, 5, 4), 15, 120, 1),
        ((6, 5, 4), 1, 120, 1),  # an element is never cut
        ((1, 1, 100), 100, 100, 1),
    ],
)
def test_rows_are_as_long_as_they_may_be(shape, row_bytes, row_count, row_elements):
    output, tensors = one_output({"w": ("F32", shape)})
    [item] = walk([output], tensors, Limits(row_bytes=row_bytes))
    assert item.row_count == row_count
    assert [(share.row_count, share.row_elements) for share in item.slices] == [(row_count, row_elements)]


def test_uneven_shares_count_in_rows_of_the_largest():
    tensor = TargetTensor(TensorSpec("w", DType.U8, (9, 4)), ())
    boxes = [Box((0, 0), (6, 4)), Box((6, 0), (9, 4)), Box((9, 0), (9, 4))]
    outputs = [Output((str(i),), (0,), (box,), (tensor.spec,), {}) for i, box in enumerate(boxes)]
    [item] = walk(outputs, [tensor], Limits(row_bytes=4))
    assert item.row_count == 6
    assert [share.member for share in item.slices] == [0, 1]  # the third has no bytes
    assert [[item.element_of(share, row) for row in range(7)] for share in item.slices] == [
        [0, 4, 8, 12, 16, 20, 24],
        [0, 0, 4, 4, 8, 8, 12],
    ]


def test_cuts_are_ordered_by_place():
    assert sorted([Cut(1, 0), Cut(0, 9), Cut(0, 2)]) == [Cut(0, 2), Cut(0, 9), Cut(1, 0)]
