"""Reads the few numbers that training keeps as tensors, for layouts that keep them apart."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

from ...errors import CatalogError, option, raise_all
from ...formats.mindspore.iteration import CommonValue
from ...planning.catalog import Catalog
from ...planning.outputs.output import TargetTensor
from ...planning.targets.iteration_target import SCALAR_CODES, is_training_state
from ...storage import Location
from ...tensor import ByteRange
from ..locations import read_agreed
from ..workers import Workers

_REALS = frozenset({"loss_scale"})


def read_training_state(
    catalog: Catalog, tensors: Iterable[TargetTensor], source: Location, workers: Workers
) -> dict[str, CommonValue]:
    """Return the training state: the numbers that the source keeps apart, and scalars like ``global_step``.

    The names of the target's tensors decide which are such scalars. Raise CatalogError if the source has two different
    values of a number, or one that is not finite or not a count.
    """
    found = dict(catalog.training_state)
    problems: list[str] = []

    def read(tensor: TargetTensor) -> None:
        entry = catalog.entries[tensor.pieces[0].source]
        index, first = entry.placements[0].holders[0]
        item = catalog.objects[index]
        data = read_agreed(source.child(item.key), ByteRange(first, first + entry.spec.nbytes), item.etag)
        [value] = struct.unpack(f"<{SCALAR_CODES[entry.spec.dtype]}", data)
        name = tensor.spec.name
        known = found.get(name)
        if not math.isfinite(value) or (name not in _REALS and (value != int(value) or value < 0)):
            expected = "a finite number" if name in _REALS else "a finite count"
            problems.append(f"{entry.spec.name}: expected {expected}, found {value}")
            return
        if known is not None and known != value:
            problems.append(f"{name}: {known} beside the tensors, {value} as a tensor")
        found[name] = float(value) if name in _REALS else int(value)

    workers.map(read, [tensor for tensor in tensors if is_training_state(tensor)])
    hint = f"Leave these tensors out with {option('drop')} to use the numbers beside them."
    raise_all(CatalogError, f"{catalog.url}: the training state cannot be used", sorted(problems), hint)
    return found
