"""Bounds of conversions that anyone can write: a hash is no signature.

Whatever bounds work or memory is checked before what it bounds. Planning itself refuses what does not fit.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from ..errors import PlanError
from ..formats.containers import Container
from ..formats.mindspore.ckpt import PIECE_BYTES
from ..formats.strict_json import shown
from ..formats.weight_index import relative_key_problem
from ..models.family_file import OwnFamily
from ..models.own_family import check_own_family
from ..tensor import extent_of
from .catalog import Catalog
from .change import FLOATS, OVERFLOWS
from .conversion import MAX_ATTACHMENT_BYTES, Conversion
from .outputs.output import Output, group_by_layout
from .targets.target import check_count
from .targets.written_keys import has_hidden_step, is_companion
from .targets.zarr_target import ChunkOutput

_MAX_FILL_BYTES = 8
_MAX_HEADER_BYTES = 1 << 31
_MAX_PIECES = 1 << 16  # 32 TiB in .ckpt tensors of more than one piece


def check_conversion(conversion: Conversion) -> None:
    """Refuse a conversion whose values, each right alone, contradict each other or would grow without bound.

    Raise PlanError for reads outside the source's objects, keys outside the target, names or keys that repeat, and too
    much of anything.
    """
    _check_catalog(conversion.catalog)
    objects = conversion.catalog.objects
    for each in conversion.attachments:
        if not is_companion(each.key):
            raise PlanError(f"attachment {shown(each.key)}: expected a config or an object of a tokenizer")
        found = objects[each.index].nbytes if each.index < len(objects) else None
        if found != each.nbytes or found > MAX_ATTACHMENT_BYTES:
            expected = f"expected an object of at most {MAX_ATTACHMENT_BYTES} bytes"
            raise PlanError(f"attachment {shown(each.key)}: {expected}, found {found}")
    catalog, dtype = conversion.catalog, conversion.change.dtype
    if dtype is not None and dtype not in FLOATS:
        raise PlanError(f"dtype of the change: expected one of {', '.join(sorted(FLOATS))}, found {dtype}")
    if conversion.change.on_overflow not in OVERFLOWS:
        raise PlanError(f"on_overflow: expected {', '.join(OVERFLOWS)}, found {shown(conversion.change.on_overflow)}")
    if isinstance(family := conversion.change.family_key, OwnFamily):
        check_own_family(family)
    tensors = conversion.tensors
    output_count = conversion.target.check_bounds(tensors)
    check_count("metadata over all outputs", output_count * (len(catalog.metadata) + len(catalog.texts)))
    _check_once([conversion.renamed.get(e.spec.name, e.spec.name) for e in catalog.entries], "new name")
    _check_once([*(tensor.spec.name for tensor in tensors), *catalog.texts], "name in the target")
    _check_keys([key for output in conversion.outputs for key in output.keys], "output")
    _check_headers(conversion.outputs)
    keys = [*conversion.keys, conversion.manifest_key]
    _check_keys(keys, "output")
    if hidden := next(filter(has_hidden_step, keys), None):
        raise PlanError(f"output {shown(hidden)}: expected no step that begins with a dot")
    known = set(keys)
    for key in keys:  # file systems cannot hold an object and others below it
        end = key.find("/")
        while end >= 0:
            if key[:end] in known:
                raise PlanError(f"output {shown(key)}: expected no key below another")
            end = key.find("/", end + 1)


def _check_catalog(catalog: Catalog) -> None:
    """Refuse objects and tensors that repeat, and bytes that are outside their object or another tensor's."""
    keys: dict[int, list[str]] = {}
    for item in catalog.objects:
        keys.setdefault(item.base, []).append(item.key)
        if item.base > len(catalog.others):
            raise PlanError(f"object {shown(item.key)} of the source: expected a base up to {len(catalog.others)}")
        if len(item.fill) > _MAX_FILL_BYTES:
            raise PlanError(f"fill of object {shown(item.key)}: expected at most {_MAX_FILL_BYTES} bytes")
    for some in keys.values():
        _check_keys(some, "object of the source")
    _check_once([entry.spec.name for entry in catalog.entries], "tensor of the source")
    sizes = [item.nbytes for item in catalog.objects]
    taken: list[tuple[int, int, int]] = []
    counts: dict[int, int] = {}  # by identity: entries of one kind share their boxes
    for entry in catalog.entries:
        itemsize = extent_of(entry.spec)[1]
        for placement in entry.placements:
            box = placement.box
            if id(box) not in counts:
                counts[id(box)] = box.element_count
            nbytes = counts[id(box)] * itemsize
            for index, first in placement.holders:
                if index >= len(sizes) or first + nbytes > sizes[index]:
                    name, found = shown(entry.spec.name), [index, first]
                    raise PlanError(f"bytes of {name}: expected inside an object of the source, found {found}")
                if nbytes:
                    taken.append((index, first, first + nbytes))
    taken.sort()
    for before, after in pairwise(taken):
        if before[0] == after[0] and before[2] > after[1]:
            raise PlanError(f"object {after[0]} of the source, byte {after[1]}: two tensors have it")


def _check_keys(keys: Sequence[str], what: str) -> None:
    for key in keys:
        if problem := relative_key_problem(key):
            raise PlanError(f"{what} {shown(key)}: expected a plain relative key, found {problem}")
    _check_once([unicodedata.normalize("NFC", key) for key in keys], what)


def _check_once(names: Sequence[str], what: str) -> None:
    if len(set(names)) < len(names):
        repeated = next(name for name, count in Counter(names).items() if count > 1)
        raise PlanError(f"{what} {shown(repeated)}: expected once")


def _check_headers(outputs: Sequence[Output]) -> None:
    """Bound the bytes between tensors, all together, before any are made."""
    nbytes = pieces = 0
    for output in (outputs[positions[0]] for positions in group_by_layout(outputs)):
        nbytes += sum(4 * len(spec.name) + 100 + 20 * len(spec.shape) for spec in output.specs)
        texts = (*output.metadata.items(), *output.texts.items())
        nbytes += sum(4 * len(key) + 4 * len(value) for key, value in texts)
        check_count("bytes of all headers", nbytes, _MAX_HEADER_BYTES)
        if output.container is Container.CKPT:
            pieces += sum(spec.nbytes // PIECE_BYTES for spec in output.specs)
            check_count("pieces of large tensors", pieces, _MAX_PIECES)
        if isinstance(output, ChunkOutput):
            pieces += output.padding_bytes >> 20
            check_count("MiB of padding of chunks", pieces, _MAX_PIECES)
