"""The objects of a target as files that nobody has written: their bytes are made when they are read."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial

from ..errors import NotFound
from ..planning.outputs.output import Attachment, Document, Output, check_outputs
from ..tensor import ByteRange, row_major_boxes
from .boxes import WantedBox
from .reading import BoxReader

BLOCK_BYTES = 4 << 20
"""Length of a block, the unit of the cache."""
_FETCHED_BLOCKS = 16
_WIDEST_ITEM = 16
"""Bytes of the widest element, and a little more: a block may begin within one."""


class TargetFiles:
    """Sizes and bytes of every object of a conversion's target but its manifest, by key.

    Parameters
    ----------
    cache_bytes
        Most bytes of blocks to keep for the next read.

    Raises
    ------
    PlanError
        Outputs cannot hold their content, or have equal keys.
    """

    def __init__(self, reader: BoxReader, cache_bytes: int) -> None:
        self._reader = reader
        self._cache = _BlockCache(cache_bytes)
        conversion = reader.conversion
        outputs = conversion.outputs
        others: list[Document | Attachment] = [*conversion.documents, *conversion.attachments]
        check_outputs(outputs, others, reader.limits.max_object_bytes)
        self._outputs = {key: number for number, output in enumerate(outputs) for key in output.keys}
        self._others = {other.key: other for other in others}
        sizes = {key: outputs[number].nbytes for key, number in self._outputs.items()}
        self.sizes = sizes | {key: _length(other) for key, other in self._others.items()}

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Return bytes ``[start, stop)`` of an object, fewer at its end; NotFound if there is no such object."""
        if key not in self.sizes:
            raise NotFound(f"{key}: the target has no such object", hint="ls() lists those that it has.")
        stop = min(stop, self.sizes[key])
        if start >= stop:
            return b""
        if (other := self._others.get(key)) is not None:
            return self._read_other(other, start, stop)
        number, found = self._outputs[key], bytearray(stop - start)
        for first_byte, data in self._blocks(number, start, stop):
            low, high = max(start, first_byte), min(stop, first_byte + len(data))
            found[low - start : high - start] = data[low - first_byte : high - first_byte]
        return bytes(found)

    def _read_other(self, other: Document | Attachment, start: int, stop: int) -> bytes:
        if isinstance(other, Document):
            return other.data[start:stop]
        item = self._reader.conversion.catalog.objects[other.index]
        place = self._reader.open().source(item)
        return place.store.read(place.key, ByteRange(start, stop), item.etag)

    def _blocks(self, number: int, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """Yield the blocks of an output that overlap a range, each with its first byte; many are read at once."""
        block, end = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
        while block < end:
            if (kept := self._cache.get((number, block))) is not None:
                yield block * BLOCK_BYTES, kept
                block += 1
                continue
            last = block + 1
            while last < min(end, block + _FETCHED_BLOCKS) and self._cache.get((number, last)) is None:
                last += 1
            for fetched, data in enumerate(self._fetch(number, block, last), start=block):
                self._cache.put((number, fetched), data)
                yield fetched * BLOCK_BYTES, memoryview(data)
            block = last

    def _fetch(self, number: int, first: int, last: int) -> list[bytes]:
        """Make some blocks that follow each other."""
        output = self._reader.conversion.outputs[number]
        start, stop = first * BLOCK_BYTES, min(last * BLOCK_BYTES, output.nbytes)
        # Elements that begin before the first byte, or end after the last, are read whole.
        origin = start - _WIDEST_ITEM
        memory = memoryview(bytearray(stop - origin + _WIDEST_ITEM))
        places = list(_boxes(output, start, stop))
        for _ in self._reader.read([wanted for wanted, _ in places], partial(_slice_of, memory, origin, places)):
            pass
        for place, data in output.frame.literals_in(start, stop):
            memory[place - origin : place - origin + len(data)] = data
        made = memory[start - origin : stop - origin]
        return [bytes(made[at : at + BLOCK_BYTES]) for at in range(0, len(made), BLOCK_BYTES)]


def _boxes(output: Output, start: int, stop: int) -> Iterator[tuple[WantedBox, ByteRange]]:
    """Yield the boxes that fill bytes of an output, each with its own bytes there."""
    extents = output.frame.extents
    first = max(0, bisect_right(extents, start, key=lambda extent: extent.start) - 1)
    for extent in extents[first:]:
        if extent.start >= stop:
            return
        low, high = max(start, extent.start), min(stop, extent.stop)
        if low >= high:
            continue
        held, origin = output.boxes[extent.slot], extent.byte_of(0)
        elements = (low - origin) // extent.itemsize, -(-(high - origin) // extent.itemsize)
        at = origin + elements[0] * extent.itemsize
        for box in row_major_boxes(held.shape, *elements):
            nbytes = box.element_count * extent.itemsize
            yield (output.tensors[extent.slot], box.shifted(held.start)), ByteRange(at, at + nbytes)
            at += nbytes


def _slice_of(memory: memoryview, origin: int, places: list[tuple[WantedBox, ByteRange]], position: int) -> memoryview:
    span = places[position][1]
    return memory[span.start - origin : span.stop - origin]


def _length(other: Document | Attachment) -> int:
    return len(other.data) if isinstance(other, Document) else other.nbytes


class _BlockCache:
    """Blocks that were read last, within a number of bytes. Any thread may use it."""

    def __init__(self, nbytes: int) -> None:
        self._left_bytes = nbytes
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> memoryview | None:
        with self._lock:
            if key not in self._blocks:
                return None
            self._blocks.move_to_end(key)
            return memoryview(self._blocks[key])

    def put(self, key: tuple[int, int], data: bytes) -> None:
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = data
                self._left_bytes -= len(data)
            while self._left_bytes < 0:
                _, dropped = self._blocks.popitem(last=False)
                self._left_bytes += len(dropped)
