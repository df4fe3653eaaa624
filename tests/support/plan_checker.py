"""Proves that a plan is right, by giving every byte of its source a number and following each one.

:func:`check_plan` derives all steps of a plan, carries them out on arrays of numbers, and compares
the outputs with what numpy cuts from the numbered tensors. It shares no arithmetic with the planner.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import asdict

import numpy as np

from reshard.planning.plan import Plan
from reshard.planning.plan_json import decode_plan, encode_plan, plan_id_of
from reshard.planning.target import RankTarget
from reshard.tensor import DType

from .checkpoints import array_shape, owned

HEADER = -2  # header bytes have no source
NOTHING = -1  # bytes of the source that belong to no tensor, and bytes not written yet


def check_plan(plan: Plan) -> None:
    """Raise AssertionError unless every output byte is made once, of the right byte, within the limits."""
    tensors = _numbered(plan)
    objects = _source_bytes(plan, tensors)
    _check_groups(plan)
    counted: Counter[str] = Counter(puts=len(plan.documents), written=sum(len(d.data) for d in plan.documents))
    made = _run(plan, objects, counted)
    expected = _expected(plan, tensors)
    assert set(made) == set(expected), "outputs that are planned and outputs that should be differ"
    for key, body in made.items():
        _check_output(key, body, plan, expected[key])
    _check_cost(plan, counted)
    _check_json(plan)


def _numbered(plan):
    """Every tensor's bytes by name, each byte with a number of its own."""
    tensors, reached = {}, 0
    for entry in plan.catalog.entries:
        shape = array_shape(entry.spec.dtype, entry.spec.shape)
        count = int(np.prod(shape, dtype=np.int64))
        assert entry.spec.name not in tensors
        tensors[entry.spec.name] = (entry.spec, np.arange(reached, reached + count).reshape(shape))
        reached += count
    return tensors


def _source_bytes(plan, tensors):
    """The numbers in every source object; every placement has its own bytes, and they tile their tensor."""
    objects = [np.full(item.nbytes, NOTHING) for item in plan.catalog.objects]
    for entry in plan.catalog.entries:
        _, numbers = tensors[entry.spec.name]
        placed = np.zeros(numbers.shape, int)
        for placement in entry.placements:
            place = tuple(map(slice, placement.box.start, placement.box.stop))
            placed[place] += 1
            body = numbers[place].ravel()
            assert placement.holders
            for index, first in placement.holders:
                here = objects[index][first : first + len(body)]
                assert len(here) == len(body), "a placement reaches outside its object"
                assert (here == NOTHING).all(), "two placements share bytes"
                here[:] = body
        assert (placed == 1).all(), f"placements do not tile {entry.spec.name}"
    return objects


def _check_groups(plan):
    members = [output for group in plan.groups for output in group.outputs]
    assert sorted(members) == list(range(len(plan.outputs))), "every output is in one group"
    for group in plan.groups:
        cuts = [(cut.item, cut.row) for cut in group.cuts]
        assert cuts == sorted(set(cuts))


def _run(plan, objects, counted):
    """Carry the steps out; returns the numbers in every output, by key."""
    arena_bytes = plan.cost.peak_bytes - plan.buffers.fixed_bytes
    parts = [[] for _ in plan.outputs]
    for index, group in enumerate(plan.groups):
        steps = list(plan.steps(index))
        assert group.is_small == (len(steps) == 1)
        assert [step.number for step in steps] == list(range(1, len(steps) + 1))
        for step in steps:
            assert step.group == index
            assert {part.output for part in step.parts} <= set(group.outputs)
            assert 0 < step.nbytes <= arena_bytes, "a step does not fit the arena"
            counted.update(steps=1, filled=step.nbytes)
            bodies = _filled(plan, step, objects, counted)
            for part, body in zip(step.parts, bodies, strict=True):
                parts[part.output].append((part, body))
    made = {}
    for number, (output, filled) in enumerate(zip(plan.outputs, parts, strict=True)):
        is_small = next(group.is_small for group in plan.groups if number in group.outputs)
        _check_parts(plan.limits, [part for part, _ in filled], is_small=is_small)
        counted["puts" if is_small else "parts"] += len(filled) * len(output.keys)
        counted["uploads"] += 0 if is_small else len(output.keys)
        body = np.concatenate([body for _, body in filled])
        counted["written"] += len(body) * len(output.keys)
        for key in output.keys:
            assert key not in made
            made[key] = body
    return made


def _filled(plan, step, objects, counted):
    """The numbers in each part of a step."""
    bodies = []
    for part in step.parts:
        body = np.full(part.range.stop - part.range.start, NOTHING)
        for place, data in plan.outputs[part.output].frame.literals_in(part.range.start, part.range.stop):
            first = place - part.range.start
            body[first : first + len(data)] = HEADER
        bodies.append(body)
    assert len({part.output for part in step.parts}) == len(step.parts)
    seen = {}
    for read in step.reads:
        _check_read(plan, read, objects, seen)
        source = objects[read.object][read.range.start : read.range.stop]
        needed = np.zeros(len(source), bool)
        for copy in read.copies:
            move = copy.transfer
            taken = _addresses(move.source, move.nbytes, move.counts, move.source_strides)
            filled = _addresses(move.target, move.nbytes, move.counts, move.target_strides)
            body = bodies[copy.part]
            assert 0 <= taken.min() <= taken.max() < len(source), "a copy reaches outside its read"
            assert 0 <= filled.min() <= filled.max() < len(body), "a copy reaches outside its part"
            assert len(np.unique(filled)) == len(filled)
            assert (body[filled] == NOTHING).all(), "a byte is written twice"
            body[filled] = source[taken]
            needed[taken] = True
        assert not read.is_direct or needed.all()
        _check_gaps(plan.limits, needed)
        counted.update(gets=1, read=len(source), needed=int(needed.sum()))
    for body in bodies:
        assert (body != NOTHING).all(), "a byte is not written"
    return bodies


def _addresses(first, nbytes, counts, strides):
    starts = np.array([first])
    for count, stride in zip(counts, strides, strict=True):
        starts = (starts[:, None] + np.arange(count) * stride).ravel()
    return (starts[:, None] + np.arange(nbytes)).ravel()


def _check_read(plan, read, objects, seen):
    start, stop = read.range.start, read.range.stop
    assert 0 <= start < stop <= len(objects[read.object]), "a read reaches outside its object"
    assert stop - start <= plan.limits.read_bytes, "a read is too long"
    assert read.copies, "a read that nobody needs"
    before = seen.setdefault(read.object, np.zeros(len(objects[read.object]), bool))
    assert not before[start:stop].any(), "a byte is read twice in one step"
    before[start:stop] = True


def _check_gaps(limits, needed):
    edges = np.flatnonzero(np.diff(np.concatenate([[True], needed, [True]]).astype(int)))
    gaps = edges[1::2] - edges[::2]
    assert gaps.max(initial=0) <= limits.max_gap_bytes, "a gap is read that is too long"


def _check_parts(limits, parts, *, is_small):
    assert parts[0].range.start == 0
    for part, following in itertools.pairwise(parts):
        assert part.range.stop == following.range.start, "parts of an output do not join"
        assert part.number < following.number
        assert part.range.nbytes >= limits.min_part_bytes, "a part is too short"
    assert all(0 < part.range.nbytes <= limits.max_part_bytes for part in parts), "a part is too long"
    assert parts[0].number >= 1
    assert parts[-1].number <= limits.max_part_count
    assert not is_small or len(parts) == 1


def _expected(plan, tensors):
    """What every output should hold, by key: dtype, shape and numbers of each tensor by name."""
    target = plan.target
    if isinstance(target, RankTarget):
        return {target.name.format(rank=rank): _of_rank(target.strategy, rank, tensors) for rank in target.ranks}
    held = {key: {} for output in plan.outputs for key in output.keys}
    for output in plan.outputs:
        for spec in output.specs:
            held[output.keys[0]][spec.name] = (spec.dtype, spec.shape, tensors[spec.name][1])
    names = [name for tensors_of_one in held.values() for name in tensors_of_one]
    assert sorted(names) == sorted(tensors), "every tensor is in one output"
    assert all(
        (dtype, shape) == (tensors[name][0].dtype, tensors[name][0].shape)
        for found in held.values()
        for name, (dtype, shape, _) in found.items()
    )
    return held


def _of_rank(strategy, rank, tensors):
    layouts = strategy.stages[rank // strategy.device_count]
    held = {}
    for name, (spec, numbers) in tensors.items():
        if name not in layouts and name in strategy.names:
            continue
        if name not in layouts or spec.dtype.bits < 8:
            held[name] = (spec.dtype, spec.shape, numbers)
        else:
            part = owned(numbers, layouts[name], rank % strategy.device_count)
            held[name] = (spec.dtype, part.shape[:-1], part)
    return held


def _check_output(key, body, plan, expected):
    """The header says what follows it, and what follows are the right bytes."""
    output = next(output for output in plan.outputs if key in output.keys)
    [(_, header)] = output.frame.literals
    assert len(header) == 8 + int.from_bytes(header[:8], "little")
    assert len(header) % 8 == 0
    entries = json.loads(header[8:])
    entries.pop("__metadata__", None)
    assert list(entries) == [spec.name for spec in output.specs]
    assert set(entries) == set(expected), f"{key} has other tensors than it should"
    assert (body[: len(header)] == HEADER).all()
    assert output.nbytes == len(body)
    reached = 0
    for name, entry in entries.items():
        dtype, shape, numbers = expected[name]
        start, stop = entry["data_offsets"]
        assert start == reached
        assert (DType(entry["dtype"]), tuple(entry["shape"])) == (dtype, tuple(shape)), f"{key}: {name}"
        found = body[len(header) + start : len(header) + stop]
        assert np.array_equal(found, numbers.ravel()), f"{key}: {name} is made of the wrong bytes"
        reached = stop
    assert reached == len(body) - len(header)


def _check_cost(plan, counted):
    limits = plan.limits
    fixed_bytes = limits.concurrency * (limits.read_bytes + limits.client_bytes)
    assert plan.buffers.fixed_bytes == fixed_bytes
    assert plan.cost.peak_bytes <= limits.memory_bytes, "more memory is planned than allowed"
    arena_bytes = plan.cost.peak_bytes - fixed_bytes
    assert arena_bytes <= counted["filled"], "memory is planned that no part fills"
    spare = limits.memory_bytes - plan.cost.peak_bytes
    # What is left over is less than one byte more for every read, or nobody needs it.
    assert arena_bytes == counted["filled"] or spare < limits.concurrency
    expected = {
        "needed_bytes": plan.cost.needed_bytes,
        "read_bytes": counted["read"],
        "written_bytes": counted["written"],
        "get_count": counted["gets"],
        "put_count": counted["puts"],
        "part_count": counted["parts"],
        "upload_count": counted["uploads"],
        "step_count": counted["steps"],
        "peak_bytes": plan.cost.peak_bytes,
    }
    assert asdict(plan.cost) == expected, f"{plan.cost} is not what the steps sum to: {expected}"
    assert counted["needed"] <= plan.cost.needed_bytes <= counted["read"]
    if _boxes_are_equal_or_apart(plan):
        assert plan.cost.needed_bytes == counted["needed"]
    requests = counted["gets"] + counted["puts"] + counted["parts"] + 2 * counted["uploads"]
    assert plan.cost.request_count == requests
    assert counted["read"] <= limits.max_over_read * counted["needed"], "too much is read for what is needed"


def _boxes_are_equal_or_apart(plan):
    """Whether every tensor is cut in one way only."""
    if not isinstance(plan.target, RankTarget):
        return True
    stages = plan.target.strategy.stages
    return all(
        len({layouts.get(entry.spec.name) for layouts in stages}) == 1
        or sum(entry.spec.name in layouts for layouts in stages) < 2
        for entry in plan.catalog.entries
    )


def _check_json(plan):
    again = decode_plan(encode_plan(plan), "plan")
    assert again == plan
    assert plan_id_of(again) == plan_id_of(plan)
    assert encode_plan(again) == encode_plan(plan)
    for index in range(len(plan.groups[:2])):
        assert list(again.steps(index)) == list(plan.steps(index))
