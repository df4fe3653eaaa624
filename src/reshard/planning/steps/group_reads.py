"""What a group of outputs reads of each tensor of the source, where some of its bytes are copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...tensor import Box, Runs, extent_of, row_major_boxes
from ..outputs.streamed import Streamed
from .cuts import Slice
from .reads import NeededRange, needed_ranges, whole_score
from .recipe import Recipe, sources_of, stored_at


def group_score(recipe: Recipe, outputs: Sequence[int]) -> int:
    """The score of what is read to write some outputs together, apart from what neighbouring tensors share."""
    return sum(
        whole_score(sum(one.nbytes for one in ranges), len(ranges), recipe.limits)
        for _, ranges in group_reads(recipe, outputs)
    )


def group_reads(recipe: Recipe, outputs: Sequence[int]) -> Iterator[tuple[int, list[NeededRange]]]:
    """Yield what some outputs read together: an entry of the source, and the ranges of one of its boxes."""
    streamed = [recipe.streamed(i) for i in outputs]
    for item in recipe.walk(outputs):
        wanted: dict[tuple[int, int], set[Runs]] = {}
        for share in item.shares:
            for box in _streamed_boxes(streamed[share.member], share):
                for source, placement, runs in _runs(recipe, item.tensor, box, share.box):
                    wanted.setdefault((source, placement), set()).add(runs)
        for (source, _), every in wanted.items():
            yield source, needed_ranges(every, recipe.limits)


def _runs(recipe: Recipe, tensor: int, box: Box, held: Box) -> Iterator[tuple[int, int, Runs]]:
    """The runs that fill a box: of which entry, of which of its placements."""
    for piece, patch in sources_of(recipe, tensor, box):
        itemsize = extent_of(recipe.catalog.entries[piece.source].spec)[1]
        for placement, common in stored_at(recipe, piece.source, patch):
            yield piece.source, id(placement), common.scatter(placement.box, held, itemsize).source_runs


def _streamed_boxes(streamed: Streamed, share: Slice) -> Iterator[Box]:
    """What of a slice passes through the client, in elements of the whole tensor."""
    if not streamed.copied:
        yield share.box
        return
    for first, last, _, _ in streamed.spans(share.slot, 0, share.box.element_count):
        for local in row_major_boxes(share.box.shape, first, last):
            yield local.shifted(share.box.start)
