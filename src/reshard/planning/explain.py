"""How each byte of an output is made: looked up in a plan for one object or one tensor, without deriving the rest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from ..errors import UsageError
from ..formats.strict_json import shown
from ..tensor import Box, ByteRange
from .outputs.output import sample
from .outputs.streamed import whole_copies
from .plan import Plan
from .steps.fills import made_of
from .steps.steps import Step, StreamedPart

_NEAR = 3

FilledBy = Literal["copied", "streamed", "literal", "replica"]
"""``copied`` by the store from the source, ``streamed`` through the client, ``literal`` if planning knows the bytes;
a ``replica`` is copied by the store from an equal output."""


@dataclass(frozen=True, slots=True)
class SourceBytes:
    """Bytes of one object that a part or a box is made of.

    The key ``object`` is relative to the catalog's URL for base 0, to its other URLs after that, to the target's
    for -1. ``nbytes`` of the range are used: all of a read, those of the box for a tensor. A staged object is a chunk
    that the first pass writes; one that is left out is a chunk that the source omits: it reads as the fill value.
    """

    object: str
    range: ByteRange
    nbytes: int
    base: int = 0
    is_staged: bool = False
    is_left_out: bool = False


@dataclass(frozen=True, slots=True)
class StagedTensor:
    """A whole tensor of the source that the first pass writes as chunks below ``url``, and the chunks that are used.

    Of ``chunk_count`` chunks ``taken_count`` are used; ``sources``, ``copied_bytes`` and ``streamed_bytes`` are theirs:
    what they are made of, and how the first pass writes them.
    """

    name: str
    shape: tuple[int, ...]
    url: str
    chunk_shape: tuple[int, ...]
    chunk_count: int
    taken_count: int
    sources: tuple[SourceBytes, ...]
    copied_bytes: int
    streamed_bytes: int


@dataclass(frozen=True, slots=True)
class PartExplanation:
    """One part of an output; ``range`` counts in the output, ``number`` from 1; a single PUT is part 1.

    ``sources`` are read, together with other outputs of the group, or copied; ``literal_nbytes`` are known to planning,
    as headers are; ``kernels`` compute values for it. ``group`` and ``step`` make it; -1 and 0 if it is of no group.
    """

    number: int
    range: ByteRange
    filled: FilledBy
    sources: tuple[SourceBytes, ...] = ()
    literal_nbytes: int = 0
    kernels: tuple[str, ...] = ()
    group: int = -1
    step: int = 0


@dataclass(frozen=True, slots=True)
class ObjectExplanation:
    """One object of the target; its parts, in order, cover it without gaps or overlaps.

    ``key`` was asked for, ``keys`` are those of all equal objects. Bytes are counted by how they are made. ``staged``
    are the tensors whose chunks are used; ``is_chunk`` marks an object that is itself a chunk of the first pass.
    """

    key: str
    keys: tuple[str, ...]
    nbytes: int
    parts: tuple[PartExplanation, ...]
    copied_bytes: int
    streamed_bytes: int
    literal_bytes: int
    staged: tuple[StagedTensor, ...] = ()
    is_chunk: bool = False


@dataclass(frozen=True, slots=True)
class HeldBox:
    """The box of a tensor that one output, with its replicas, holds.

    ``ranges`` are its bytes in the output, ``parts`` those that have some of them. ``sources`` include block scales and
    adapters.
    """

    keys: tuple[str, ...]
    box: Box
    ranges: tuple[ByteRange, ...]
    parts: tuple[PartExplanation, ...]
    sources: tuple[SourceBytes, ...]


@dataclass(frozen=True, slots=True)
class TensorExplanation:
    """One tensor of the target, whole.

    ``made_of`` names the tensors of the source that it is made of, ``staged`` those whose chunks are used. ``held`` has
    the box of each distinct output; their bytes are counted by how they are made, replicas once.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    made_of: tuple[str, ...]
    held: tuple[HeldBox, ...]
    copied_bytes: int
    streamed_bytes: int
    staged: tuple[StagedTensor, ...] = ()


Explanation = ObjectExplanation | TensorExplanation


def explanation_to_json(explanation: Explanation) -> dict[str, object]:
    """Express an explanation in JSON's types."""
    kind = "object" if isinstance(explanation, ObjectExplanation) else "tensor"
    return {"kind": kind, **asdict(explanation)}


def explain(plan: Plan, name: str) -> Explanation:
    """Explain how an object or a tensor of the target is made; only the steps that have a part of it are derived.

    ``name`` is a key of the target; or a tensor's name there or, if none has this name, in the source; or the key of a
    chunk that the first pass writes. Raise UsageError, which lists similar names, if the plan makes nothing of it.
    """
    if (made := _find_object(plan, name)) is not None:
        return replace(made, staged=_staged(plan, (one for part in made.parts for one in part.sources)))
    if (tensor := _find_tensor(plan, name)) is not None:
        holders = [index for index, output in enumerate(plan.outputs) if tensor in output.tensors]
        found = _explain_tensor(plan, tensor, holders)
        return replace(found, staged=_staged(plan, (one for held in found.held for one in held.sources)))
    if plan.staging and (chunk := _find_object(plan.staging, name)) is not None:
        return replace(chunk, is_chunk=True)
    names = [*plan.conversion.keys, *(tensor.spec.name for tensor in plan.tensors)]
    names += plan.staging.conversion.keys if plan.staging else ()
    near = difflib.get_close_matches(name, names, n=_NEAR) or [each for each in names if name in each][:_NEAR]
    hint = f"Did you mean {' or '.join(near)}?" if near else "`plan` lists the outputs, `inspect` the tensors."
    raise UsageError(f"the plan makes no object and no tensor called {shown(name)}", hint=hint)


# Objects.


def _find_object(plan: Plan, key: str) -> ObjectExplanation | None:
    for index, output in enumerate(plan.outputs):
        if key in output.keys:
            return _explain_output(plan, index, key)
    for document in plan.conversion.documents:
        if document.key == key:
            span = ByteRange(0, len(document.data))
            return _explain_object(key, (key,), [PartExplanation(1, span, "literal", literal_nbytes=span.nbytes)])
    for attachment in plan.conversion.attachments:
        if attachment.key == key:
            span = ByteRange(0, attachment.nbytes)
            source = _source_bytes(plan, attachment.index, span)
            return _explain_object(key, (key,), [PartExplanation(1, span, "streamed", (source,))])
    return None


def _explain_output(plan: Plan, index: int, key: str) -> ObjectExplanation:
    output = plan.outputs[index]
    group = next(group for group in plan.groups if index in group.outputs)
    if key == output.keys[0] or not plan.draft.is_replicated(group, index):
        return _explain_object(key, output.keys, _parts(plan, {index: [ByteRange(0, output.nbytes)]})[index])
    parts = [
        PartExplanation(number, span, "replica", (SourceBytes(output.keys[0], span, span.nbytes, -1),))
        for number, span in enumerate(whole_copies(output.nbytes, plan.limits), start=1)
    ]
    return _explain_object(key, output.keys, parts)


def _explain_object(key: str, keys: tuple[str, ...], parts: Sequence[PartExplanation]) -> ObjectExplanation:
    nbytes = sum(part.range.nbytes for part in parts)
    literal = sum(part.literal_nbytes for part in parts)
    copied = sum(part.range.nbytes for part in parts if part.filled in ("copied", "replica"))
    return ObjectExplanation(key, keys, nbytes, tuple(parts), copied, nbytes - copied - literal, literal)


def _parts(plan: Plan, wanted: Mapping[int, Sequence[ByteRange]]) -> dict[int, tuple[PartExplanation, ...]]:
    """Return the parts of some outputs that have bytes within some ranges, in order."""
    found: dict[int, list[PartExplanation]] = {index: [] for index in wanted}
    for index, group in enumerate(plan.groups):
        members = [output for output in group.outputs if output in wanted]
        if not members:
            continue
        steps = plan.group_steps(index)
        # Outputs of a group share their steps: each is derived once for all of them.
        for number in sorted({n for output in members for n in steps.numbers_within(output, wanted[output])}):
            for output, part in _step_parts(plan, plan.step(index, number)):
                if output in found and any(_common(part.range, span) for span in wanted[output]):
                    found[output].append(part)
    return {index: tuple(sorted(parts, key=lambda part: part.number)) for index, parts in found.items()}


def _step_parts(plan: Plan, step: Step) -> Iterator[tuple[int, PartExplanation]]:
    for position, part in enumerate(step.parts):
        yield part.output, _streamed_part(plan, step, position, part)
    for copy in step.copies:
        source = _source_bytes(plan, copy.object, copy.source_range)
        yield copy.output, PartExplanation(copy.number, copy.range, "copied", (source,), 0, (), step.group, step.number)


def _streamed_part(plan: Plan, step: Step, position: int, part: StreamedPart) -> PartExplanation:
    tiles = [tile for tile in step.tiles if any(each.buffer == position for each in tile.scatters)]
    buffers = {position} | {tile.first_input + i for tile in tiles for i in range(len(tile.inputs))}
    reads = [read for read in step.reads if any(each.buffer in buffers for each in read.scatters)]
    literals = plan.outputs[part.output].frame.literals_in(part.range.start, part.range.stop)
    literal = sum(len(data) for _, data in literals)
    return PartExplanation(
        part.number,
        part.range,
        "literal" if literal == part.range.nbytes else "streamed",
        tuple(_source_bytes(plan, read.object, read.range) for read in reads),
        literal,
        tuple(sorted({tile.computation.kernel for tile in tiles})),
        step.group,
        step.number,
    )


def _source_bytes(plan: Plan, index: int, span: ByteRange, nbytes: int | None = None) -> SourceBytes:
    item = plan.catalog.objects[index]
    is_staged = plan.staging is not None and item.base == len(plan.catalog.others)
    nbytes = span.nbytes if nbytes is None else nbytes
    return SourceBytes(item.key, span, nbytes, item.base, is_staged, bool(item.fill))


# Tensors.


def _find_tensor(plan: Plan, name: str) -> int | None:
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


def _explain_tensor(plan: Plan, tensor: int, holders: Sequence[int]) -> TensorExplanation:
    ranges: dict[int, tuple[ByteRange, ...]] = {}
    for index in holders:
        slot, extents = plan.outputs[index].tensors.index(tensor), plan.outputs[index].frame.extents
        ranges[index] = tuple(ByteRange(extent.start, extent.stop) for extent in extents if extent.slot == slot)
    held: list[HeldBox] = []
    for index, parts in _parts(plan, ranges).items():
        output = plan.outputs[index]
        box = output.boxes[output.tensors.index(tensor)]
        held.append(HeldBox(output.keys, box, ranges[index], parts, tuple(_box_sources(plan, tensor, box))))
    spans = [(span, one.parts) for one in held for span in one.ranges]
    copied = sum(_common(span, part.range) for span, parts in spans for part in parts if part.filled == "copied")
    streamed = sum(span.nbytes for span, _ in spans) - copied
    spec, entries = plan.tensors[tensor].spec, plan.catalog.entries
    made_of = dict.fromkeys(entries[piece.source].spec.name for piece in plan.tensors[tensor].pieces)
    return TensorExplanation(spec.name, spec.dtype.value, spec.shape, tuple(made_of), tuple(held), copied, streamed)


def _common(a: ByteRange, b: ByteRange) -> int:
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


def _box_sources(plan: Plan, tensor: int, box: Box) -> Iterator[SourceBytes]:
    """Yield the bytes of the source that a box of a tensor is made of, one range for each stored box it touches."""
    for fill, _ in made_of(plan.draft, tensor, box):
        index, first = fill.placement.holders[0]
        runs = fill.scatter.source_runs
        yield _source_bytes(plan, index, ByteRange(first + runs.first, first + runs.stop), runs.total_nbytes)


# Staged chunks.


def _staged(plan: Plan, used: Iterable[SourceBytes]) -> tuple[StagedTensor, ...]:
    """Explain how the chunks among some bytes are made, by tensor."""
    first = plan.staging
    if first is None:
        return ()
    keys = {one.object for one in used if one.is_staged}
    chunks: dict[int, list[int]] = {}
    for index, output in enumerate(first.outputs):
        chunks.setdefault(output.tensors[0], []).append(index)
    found = ((t, every, [i for i in every if first.outputs[i].keys[0] in keys]) for t, every in chunks.items())
    return tuple(_staged_tensor(first, tensor, every, wanted) for tensor, every, wanted in found if wanted)


def _staged_tensor(first: Plan, tensor: int, every: Sequence[int], used: Sequence[int]) -> StagedTensor:
    made, url, chunk = _explain_tensor(first, tensor, used), first.conversion.target_url, first.outputs[every[0]]
    joined: dict[tuple[str, int], SourceBytes] = {}  # by object
    for one in (source for held in made.held for source in held.sources):
        other = joined.get((one.object, one.base), replace(one, nbytes=0))
        span = ByteRange(min(other.range.start, one.range.start), max(other.range.stop, one.range.stop))
        joined[one.object, one.base] = replace(one, range=span, nbytes=other.nbytes + one.nbytes)
    counts, sources = (len(every), len(used)), tuple(joined.values())
    return StagedTensor(
        made.name, made.shape, url, chunk.boxes[0].shape, *counts, sources, made.copied_bytes, made.streamed_bytes
    )
