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

from reshard.planning.outputs.output import SourceMetadata, TargetTensor
from reshard.planning.plan import Plan
from reshard.planning.plan_json import decode_plan, encode_plan, plan_id_of
from reshard.planning.steps.steps import CopiedPart
from reshard.planning.targets.full_target import FullTarget, PartsTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.planning.targets.target import Target
from reshard.planning.targets.tree_target import TreeTarget
from reshard.tensor import TensorSpec

from .checkpoints import CKPT_TYPES, array_shape, list_ckpt, list_safetensors, owned

HEADER = -2  # bytes between tensors have no source
NOTHING = -1  # bytes of the source that belong to no tensor, and bytes not written yet


def check_plan(plan: Plan) -> None:
    """Raise AssertionError unless every output byte is made once, of the right byte, within the limits."""
    tensors = _numbered(plan)
    objects = _source_bytes(plan, tensors)
    _check_groups(plan)
    counted: Counter[str] = Counter(
        puts=len(plan.conversion.documents), written=sum(len(d.data) for d in plan.conversion.documents)
    )
    made = _run(plan, objects, counted)
    _check_outputs(plan, made, tensors)
    _check_cost(plan, counted)
    _check_json(plan)


def _numbered(plan):
    """Every tensor's bytes by its name in the source, each byte with a number of its own."""
    tensors, reached = {}, 0
    for entry in plan.catalog.entries:
        shape = array_shape(entry.spec.dtype, entry.spec.shape)
        count = int(np.prod(shape, dtype=np.int64))
        assert entry.spec.name not in tensors
        numbers = np.arange(reached, reached + count).reshape(shape)
        tensors[entry.spec.name] = (entry.spec.dtype, entry.spec.shape, numbers)
        reached += count
    return tensors


def _source_bytes(plan, tensors):
    """The numbers in every source object; every placement has its own bytes, and they tile their tensor."""
    objects = [np.full(item.nbytes, NOTHING) for item in plan.catalog.objects]
    for entry in plan.catalog.entries:
        _, _, numbers = tensors[entry.spec.name]
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
        assert plan.draft.is_small(group) == (len(steps) == 1)
        for step in steps:
            assert step.group == index
            assert {part.output for part in (*step.parts, *step.copies)} <= set(group.outputs)
            assert step.nbytes <= arena_bytes, "a step does not fit the arena"
            assert bool(step.nbytes) == bool(step.parts) != bool(step.copies)
            counted.update(steps=1, streamed=bool(step.parts), filled=step.nbytes)
            counted["largest"] = max(counted["largest"], step.nbytes)
            bodies = _filled(plan, step, objects, counted)
            for part, body in zip(step.parts, bodies, strict=True):
                parts[part.output].append((part, body))
            for part in step.copies:
                parts[part.output].append((part, _copied(plan, part, objects)))
    made = {}
    for number, (output, filled) in enumerate(zip(plan.outputs, parts, strict=True)):
        is_small = next(plan.draft.is_small(group) for group in plan.groups if number in group.outputs)
        filled.sort(key=lambda made: made[0].number)
        _check_parts(plan.limits, [part for part, _ in filled], is_small=is_small)
        counted["uploads"] += 0 if is_small else len(output.keys)
        body = np.concatenate([body for _, body in filled])
        key_count = _count_replicas(plan, output, counted, is_small=is_small)
        for part, made_of in filled:
            is_copy = isinstance(part, CopiedPart)
            counted["copies" if is_copy else "puts" if is_small else "parts"] += key_count
            counted["copied" if is_copy else "written"] += len(made_of) * key_count
        for key in output.keys:
            assert key not in made
            made[key] = body
    return made


def _count_replicas(plan, output, counted, *, is_small):
    """Count what is copied from an output's first key; returns to how many its parts are sent."""
    if not plan.copy_bases or is_small or output.nbytes < plan.limits.min_copy_source_bytes:
        return len(output.keys)
    others = len(output.keys) - 1
    most = max(plan.limits.most_copied_bytes, -(-output.nbytes // plan.limits.max_part_count))
    counted.update(copied=others * output.nbytes, copies=others * -(-output.nbytes // most))
    return 1


def _copied(plan, part, objects):
    """The numbers in a part that the store makes."""
    item = plan.catalog.objects[part.object]
    assert item.base in plan.copy_bases
    assert item.nbytes >= plan.limits.min_copy_source_bytes
    assert part.range.nbytes <= max(plan.limits.copy_bytes, 2 * plan.limits.min_part_bytes)
    body = objects[part.object][part.first : part.first + part.range.nbytes]
    assert len(body) == part.range.nbytes, "a copy reaches outside its source"
    assert (body != NOTHING).all(), "a copy takes bytes of no tensor"
    return body


def _filled(plan, step, objects, counted):
    """The numbers in each part of a step."""
    bodies = []
    for part in step.parts:
        body = np.full(part.range.stop - part.range.start, NOTHING)
        for place, data in plan.outputs[part.output].frame.literals_in(part.range.start, part.range.stop):
            first = place - part.range.start
            body[first : first + len(data)] = HEADER
        bodies.append(body)
    assert len({(part.output, part.number) for part in step.parts}) == len(step.parts)
    seen = {}
    for read in step.reads:
        _check_read(plan, read, objects, seen)
        source = objects[read.object][read.range.start : read.range.stop]
        needed = np.zeros(len(source), bool)
        for copy in read.scatters:
            move = copy.scatter
            taken = _addresses(move.source, move.nbytes, move.counts, move.source_strides)
            filled = _addresses(move.target, move.nbytes, move.counts, move.target_strides)
            body = bodies[copy.buffer]
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
    assert read.scatters, "a read that nobody needs"
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


def _check_outputs(plan, made, tensors):
    """Headers describe the tensors that follow them, and those are made of the right bytes."""
    renamed = {plan.conversion.renamed.get(name, name): value for name, value in tensors.items()}
    outside = {
        plan.conversion.renamed.get(e.spec.name, e.spec.name) for e in plan.catalog.entries if e.sharding == "unlisted"
    }
    assert len(renamed) == len(tensors)
    found = {}
    for output in plan.outputs:
        image = bytearray(output.nbytes)
        for place, data in output.frame.literals:
            image[place : place + len(data)] = data
        for key in output.keys:
            found[key] = _contents(key, bytes(image), made[key], has_elements=True)
    documents = {document.key: document.data for document in plan.conversion.documents}
    check_objects(plan.conversion.target, found, documents, renamed, outside, plan.catalog.texts)


def contents_of(key, body):
    """What an object holds: tensors as ``(dtype, shape, flat array)`` by name, and texts."""
    return _contents(key, body, np.frombuffer(body, np.uint8), has_elements=False)


def _contents(key, image, body, *, has_elements):
    if key.endswith(".ckpt"):
        listed, texts, _ = list_ckpt(image)
    else:
        (listed, _), texts = list_safetensors(image), {}
    spans = [span for *_, of_one in listed for span in of_one]
    assert len(image) == len(body)
    if has_elements:
        is_element = np.zeros(len(body), bool)
        for start, stop in spans:
            is_element[start:stop] = True
        assert (is_element == (body != HEADER)).all(), f"{key}: elements are where none should be, or the reverse"
    flat = {name: [body[a:b] for a, b in of_one] for name, _, _, of_one in listed}
    return {name: (dtype, shape, np.concatenate(flat[name])) for name, dtype, shape, _ in listed}, texts


def check_objects(target: Target, found, documents, tensors, outside, texts):
    """Raise AssertionError unless objects are what a target asks for.

    Parameters
    ----------
    found
        By key, what :func:`contents_of` says of each object.
    documents
        By key.
    tensors
        By the name in the target: dtype, shape, and an array of bytes or of their numbers.
    outside
        Names of tensors without a layout in the source.
    texts
        Every value that is text.
    """
    if isinstance(target, RankTarget):
        _check_ranks(target, found, tensors)
    elif isinstance(target, TreeTarget):
        assert {key: set(held) for key, (held, _) in found.items()} == _tree(target, tensors)
        for key, (held, _) in found.items():
            for name, value in held.items():
                [whole] = [w for n, w in tensors.items() if n.split("\n", 1)[1] == name and _is_of(n, key, target)]
                assert _same(value, whole), f"{key}: {name} is made of the wrong bytes"
    else:
        _check_whole(target, found, documents, tensors, outside)
    for key, (_, held_texts) in found.items():
        if not isinstance(target, TreeTarget):
            assert held_texts == (dict(texts) if key.endswith(".ckpt") else {})


def _tree(target, tensors):
    held = {}
    for name in tensors:
        key, plain = name.split("\n", 1)
        held.setdefault(key.rsplit(".", 1)[0] + target.container.suffix, set()).add(plain)
    return held


def _is_of(name, key, target):
    return name.split("\n")[0].rsplit(".", 1)[0] + target.container.suffix == key


def _same(found, expected):
    dtype, shape, array = expected
    return found[:2] == (dtype.value, tuple(shape)) and np.array_equal(found[2], np.ravel(array))


def _check_whole(target, found, documents, tensors, outside):
    """Every tensor is whole in one object, and the index says in which."""
    holder = {}
    for key, (held, _) in found.items():
        for name, value in held.items():
            assert name not in holder, f"{name} is in two objects"
            holder[name] = key
            assert _same(value, tensors[name]), f"{key}: {name} is made of the wrong bytes"
    assert set(holder) == set(tensors), "some tensors are in no object"
    if isinstance(target, PartsTarget):
        assert {name for name, key in holder.items() if key == "hyper_param.safetensors"} == outside
        parts = sorted(set(found) - {"hyper_param.safetensors"})
        assert parts == sorted(f"part{number}.safetensors" for number in range(len(parts)))
        weights = {name: key for name, key in holder.items() if name not in outside}
        [(name, data)] = documents.items()
        assert (name, json.loads(data)["weight_map"]) == ("param_name_map.json", weights)
    elif isinstance(target, FullTarget) and len(found) > 1 and target.index_name:
        assert json.loads(documents[target.index_name])["weight_map"] == holder
    else:
        assert not documents


def _check_ranks(target, found, tensors):
    strategy, places = target.strategy, _places(tensors)
    due = {target.name.replace("{rank}", str(rank)): (rank, _of_rank(strategy, rank, tensors)) for rank in target.ranks}
    assert set(found) == set(due), "outputs that are planned and outputs that should be differ"
    copies = Counter()
    for key, (rank, expected) in due.items():
        held, _ = found[key]
        if not target.remove_redundancy:
            assert set(held) == set(expected), f"{key} has other tensors than it should"
        assert set(held) <= set(expected)
        for name, value in _of_rank(strategy, rank, places).items():
            copies[_copy_of(strategy, rank, name, value)] += name in held
        for name, value in expected.items():
            assert name not in held or _same(held[name], value), f"{key}: {name} is made of the wrong bytes"
    if target.remove_redundancy:
        _check_copies(target, places, copies)


def _places(tensors):
    """The same tensors of numbers that are all different: boxes of equal bytes are still different boxes."""
    numbered = {}
    for name, (dtype, shape, array) in tensors.items():
        numbered[name] = (dtype, shape, np.arange(array.size).reshape(array.shape))
    return numbered


def _check_copies(target, tensors, copies):
    """Each box that a layout gives to ranks of a stage is on one of them; tensors without a layout are on all."""
    strategy, owners = target.strategy, Counter()
    for rank in range(strategy.rank_count):
        for name, value in _of_rank(strategy, rank, tensors).items():
            owners[_copy_of(strategy, rank, name, value)] += 1
    written = Counter()
    for rank in target.ranks:
        for name, value in _of_rank(strategy, rank, tensors).items():
            written[_copy_of(strategy, rank, name, value)] += 1
    for copy, owner_count in owners.items():
        stage, name, content = copy
        if stage is None:
            assert copies[copy] == written[copy], f"{name} has no layout and is not on every rank"
        elif content and written[copy] == owner_count:
            assert copies[copy] == 1, f"{name}: {copies[copy]} copies of a box on stage {stage}"
        elif content:
            assert copies[copy] <= 1, f"{name}: {copies[copy]} copies of a box on stage {stage}"
        elif written[copy] == owner_count:  # all empty boxes look the same
            assert copies[copy] >= 1, f"{name}: on no rank of stage {stage}"


def _copy_of(strategy, rank, name, value):
    """The box of a tensor that a rank owns, as something to count: by stage, name and content."""
    stage = rank // strategy.device_count
    return (stage if name in strategy.stages[stage] else None), name, np.ascontiguousarray(value[2]).tobytes()


def _of_rank(strategy, rank, tensors):
    layouts = strategy.stages[rank // strategy.device_count]
    held = {}
    for name, (dtype, shape, array) in tensors.items():
        if name not in layouts and name in strategy.names:
            continue
        if name not in layouts or dtype.bits < 8:
            held[name] = (dtype, shape, array)
        else:
            part = owned(array, layouts[name], rank % strategy.device_count)
            held[name] = (dtype, part.shape[:-1], part)
    return held


def is_fit_for_ckpt(target: Target, tensors, texts) -> bool:
    """Whether ``.ckpt`` objects can hold what a target asks for."""
    shapes = [[(dtype.value, tuple(shape)) for dtype, shape, _ in held.values()] for held in _asked(target, tensors)]
    return all(texts or of_one for of_one in shapes) and all(
        dtype in CKPT_TYPES and shape != (0,) for of_one in shapes for dtype, shape in of_one
    )


def _asked(target, tensors):
    """What each object is to hold."""
    if not isinstance(target, RankTarget):
        return [tensors]
    held = {rank: _of_rank(target.strategy, rank, tensors) for rank in target.ranks}
    if not target.remove_redundancy:
        return list(held.values())
    # Which of several ranks writes a box is the planner's to say; what it says is checked where the plan is made.
    whole = [TargetTensor(TensorSpec(name, dtype, tuple(shape)), ()) for name, (dtype, shape, _) in tensors.items()]
    outputs = target.outputs(whole, SourceMetadata(dropped=target.strategy.names))
    dealt = {key: [spec.name for spec in output.specs] for output in outputs for key in output.keys}
    return [{name: held[rank][name] for name in dealt[target.name.replace("{rank}", str(rank))]} for rank in held]


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
        "copied_bytes": counted["copied"],
        "get_count": counted["gets"],
        "put_count": counted["puts"],
        "part_count": counted["parts"],
        "copy_count": counted["copies"],
        "upload_count": counted["uploads"],
        "step_count": counted["steps"],
        "streamed_step_count": counted["streamed"],
        "filled_bytes": counted["filled"],
        "largest_step_bytes": counted["largest"],
        "peak_bytes": plan.cost.peak_bytes,
    }
    assert asdict(plan.cost) == expected, f"{plan.cost} is not what the steps sum to: {expected}"
    assert counted["needed"] <= plan.cost.needed_bytes <= counted["read"]
    if _boxes_are_equal_or_apart(plan):
        assert plan.cost.needed_bytes == counted["needed"]
    requests = counted["gets"] + counted["puts"] + counted["parts"] + counted["copies"] + 2 * counted["uploads"]
    assert plan.cost.request_count == requests
    assert counted["read"] <= limits.max_over_read * counted["needed"], "too much is read for what is needed"


def _boxes_are_equal_or_apart(plan):
    """Whether every tensor is cut in one way only."""
    if not isinstance(plan.conversion.target, RankTarget):
        return True
    stages = plan.conversion.target.strategy.stages
    names = [plan.conversion.renamed.get(entry.spec.name, entry.spec.name) for entry in plan.catalog.entries]
    return all(
        len({layouts.get(name) for layouts in stages}) == 1 or sum(name in layouts for layouts in stages) < 2
        for name in names
    )


def _check_json(plan):
    again = decode_plan(encode_plan(plan), "plan")
    assert again == plan
    assert plan_id_of(again) == plan_id_of(plan)
    assert encode_plan(again) == encode_plan(plan)
    for index in range(len(plan.groups[:2])):
        assert list(again.steps(index)) == list(plan.steps(index))
