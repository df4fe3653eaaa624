"""Compares tensors that a family's rules drop as copies of others: ``config.json`` says so, their bytes decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import CatalogError, option, raise_all
from ...planning.catalog import Catalog, Entry
from ...storage import Location
from ...tensor import Box, ByteRange, extent_of, plain_patch
from ..kernels.scatter import repeat, scatter
from ..workers import Workers

MIB = 1 << 20
_MOST_BYTES = 16 * MIB
_SPAN_COUNT = 64


def compare_copies(
    catalog: Catalog, copies: Mapping[str, str], places: Sequence[Location], workers: Workers
) -> list[str]:
    """Compare each tensor with the one that it is said to repeat, both by their names in the source.

    Up to 16 MiB of each are read: all of it, or rows from all over it. The notes say what was compared. ``places`` are
    the catalog's URL and its others. Raise CatalogError for tensors that differ; all are listed.
    """
    entries = {entry.spec.name: entry for entry in catalog.entries}
    problems: dict[str, str] = {}
    spans: list[tuple[str, Box]] = []
    for name, of in copies.items():
        one, other = entries[name].spec, entries[of].spec
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            problems[name] = f"it is {one.dtype} {list(one.shape)}, {of} {other.dtype} {list(other.shape)}"
        else:
            spans += [(name, box) for box in sample_boxes(entries[name])]

    def compare(span: tuple[str, Box]) -> None:
        name, box = span
        one, other = (_Reader(catalog, places, entries[each]).read(box) for each in (name, copies[name]))
        if one != other:
            problems.setdefault(name, f"it differs from {copies[name]} in rows {box.start[0]}..{box.stop[0] - 1}")

    workers.map(compare, spans)
    patterns = " ".join(str(option("drop", name)) for name in sorted(problems)[:3])
    raise_all(
        CatalogError,
        f"{catalog.url}: config.json says that tensors repeat others, and they do not",
        [f"{name}: {problem}" for name, problem in sorted(problems.items())],
        hint=f"To keep them, set tie_word_embeddings to false in config.json ({option('config')} takes another). "
        f"To leave them out: {patterns}.",
    )
    return [_note(entries[name], copies[name], [box for each, box in spans if each == name]) for name in copies]


def _note(entry: Entry, of: str, boxes: Sequence[Box]) -> str:
    read = sum(box.element_count for box in boxes)
    if read == math.prod(extent_of(entry.spec)[0]):
        return f"{entry.spec.name} was compared with {of}, byte by byte: a copy"
    return f"{entry.spec.name} was compared with {of} in {len(boxes)} places: a copy there"


def sample_boxes(entry: Entry) -> list[Box]:
    """Return the rows to read of a tensor: all if they are few bytes, else the first, the last and some between."""
    shape, itemsize = extent_of(entry.spec)
    if 0 in shape or not shape:
        return [Box.whole(shape)] if not shape else []
    row_bytes = math.prod(shape[1:]) * itemsize
    whole = shape[0] * row_bytes <= _MOST_BYTES
    length = max(1, _MOST_BYTES // _SPAN_COUNT // row_bytes)
    count = -(-shape[0] // length) if whole else max(2, min(_SPAN_COUNT, _MOST_BYTES // (length * row_bytes)))
    last = shape[0] - min(length, shape[0])
    starts = [i * length for i in range(count)] if whole else [round(i * last / (count - 1)) for i in range(count)]
    return [
        Box((start, *(0 for _ in shape[1:])), (min(start + length, shape[0]), *shape[1:]))
        for start in dict.fromkeys(starts)
    ]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads boxes of one tensor from wherever its placements are."""

    catalog: Catalog
    places: Sequence[Location]
    entry: Entry

    def read(self, box: Box) -> bytes:
        itemsize = extent_of(self.entry.spec)[1]
        found = bytearray(box.element_count * itemsize)
        for placement in self.entry.placements:
            part = placement.box.intersect(box)
            if part is None or part.is_empty:
                continue
            index, first = placement.holders[0]
            item, held = self.catalog.objects[index], placement.box
            patch = plain_patch(extent_of(self.entry.spec)[0]).within_target(part)
            assert patch is not None
            move = patch.scatter(held, box, itemsize, self.entry.axes)
            start, stop = move.source, move.source_stop
            if item.fill:
                data = bytearray(stop - start)
                repeat(item.fill, start, memoryview(data))
            else:
                place = self.places[item.base].child(item.key)
                data = bytearray(place.store.read(place.key, ByteRange(first + start, first + stop), item.etag))
            scatter(move.moved(-start), memoryview(data), memoryview(found))
        return bytes(found)
