"""What a plan will move and ask for, counted from its steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .memory import Buffers, over_budget
from .output import Attachment, Document
from .steps import Group, Recipe, Step, group_steps

__all__ = ["Cost", "count_cost"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes, requests and memory of one conversion, apart from headers, listings and the manifest.

    Parameters
    ----------
    needed_bytes
        Bytes of the source that reach some output, each counted once a step (boxes of a tensor that
        overlap without being equal, as two stages may cut them, are counted up to the bytes read).
    read_bytes
        Bytes asked for, gaps included.
    written_bytes
        Bytes sent, replicas included.
    get_count, put_count, part_count, upload_count
        Ranged GETs, single PUTs, upload parts, multipart uploads (each is opened and completed).
    step_count
        Independent units of work.
    peak_bytes
        Most bytes in buffers at once.
    """

    needed_bytes: int
    read_bytes: int
    written_bytes: int
    get_count: int
    put_count: int
    part_count: int
    upload_count: int
    step_count: int
    peak_bytes: int

    @property
    def request_count(self) -> int:
        """All requests together."""
        return self.get_count + self.put_count + self.part_count + 2 * self.upload_count


def count_cost(
    recipe: Recipe,
    groups: Iterable[Group],
    documents: Sequence[Document],
    attachments: Sequence[Attachment],
    buffers: Buffers,
) -> Cost:
    """Walk every step once and add up.

    Raises
    ------
    OverBudget
        A step does not fit the memory.
    """
    total = dict.fromkeys(("needed", "read", "written", "gets", "puts", "parts", "steps", "filled", "largest"), 0)
    uploads = 0
    for index, group in enumerate(groups):
        if not group.is_small:
            uploads += sum(len(recipe.outputs[i].keys) for i in group.outputs)
        for step in group_steps(recipe, index, group):
            _add(total, recipe, step, is_small=group.is_small)
    if total["largest"] > buffers.parts_bytes:  # what is computed was taken to be smaller
        raise over_budget(buffers, total["largest"])
    copied = sum(each.nbytes for each in attachments)
    return Cost(
        needed_bytes=total["needed"] + copied,
        read_bytes=total["read"] + copied,
        written_bytes=total["written"] + sum(len(document.data) for document in documents) + copied,
        get_count=total["gets"] + len(attachments),
        put_count=total["puts"] + len(documents) + len(attachments),
        part_count=total["parts"],
        upload_count=uploads,
        step_count=total["steps"],
        peak_bytes=buffers.fixed_bytes + min(buffers.parts_bytes, total["filled"]),
    )


def _add(total: dict[str, int], recipe: Recipe, step: Step, *, is_small: bool) -> None:
    total["steps"] += 1
    total["filled"] += step.nbytes
    total["largest"] = max(total["largest"], step.nbytes)
    total["gets"] += len(step.reads)
    for read in step.reads:
        total["read"] += read.range.nbytes
        # What several outputs take is one needed byte; sets of runs that differ are taken to be disjoint.
        taken = {copy.transfer.source_runs for copy in read.copies}
        total["needed"] += min(read.range.nbytes, sum(runs.total_nbytes for runs in taken))
    for part in step.parts:
        copies = len(recipe.outputs[part.output].keys)
        total["written"] += copies * part.range.nbytes
        total["puts" if is_small else "parts"] += copies
