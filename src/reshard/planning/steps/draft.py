"""A plan before its groups are formed: what steps are derived from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..catalog import Catalog
from ..limits import Limits
from ..outputs.output import Output, TargetTensor
from ..outputs.streamed import CopiedRange, Streamed
from ..outputs.walk import WalkItem, walk
from .stored_boxes import StoredBoxes


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """A place in a group's walk: before row ``row`` of its ``item``-th tensor."""

    item: int
    row: int


@dataclass(frozen=True, slots=True)
class Group:
    """Outputs that are written together, by index, and where they are cut."""

    outputs: tuple[int, ...]
    cuts: tuple[Cut, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """All that steps are derived from, except the groups.

    ``copied_ranges`` are those of each output that the store copies from the source; empty if it copies nothing, not
    even equal outputs.
    """

    catalog: Catalog
    tensors: tuple[TargetTensor, ...]
    outputs: tuple[Output, ...]
    limits: Limits
    copied_ranges: tuple[tuple[CopiedRange, ...], ...] = ()
    # The last two walks: a group is cut, counted and stepped through, as a whole and by its representatives.
    # One tuple that is replaced as a whole, because several threads use a plan.
    _walks: list[tuple[tuple[tuple[int, ...], tuple[WalkItem, ...]], ...]] = field(
        init=False, repr=False, compare=False, default_factory=lambda: [()]
    )
    _stored: dict[int, StoredBoxes] = field(init=False, repr=False, compare=False, default_factory=dict)

    def walk(self, outputs: Sequence[int]) -> tuple[WalkItem, ...]:
        """Return the tensors of a group of outputs; see :func:`reshard.planning.outputs.walk.walk`."""
        key, kept = tuple(outputs), self._walks[0]
        for known, items in kept:
            if known == key:
                return items
        items = walk([self.outputs[i] for i in key], self.tensors, self.limits)
        self._walks[0] = (*kept[-1:], (key, items))
        return items

    def stored(self, entry: int) -> StoredBoxes:
        """Return the boxes that an entry is stored in."""
        if entry not in self._stored:
            found = self.catalog.entries[entry]
            boxes = [placement.box for placement in found.placements]
            # What a grid gives is counted for row-major boxes only.
            self._stored[entry] = StoredBoxes(boxes) if found.axes else StoredBoxes.of(boxes)
        return self._stored[entry]

    def copied(self, output: int) -> tuple[CopiedRange, ...]:
        """Return the ranges of an output that the store copies from the source."""
        return self.copied_ranges[output] if self.copied_ranges else ()

    def streamed(self, output: int) -> Streamed:
        """Return what of an output passes through the client."""
        return Streamed(self.outputs[output].frame, self.copied(output))

    def distinct_streamed(self, outputs: Iterable[int]) -> list[Streamed]:
        """Return what of some outputs passes through the client, once for those that are framed and copied alike."""
        distinct = {(id(self.outputs[i].frame), self.copied(i)): i for i in outputs}
        return [self.streamed(i) for i in distinct.values()]

    def has_copies(self, outputs: Sequence[int]) -> bool:
        """Return whether the store copies some of these outputs from the source."""
        return any(map(self.copied, outputs))

    def is_small(self, group: Group) -> bool:
        """Return whether one step writes a group's outputs whole, so that none needs a multipart upload."""
        return not group.cuts and not self.has_copies(group.outputs)

    def is_replicated(self, group: Group, output: int) -> bool:
        """Return whether an output is written under its first key and copied from there to the others."""
        found = self.outputs[output]
        is_long = found.nbytes >= self.limits.min_copy_source_bytes
        return bool(self.copied_ranges) and is_long and len(found.keys) > 1 and not self.is_small(group)

    def written_keys(self, group: Group, output: int) -> tuple[str, ...]:
        """Return the keys of an output that its parts are sent to; replicas are copied from the first."""
        keys = self.outputs[output].keys
        return keys[:1] if self.is_replicated(group, output) else keys
