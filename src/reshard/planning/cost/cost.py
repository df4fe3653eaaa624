"""What a plan will move and ask for, counted from its steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..limits import Limits
from ..outputs.output import Attachment, Document, Output
from ..outputs.streamed import whole_copies
from ..steps.needs import Needs
from ..steps.recipe import Group, Recipe
from ..steps.steps import Step, group_steps
from .counting import Counts, StepCounter
from .memory import Buffers, over_budget


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
    copied_bytes
        Bytes that the store copies by itself, from the source or from an equal output.
    get_count, put_count, part_count, copy_count, upload_count
        Ranged GETs, single PUTs, parts sent, parts copied, multipart uploads (each is opened and completed).
    step_count
        Independent units of work.
    peak_bytes
        Most bytes in buffers at once.
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
    peak_bytes: int

    @property
    def request_count(self) -> int:
        """All requests together."""
        return self.get_count + self.put_count + self.part_count + self.copy_count + 2 * self.upload_count


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
    counted = ("needed", "read", "written", "copied", "gets", "puts", "parts", "copies", "steps", "filled", "largest")
    total = dict.fromkeys(counted, 0)
    uploads = 0
    for index, group in enumerate(groups):
        if not recipe.is_small(group):
            uploads += sum(len(recipe.outputs[i].keys) for i in group.outputs)
        if recipe.has_copies(group.outputs):
            for step in group_steps(recipe, index, group):
                _add(total, recipe, step, group)
        else:
            _add_counts(total, recipe, counter.count(group), group)
        for output in group.outputs:
            if recipe.is_replicated(group, output):
                _add_replicas(total, recipe.outputs[output], recipe.limits)
    if total["largest"] > buffers.parts_bytes:  # what is computed was taken to be smaller
        raise over_budget(buffers, total["largest"])
    attached = sum(each.nbytes for each in attachments)
    return Cost(
        needed_bytes=total["needed"] + attached,
        read_bytes=total["read"] + attached,
        written_bytes=total["written"] + sum(len(document.data) for document in documents) + attached,
        copied_bytes=total["copied"],
        get_count=total["gets"] + len(attachments),
        put_count=total["puts"] + len(documents) + len(attachments),
        part_count=total["parts"],
        copy_count=total["copies"],
        upload_count=uploads,
        step_count=total["steps"],
        peak_bytes=buffers.fixed_bytes + min(buffers.parts_bytes, total["filled"]),
    )


def _add(total: dict[str, int], recipe: Recipe, step: Step, group: Group) -> None:
    total["steps"] += 1
    total["filled"] += step.nbytes
    total["largest"] = max(total["largest"], step.nbytes)
    total["gets"] += len(step.reads)
    for read in step.reads:
        total["read"] += read.range.nbytes
        # What several outputs take is one needed byte; sets of runs that differ are taken to be disjoint.
        taken = {each.scatter.source_runs for each in read.scatters}
        total["needed"] += min(read.range.nbytes, sum(runs.total_nbytes for runs in taken))
    for part in step.parts:
        keys = 1 if recipe.is_replicated(group, part.output) else len(recipe.outputs[part.output].keys)
        total["written"] += keys * part.range.nbytes
        total["puts" if recipe.is_small(group) else "parts"] += keys
    for copy in step.copies:
        keys = 1 if recipe.is_replicated(group, copy.output) else len(recipe.outputs[copy.output].keys)
        total["copied"] += keys * copy.range.nbytes
        total["copies"] += keys


def _add_replicas(total: dict[str, int], output: Output, limits: Limits) -> None:
    others = len(output.keys) - 1
    total["copied"] += others * output.nbytes
    total["copies"] += others * len(whole_copies(output.nbytes, limits))


def _add_counts(total: dict[str, int], recipe: Recipe, counts: Counts, group: Group) -> None:
    """Add a group that nothing is copied of, as it was counted."""
    total["steps"] += counts.step_count
    total["filled"] += counts.filled_bytes
    total["largest"] = max(total["largest"], counts.largest_bytes)
    total["needed"] += counts.needed_bytes
    total["read"] += counts.read_bytes
    total["gets"] += counts.get_count
    for output, parts in zip(group.outputs, counts.part_counts, strict=True):
        keys = 1 if recipe.is_replicated(group, output) else len(recipe.outputs[output].keys)
        total["written"] += keys * recipe.outputs[output].nbytes
        total["puts" if recipe.is_small(group) else "parts"] += keys * parts
