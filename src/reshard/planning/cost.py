"""What a plan will move and ask for, counted from its steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .counting import StepCounter
from .memory import Buffers, over_budget
from .needs import Needs
from .output import Attachment, Document
from .steps import Group, Recipe

__all__ = ["Cost", "count_cost"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes, requests and memory of one conversion, apart from headers, listings and the manifest.

    All is counted step by step, unless there are more than :data:`MANY_SLICES` tensors over all outputs:
    then ``needed_bytes``, ``read_bytes`` and ``get_count`` of groups that are cut alike are taken to be
    those of the first of them. They differ by what neighbours in an object are read together, no more.

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
    needs: Needs | None = None,
) -> Cost:
    """Add up what every step does; ``needs`` are what planning has found out already.

    Raises
    ------
    OverBudget
        A step does not fit the memory.
    """
    counter = StepCounter(recipe, needs)
    total = dict.fromkeys(("needed", "read", "gets", "puts", "parts", "uploads", "steps", "filled", "largest"), 0)
    written = 0
    for group in groups:
        found = counter.count(group)
        copies = [len(recipe.outputs[i].keys) for i in group.outputs]
        total["needed"] += found.needed_bytes
        total["read"] += found.read_bytes
        total["gets"] += found.get_count
        total["steps"] += found.step_count
        total["filled"] += found.filled_bytes
        total["largest"] = max(total["largest"], found.largest_bytes)
        total["puts" if group.is_small else "parts"] += sum(
            a * b for a, b in zip(copies, found.part_counts, strict=True)
        )
        total["uploads"] += 0 if group.is_small else sum(copies)
        written += sum(count * recipe.outputs[i].nbytes for i, count in zip(group.outputs, copies, strict=True))
    if total["largest"] > buffers.parts_bytes:  # what is computed was taken to be smaller
        raise over_budget(buffers, total["largest"])
    copied = sum(each.nbytes for each in attachments)
    return Cost(
        needed_bytes=total["needed"] + copied,
        read_bytes=total["read"] + copied,
        written_bytes=written + sum(len(document.data) for document in documents) + copied,
        get_count=total["gets"] + len(attachments),
        put_count=total["puts"] + len(documents) + len(attachments),
        part_count=total["parts"],
        upload_count=total["uploads"],
        step_count=total["steps"],
        peak_bytes=buffers.fixed_bytes + min(buffers.parts_bytes, total["filled"]),
    )
