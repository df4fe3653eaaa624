"""What counting a saved plan's steps will take, told before it is done: anyone can write a plan."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from ..tensor import Box, Runs, extent_of, row_major_boxes
from .cost.counting import Standing
from .json_fields import refused
from .plan import Plan
from .steps.cuts import Slice, WalkItem
from .steps.needs import Needs
from .steps.reads import bridged
from .steps.recipe import Recipe, sources_of, stored_at

MAX_PAIRS = 1 << 24
"""Tensors over all outputs that are made one by one, and whatever else grows with two lists of the plan at once."""
MAX_STEP_READS = 1 << 20
MAX_WORK = 1 << 28


def bound(what: str, count: int, most: int = MAX_PAIRS) -> None:
    """Refuse what is too many."""
    if count > most:
        raise refused(what, f"at most {most}", count)


class Work:
    """Adds up what counting the steps will take, step by step and without any list of reads."""

    def __init__(self, plan: Plan, needs: Needs) -> None:
        self._recipe: Recipe = plan.recipe
        self._needs = needs
        self._parts_bytes = plan.cost.peak_bytes - plan.buffers.fixed_bytes
        self._reads: dict[Hashable, int] = {}
        self._done = 0

    def add(self, group: Standing) -> None:
        """Refuse steps that are too large, of too many reads, or that take too long to tell."""
        for items in group.steps():
            self._spend(group.output_count)
            bound("bytes of a step", group.step_bytes, self._parts_bytes)
            bound("bytes of a part", group.part_bytes, self._recipe.limits.max_part_bytes)
            reads = 0
            for item, first, last in items:
                self._spend(1)
                reads += self._reads_of(item, first, last)
                bound("reads of a step", reads, MAX_STEP_READS)

    def _reads_of(self, item: WalkItem, first: int, last: int) -> int:
        key = self._needs.kinds.of_tensor(item.tensor), self._needs.holders(item), first, last
        if key not in self._reads:  # what is copied counts as well: it is a bound
            wanted: dict[int, set[Runs]] = {}
            for share in item.shares:
                start, stop = item.element_of(share, first), item.element_of(share, last)
                for local in row_major_boxes(share.box.shape, start, stop):
                    self._find(item, share, local.shifted(share.box.start), wanted)
            self._reads[key] = self._count(wanted.values())
        return self._reads[key]

    def _find(self, item: WalkItem, share: Slice, box: Box, wanted: dict[int, set[Runs]]) -> None:
        pieces = self._recipe.tensors[item.tensor].pieces
        entries = self._recipe.catalog.entries
        self._spend(sum(len(entries[piece.source].placements) for piece in pieces))
        for piece, patch in sources_of(self._recipe, item.tensor, box):
            _, itemsize = extent_of(entries[piece.source].spec)
            for placement, common in stored_at(self._recipe, piece.source, patch):
                move = common.scatter(placement.box, share.box, itemsize)
                wanted.setdefault(id(placement), set()).add(move.source_runs)

    def _count(self, wanted: Iterable[set[Runs]]) -> int:
        reads, limits = 0, self._recipe.limits
        for found in wanted:
            self._spend(len(found))
            here = sum(runs.run_count for runs, _ in bridged(found, limits))
            span = max(runs.stop for runs in found) - min(runs.first for runs in found)
            here += min(span, sum(runs.total_nbytes for runs in found) * limits.max_over_read) // limits.read_bytes
            reads += here
            bound("reads of a step", reads, MAX_STEP_READS)
            self._spend(here * len(found))
        return reads

    def _spend(self, count: int) -> None:
        self._done += count
        bound("work to tell the steps", self._done, MAX_WORK)
