"""How each byte of an output is made: looked up in a plan for one object or one tensor, without deriving the rest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ..errors import UsageError
from ..formats.strict_json import shown
from ..tensor import Box, ByteRange, Patch
from .explained import (
    Explanation,
    Held,
    ObjectExplanation,
    PartExplanation,
    StagedTensor,
    Taken,
    TensorExplanation,
)
from .outputs.output import Attachment, Document, Output, Piece, sample
from .outputs.streamed import whole_copies
from .plan import Plan
from .steps.fills import Fill, box_fills, computation_inputs, input_fills
from .steps.steps import CopiedPart, Step, StreamedPart

_NEAR = 3


def explain(plan: Plan, name: str) -> Explanation:
    """Tell how an object or a tensor of the target is made.

    Only the steps of the groups that it is in are derived.

    Parameters
    ----------
    name
        A key of the target, or else a tensor's name there or, if none is called so, in the source; or the key
        of a chunk that the first pass writes.

    Raises
    ------
    UsageError
        The plan makes nothing of this name; the error tells what is called like it.
    """
    explained = _explained_object(plan, name)
    if explained is not None:
        return replace(explained, staged=_staged(plan, (one for part in explained.parts for one in part.sources)))
    found = _tensor_of(plan, name)
    if found is not None:
        holders = [index for index, output in enumerate(plan.outputs) if found in output.tensors]
        tensor = _tensor(plan, found, holders)
        return replace(tensor, staged=_staged(plan, (one for held in tensor.held for one in held.sources)))
    chunk = _explained_object(plan.staging, name) if plan.staging else None
    if chunk is None:
        raise _unknown(plan, name)
    return replace(chunk, is_chunk=True)


def _explained_object(plan: Plan, key: str) -> ObjectExplanation | None:
    for index, output in enumerate(plan.outputs):
        if key in output.keys:
            return _object(plan, index, key)
    others: dict[str, Document | Attachment] = {each.key: each for each in plan.conversion.documents}
    others |= {each.key: each for each in plan.conversion.attachments}
    return _beside(plan, others[key]) if key in others else None


def _tensor_of(plan: Plan, name: str) -> int | None:
    for index, tensor in enumerate(plan.tensors):
        if tensor.spec.name == name:
            return index
    entries = plan.catalog.entries
    made = [
        index
        for index, tensor in enumerate(plan.tensors)
        if any(entries[piece.source].spec.name == name for piece in tensor.pieces)
    ]
    if len(made) > 1:
        hint = f"Name one of them: {sample([plan.tensors[index].spec.name for index in made], _NEAR)}."
        raise UsageError(f"{len(made)} tensors of the target are made of {shown(name)}", hint=hint)
    return made[0] if made else None


def _unknown(plan: Plan, name: str) -> UsageError:
    names = [
        *plan.conversion.keys,
        *(tensor.spec.name for tensor in plan.tensors),
        *(plan.staging.conversion.keys if plan.staging else ()),
    ]
    near = difflib.get_close_matches(name, names, n=_NEAR) or [each for each in names if name in each][:_NEAR]
    hint = (
        f"Did you mean {' or '.join(near)}?" if near else "reshard plan lists the outputs, reshard inspect the tensors."
    )
    return UsageError(f"the plan makes no object and no tensor called {shown(name)}", hint=hint)


def _object(plan: Plan, index: int, key: str) -> ObjectExplanation:
    output, group = plan.outputs[index], _group_of(plan, index)
    is_replica = plan.draft.is_replicated(plan.groups[group], index) and key != output.keys[0]
    parts = tuple(_replica_parts(plan, output)) if is_replica else _parts(plan, group, [index])[index]
    return _explained(key, output.keys, output.nbytes, parts)


def _explained(key: str, keys: tuple[str, ...], nbytes: int, parts: tuple[PartExplanation, ...]) -> ObjectExplanation:
    total = {"copied": 0, "streamed": 0, "literal": 0}
    for part in parts:
        for way, count in part.nbytes_by_way().items():
            total[way] += count
    return ObjectExplanation(key, keys, nbytes, parts, total["copied"], total["streamed"], total["literal"])


def _beside(plan: Plan, other: Document | Attachment) -> ObjectExplanation:
    if isinstance(other, Document):
        span = ByteRange(0, len(other.data))
        part = PartExplanation(1, span, "literal", literal_nbytes=span.nbytes)
    else:
        span = ByteRange(0, other.nbytes)
        part = PartExplanation(1, span, "streamed", (_taken(plan, other.index, span),))
    return _explained(other.key, (other.key,), span.nbytes, (part,))


def _replica_parts(plan: Plan, output: Output) -> Iterator[PartExplanation]:
    for number, span in enumerate(whole_copies(output.nbytes, plan.limits), start=1):
        yield PartExplanation(number, span, "replica", (Taken(output.keys[0], span, span.nbytes, -1),))


def _group_of(plan: Plan, output: int) -> int:
    return next(index for index, group in enumerate(plan.groups) if output in group.outputs)


def _parts(plan: Plan, group: int, wanted: Sequence[int]) -> dict[int, tuple[PartExplanation, ...]]:
    """The parts of some outputs of a group, in order."""
    found: dict[int, list[PartExplanation]] = {index: [] for index in wanted}
    for step in plan.steps(group):
        for position, part in enumerate(step.parts):
            if part.output in found:
                found[part.output].append(_streamed_part(plan, step, position, part))
        for copy in step.copies:
            if copy.output in found:
                found[copy.output].append(_copied_part(plan, step, copy))
    return {index: tuple(sorted(parts, key=lambda part: part.number)) for index, parts in found.items()}


def _copied_part(plan: Plan, step: Step, part: CopiedPart) -> PartExplanation:
    taken = _taken(plan, part.object, part.source_range)
    return PartExplanation(part.number, part.range, "copied", (taken,), group=step.group, step=step.number)


def _streamed_part(plan: Plan, step: Step, position: int, part: StreamedPart) -> PartExplanation:
    tiles = [tile for tile in step.tiles if any(each.buffer == position for each in tile.scatters)]
    buffers = {position} | {tile.first_input + i for tile in tiles for i in range(len(tile.inputs))}
    reads = [read for read in step.reads if any(each.buffer in buffers for each in read.scatters)]
    known = plan.outputs[part.output].frame.literals_in(part.range.start, part.range.stop)
    literal = sum(len(data) for _, data in known)
    return PartExplanation(
        part.number,
        part.range,
        "literal" if literal == part.range.nbytes else "streamed",
        tuple(_taken(plan, read.object, read.range) for read in reads),
        literal,
        tuple(sorted({tile.computation.kernel for tile in tiles})),
        step.group,
        step.number,
    )


def _taken(plan: Plan, index: int, span: ByteRange, nbytes: int | None = None) -> Taken:
    item = plan.catalog.objects[index]
    is_staged = plan.staging is not None and item.base == len(plan.catalog.others)
    return Taken(item.key, span, span.nbytes if nbytes is None else nbytes, item.base, is_staged, bool(item.fill))


def _staged(plan: Plan, taken: Iterable[Taken]) -> tuple[StagedTensor, ...]:
    """How the chunks among what is taken are made, by tensor."""
    first = plan.staging
    if first is None:
        return ()
    keys = {one.object for one in taken if one.is_staged}
    chunks: dict[int, list[int]] = {}
    for index, output in enumerate(first.outputs):
        chunks.setdefault(output.tensors[0], []).append(index)
    found = ((t, every, [i for i in every if first.outputs[i].keys[0] in keys]) for t, every in chunks.items())
    return tuple(_staged_tensor(first, tensor, every, wanted) for tensor, every, wanted in found if wanted)


def _staged_tensor(first: Plan, tensor: int, every: Sequence[int], wanted: Sequence[int]) -> StagedTensor:
    made = _tensor(first, tensor, wanted)
    sources: dict[tuple[str, int], Taken] = {}
    for one in (taken for held in made.held for taken in held.sources):
        so_far = sources.get((one.object, one.base), replace(one, nbytes=0))
        span = ByteRange(min(so_far.range.start, one.range.start), max(so_far.range.stop, one.range.stop))
        sources[one.object, one.base] = replace(one, range=span, nbytes=so_far.nbytes + one.nbytes)
    return StagedTensor(
        made.name,
        made.shape,
        first.conversion.target_url,
        first.outputs[every[0]].boxes[0].shape,
        len(every),
        len(wanted),
        tuple(sources.values()),
        made.copied_bytes,
        made.streamed_bytes,
    )


def _tensor(plan: Plan, tensor: int, holders: Sequence[int]) -> TensorExplanation:
    held: list[Held] = []
    copied = total = 0
    for group, members in _by_group(plan, holders).items():
        parts = _parts(plan, group, members)
        for index in members:
            one = _held(plan, index, tensor, parts[index])
            held.append(one)
            total += sum(span.nbytes for span in one.ranges)
            copied += sum(
                _common(span, part.range) for span in one.ranges for part in one.parts if part.filled == "copied"
            )
    spec, entries = plan.tensors[tensor].spec, plan.catalog.entries
    made_of = dict.fromkeys(entries[piece.source].spec.name for piece in plan.tensors[tensor].pieces)
    return TensorExplanation(
        spec.name, spec.dtype.value, spec.shape, tuple(made_of), tuple(held), copied, total - copied
    )


def _by_group(plan: Plan, outputs: Iterable[int]) -> dict[int, list[int]]:
    wanted, found = set(outputs), dict[int, list[int]]()
    for index, group in enumerate(plan.groups):
        members = [output for output in group.outputs if output in wanted]
        if members:
            found[index] = members
    return found


def _held(plan: Plan, index: int, tensor: int, parts: Sequence[PartExplanation]) -> Held:
    output = plan.outputs[index]
    slot = output.tensors.index(tensor)
    box = output.boxes[slot]
    ranges = tuple(_ranges(output, slot))
    here = tuple(part for part in parts if any(_common(span, part.range) for span in ranges))
    return Held(output.keys, box, ranges, here, tuple(_sources(plan, tensor, box)))


def _ranges(output: Output, slot: int) -> Iterator[ByteRange]:
    """Where the bytes of one tensor of an output stand."""
    for extent in output.frame.extents:
        if extent.slot == slot:
            yield ByteRange(extent.start, extent.stop)


def _common(a: ByteRange, b: ByteRange) -> int:
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


def _sources(plan: Plan, tensor: int, box: Box) -> Iterator[Taken]:
    """Yield the bytes of the source that a box of a tensor is made of, one range for each stored box it touches."""
    if box.is_empty:
        return
    computed: list[tuple[Piece, Patch]] = []
    for fill in box_fills(plan.draft, tensor, box, box, lambda piece, patch: computed.append((piece, patch))):
        yield _filled(plan, fill)
    for piece, patch in computed:
        assert piece.computation is not None
        for entry, wanted in computation_inputs(piece.source, piece.computation, patch.source_hull):
            for fill in input_fills(plan.draft, entry, wanted):
                yield _filled(plan, fill)


def _filled(plan: Plan, fill: Fill) -> Taken:
    index, first = fill.placement.holders[0]
    runs = fill.scatter.source_runs
    return _taken(plan, index, ByteRange(first + runs.first, first + runs.stop), runs.total_nbytes)
