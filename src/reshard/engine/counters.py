"""Reads the few numbers that training keeps as tensors, for layouts that keep them elsewhere."""

from __future__ import annotations

import struct

from ..errors import CatalogError, raise_all
from ..formats.iteration import CommonValue
from ..planning.catalog import Catalog
from ..planning.iteration_target import COUNTER_CODES, is_counter
from ..planning.output import TargetTensor, tensors_of
from ..storage import Location
from ..tensor import ByteRange
from .workers import Workers

__all__ = ["read_counters"]

_REALS = frozenset({"loss_scale"})


def read_counters(catalog: Catalog, source: Location, workers: Workers) -> dict[str, CommonValue]:
    """What training had counted: as the source tells it beside its tensors, and in scalars like ``global_step``.

    Raises
    ------
    CatalogError
        The source tells two different numbers, or a part of a step.
    """
    found = dict(catalog.counters)
    problems: list[str] = []

    def read(tensor: TargetTensor) -> None:
        entry = catalog.entries[tensor.pieces[0].source]
        index, first = entry.placements[0].holders[0]
        item = catalog.objects[index]
        span = ByteRange(first, first + entry.spec.nbytes)
        [value] = struct.unpack(
            f"<{COUNTER_CODES[entry.spec.dtype]}", source.store.read(source.child(item.key).key, span, item.etag)
        )
        name, known = entry.spec.name, found.get(entry.spec.name)
        if name not in _REALS and value != int(value):
            problems.append(f"{name}: expected a whole number, found {value}")
        elif known is not None and known != value:
            problems.append(f"{name}: {known} beside the tensors, {value} as a tensor")
        found[name] = float(value) if name in _REALS else int(value)

    workers.map(read, [tensor for tensor in tensors_of(catalog, {}) if is_counter(tensor)])
    hint = "Leave the tensors out with --drop to take what stands beside them."
    raise_all(CatalogError, f"{catalog.url}: what training had counted is not clear", sorted(problems), hint)
    return found
