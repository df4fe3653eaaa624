"""Which outputs to write together: shared reads are weighed against the memory that open parts take."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

from ...errors import PlanError
from ...tensor import Box, Shape, extent_of
from ..outputs.output import Output, TargetTensor, group_by_layout
from ..outputs.streamed import Streamed
from .buffers import Buffers, least_memory, over_budget
from .cuts import CutFinder, Cuts
from .draft import Cut, Draft, Group
from .row_reads import RowReader

_WORTH_SHARING = 1.01
"""Smaller groups may cost more than the best ones by this factor."""


def output_families(outputs: Sequence[Output], tensors: Sequence[TargetTensor]) -> list[list[int]]:
    """Find the outputs, by index, that gain from being written together; neighbours share most.

    They gain if their boxes of a tensor have bytes of each other in between (one pipeline stage's column slices of
    the same rows). Outputs that hold each box as one run go with those of the same tensors.
    """
    families: dict[Hashable, list[int]] = {}
    known: dict[Hashable, tuple[tuple[int, ...], list[int]]] = {}  # of outputs of one tensor: chunks of few shapes
    for positions in group_by_layout(outputs):
        output = outputs[positions[0]]
        if len(output.tensors) > 1 or output.layout is not None:
            held, slots = _strided(output, tensors)
        else:
            key = output.tensors, output.boxes[0].shape if output.tensors else ()
            held, slots = known.get(key) or known.setdefault(key, _strided(output, tensors))
        for position in positions:
            rows = tuple([outputs[position].boxes[slot].start[0] for slot in slots])
            families.setdefault((held, rows), []).append(position)
    return sorted(map(sorted, families.values()))


def _strided(output: Output, tensors: Sequence[TargetTensor]) -> tuple[tuple[int, ...], list[int]]:
    """Return the tensors whose boxes have bytes of other outputs in between, and slots that decide which rows it holds.

    If there are none, all of its tensors.
    """
    boxes = zip(output.tensors, output.boxes, strict=True)
    strided = [slot for slot, (t, box) in enumerate(boxes) if not _is_one_run(box, extent_of(tensors[t].spec)[0])]
    return tuple(output.tensors[slot] for slot in strided) or output.tensors, _row_slots(output, strided, tensors)


def _row_slots(output: Output, slots: Sequence[int], tensors: Sequence[TargetTensor]) -> list[int]:
    """Return slots that decide which rows an output holds, one for all tensors with the same partition.

    Outputs that hold other rows of a tensor have no bytes between its own, unless its axes are transposed.
    """
    kept = [slot for slot in slots if all(p.patch.keeps_order for p in tensors[output.tensors[slot]].pieces)]
    if output.layout is None:
        return kept
    return list({id(output.layout.partitions[slot]): slot for slot in kept}.values())


def _is_one_run(box: Box, shape: Shape) -> bool:
    """Return whether a box is contiguous in a row-major tensor."""
    for axis, extent in enumerate(box.shape):
        if extent != 1:
            return math.prod(box.shape[axis + 1 :]) == math.prod(shape[axis + 1 :])
    return True


def form_groups(
    draft: Draft, families: Sequence[Sequence[int]], buffers: Buffers, reader: RowReader
) -> tuple[Group, ...]:
    """Divide each family of outputs into groups.

    Of the group sizes that fit the memory, that whose reads cost least is chosen, by bytes and requests together
    (:func:`reshard.planning.steps.reads.score`); of those that cost about as little the smallest, because
    smaller steps overlap better. Families are those of :func:`output_families`.

    Raises
    ------
    OverBudget
        No size fits the memory; the error carries the smallest limit that would suffice.
    PlanError
        An output cannot be written in parts that the store accepts.
    """
    finder = CutFinder(draft, reader.equivalence)
    keys = [reader.equivalence.family(family) for family in families]
    classes: dict[Hashable, Sequence[int]] = {}
    for key, family in zip(keys, families, strict=True):
        classes.setdefault(key, family)
    steps = {key: _least_steps(draft, finder, family) for key, family in classes.items()}
    least_bytes = max((min(sizes.values()) for sizes in steps.values()), default=0)
    if least_memory(buffers.given, least_bytes) > buffers.given.memory_bytes:
        raise over_budget(buffers, least_bytes)
    best: dict[Hashable, int] = {}
    cuts: dict[Hashable, list[tuple[Cut, ...]]] = {}
    for key, family in classes.items():
        fitting = [size for size, step_bytes in steps[key].items() if step_bytes <= buffers.parts_bytes]
        best[key] = _best_size(reader, family, fitting)
        cuts[key] = [_cuts(draft, finder, members, buffers) for members in _divided(family, best[key])]
    return tuple(
        Group(tuple(members), some)
        for key, family in zip(keys, families, strict=True)
        for members, some in zip(_divided(family, best[key]), cuts[key], strict=True)
    )


def _divided(family: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(family), size):
        yield family[start : start + size]


def _least_steps(draft: Draft, finder: CutFinder, family: Sequence[int]) -> dict[int, int]:
    """Return the group sizes whose parts the store accepts, each with the bytes of its largest step, cut finely."""
    found = {}
    size = len(family)
    while size:
        divided = list(_divided(family, size))
        cuts = [finder.cut(members, _least_part_bytes(draft, members)) for members in divided]
        if all(_is_accepted(draft, members, some) for members, some in zip(divided, cuts, strict=True)):
            found[size] = max(some.step_bytes for some in cuts)
        size = -(-size // 2) if size > 1 else 0
    if not found:
        limits = draft.limits
        longest = max((draft.outputs[i] for i in family), key=lambda output: output.nbytes)
        raise PlanError(
            f"{longest.keys[0]} ({longest.nbytes} bytes) cannot be written in {limits.max_part_count} parts of "
            f"{limits.min_part_bytes} to {limits.max_part_bytes} bytes"
        )
    return found


def _best_size(reader: RowReader, family: Sequence[int], fitting: Sequence[int]) -> int:
    if len(fitting) == 1:
        return fitting[0]
    costs = {size: _score(reader, family, size) for size in fitting}
    least = min(costs.values())
    return min(size for size, cost in costs.items() if cost <= least * _WORTH_SHARING)


def _score(reader: RowReader, family: Sequence[int], size: int) -> int:
    """Return the score of what groups of a size read."""
    is_many = reader.equivalence.is_many(family)
    found: dict[Hashable, int] = {}
    total = 0
    for members in _divided(family, size):
        key = reader.equivalence.scored(members, is_many=is_many)
        if key not in found:
            found[key] = reader.scores.group(members)
        total += found[key]
    return total


def _cuts(draft: Draft, finder: CutFinder, members: Sequence[int], buffers: Buffers) -> tuple[Cut, ...]:
    limits = draft.limits
    # Enough steps in flight that reading one and sending another overlap, whatever the group's size.
    in_flight = max(2, -(-2 * limits.concurrency // len(members)))
    wished = min(limits.part_bytes, limits.max_part_bytes, buffers.parts_bytes // (in_flight * len(members)))
    least = _least_part_bytes(draft, members)
    cuts = finder.cut(members, max(least, wished))
    if cuts.step_bytes > buffers.parts_bytes or not _is_accepted(draft, members, cuts):
        cuts = finder.cut(members, least)
    return cuts.cuts


def _least_part_bytes(draft: Draft, members: Sequence[int]) -> int:
    """Return the size of the smallest parts that are not too many."""
    most = draft.limits.max_part_count - 1
    streamed = draft.distinct_streamed(members)
    fewest = max(-(-each.nbytes // max(1, most - _extra_parts(draft, each))) for each in streamed)
    return max(draft.limits.min_part_bytes, fewest)


def _extra_parts(draft: Draft, streamed: Streamed) -> int:
    """Return how many parts an output has at most besides one in each step: copied ones, and one at each seam."""
    return sum(1 + -(-run.nbytes // draft.limits.most_copied_bytes) for run in streamed.copied)


def _is_accepted(draft: Draft, members: Sequence[int], cuts: Cuts) -> bool:
    """Return whether the store accepts parts of this length and number."""
    limits = draft.limits
    extra = max(_extra_parts(draft, each) for each in draft.distinct_streamed(members))
    return len(cuts.cuts) + extra < limits.max_part_count and cuts.part_bytes <= limits.max_part_bytes
