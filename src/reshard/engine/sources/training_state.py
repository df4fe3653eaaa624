"""Reads the few numbers that training keeps as tensors, for layouts that keep them elsewhere."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

from ...errors import CatalogError, raise_all
from ...formats.mindspore.iteration import CommonValue
from ...planning.catalog import Catalog
from ...planning.outputs.output import TargetTensor
from ...planning.targets.iteration_target import SCALAR_CODES, is_training_state
from ...storage import Location
from ...tensor import ByteRange
from ..workers import Workers

_REALS = frozenset({"loss_scale"})


def read_counters(
    catalog: Catalog, tensors: Iterable[TargetTensor], source: Location, workers: Workers
) -> dict[str, CommonValue]:
    """What training had counted: as the source tells it beside its tensors, and in scalars like ``global_step``.

    Parameters
    ----------
    tensors
        Of the target; a scalar counts by the name that it has there.

    Raises
    ------
    CatalogError
        The source tells two different numbers, or one that cannot be counted to.
    """
    found = dict(catalog.counters)
    problems: list[str] = []

    def read(tensor: TargetTensor) -> None:
        entry = catalog.entries[tensor.pieces[0].source]
        index, first = entry.placements[0].holders[0]
        item = catalog.objects[index]
        span = ByteRange(first, first + entry.spec.nbytes)
        [value] = struct.unpack(
            f"<{SCALAR_CODES[entry.spec.dtype]}", source.store.read(source.child(item.key).key, span, item.etag)
        )
        name = tensor.spec.name
        known = found.get(name)
        if not math.isfinite(value) or (name not in _REALS and (value != int(value) or value < 0)):
            problems.append(f"{entry.spec.name}: expected a finite number that counts, found {value}")
            return
        if known is not None and known != value:
            problems.append(f"{name}: {known} beside the tensors, {value} as a tensor")
        found[name] = float(value) if name in _REALS else int(value)

    workers.map(read, [tensor for tensor in tensors if is_training_state(tensor)])
    hint = "Leave the tensors out with --drop to take what stands beside them."
    raise_all(CatalogError, f"{catalog.url}: what training had counted is not clear", sorted(problems), hint)
    return found
