"""What outputs read together, as one score: groupings, and ways to stage tensors, are compared by it.

Scores are of whole tensors, so that no step has to be derived: they leave out what cuts and neighbours change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ...tensor import Box, Runs
from ..limits import Limits
from ..outputs.layouts import OutputLayout
from .draft import Draft
from .equivalence import Equivalence
from .fills import alike_fills, box_fills, moved_boxes, slice_fills
from .reads import NeededRange, bridge, check_work, join_runs, needed_ranges, score, spread

_BoxRuns = tuple[tuple[tuple[int, int], Runs], ...]


class BoxScore(NamedTuple):
    """The score of what is read of one stored box of a tensor's ``slot``-th entry, or of several that are alike.

    ``alone`` counts every request, ``shared`` not that of the first range, which may be joined to one for a neighbour
    in the object, and not those that limit the length of reads: they are the same for every grouping.
    """

    slot: int
    shared: int
    alone: int


class ReadScores:
    """Scores of what outputs of a draft read, found once for tensors that are equivalent and cut alike."""

    def __init__(self, draft: Draft, equivalence: Equivalence) -> None:
        self._draft = draft
        self._equivalence = equivalence
        self._scores: dict[Hashable, tuple[BoxScore, ...]] = {}
        self._runs: dict[tuple[int, Box], _BoxRuns] = {}
        self._slots: dict[int, dict[tuple[int, int], list[int]]] = {}
        self._work = 0

    def group(self, members: Sequence[int]) -> int:
        """Return the score of what is read to write some outputs together, apart from what neighbours share."""
        if self._draft.has_copies(members):
            return sum(self._box_score(0, runs).shared for _, runs in self._streamed_runs(members))
        return sum(len(slots) * sum(box.shared for box in boxes) for _, slots, boxes in self._tensors(members))

    def entries(self, members: Sequence[int]) -> Counter[int]:
        """Return the score of what is read of each entry to write some outputs together, every request counted."""
        found = Counter[int]()
        if self._draft.has_copies(members):
            for entry, runs in self._streamed_runs(members):
                found[entry] += self._box_score(0, runs).alone
            return found
        for tensors, slots, boxes in self._tensors(members):
            for slot in slots:
                entries = self._equivalence.entries(tensors[slot])
                for box in boxes:
                    found[entries[box.slot]] += box.alone
        return found

    def ranges(self, members: Sequence[int]) -> Iterator[tuple[int, list[NeededRange]]]:
        """Yield what is read to write some outputs together: an entry, and ranges of one of its stored boxes."""
        for entry, runs in self._streamed_runs(members):
            yield entry, needed_ranges(runs, self._draft.limits)

    def _streamed_runs(self, members: Sequence[int]) -> Iterator[tuple[int, set[Runs]]]:
        """Yield what some outputs need except what the store copies: an entry, and runs in one of its stored boxes."""
        draft, streamed = self._draft, [self._draft.streamed(i) for i in members]
        for item in draft.walk(members):
            entries, found = self._equivalence.entries(item.tensor), dict[tuple[int, int], set[Runs]]()
            for held in item.slices:
                count = held.box.element_count
                for first, last, _, _ in streamed[held.member].spans(held.slot, 0, count):
                    if last - first == count:
                        for (slot, place), runs in self._box_runs(item.tensor, held.box):
                            found.setdefault((entries[slot], place), set()).add(runs)
                        continue
                    for fill in slice_fills(draft, item, held, (first, last)):
                        found.setdefault((fill.entry, fill.place), set()).add(fill.scatter.source_runs)
            for (entry, _), some in found.items():
                yield entry, some

    def _tensors(self, members: Sequence[int]) -> Iterator[tuple[Sequence[int], Sequence[int], tuple[BoxScore, ...]]]:
        """Yield the scores of the stored boxes of tensors, after tensors and the positions of those that have them."""
        outputs = [self._draft.outputs[i] for i in members]
        layout = outputs[0].layout
        if layout is None or any(output.layout is not layout for output in outputs):
            held: dict[int, set[Box]] = {}
            for output in outputs:
                for tensor, box in zip(output.tensors, output.boxes, strict=True):
                    held.setdefault(tensor, set()).add(box)
            for tensor, boxes in held.items():
                key: Hashable = self._equivalence.tensor(tensor), frozenset(boxes)
                yield (tensor,), (0,), self._score(key, tensor, boxes)
            return
        devices = tuple(output.boxes.device for output in outputs)  # type: ignore[attr-defined]
        for (tensor_class, partition), slots in self._equal_slots(layout).items():
            first = slots[0]
            key = tensor_class, partition, devices
            if key not in self._scores:
                self._score(key, layout.tensors[first], {output.boxes[first] for output in outputs})
            yield layout.tensors, slots, self._scores[key]

    def _equal_slots(self, layout: OutputLayout) -> dict[tuple[int, int], list[int]]:
        """Return the slots of a layout by class of tensor and partition."""
        if id(layout) not in self._slots:
            found = self._slots[id(layout)] = {}
            for slot, (tensor, partition) in enumerate(zip(layout.tensors, layout.partitions, strict=True)):
                found.setdefault((self._equivalence.tensor(tensor), id(partition)), []).append(slot)
        return self._slots[id(layout)]

    def _score(self, key: Hashable, tensor: int, boxes: Iterable[Box]) -> tuple[BoxScore, ...]:
        """Return the scores of reading some boxes of a tensor together."""
        if key not in self._scores:
            boxes = [box for box in boxes if not box.is_empty]
            moved, _ = moved_boxes(self._draft, tensor, boxes) or (boxes, 0)
            alike = self._equivalence.tensor(tensor), frozenset(moved)
            if alike not in self._scores:
                self._scores[alike] = tuple(self._find_scores(tensor, boxes))
            self._scores[key] = self._scores[alike]
        return self._scores[key]

    def _find_scores(self, tensor: int, boxes: Iterable[Box]) -> Iterator[BoxScore]:
        alike = alike_fills(self._draft, tensor, [(box, box) for box in boxes])
        if alike is None:
            runs: dict[tuple[int, int], set[Runs]] = {}
            for box in boxes:
                for at, some in self._box_runs(tensor, box):
                    runs.setdefault(at, set()).add(some)
            for (slot, _), wanted in runs.items():
                yield self._box_score(slot, wanted)
            return
        slots = self._slots_of(tensor)
        for cells, fills in alike:
            slot, shared, alone = self._box_score(slots[fills[0].entry], {fill.scatter.source_runs for fill in fills})
            yield BoxScore(slot, cells.place_count * shared, cells.place_count * alone)

    def _slots_of(self, tensor: int) -> dict[int, int]:
        return {entry: slot for slot, entry in enumerate(self._equivalence.entries(tensor))}

    def _box_runs(self, tensor: int, box: Box) -> _BoxRuns:
        """Return what fills a box: the slot of an entry, its placement, and runs there."""
        key = self._equivalence.tensor(tensor), box
        if key not in self._runs:  # every grouping asks for the same boxes
            slots = self._slots_of(tensor)
            fills = () if box.is_empty else box_fills(self._draft, tensor, box, box)
            self._runs[key] = tuple(((slots[fill.entry], fill.place), fill.scatter.source_runs) for fill in fills)
        return self._runs[key]

    def _box_score(self, slot: int, wanted: Iterable[Runs]) -> BoxScore:
        limits = self._draft.limits
        bridged = [bridge(runs, limits) for runs in join_runs(wanted)]
        if len(bridged) == 1:  # ranges of one length that are apart, perhaps very many
            runs = bridged[0][0]
            ranges = [(runs.nbytes, runs.run_count)]
        else:
            ranges = [(one.nbytes, 1) for one in spread(bridged)]
        self._work += len(ranges)
        check_work(self._work)
        nbytes, count = sum(length * times for length, times in ranges), sum(times for _, times in ranges)
        alone = sum(alone_score(length, times, limits) for length, times in ranges)
        return BoxScore(slot, score(nbytes, count - 1, limits), alone)


def alone_score(nbytes: int, range_count: int, limits: Limits) -> int:
    """Return the score of some equal ranges, none of which is read with a neighbour.

    Examples
    --------
    >>> alone_score(1000, 2, Limits(read_bytes=400, max_gap_bytes=10))
    2060
    """
    return score(nbytes * range_count, -(-nbytes // limits.read_bytes) * range_count, limits)
