"""Patches through the planner: every byte of every slice is the one that numpy lays there."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import catalog_of_ranks, encode, random_model, rank_key, shards
from support.patches import lay

from reshard.planning.limits import Limits
from reshard.planning.outputs.output import Piece, TargetTensor, make_output
from reshard.planning.outputs.walk import walk
from reshard.planning.steps.copies import with_copies
from reshard.planning.steps.cuts import find_cuts
from reshard.planning.steps.draft import Draft, Group
from reshard.planning.steps.fills import computation_inputs
from reshard.planning.steps.group_steps import GroupSteps
from reshard.planning.steps.row_reads import RowReader
from reshard.tensor import Box, DType, Layout, Patch, Strategy, TensorSpec


@st.composite
def weaves(draw):
    """A target tensor made of whole sources, and the sources' shapes: factors shuffled, with one axis concatenated."""
    factors = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    count = draw(st.integers(1, 3))  # sources that lie side by side along one more factor
    place = draw(st.integers(0, len(factors)))
    target_order = [*factors[:place], count, *factors[place:]]
    source_order = draw(st.permutations(range(len(factors))))
    target_views = draw(_grouped(target_order))
    source_views = draw(_grouped([factors[i] for i in source_order]))
    patches = []
    for number in range(count):
        start = [0] * len(target_order)
        start[place] = number
        shape = list(target_order)
        shape[place] = 1
        along = [source_order.index(i) for i in range(len(factors))]
        along.insert(place, -1)
        patches.append(Patch(target_views, source_views, tuple(start), tuple(shape), (0,) * len(factors), tuple(along)))
    return target_views, source_views, patches


@st.composite
def _grouped(draw, factors):
    """Consecutive factors put together to axes."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(factors) - 1)), max_size=len(factors))))
    edges = [0, *(cut for cut in cuts if cut < len(factors)), len(factors)]
    return tuple(tuple(factors[a:b]) for a, b in itertools.pairwise(edges))


def shape_of(views):
    return tuple(int(np.prod(factors)) for factors in views)


def cut(draw, shape):
    """A layout that divides a shape."""
    matrix, tensor_map = [], []
    for extent in shape:
        pieces = draw(st.sampled_from([n for n in (1, 2, 3, 4) if extent % n == 0]))
        if pieces > 1:
            matrix.append(pieces)
            tensor_map.append((len(matrix) - 1,))
        else:
            tensor_map.append(())
    count = len(matrix)
    return Layout(tuple(matrix) or (1,), tuple(tuple(count - 1 - e for e in axis) for axis in tensor_map))


@settings(max_examples=150, deadline=None)
@given(st.data(), weaves(), st.sampled_from(["U8", "BF16", "F32"]))
def test_any_patch_between_any_cuts(data, weave, dtype):
    target_views, source_views, patches = weave
    source_shape, target_shape = shape_of(source_views), shape_of(target_views)
    names = [f"s{number}" for number in range(len(patches))]
    model = random_model(dict.fromkeys(names, (dtype, source_shape)))
    layout = cut(data.draw, source_shape)
    strategy = Strategy(layout.device_count, (dict.fromkeys(names, layout),))
    held = shards(model, strategy)
    catalog = catalog_of_ranks(held, strategy)
    index = {entry.spec.name: number for number, entry in enumerate(catalog.entries)}
    spec = TensorSpec("t", DType(dtype), target_shape)
    pieces = tuple(Piece(patch, index[name]) for patch, name in zip(patches, names, strict=True))
    tensors = (TargetTensor(spec, pieces),)
    itemsize = spec.dtype.itemsize
    whole = np.zeros((*target_shape, itemsize), np.uint8)
    for byte, (patch, name) in itertools.product(range(itemsize), zip(patches, names, strict=True)):
        plane = np.zeros(target_shape, np.uint8)
        lay(plane, patch, np.ascontiguousarray(model[name][2][..., byte]))
        whole[..., byte] += plane
    wanted = cut(data.draw, target_shape)
    boxes = [wanted.box_of(target_shape, rank) for rank in range(wanted.device_count)]
    outputs = tuple(make_output([str(n)], [(0, box)], tensors, {}) for n, box in enumerate(boxes))
    part_bytes = data.draw(st.integers(1, 40))
    limits = Limits(
        row_bytes=data.draw(st.integers(1, 16)),
        read_bytes=64,
        max_gap_bytes=data.draw(st.integers(0, 9)),
        min_part_bytes=data.draw(st.integers(1, part_bytes)),
        copy_bytes=data.draw(st.integers(1, 100)),
        min_copy_source_bytes=1,
    )
    draft = with_copies(Draft(catalog, tensors, outputs, limits), data.draw(st.sampled_from([(), (0,)])))
    made = run(draft, part_bytes, held)
    for output, box, body in zip(outputs, boxes, made, strict=True):
        expected = whole[tuple(map(slice, box.start, box.stop))].tobytes()
        assert body[output.frame.extents[0].start :] == expected


def run(draft, part_bytes, held):
    """Carry out the steps of all outputs together."""
    objects = [encode(held[int(item.key.split("/")[0][5:])]) for item in draft.catalog.objects]
    assert [item.key for item in draft.catalog.objects] == [rank_key(rank) for rank in held]
    streams = [draft.streamed(number) for number in range(len(draft.outputs))]
    items = walk(draft.outputs, draft.tensors, draft.limits)
    cuts = find_cuts(items, streams, part_bytes, draft.limits.min_part_bytes)
    made = [[] for _ in draft.outputs]
    group = Group(tuple(range(len(draft.outputs))), cuts.cuts)
    steps = GroupSteps(draft, RowReader(draft), 0, group)
    for step in map(steps.step, steps.numbers):
        bodies = [bytearray(part.range.nbytes) for part in step.parts]
        for part, body in zip(step.parts, bodies, strict=True):
            for place, data in draft.outputs[part.output].frame.literals_in(part.range.start, part.range.stop):
                first = place - part.range.start
                body[first : first + len(data)] = data
        for read in step.reads:
            data = objects[read.object][read.range.start : read.range.stop]
            for copy in read.scatters:
                move(copy.scatter, data, bodies[copy.buffer])
        for part, body in zip(step.parts, bodies, strict=True):
            made[part.output].append((part.number, part.range, bytes(body)))
        for part in step.copies:
            data = objects[part.object][part.source_range.start : part.source_range.stop]
            made[part.output].append((part.number, part.range, data))
    return [joined(parts, draft.limits.min_part_bytes) for parts in made]


def joined(parts, least):
    """An output of its parts, which the store puts together by their numbers."""
    parts.sort()
    assert [number for number, *_ in parts] == sorted({number for number, *_ in parts})
    body = b""
    for _, span, data in parts:
        assert (span.start, span.nbytes) == (len(body), len(data))
        body += data
    assert all(span.nbytes >= least for _, span, _ in parts[:-1])
    return body


def move(scatter, source, target):
    for index in itertools.product(*map(range, scatter.counts)):
        a = scatter.source + sum(i * s for i, s in zip(index, scatter.source_strides, strict=True))
        b = scatter.target + sum(i * s for i, s in zip(index, scatter.target_strides, strict=True))
        target[b : b + scatter.nbytes] = source[a : a + scatter.nbytes]


def test_boxes_of_inputs_follow_the_blocks():
    from reshard.planning.outputs.output import Computation

    computation = Computation("dequantise", DType.BF16, (7,), (128, 128))
    found = computation_inputs(3, computation, Box((100, 256), (300, 400)))
    assert found == ((3, Box((100, 256), (300, 400))), (7, Box((0, 2), (3, 4))))
