"""Reads the few numbers that training keeps as tensors, for layouts that keep them elsewhere."""

from __future__ import annotations

import struct

from ..formats.iteration import COMMON_KEYS, CommonValue
from ..planning.catalog import Catalog, Entry, Origin
from ..storage import Location
from ..tensor import ByteRange, DType
from .workers import Workers

__all__ = ["read_counters"]

_CODES = {
    DType.BOOL: "?",
    DType.I8: "b",
    DType.U8: "B",
    DType.I16: "h",
    DType.U16: "H",
    DType.I32: "i",
    DType.U32: "I",
    DType.I64: "q",
    DType.U64: "Q",
    DType.F16: "e",
    DType.F32: "f",
    DType.F64: "d",
}
_REALS = frozenset({"loss_scale"})


def read_counters(catalog: Catalog, source: Location, workers: Workers) -> dict[str, CommonValue]:
    """What training had counted: as the source tells it beside its tensors, else from scalars like ``global_step``."""
    found = dict(catalog.counters)
    wanted = [entry for entry in catalog.entries if _is_counter(entry) and found.get(entry.spec.name) is None]

    def read(entry: Entry) -> None:
        index, first = entry.placements[0].holders[0]
        item = catalog.objects[index]
        span = ByteRange(first, first + entry.spec.nbytes)
        found[entry.spec.name] = _number(entry, source.store.read(source.child(item.key).key, span, item.etag))

    workers.map(read, wanted)
    return found


def _is_counter(entry: Entry) -> bool:
    spec = entry.spec
    return (
        entry.origin is Origin.OUTSIDE and spec.name in COMMON_KEYS and set(spec.shape) <= {1} and spec.dtype in _CODES
    )


def _number(entry: Entry, data: bytes) -> CommonValue:
    [value] = struct.unpack(f"<{_CODES[entry.spec.dtype]}", data)
    return float(value) if entry.spec.name in _REALS else int(value)
