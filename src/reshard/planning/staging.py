"""Tensors that are written in between, as zarr arrays whose chunks serve the source and the target both.

Streaming reads bytes again and again where a target cuts a tensor across its rows into more outputs, or longer
ones, than memory has room for at once. Two passes read it twice, however small the memory: the first writes
bands of rows as chunks, the second finds each chunk's bytes together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..errors import PlanError
from ..tensor import Box, Shape, extent_of
from .catalog import Catalog, Entry, Placement, SourceObject
from .conversion import Conversion
from .cost.cost import Cost
from .limits import Limits
from .plan import Plan, StagingMode, make_plan
from .steps.copies import REPLICAS
from .steps.fills import pieces_in
from .steps.reads import score
from .steps.row_reads import group_ranges
from .targets.zarr_target import ZarrTarget, chunk_shape_for

_WORTH_IT = 1.2
"""Staging must be cheaper by this factor: a second pass is one more thing that can fail."""
_MOST_WASTE = 1.05
_MOST_SPLITS = 1024
_FOLDER = "reshard-staging-"
_MOST_CHUNKS = 20_000


def staged_plan(plan: Plan, mode: StagingMode) -> Plan:
    """The same conversion with some tensors staged, if that is cheaper; otherwise the same plan.

    Parameters
    ----------
    plan
        Without staging.
    mode
        Where chunks go, and whether to stage in any case.
    """
    limits = plan.limits
    if not mode.is_always and _score(plan.cost, limits) <= _MOST_WASTE * _ideal(plan):
        return plan
    wanted = _wanted(plan, is_always=mode.is_always)
    if not wanted:
        return plan
    best: Plan | None = None
    staged_bytes = sum(plan.catalog.entries[index].spec.nbytes for index in wanted)
    for split_count in _split_counts(_band_bytes(plan), staged_bytes):
        try:
            made = _made(plan, wanted, split_count, mode)
        except PlanError:  # too many chunks, or more memory than there is
            continue
        if best is not None and _total(made) > _total(best):
            break
        best = made
    is_worth_it = best is not None and (mode.is_always or _WORTH_IT * _total(best) < _score(plan.cost, limits))
    return best if is_worth_it and best is not None else plan


def without_staging(plan: Plan) -> Plan:
    """The same conversion in one pass; what it writes is the same."""
    if plan.staging is None:
        return plan
    bases = [base for base in plan.copy_bases if base < len(plan.catalog.others)]
    return make_plan(plan.conversion, plan.limits, bases)


# Which tensors.


def _wanted(plan: Plan, *, is_always: bool) -> dict[int, int]:
    """Entries to stage, each with the axis to split it on."""
    entries = plan.catalog.entries
    axes = _cut_axes(plan)
    streamed = {} if is_always else _streamed_scores(plan)
    found = {}
    for index, axis in axes.items():
        spec = entries[index].spec
        if spec.dtype.is_sub_byte or not spec.nbytes:
            continue
        # What is copied whole is not streamed at all.
        if is_always or _WORTH_IT * _staged_score(spec.nbytes, plan.limits) < streamed.get(index, 0):
            found[index] = axis
    return found


def _cut_axes(plan: Plan) -> dict[int, int]:
    """Of each entry that some output takes in pieces that lie apart: the innermost axis that is cut."""
    found: dict[int, int] = {}
    for output in plan.outputs:
        for tensor, box in zip(output.tensors, output.boxes, strict=True):
            if box.is_empty:
                continue
            for piece, patch in pieces_in(plan.draft, tensor, box):
                shape = extent_of(plan.catalog.entries[piece.source].spec)[0]
                axis = _cut_axis(patch.source_hull, shape)
                if not patch.keeps_order:
                    axis = len(shape) - 1
                if axis > found.get(piece.source, 0):
                    found[piece.source] = axis
    return found


def _cut_axis(hull: Box, shape: Shape) -> int:
    """The innermost axis that a box does not span, 0 where it is contiguous."""
    cut = [axis for axis, (low, high, n) in enumerate(zip(hull.start, hull.stop, shape, strict=True)) if high - low < n]
    is_contiguous = all(hull.stop[axis] - hull.start[axis] == 1 for axis in range(cut[-1])) if cut else True
    return 0 if is_contiguous else cut[-1]


def _streamed_scores(plan: Plan) -> dict[int, int]:
    """What each entry's bytes cost to stream, all groups together."""
    found: dict[int, int] = {}
    for group in plan.groups:
        for source, ranges in group_ranges(plan.draft, group.outputs):
            found[source] = found.get(source, 0) + sum(_read_score(one.nbytes, plan.limits) for one in ranges)
    return found


# What it costs, all told.


def _score(cost: Cost, limits: Limits) -> int:
    return score(cost.read_bytes + cost.written_bytes, cost.request_count, limits)


def _ideal(plan: Plan) -> int:
    """The score of a conversion that reads every byte once, in reads of full length."""
    cost, limits = plan.cost, plan.limits
    read_bytes = min(cost.read_bytes, plan.catalog.nbytes)
    requests = cost.request_count - cost.get_count + -(-read_bytes // limits.read_bytes) + len(plan.catalog.entries)
    return score(read_bytes + cost.written_bytes, requests, limits)


def _total(plan: Plan) -> int:
    assert plan.staging is not None
    return _score(plan.cost, plan.limits) + _score(plan.staging.cost, plan.limits)


def _read_score(nbytes: int, limits: Limits) -> int:
    return score(nbytes, -(-nbytes // limits.read_bytes), limits)


def _staged_score(nbytes: int, limits: Limits) -> int:
    """At best: read, written and read again in full reads."""
    return 3 * _read_score(nbytes, limits)


# How.


def _split_counts(band_bytes: int, nbytes: int) -> Iterator[int]:
    """Into how many columns of chunks: few make long reads, many let each output read no more than its own."""
    count = 1
    while count <= _MOST_SPLITS and nbytes // band_bytes * count <= _MOST_CHUNKS:
        yield count
        count *= 2


def _band_bytes(plan: Plan) -> int:
    """Rows that are cut into chunks at one stroke; several such bands are in memory at once."""
    return max(1, plan.buffers.parts_bytes // 4)


def _made(plan: Plan, wanted: Mapping[int, int], split_count: int, mode: StagingMode) -> Plan:
    """The plan with some tensors staged in so many columns of chunks."""
    entries = plan.catalog.entries
    shapes = {
        entries[index].spec.name: _chunk_shape(entries[index], axis, split_count, _band_bytes(plan))
        for index, axis in wanted.items()
    }
    return stage(plan, shapes, mode)


def stage(plan: Plan, shapes: Mapping[str, Shape], mode: StagingMode) -> Plan:
    """Return the plan with some tensors staged.

    Parameters
    ----------
    plan
        Without staging.
    shapes
        Shape of the chunks of each tensor to stage, in elements, by its name in the source.

    Raises
    ------
    PlanError
        The chunks are too many, or a pass does not fit the memory.
    """
    limits, target = mode.limits or plan.limits, ZarrTarget(plan.limits.chunk_bytes, shapes)
    is_near = mode.is_near and REPLICAS in plan.copy_bases
    first = first_pass(plan.catalog, target, mode, limits, plan.copy_bases if is_near else ())
    bases = (*plan.copy_bases, len(plan.catalog.others) + 1) if is_near else plan.copy_bases
    second = second_pass(plan.conversion, first, mode, plan.limits, bases)
    return replace(second, staging_note=_note(plan, first, second))


def first_pass(
    catalog: Catalog, target: ZarrTarget, mode: StagingMode, limits: Limits, copy_bases: Sequence[int]
) -> Plan:
    """Plan to write chunks of those tensors of a catalog that the target has chunk shapes for."""
    staged = tuple(entry for entry in catalog.entries if entry.spec.name in target.chunk_shapes)
    source = replace(catalog, entries=staged, metadata={}, texts={}, notes=(), dropped=())
    url = f"{mode.url}/{_FOLDER}{_fingerprint(source, target.chunk_shapes)}"
    return make_plan(Conversion(source, target, url), limits, copy_bases)


def second_pass(
    conversion: Conversion, first: Plan, mode: StagingMode, limits: Limits, copy_bases: Sequence[int]
) -> Plan:
    """Plan a conversion that reads the chunks of its first pass."""
    second = make_plan(conversion, limits, copy_bases, with_chunks(conversion.catalog, first))
    return replace(second, staging=first, staging_mode=mode)


def _fingerprint(source: Catalog, shapes: Mapping[str, Shape]) -> str:
    """What tells chunks from those of other sources, and of the same source in other shapes."""
    objects = [(item.key, item.nbytes, item.etag, item.base) for item in source.objects]
    told = json.dumps([source.url, source.others, objects, sorted(shapes.items())])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def is_staging_url(url: str) -> bool:
    """Whether a place is named as staging names its own: no other's objects are below it."""
    return re.fullmatch(_FOLDER + "[0-9a-f]{16}", url.rpartition("/")[2]) is not None


def _chunk_shape(entry: Entry, axis: int, split_count: int, band_bytes: int) -> Shape:
    """Bands of rows that memory holds, cut on an inner axis into so many columns or somewhat more."""
    extent, itemsize = extent_of(entry.spec)
    shape = list(chunk_shape_for(extent, itemsize, band_bytes))
    columns = next(n for n in range(min(split_count, extent[axis]), extent[axis] + 1) if extent[axis] % n == 0)
    shape[axis] = min(shape[axis], extent[axis] // columns)
    while extent[axis] % shape[axis]:
        shape[axis] -= 1
    return tuple(shape)


def with_chunks(catalog: Catalog, first: Plan) -> Catalog:
    """The catalog whose staged tensors lie in chunks; their etags are not known yet."""
    others = (*catalog.others, first.conversion.target_url)
    objects, placements = list(catalog.objects), dict[str, list[Placement]]()
    for output in first.outputs:
        name = first.tensors[output.tensors[0]].spec.name
        placements.setdefault(name, []).append(Placement(output.boxes[0], ((len(objects), 0),)))
        objects.append(SourceObject(output.keys[0], output.nbytes, "", len(others)))
    entries = tuple(
        replace(entry, placements=tuple(placements[entry.spec.name])) if entry.spec.name in placements else entry
        for entry in catalog.entries
    )
    return replace(catalog, others=others, objects=tuple(objects), entries=entries)


def with_etags(plan: Plan, etags: Mapping[str, str]) -> Plan:
    """A plan whose chunks have been written, with their etags by key; as it was before with none."""
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
        f"requests, "
        f"in two {first.cost.read_bytes + after.read_bytes} in {first.cost.get_count + after.get_count}"
    )
