"""Tensors that are written in between, as zarr arrays whose chunks serve both the source and the target.

Streaming reads bytes again and again if a target cuts a tensor across its rows into more outputs than
memory has room for at once. Two passes read it twice, however small the memory: the first reads bands of rows
and writes them as chunks, each a range of columns; the second finds the columns of its outputs in chunks of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import PlanError
from ..tensor import Box, Shape, extent_of
from .catalog import Catalog, Entry, Placement, SourceObject
from .conversion import Conversion
from .cost.cost import Cost
from .limits import Limits
from .outputs.output import Output, group_by_layout
from .plan import Grouping, Plan, StagingMode, group_outputs, make_plan
from .steps.copies import REPLICAS
from .steps.fills import pieces_in, stored_hull
from .steps.read_scores import alone_score
from .steps.reads import score
from .targets.zarr_target import ZarrTarget, chunk_shape_for

_WORTH_IT = 1.2
"""Staging must be cheaper by this factor: a second pass is one more thing that can fail."""
_MOST_WASTE = 1.05
"""A plan that costs no more than this, compared with reading every byte once, is not weighed against staging."""
_MOST_COLUMNS = 1024
_MOST_CHUNKS = 20_000
_FOLDER = "reshard-staging-"


def staged_plan(plan: Plan, mode: StagingMode) -> Plan:
    """Return a plan without staging with some tensors staged if that is cheaper, otherwise the same plan."""
    if not mode.is_always and _score(plan.cost, plan.limits) <= _MOST_WASTE * _ideal_score(plan):
        return plan
    axes = _axes_to_split(plan, is_always=mode.is_always)
    if not axes:
        return plan
    best: _Trial | None = None
    for column_count in _column_counts(plan, axes):
        try:
            trial = _try(plan, axes, column_count, mode)
        except PlanError:  # too many chunks, or more memory than there is
            continue
        if best is not None and trial.score > best.score:
            break  # more columns make more requests, and save no more bytes from here on
        best = trial
    if best is None:
        return plan
    try:
        made = _combined(plan, best.first, best.second, mode)
    except PlanError:  # tiles are larger than estimated
        return plan
    total = _score(made.cost, made.limits) + _score(best.first.cost, best.first.limits)
    return made if mode.is_always or _WORTH_IT * total < _score(plan.cost, plan.limits) else plan


def _score(cost: Cost, limits: Limits) -> int:
    return score(cost.read_bytes + cost.written_bytes, cost.request_count, limits)


def _ideal_score(plan: Plan) -> int:
    """Return the score of a conversion that reads every byte once, in reads of full length."""
    cost, limits = plan.cost, plan.limits
    read_bytes = min(cost.read_bytes, plan.catalog.nbytes)
    requests = cost.request_count - cost.get_count + -(-read_bytes // limits.read_bytes) + len(plan.catalog.entries)
    return score(read_bytes + cost.written_bytes, requests, limits)


# Which tensors to stage, and along which axis to divide their chunks into columns.


def _axes_to_split(plan: Plan, *, is_always: bool) -> dict[int, int]:
    """Return the entries to stage, each with the axis to divide."""
    entries, limits = plan.catalog.entries, plan.limits
    axes = {
        index: axis
        for index, axis in _cut_axes(plan).items()
        if entries[index].spec.nbytes and not entries[index].spec.dtype.is_sub_byte
    }
    if is_always:
        return axes
    streamed = _read_scores(plan)
    # At best, staging reads, writes and reads every byte in requests of full length.
    return {
        index: axis
        for index, axis in axes.items()
        if _WORTH_IT * 3 * alone_score(entries[index].spec.nbytes, 1, limits) < streamed[index]
    }


def _cut_axes(plan: Plan) -> dict[int, int]:
    """Return the innermost axis that is cut of each entry that some output takes in pieces that are apart."""
    found: dict[int, int] = {}
    for output, slots in _distinct_slots(plan):
        for slot in slots:
            tensor, box = output.tensors[slot], output.boxes[slot]
            if box.is_empty:
                continue
            for piece, patch in pieces_in(plan.draft, tensor, box):
                shape = extent_of(plan.catalog.entries[piece.source].spec)[0]
                axis = _cut_axis(stored_hull(piece, patch), shape) if patch.keeps_order else len(shape) - 1
                if axis > found.get(piece.source, 0):
                    found[piece.source] = axis
    return found


def _distinct_slots(plan: Plan) -> Iterator[tuple[Output, Sequence[int]]]:
    """Yield every output with its slots, but those that other outputs of its layout cut on the same axes only once."""
    for positions in group_by_layout(plan.outputs):
        first = plan.outputs[positions[0]]
        yield first, range(len(first.tensors))
        # Boxes of one layout have equal shapes, but different pieces of a tensor may fill them.
        others = [slot for slot, tensor in enumerate(first.tensors) if len(plan.tensors[tensor].pieces) > 1]
        for position in positions[1:] if others else ():
            yield plan.outputs[position], others


def _cut_axis(hull: Box, shape: Shape) -> int:
    """Return the innermost axis that a box does not span, 0 if the box is contiguous."""
    cut = [axis for axis, (low, high, n) in enumerate(zip(hull.start, hull.stop, shape, strict=True)) if high - low < n]
    is_contiguous = all(hull.stop[axis] - hull.start[axis] == 1 for axis in range(cut[-1])) if cut else True
    return 0 if is_contiguous else cut[-1]


def _read_scores(grouping: Plan | Grouping) -> Counter[int]:
    """Return the score of what all groups together read of each entry."""
    found = Counter[int]()
    for group in grouping.groups:
        found.update(grouping.reader.scores.entries(group.outputs))
    return found


# How many columns.


@dataclass(frozen=True, slots=True)
class _Trial:
    """Both passes with some number of columns, the second without its cost: counting that takes longest.

    ``score`` compares trials. It is the first pass's own; of the second it is what groups read, and what is copied
    instead of sent: everything else of the second pass is nearly the same for every number of columns.
    """

    first: Plan
    second: Grouping
    score: int


def _column_counts(plan: Plan, axes: Mapping[int, int]) -> Iterator[int]:
    """Yield numbers of columns to try: with few, reads are long; with many, each output reads no more than its own."""
    nbytes = sum(plan.catalog.entries[index].spec.nbytes for index in axes)
    count = 1
    while count <= _MOST_COLUMNS and nbytes // _band_bytes(plan) * count <= _MOST_CHUNKS:
        yield count
        count *= 2


def _band_bytes(plan: Plan) -> int:
    """Return the size of a band, the rows that one step divides into chunks; several are in memory at once."""
    return max(1, plan.buffers.parts_bytes // 4)


def _try(plan: Plan, axes: Mapping[int, int], column_count: int, mode: StagingMode) -> _Trial:
    entries = plan.catalog.entries
    shapes = {
        entries[index].spec.name: _chunk_shape(entries[index], axis, column_count, _band_bytes(plan))
        for index, axis in axes.items()
    }
    first, second = _passes(plan, shapes, mode)
    copied = [run.nbytes for runs in second.draft.copied_ranges for run in runs]
    copy_count = sum(-(-nbytes // plan.limits.most_copied_bytes) for nbytes in copied)
    read = _read_scores(second).total()
    return _Trial(first, second, _score(first.cost, first.limits) + read + score(-sum(copied), copy_count, plan.limits))


def _chunk_shape(entry: Entry, axis: int, column_count: int, band_bytes: int) -> Shape:
    """Return the shape of chunks: a band of rows, divided on an inner axis into so many columns or somewhat more."""
    extent, itemsize = extent_of(entry.spec)
    shape = list(chunk_shape_for(extent, itemsize, band_bytes))
    # Even columns only: zarr would pad the last one between the elements of its rows.
    columns = next(n for n in range(min(column_count, extent[axis]), extent[axis] + 1) if extent[axis] % n == 0)
    shape[axis] = min(shape[axis], extent[axis] // columns)
    while extent[axis] % shape[axis]:
        shape[axis] -= 1
    return tuple(shape)


# The two passes.


def stage(plan: Plan, shapes: Mapping[str, Shape], mode: StagingMode) -> Plan:
    """Return a plan without staging with some tensors staged.

    ``shapes`` are those of the chunks of each tensor to stage, in elements, by its name in the source. Raise PlanError
    for too many chunks, and if a pass does not fit the memory.
    """
    return _combined(plan, *_passes(plan, shapes, mode), mode)


def _passes(plan: Plan, shapes: Mapping[str, Shape], mode: StagingMode) -> tuple[Plan, Grouping]:
    is_near = mode.is_near and REPLICAS in plan.copy_bases
    target = ZarrTarget(plan.limits.chunk_bytes, shapes)
    first = first_pass(plan.conversion, target, mode, mode.limits or plan.limits, plan.copy_bases if is_near else ())
    bases = (*plan.copy_bases, len(plan.catalog.others) + 1) if is_near else plan.copy_bases
    return first, group_outputs(plan.conversion, plan.limits, bases, with_chunks(plan.catalog, first))


def _combined(plan: Plan, first: Plan, second: Grouping, mode: StagingMode) -> Plan:
    made = second.plan()
    return made.after(first, mode, _note(plan, first, made))


def first_pass(
    conversion: Conversion, target: ZarrTarget, mode: StagingMode, limits: Limits, copy_bases: Sequence[int]
) -> Plan:
    """Plan to write chunks of those tensors of a conversion's source that the target has chunk shapes for."""
    catalog = conversion.catalog
    staged = tuple(entry for entry in catalog.entries if entry.spec.name in target.chunk_shapes)
    source = replace(catalog, entries=staged, metadata={}, texts={}, notes=(), dropped=())
    # Chunks of other sources, of other shapes, and those of every share have URLs of their own.
    share = "" if conversion.whole is conversion else conversion.manifest_key
    objects = [(item.key, item.nbytes, item.etag, item.base) for item in source.objects]
    text = json.dumps([source.url, source.others, objects, sorted(target.chunk_shapes.items()), share])
    url = f"{mode.url}/{_FOLDER}{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return make_plan(Conversion(source, target, url), limits, copy_bases)


def second_pass(
    conversion: Conversion, first: Plan, mode: StagingMode, limits: Limits, copy_bases: Sequence[int]
) -> Plan:
    """Plan a conversion that reads the chunks of its first pass."""
    return make_plan(conversion, limits, copy_bases, with_chunks(conversion.catalog, first)).after(first, mode)


def with_chunks(catalog: Catalog, first: Plan) -> Catalog:
    """Return the catalog with the staged tensors stored in chunks, whose etags are not known yet."""
    others = (*catalog.others, first.conversion.target_url)
    objects, placements = list(catalog.objects), dict[str, list[Placement]]()
    for output in first.outputs:
        name = first.tensors[output.tensors[0]].spec.name
        placements.setdefault(name, []).append(Placement(output.boxes[0], ((len(objects), 0),)))
        objects.append(SourceObject(output.keys[0], output.nbytes, "", len(others)))
    entries = tuple(
        replace(entry, placements=tuple(placements[entry.spec.name]), axes=())
        if entry.spec.name in placements
        else entry
        for entry in catalog.entries
    )
    return replace(catalog, others=others, objects=tuple(objects), entries=entries)


def with_etags(plan: Plan, etags: Mapping[str, str]) -> Plan:
    """Return a plan whose chunks are written, with their etags by key; without etags, as it was before."""
    if plan.staging is None:
        return plan
    base = len(plan.catalog.others)
    objects = tuple(
        replace(item, etag=etags.get(item.key, "")) if item.base == base else item for item in plan.catalog.objects
    )
    return replace(plan, catalog=replace(plan.catalog, objects=objects))


def _note(plan: Plan, first: Plan, second: Plan) -> str:
    names = [entry.spec.name for entry in first.catalog.entries]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    before, after = plan.cost, second.cost
    return (
        f"{names[0]}{more} ({first.catalog.nbytes} bytes) staged in {len(first.outputs)} zarr chunks at "
        f"{first.conversion.target_url}: in one pass {before.read_bytes} bytes would be read in {before.get_count} "
        f"requests, in two {first.cost.read_bytes + after.read_bytes} in {first.cost.get_count + after.get_count}"
    )
