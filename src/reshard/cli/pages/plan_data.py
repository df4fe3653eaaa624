"""What a page knows of a plan: which rank owns which box of every tensor, and the stored bytes that fill it.

A model of 45 000 tensors on 1024 ranks has 46 million boxes. What is alike is told once: tensors that are made, cut and
named alike are one row; ranks of one stage share its tensors; a box is a number in its layout; and what fills it counts
from where each tensor is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...planning.outputs.layouts import DeviceBoxes, Partition
from ...planning.outputs.output import group_by_layout
from ...planning.plan import Plan
from ...planning.steps.fills import made_of
from ...planning.targets.rank_target import RankTarget
from ...tensor import Box, Layout, Shape, extent_of
from .packing import NameColumn, differences

MOST_BOXES = 60_000  # boxes whose fills are told, over all rows
MOST_FILLS = 120_000
MOST_PLACES = 150_000  # addresses of stored boxes, and of tensors in outputs
MOST_COLUMNS = 4096  # ranks or objects of the map


@dataclass(slots=True)
class _Row:
    """Tensors that are alike; ``cuts`` of a tensor are numbers of layouts, or ``-1 - i`` for the i-th of its boxes."""

    members: list[int]
    boxes: list[Box]
    cuts: Counter[tuple[int, int]] = field(default_factory=Counter)  # by share and cut


class _Layouts:
    """Numbers the ways in which tensors are divided; 0 is not at all."""

    def __init__(self) -> None:
        self._numbers: dict[Layout | None, int] = {None: 0}
        self._of_partition: dict[int, int] = {}

    def number(self, partition: Partition) -> int:
        found = self._of_partition.get(id(partition))
        if found is None:
            found = self._numbers.setdefault(partition.layout, len(self._numbers))
            self._of_partition[id(partition)] = found
        return found

    @property
    def all(self) -> list[Layout | None]:
        return list(self._numbers)

    def to_json(self) -> list[dict[str, Any]]:
        return [_layout_json(layout) for layout in self._numbers]


def _layout_json(layout: Layout | None) -> dict[str, Any]:
    if layout is None:
        return {"pieces": [], "of": []}
    split = layout.row_split
    rows = [[start, start + count] for start, count in zip(split.offsets, split.counts, strict=True)] if split else []
    return {"pieces": layout.pieces, "of": _places(layout), "rows": rows}


def _places(layout: Layout) -> list[int]:
    """Return the number of each device's piece, counted row-major over the pieces of all axes."""
    return [_flat(layout.place_of(device), layout.pieces) for device in range(layout.device_count)]


def _flat(place: Shape, pieces: Shape) -> int:
    number = 0
    for index, count in zip(place, pieces, strict=True):
        number = number * count + index
    return number


class PlanData:
    """Gathers what a page tells of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._layouts = _Layouts()
        self._groups = list(group_by_layout(plan.outputs))
        self._equivalence = plan.reader.equivalence
        self._boxes_of: dict[int, list[Box]] = {}
        self._cuts_of: dict[int, list[tuple[int, int]]] = {}
        self._names = NameColumn()
        self._rows: list[_Row] = []
        self._detailed: set[int] = set()

    def to_json(self) -> dict[str, Any]:
        """Return all of it in JSON's types."""
        self._find_cuts()
        self._find_rows()
        places = sum(
            len(placements) for tensor in range(len(self._plan.tensors)) for placements in self._stored(tensor)
        )
        slots = sum(map(len, self._cuts_of.values()))
        is_small = places <= MOST_PLACES and slots <= MOST_PLACES
        # Of a model that is too large to tell everything, the first of tensors that are alike is told.
        self._detailed = {tensor for row in self._rows for tensor in (row.members if is_small else row.members[:1])}
        rows = self._rows_json()
        return {
            **self._columns(),
            "layouts": self._layouts.to_json(),
            "names": self._names.to_json(),
            "rows": rows,
            "shares": self._shares(),
            "sources": self._sources(),
            "isWhole": is_small,
        }

    def _find_cuts(self) -> None:
        for share, positions in enumerate(self._groups):
            output = self._plan.outputs[positions[0]]
            partitions = output.layout.partitions if output.layout else None
            for slot, tensor in enumerate(output.tensors):
                cut = (
                    self._layouts.number(partitions[slot]) if partitions else self._box_cut(tensor, output.boxes[slot])
                )
                self._cuts_of.setdefault(tensor, []).append((share, cut))

    def _box_cut(self, tensor: int, box: Box) -> int:
        if box.shape == extent_of(self._plan.tensors[tensor].spec)[0]:
            return 0
        boxes = self._boxes_of.setdefault(tensor, [])
        boxes.append(box)
        return -len(boxes)

    def _find_rows(self) -> None:
        rows: dict[Any, _Row] = {}
        for tensor, target in enumerate(self._plan.tensors):
            template = self._names.add(target.spec.name)
            if tensor not in self._cuts_of:  # of ranks that are not written
                continue
            cuts, boxes = self._cuts_of[tensor], self._boxes_of.get(tensor, [])
            key = template, self._equivalence.tensor(tensor), frozenset(cut for _, cut in cuts), tuple(boxes)
            row = rows.setdefault(key, _Row([], boxes))
            row.members.append(tensor)
            row.cuts.update(cuts)
        self._rows = list(rows.values())

    def _columns(self) -> dict[str, Any]:
        """Return the ranks, or objects, of the target: the output of each, its stage and its key."""
        plan, target = self._plan, self._plan.conversion.target
        rank_of = target.rank_of_key if isinstance(target, RankTarget) else {}
        held = [(rank_of.get(key, -1), output, key) for output, each in enumerate(plan.outputs) for key in each.keys]
        held.sort(key=lambda each: each[0])  # objects that are no rank's stay in their order
        is_drawn = len(held) <= MOST_COLUMNS
        held = held[:MOST_COLUMNS]
        devices = target.strategy.device_count if isinstance(target, RankTarget) else 0
        copied = [
            [byte for run in plan.draft.copied(output) for byte in (run.start, run.stop)]
            for output in range(len(plan.outputs))
        ]
        if sum(map(len, copied)) > MOST_PLACES:
            copied = []
        return {
            "isDrawn": is_drawn,
            "deviceCount": devices,
            "ranks": [rank for rank, _, _ in held],
            "outputs": [output for _, output, _ in held],
            "keys": NameColumn(key for _, _, key in held).to_json(),
            "copied": [differences(each) for each in copied],
        }

    def _shares(self) -> list[dict[str, Any]]:
        """Return, of outputs that share a layout, the tensors that are told: how each is cut, and its bytes."""
        shares = []
        for positions in self._groups:
            output = self._plan.outputs[positions[0]]
            slots = [slot for slot, tensor in enumerate(output.tensors) if tensor in self._detailed]
            spans = _spans(output, slots)
            boxes = [self._plan.outputs[position].boxes for position in positions]
            shares.append(
                {
                    "outputs": differences(positions),
                    "devices": [each.device if isinstance(each, DeviceBoxes) else 0 for each in boxes],
                    "tensors": differences(output.tensors[slot] for slot in slots),
                    "gaps": [start - before for (start, _), (_, before) in zip(spans, [(0, 0), *spans], strict=False)],
                    "lengths": [stop - start for start, stop in spans],
                }
            )
        return shares

    def _rows_json(self) -> list[dict[str, Any]]:
        found, budget = [], [MOST_BOXES, MOST_FILLS]
        for row in self._rows:
            spec = self._plan.tensors[row.members[0]].spec
            extent, itemsize = extent_of(spec)
            found.append(
                {
                    "dtype": spec.dtype.value,
                    "shape": spec.shape,
                    "extent": extent,
                    "itemsize": itemsize,
                    "members": differences(row.members),
                    "cuts": [[share, cut, count] for (share, cut), count in row.cuts.items()][: 4 * MOST_COLUMNS],
                    "boxes": [[*box.start, *box.stop] for box in row.boxes[:MOST_COLUMNS]],
                    "fills": self._fills(row, budget),
                }
            )
        return found

    def _fills(self, row: _Row, budget: list[int]) -> list[list[Any]] | None:
        """Return ``[cut, piece, fills]`` for each box of a row's first tensor, None if there are too many to tell."""
        tensor, found = row.members[0], []
        entries = {entry: slot for slot, entry in enumerate(self._equivalence.entries(tensor))}
        for cut, piece, box in self._distinct_boxes(row):
            fills = [
                [entries[fill.entry], fill.place, (runs := fill.scatter.source_runs).first, runs.stop - runs.first,
                 runs.nbytes, runs.run_count, kernel]
                for fill, kernel in made_of(self._plan.draft, tensor, box)
            ]  # fmt: skip
            budget[0] -= 1
            budget[1] -= len(fills)
            if min(budget) < 0:
                return None
            found.append([cut, piece, fills])
        return found

    def _distinct_boxes(self, row: _Row) -> Iterator[tuple[int, int, Box]]:
        extent = extent_of(self._plan.tensors[row.members[0]].spec)[0]
        layouts = self._layouts.all
        for cut in dict.fromkeys(cut for _, cut in row.cuts):
            if cut < 0:
                yield cut, 0, row.boxes[-1 - cut]
            elif (layout := layouts[cut]) is None:
                yield cut, 0, Box.whole(extent)
            else:
                pieces = dict(zip(_places(layout), range(layout.device_count), strict=True))
                for piece, device in sorted(pieces.items()):
                    yield cut, piece, layout.box_of(extent, device)

    def _stored(self, tensor: int) -> Iterator[Sequence[Any]]:
        for entry in self._equivalence.entries(tensor):
            yield self._plan.catalog.entries[entry].placements

    def _sources(self) -> dict[str, Any]:
        """Return where the tensors of the source are stored that the told ones are made of."""
        plan, objects, names = self._plan, dict[int, int](), NameColumn()
        numbers: dict[int, int] = {}
        made, counts, holders, firsts = [], [], [], []
        for tensor in sorted(self._detailed):
            entries = self._equivalence.entries(tensor)
            made.append(len(entries))
            for entry in entries:
                numbers.setdefault(entry, len(numbers))
        for entry in numbers:
            found = plan.catalog.entries[entry]
            names.add(found.spec.name)
            counts.append(len(found.placements))
            for placement in found.placements:
                holder, first = placement.holders[0] if placement.holders else (-1, 0)
                holders.append(objects.setdefault(holder, len(objects)))
                firsts.append(first)
        used = [numbers[entry] for tensor in sorted(self._detailed) for entry in self._equivalence.entries(tensor)]
        staged = len(plan.catalog.others) if plan.staging else None
        return {
            "tensors": differences(sorted(self._detailed)),
            "made": made,
            "used": differences(used),
            "names": names.to_json(),
            "counts": [] if set(counts) == {1} else counts,
            "holders": differences(holders),
            "firsts": differences(firsts),
            "objects": NameColumn(plan.catalog.objects[item].key if item >= 0 else "" for item in objects).to_json(),
            "staged": [
                number for item, number in objects.items() if item >= 0 and plan.catalog.objects[item].base == staged
            ],
        }


def _spans(output: Any, slots: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first byte and one past the last of some tensors in an output; empty ones have none of it."""
    wanted, spans = set(slots), dict[int, tuple[int, int]]()
    for extent in output.frame.extents:
        if extent.slot in wanted:
            start, _ = spans.get(extent.slot, (extent.start, 0))
            spans[extent.slot] = start, extent.stop
    return [spans.get(slot, (0, 0)) for slot in slots]
