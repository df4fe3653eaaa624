"""Catalogs of objects that hold whole tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from ...errors import CatalogError, raise_all
from ...formats.sharding_info import SHARDING_KEY, parse_sharding_info
from ...models.training_names import is_counter
from ..catalog import Catalog, Entry, ObjectHeader, Placement, SourceSharding
from ..targets.full_target import HYPER_NAME
from .source_headers import SourceHeaders, placements_of


def full_catalog(source: SourceHeaders, weight_map: Mapping[str, str] | None = None) -> Catalog:
    """Describe a source whose objects hold whole tensors.

    ``weight_map`` is an index: tensor name to object key. It decides when a tensor is in several objects, and
    everything it names must be there; tensors it does not name are taken all the same. Raise CatalogError for tensors
    missing from the objects that the index names, or in several objects without one.
    """
    weight_map, names = weight_map or {}, source.names
    entries: dict[str, Entry] = {}
    taken_from: dict[str, str] = {}
    problems = [problem for header in source.headers for problem in _pieces(header)]
    for index, header in enumerate(source.headers):
        key = header.object.key
        for tensor in header.tensors:
            name = tensor.spec.name
            is_unlisted = key == HYPER_NAME or is_counter(name, tensor.spec.shape)
            sharding = SourceSharding.UNLISTED if is_unlisted else SourceSharding.WHOLE
            if weight_map.get(name, key) != key or not names.is_kept(name):
                continue
            if name in entries:
                problems.append(f"{name}: in {taken_from[name]} and in {key}")
            taken_from[name] = key
            entries[name] = Entry(tensor.spec, placements_of([(index, tensor)]), sharding)
    problems += [
        f"{name}: expected in {key}, not there"
        for name, key in weight_map.items()
        if name not in entries and names.is_kept(name)
    ]
    texts, differing = source.texts()
    problems += [f"{name}: text that differs between objects" for name in differing]
    hint = "Were all objects of one checkpoint copied, with their index?"
    raise_all(CatalogError, f"{source.url}: the objects do not make one checkpoint", problems, hint)
    flagged = sum(header.metadata.get("remove_redundancy") == "True" for header in source.headers)
    note = f"remove_redundancy is True in {flagged} of {len(source.headers)} headers: other ranks may hold more tensors"
    return source.catalog(entries.values(), texts, [note] if flagged else [])


def _pieces(header: ObjectHeader) -> Iterator[str]:
    """Yield the tensors of an object that begin elsewhere than their whole tensors."""
    if SHARDING_KEY in header.metadata:
        for name, start in parse_sharding_info(header.metadata[SHARDING_KEY], header.object.key).items():
            if any(start):
                yield f"{name}: {header.object.key} has a piece of it, from {list(start)} on"


def tree_catalog(source: SourceHeaders, entry_name: Callable[[str, str], str]) -> Catalog:
    """Describe objects that are not to be joined: every tensor of each becomes an entry.

    ``entry_name`` makes the entry's name of the object's key and the tensor's name there.
    """
    entries: list[Entry] = []
    texts: dict[str, str] = {}
    metadata: dict[str, str] = {}
    plain = {tensor.spec.name for header in source.headers for tensor in header.tensors}
    for index, header in enumerate(source.headers):
        key = header.object.key
        for tensor in header.tensors:
            name = tensor.spec.name
            if source.names.is_kept(name):
                spec = replace(tensor.spec, name=entry_name(key, name))
                entries.append(Entry(spec, placements_of([(index, tensor)])))
                if name in header.metadata:  # metadata under a tensor's name is about that tensor
                    metadata[spec.name] = header.metadata[name]
        texts |= {entry_name(key, name): text for name, text in header.texts.items() if source.names.is_kept(name)}
    common = {key: value for key, value in source.metadata().items() if key not in plain}
    return source.catalog(entries, texts, metadata=common | metadata)


def with_adapters(catalog: Catalog, adapters: Catalog) -> Catalog:
    """Add the tensors of another catalog to a model's; CatalogError if both have a tensor of one name."""
    names = {entry.spec.name for entry in catalog.entries}
    twice = [entry.spec.name for entry in adapters.entries if entry.spec.name in names]
    raise_all(CatalogError, f"{adapters.url}: adapters and model both have these tensors", twice)
    first, base = len(catalog.objects), len(catalog.others) + 1

    def moved(placement: Placement) -> Placement:
        return replace(placement, holders=tuple((index + first, byte) for index, byte in placement.holders))

    entries = (replace(entry, placements=tuple(map(moved, entry.placements))) for entry in adapters.entries)
    return replace(
        catalog,
        objects=(*catalog.objects, *(replace(item, base=base) for item in adapters.objects)),
        entries=(*catalog.entries, *entries),
        others=(*catalog.others, adapters.url),
        notes=(*catalog.notes, *adapters.notes),
        header_bytes=catalog.header_bytes + adapters.header_bytes,
    )
