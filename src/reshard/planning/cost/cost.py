"""The bytes and requests of a plan, counted from its steps."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..conversion import Conversion
from ..outputs.streamed import whole_copies
from ..steps.buffers import Buffers, over_budget
from ..steps.draft import Draft, Group
from ..steps.group_steps import GroupSteps
from ..steps.reads import check_work
from ..steps.row_reads import RowReader


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes, requests and memory of one conversion, apart from headers, listings and the manifest.

    Counted step by step. Where outputs hold very many slices
    (:data:`reshard.planning.steps.equivalence.MANY_SLICES`), one group of each equivalence class is counted for
    all of its class: the groups differ only in which neighbours in an object are read together.

    Parameters
    ----------
    needed_bytes
        Bytes of the source that reach some output, each counted once a step. Boxes of a tensor that overlap
        without being equal, as two stages may cut them, count separately, up to the bytes read.
    read_bytes
        Bytes requested, gaps included; as often as each range is read.
    written_bytes, copied_bytes
        Bytes sent, replicas included; and bytes that the store copies, from the source or from an equal output.
    get_count, put_count, part_count, copy_count, upload_count
        Ranged GETs, single PUTs, parts sent, parts copied, and multipart uploads (each is opened and completed).
    step_count, streamed_step_count
        All steps, and those that read or send bytes: in each of the others the store copies one part.
    filled_bytes, largest_step_bytes
        Lengths of the buffers of all steps together, and of those of the largest.
    peak_bytes
        Most bytes in buffers at once, of all processes together.
    """

    needed_bytes: int
    read_bytes: int
    written_bytes: int
    copied_bytes: int
    get_count: int
    put_count: int
    part_count: int
    copy_count: int
    upload_count: int
    step_count: int
    streamed_step_count: int
    filled_bytes: int
    largest_step_bytes: int
    peak_bytes: int

    @property
    def request_count(self) -> int:
        """All requests together."""
        return self.get_count + self.put_count + self.part_count + self.copy_count + 2 * self.upload_count


@dataclass(slots=True)
class _Total:
    """The sums over some steps and what they send."""

    needed: int = 0
    read: int = 0
    written: int = 0
    copied: int = 0
    gets: int = 0
    puts: int = 0
    parts: int = 0
    copies: int = 0
    uploads: int = 0
    steps: int = 0
    streamed_steps: int = 0
    filled: int = 0
    largest: int = 0

    def add(self, other: _Total) -> None:
        """Add the sums of other steps."""
        largest = max(self.largest, other.largest)
        for name in _Total.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.largest = largest


def count_cost(
    draft: Draft, groups: Sequence[Group], conversion: Conversion, buffers: Buffers, reader: RowReader
) -> Cost:
    """Add up what every step does; OverBudget if one does not fit the memory."""
    total, known = _Total(), dict[Hashable, _Total]()
    for index, group in enumerate(groups):
        key = reader.equivalence.group(group), tuple([len(draft.outputs[i].keys) for i in group.outputs])
        if key not in known:
            known[key] = _count_group(draft, GroupSteps(draft, reader, index, group), group, reader)
        total.add(known[key])
    if total.largest > buffers.parts_bytes:  # the size of tiles had been estimated
        raise over_budget(buffers, total.largest)
    documents, attachments = conversion.documents, conversion.attachments
    attached = sum(each.nbytes for each in attachments)
    return Cost(
        needed_bytes=total.needed + attached,
        read_bytes=draft.limits.read_count * (total.read + attached),
        written_bytes=total.written + sum(len(document.data) for document in documents) + attached,
        copied_bytes=total.copied,
        get_count=draft.limits.read_count * (total.gets + len(attachments)),
        put_count=total.puts + len(documents) + len(attachments),
        part_count=total.parts,
        copy_count=total.copies,
        upload_count=total.uploads,
        step_count=total.steps,
        streamed_step_count=total.streamed_steps,
        filled_bytes=total.filled,
        largest_step_bytes=total.largest,
        peak_bytes=draft.limits.process_count * (buffers.fixed_bytes + min(buffers.parts_bytes, total.filled)),
    )


def _count_group(draft: Draft, steps: GroupSteps, group: Group, reader: RowReader) -> _Total:
    total = _count_reads(steps, reader)
    for part in steps.copied_parts():  # each is a step of its own
        key_count = len(draft.written_keys(group, part.output))
        total.steps += 1
        total.copied += key_count * part.range.nbytes
        total.copies += key_count
    for output, part_count in zip(group.outputs, steps.part_counts(), strict=True):
        _add_output(total, draft, group, output, part_count)
    return total


def _count_reads(steps: GroupSteps, reader: RowReader) -> _Total:
    counted = _Total()
    for number in steps.streaming:
        size = steps.size(number)
        check_work(reader.work)
        counted.steps += 1
        counted.streamed_steps += 1
        counted.filled += size.nbytes
        counted.largest = max(counted.largest, size.nbytes)
        counted.gets += len(size.blocks)
        for block in size.blocks:
            counted.read += block.range.nbytes
            counted.needed += block.needed_bytes
    return counted


def _add_output(total: _Total, draft: Draft, group: Group, index: int, part_count: int) -> None:
    """Add what is sent of one output, and its replicas."""
    output, key_count = draft.outputs[index], len(draft.written_keys(group, index))
    total.written += key_count * (output.nbytes - sum(run.nbytes for run in draft.copied(index)))
    if draft.is_small(group):
        total.puts += key_count * part_count
    else:
        total.parts += key_count * part_count
        total.uploads += len(output.keys)
    if draft.is_replicated(group, index):
        replica_count = len(output.keys) - 1
        total.copied += replica_count * output.nbytes
        total.copies += replica_count * len(whole_copies(output.nbytes, draft.limits))
