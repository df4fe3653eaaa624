"""What outputs need of the source, tensor by tensor, remembered for tensors that are alike."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...errors import PlanError
from ...tensor import Box, Patch, Runs, extent_of, plain_patch, row_major_boxes
from ..limits import Limits
from ..outputs.layouts import DeviceBoxes
from ..outputs.output import Computation, Output
from .cuts import Slice, SliceGroup, Slices, WalkItem
from .kinds import Kinds
from .reads import NeededRange, bridged, coalesce, needed_ranges, whole_score
from .recipe import Recipe, sources_of, stored_at
from .steps import Computed, inputs_of


@dataclass(frozen=True, slots=True)
class BoxNeed:
    """What is needed of one stored box; addresses count from its first byte.

    Parameters
    ----------
    runs
        Each once, whoever takes it.
    ranges
        What to read for them.
    needed_bytes
        In all runs.
    is_dense
        Whether the runs fill the ranges, each byte once.
    """

    runs: frozenset[Runs]
    ranges: tuple[NeededRange, ...]
    needed_bytes: int
    is_dense: bool

    @classmethod
    def of(cls, runs: Iterable[Runs], limits: Limits) -> BoxNeed:
        """Find the ranges."""
        once = frozenset(runs)
        found = list(bridged(once, limits))
        ranges = coalesce(
            NeededRange(start, start + one.nbytes, nbytes) for one, nbytes in found for start in one.starts()
        )
        needed = sum(one.total_nbytes for one in once)
        has_gaps = any(one.counts or nbytes < one.nbytes for one, nbytes in found)
        is_dense = not has_gaps and needed == sum(one.nbytes for one in ranges)
        return cls(once, tuple(ranges), needed, is_dense)


@dataclass(frozen=True, slots=True)
class Need:
    """What some rows of one tensor take, all outputs of a group together.

    Parameters
    ----------
    taken
        Of which of the tensor's entries, of which of its placements, what.
    tile_bytes
        Of buffers for what is computed.
    computed
        Which of the entries values are computed of.
    """

    taken: tuple[tuple[int, int, BoxNeed], ...]
    tile_bytes: int
    computed: tuple[int, ...] = ()


class Needs:
    """Finds what is needed, once for tensors of one kind that are cut alike over the same devices."""

    def __init__(self, recipe: Recipe) -> None:
        self.kinds = Kinds(recipe)
        self._recipe = recipe
        self._found: dict[Hashable, Need] = {}
        self._whole: dict[Hashable, int] = {}
        self._devices: dict[int, tuple[Sequence[int], Hashable]] = {}
        self._tokens: dict[Hashable, int] = {}
        self._samples: dict[int, list[tuple[int, int, int]]] = {}

    def of(self, item: WalkItem, first: int, last: int) -> Need:
        """What the rows ``[first, last)`` of a tensor of a walk need."""
        key = (self.kinds.of_tensor(item.tensor), self.holders(item), first, last)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._find(item, first, last)
        return found

    def holders(self, item: WalkItem) -> Hashable:
        """Who holds what of a tensor of a walk, whichever tensor it is."""
        shares = item.shares
        if not isinstance(shares, Slices):
            return tuple(share.box for share in shares)
        return tuple(self._holder(shares.outputs, holding) for holding in shares.holdings)

    def _holder(self, outputs: Sequence[Output], holding: SliceGroup) -> Hashable:
        boxes = outputs[holding.members[0]].boxes
        if not isinstance(boxes, DeviceBoxes):
            return tuple(outputs[member].boxes[holding.slot] for member in holding.members)
        if id(holding.members) not in self._devices:
            devices = tuple(outputs[member].boxes.device for member in holding.members)  # type: ignore[attr-defined]
            # The members are kept, or others could have their identity.
            self._devices[id(holding.members)] = holding.members, self._token(devices)
        return id(boxes.partitions[holding.slot]), self._devices[id(holding.members)][1]

    def _token(self, devices: tuple[int, ...]) -> int:
        return self._tokens.setdefault(devices, len(self._tokens))

    # Rows of a step.

    def _find(self, item: WalkItem, first: int, last: int) -> Need:
        finding = _Finding(self._recipe)
        finding.add_rows(item, first, last)
        slots = {entry: slot for slot, entry in enumerate(self.kinds.entries(item.tensor))}
        computed = tuple(slots[entry] for entry in finding.computed)
        tile_bytes = finding.compute()
        taken = ((slots[entry], place, found) for entry, place, found in finding.taken())
        return Need(tuple(taken), tile_bytes, computed)

    def together(self, rows: Iterable[tuple[WalkItem, int, int]]) -> tuple[list[tuple[int, int, BoxNeed]], int]:
        """What some rows of several tensors need that values are computed for from the same entries.

        Returns
        -------
        tuple
            Of which entry of the catalog, of which of its placements, what; and the bytes of buffers
            for what is computed.
        """
        finding = _Finding(self._recipe)
        for item, first, last in rows:
            finding.add_rows(item, first, last)
        tile_bytes = finding.compute()
        return list(finding.taken()), tile_bytes

    # Whole tensors.

    def group_score(self, outputs: Sequence[Output]) -> int:
        """The score of what is read to write some outputs together, apart from what neighbouring tensors share."""
        form = outputs[0].form
        if form is None or any(output.form is not form for output in outputs):
            return self._score_apart(outputs)
        devices = self._token(tuple(output.boxes.device for output in outputs))  # type: ignore[attr-defined]
        if id(form) not in self._samples:
            found: dict[tuple[int, int], list[int]] = {}
            for slot, (tensor, cutting) in enumerate(zip(form.tensors, form.partitions, strict=True)):
                found.setdefault((self.kinds.of_tensor(tensor), id(cutting)), []).append(slot)
            self._samples[id(form)] = [(key[0], slots[0], len(slots)) for key, slots in found.items()]
        total = 0
        for kind, slot, count in self._samples[id(form)]:
            key = kind, id(form.partitions[slot]), devices
            if key not in self._whole:
                boxes = {output.boxes[slot] for output in outputs}
                self._whole[key] = self._whole_tensor(form.tensors[slot], boxes)
            total += count * self._whole[key]
        return total

    def _score_apart(self, outputs: Sequence[Output]) -> int:
        """The same for outputs that have little in common."""
        held: dict[int, set[Box]] = {}
        for output in outputs:
            for tensor, box in zip(output.tensors, output.boxes, strict=True):
                held.setdefault(tensor, set()).add(box)
        total = 0
        for tensor, boxes in held.items():
            key = self.kinds.of_tensor(tensor), frozenset(boxes)
            if key not in self._whole:
                self._whole[key] = self._whole_tensor(tensor, boxes)
            total += self._whole[key]
        return total

    def _whole_tensor(self, tensor: int, boxes: Iterable[Box]) -> int:
        finding = _Finding(self._recipe)
        for box in boxes:
            if not box.is_empty:
                finding.add_whole(tensor, box)
        return sum(_score_of(runs, self._recipe.limits) for runs in finding.runs.values())


def _score_of(wanted: Iterable[Runs], limits: Limits) -> int:
    """The score of reading some runs of one stored box."""
    found = list(bridged(wanted, limits))
    if len(found) == 1:  # ranges of one length that lie apart, perhaps very many
        runs = found[0][0]
        return whole_score(runs.total_nbytes, runs.run_count, limits)
    ranges = needed_ranges(wanted, limits)
    return whole_score(sum(one.nbytes for one in ranges), len(ranges), limits)


class _Finding:
    """Collects the runs of one tensor, by entry and placement."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._places: dict[int, dict[int, int]] = {}
        self._tiles: dict[tuple[int, Computation], Computed] = {}
        self.runs: dict[tuple[int, int], set[Runs]] = {}

    @property
    def computed(self) -> list[int]:
        """The entries that values are computed of."""
        return sorted({source for source, _ in self._tiles})

    def taken(self) -> Iterator[tuple[int, int, BoxNeed]]:
        """What is taken of which entry and which of its placements."""
        for (entry, place), runs in self.runs.items():
            yield entry, place, BoxNeed.of(runs, self._recipe.limits)

    def add_rows(self, item: WalkItem, first: int, last: int) -> None:
        """Add some rows of what all outputs hold."""
        seen: set[tuple[Box, int, int]] = set()
        for share in item.shares:
            start, stop = item.element_of(share, first), item.element_of(share, last)
            if start < stop and (share.box, start, stop) not in seen:
                seen.add((share.box, start, stop))
                self._add(item, share, start, stop)

    def _add(self, item: WalkItem, share: Slice, start: int, stop: int) -> None:
        """Add some elements of what one output holds."""
        shares = item.shares
        assert isinstance(shares, Slices)
        filled = 0
        for first, last, _ in shares.outputs[share.member].frame.spans(share.slot, start, stop):
            for local in row_major_boxes(share.box.shape, first, last):
                for piece, patch in sources_of(self._recipe, item.tensor, local.shifted(share.box.start)):
                    if piece.computation is None:
                        filled += self._add_stored(piece.source, patch, share.box, item.itemsize)
                        continue
                    computed = self._tiles.setdefault((piece.source, piece.computation), Computed())
                    computed.scatters.append((share, patch, item.itemsize, 0, 0))
                    filled += patch.element_count
        if filled != stop - start:
            name = self._recipe.tensors[item.tensor].spec.name
            raise PlanError(f"{name}: {filled} of {stop - start} elements are filled: boxes do not tile their tensors")

    def add_whole(self, tensor: int, box: Box) -> None:
        """Add a box of a target's tensor, with what is computed as if it were taken as it is."""
        for piece, patch in sources_of(self._recipe, tensor, box):
            _, itemsize = extent_of(self._recipe.catalog.entries[piece.source].spec)
            self._add_stored(piece.source, patch, box, itemsize)

    def compute(self) -> int:
        """Add what kernels take; returns the bytes of their buffers."""
        nbytes, entries = 0, self._recipe.catalog.entries
        every = ((*key, box) for key, computed in self._tiles.items() for box, _ in computed.boxes())
        for source, computation, box in every:
            nbytes += computation.dtype.nbytes(box.element_count)
            for entry, wanted in inputs_of(source, computation, box):
                spec = entries[entry].spec
                nbytes += spec.dtype.nbytes(wanted.element_count)
                patch = plain_patch(spec.shape).within_target(wanted)
                assert patch is not None
                self._add_stored(entry, patch, wanted, spec.dtype.itemsize)
        return nbytes

    def _add_stored(self, entry: int, patch: Patch, target: Box, itemsize: int) -> int:
        """Add what a patch takes of its source; returns how many elements are there."""
        found = 0
        for placement, common in stored_at(self._recipe, entry, patch):
            runs = common.scatter(placement.box, target, itemsize).source_runs
            self.runs.setdefault((entry, self._place(entry, id(placement))), set()).add(runs)
            found += common.element_count
        return found

    def _place(self, entry: int, placement: int) -> int:
        if entry not in self._places:
            placements = self._recipe.catalog.entries[entry].placements
            self._places[entry] = {id(each): number for number, each in enumerate(placements)}
        return self._places[entry][placement]
