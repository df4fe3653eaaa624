"""Catalogs as JSON, and back."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from ..tensor import Box, DType, TensorSpec, extent_of
from .catalog import Catalog, Entry, Placement, SourceObject, SourceSharding
from .json_fields import choice, counters, fields_of, integer, integers, items, mapping, name, refused, text, texts
from .plan_check import check_spec


def catalog_to_json(catalog: Catalog) -> dict[str, Any]:
    """Express a catalog in JSON's types."""
    return {
        "url": catalog.url,
        "kind": catalog.kind,
        "others": list(catalog.others),
        "objects": [
            [item.key, item.nbytes, item.etag, item.base, *([item.fill.hex()] if item.fill else [])]
            for item in catalog.objects
        ],
        "metadata": dict(catalog.metadata),
        "notes": list(catalog.notes),
        "header_bytes": catalog.header_bytes,
        "texts": dict(catalog.texts),
        "dropped": list(catalog.dropped),
        "training_state": dict(catalog.training_state),
        "entries": [
            [
                entry.spec.name,
                entry.spec.dtype.value,
                list(entry.spec.shape),
                _placements_to_json(entry),
                entry.sharding,
            ]
            for entry in catalog.entries
        ],
    }


def _placements_to_json(entry: Entry) -> list[Any]:
    whole = Box.whole(extent_of(entry.spec)[0])
    return [
        [
            [] if placement.box == whole else [list(placement.box.start), list(placement.box.stop)],
            [list(holder) for holder in placement.holders],
        ]
        for placement in entry.placements
    ]


def catalog_from_json(value: object) -> Catalog:
    """Build what :func:`catalog_to_json` expressed; that it hangs together is for others to check."""
    body = fields_of(value, "catalog", [field.name for field in fields(Catalog)])
    metadata = mapping(body["metadata"], "metadata")
    return Catalog(
        url=text(body["url"], "url of the source"),
        kind=text(body["kind"], "kind of the source"),
        objects=tuple(_object_from_json(item) for item in items(body["objects"], "objects")),
        entries=tuple(_entry_from_json(entry) for entry in items(body["entries"], "entries")),
        metadata={key: text(each, "metadata") for key, each in metadata.items()},
        notes=texts(body["notes"], "notes of the source"),
        header_bytes=integer(body["header_bytes"], "header_bytes"),
        texts={key: text(each, "texts") for key, each in mapping(body["texts"], "texts").items()},
        dropped=texts(body["dropped"], "dropped"),
        training_state=counters(body["training_state"], "training_state"),
        others=texts(body["others"], "others"),
    )


def _object_from_json(value: object) -> SourceObject:
    key, nbytes, etag, base, *more = items(value, "an object of the source", 4, 5)
    fill = text(more[0], "fill") if more else ""
    if more and not re.fullmatch("([0-9a-f]{2}){1,8}", fill):
        raise refused("fill", "1 to 8 bytes in hexadecimal", fill)
    stored = text(key, "key"), integer(nbytes, "bytes of an object"), text(etag, "etag"), integer(base, "base")
    return SourceObject(*stored, bytes.fromhex(fill))


def _entry_from_json(value: object) -> Entry:
    called, dtype, shape, placements, sharding = items(value, "an entry", 5)
    spec = TensorSpec(name(called, "name of a tensor"), choice(dtype, "dtype", DType), integers(shape, "shape"))
    check_spec(spec)
    whole = Box.whole(extent_of(spec)[0])
    held = tuple(_placement_from_json(each, whole) for each in items(placements, "placements"))
    return Entry(spec, held, choice(sharding, "sharding", SourceSharding))


def _placement_from_json(value: object, whole: Box) -> Placement:
    box, holders = items(value, "a placement", 2)
    sides = [integers(side, "a box") for side in items(box, "a box", 0, 2)]
    pairs = (integers(items(holder, "a holder", 2), "a holder") for holder in items(holders, "holders"))
    return Placement(Box(*sides) if sides else whole, tuple((index, first) for index, first in pairs))
