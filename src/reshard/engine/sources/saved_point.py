"""Finds out when training saved a source: epoch and step, from names, ``meta.json`` or counters among the tensors."""

from __future__ import annotations

import math
import re
import struct

from ...errors import FormatError
from ...formats.mindspore.rank_names import SavedAt, base_of, epoch_step_of, pattern_of, resumable
from ...formats.mindspore.rank_objects import parse_meta
from ...planning.catalog import Catalog
from ...planning.targets.iteration_target import SCALAR_CODES
from ...storage import Location, read_object
from ...tensor import ByteRange
from ..locations import read_agreed
from ..workers import Workers

_IN_RANK = re.compile(r"(?:^|/)rank_([0-9]{1,9})/[^/]+$")
_COUNTERS = ("epoch_num", "step_num")


def resumable_name(catalog: Catalog) -> str | None:
    """Return the name of a source's ranks, ``{rank}`` in it, if training finds such to resume from."""
    ranked = [(_IN_RANK.search(item.key), item.key) for item in catalog.objects if not item.base and not item.fill]
    names = {pattern_of(key, int(match[1])) if match else key for match, key in ranked}
    name = names.pop() if len(names) == 1 else ""
    return name.rpartition(".")[0] if resumable(name) else None


def confirm_point(catalog: Catalog, source: Location, point: SavedAt, workers: Workers) -> str:
    """Return why the source was not, as far as it tells, saved at an epoch and step; empty if it was.

    The names of its objects tell, else the ``meta.json`` beside each, else the counters ``epoch_num`` and ``step_num``.
    """
    names = [item.key for item in catalog.objects if not item.base and not item.fill]
    in_names = {epoch_step_of(name) for name in names} - {None}
    if in_names:
        found, where = {SavedAt(*each) for each in in_names if each}, "the names of the source's objects"
    else:
        found, where = _in_metas(names, source, workers), "the source's meta.json"
    if found:
        return "" if found == {point} else f"{where} say {' and '.join(map(str, sorted(found)))}"
    counts = [_count(catalog, source, name) for name in _COUNTERS]
    if None in counts:
        return "nothing in the source tells epoch and step"
    epoch, step = (count or 0 for count in counts)
    return "" if point.is_after(epoch, step) else f"the source counts epoch {epoch} and {step} steps in all"


def _in_metas(names: list[str], source: Location, workers: Workers) -> set[SavedAt]:
    """Read what the ``meta.json`` beside every object says; nothing unless each names its object."""
    found: list[SavedAt] = []

    def read(name: str) -> None:
        place = source.child(f"{name.rpartition('/')[0]}/meta.json")
        if place.head_or_none() is None:
            return
        try:
            meta = parse_meta(read_object(place), place.url)
        except FormatError:
            return
        if base_of(meta.last_ckpt_file) == base_of(name):
            found.append(SavedAt(meta.last_epoch, meta.last_step))

    workers.map(read, names)
    return set(found) if len(found) == len(names) else set()


def _count(catalog: Catalog, source: Location, name: str) -> int | None:
    """Read a counter; None if there is none, or it is no count."""
    kept_apart = catalog.training_state.get(name)
    if type(kept_apart) is int:
        return kept_apart
    entry = next((each for each in catalog.entries if each.spec.name == name), None)
    if entry is None or entry.spec.dtype not in SCALAR_CODES or not set(entry.spec.shape) <= {1}:
        return None
    index, first = entry.placements[0].holders[0]
    item = catalog.objects[index]
    data = read_agreed(source.child(item.key), ByteRange(first, first + entry.spec.nbytes), item.etag)
    [value] = struct.unpack(f"<{SCALAR_CODES[entry.spec.dtype]}", data)
    return int(value) if math.isfinite(value) and value == int(value) and value >= 0 else None
