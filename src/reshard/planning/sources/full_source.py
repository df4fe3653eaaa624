"""From what a source's objects hold to one catalog of whole tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from ...errors import CatalogError, raise_all
from ...tensor import Shape
from ..catalog import Catalog, Entry, ObjectHeader, Placement, SourceObject, SourceSharding, Stored
from .selection import NameFilter

ALL_NAMES = NameFilter()
Opened = tuple[SourceObject, ObjectHeader]


def full_catalog(
    url: str,
    kind: str,
    objects: Sequence[Opened],
    weight_map: Mapping[str, str] | None = None,
    notes: Iterable[str] = (),
    *,
    names: NameFilter = ALL_NAMES,
    hyper_key: str = "",
) -> Catalog:
    """Describe a source whose objects hold whole tensors.

    Parameters
    ----------
    weight_map
        An index: tensor name to object key. It decides when a tensor is in several objects, and
        everything it names must be there; tensors it does not name are taken all the same.
    names
        Which tensors to take.
    hyper_key
        The object of tensors that have no layout, if there is one.

    Raises
    ------
    CatalogError
        Tensors missing from the objects that the index names, or in several objects without one.
    """
    weight_map = weight_map or {}
    entries: dict[str, Entry] = {}
    problems = []
    for index, (item, contents) in enumerate(objects):
        sharding = SourceSharding.UNLISTED if item.key == hyper_key else SourceSharding.WHOLE
        for stored in contents.tensors:
            name = stored.spec.name
            if weight_map.get(name, item.key) != item.key or not names.is_kept(name):
                continue
            if name in entries:
                problems.append(f"{name}: in {_key_of(objects, entries[name])} and in {item.key}")
            entries[name] = Entry(stored.spec, placements_of([(index, stored)]), sharding)
    problems += [
        f"{name}: expected in {key}, not there"
        for name, key in weight_map.items()
        if name not in entries and names.is_kept(name)
    ]
    texts, differing = common_texts(objects, names)
    problems += [f"{name}: text that differs between objects" for name in differing]
    flagged = sum(contents.metadata.get("remove_redundancy") == "True" for _, contents in objects)
    told = f"remove_redundancy is True in {flagged} of {len(objects)} headers: other ranks may hold more tensors"
    hint = "Were all objects of one checkpoint copied, with their index?"
    raise_all(CatalogError, f"{url}: the objects do not make one checkpoint", problems, hint)
    return Catalog(
        url,
        kind,
        tuple(item for item, _ in objects),
        tuple(entries.values()),
        common_metadata(objects),
        (*notes, told) if flagged else tuple(notes),
        texts=texts,
        dropped=dropped_names(objects, names),
    )


def tree_catalog(
    url: str,
    kind: str,
    objects: Sequence[Opened],
    called: Callable[[str, str], str],
    notes: Iterable[str] = (),
    *,
    names: NameFilter = ALL_NAMES,
) -> Catalog:
    """Describe objects that are not to be joined: every tensor of each is an entry of its own.

    Parameters
    ----------
    called
        Makes an entry's name of an object's key and the tensor's name there.
    """
    entries, metadata = [], {}
    for index, (item, contents) in enumerate(objects):
        kept = [stored for stored in contents.tensors if names.is_kept(stored.spec.name)]
        for stored in kept:
            spec = replace(stored.spec, name=called(item.key, stored.spec.name))
            entries.append(Entry(spec, placements_of([(index, stored)])))
            if stored.spec.name in contents.metadata:
                metadata[spec.name] = contents.metadata[stored.spec.name]
    texts = {
        called(item.key, name): text
        for item, contents in objects
        for name, text in contents.texts.items()
        if names.is_kept(name)
    }
    plain = {stored.spec.name for _, contents in objects for stored in contents.tensors}
    common = {key: value for key, value in common_metadata(objects).items() if key not in plain}
    return Catalog(
        url,
        kind,
        tuple(item for item, _ in objects),
        tuple(entries),
        common | metadata,
        tuple(notes),
        texts=texts,
        dropped=dropped_names(objects, names),
    )


def with_adapters(catalog: Catalog, adapters: Catalog) -> Catalog:
    """Put the tensors of another catalog beside a model's.

    Raises
    ------
    CatalogError
        Both have a tensor of one name.
    """
    names = {entry.spec.name for entry in catalog.entries}
    twice = [entry.spec.name for entry in adapters.entries if entry.spec.name in names]
    raise_all(CatalogError, f"{adapters.url}: adapters and model both have these tensors", twice)
    first, base = len(catalog.objects), len(catalog.others) + 1
    moved = tuple(
        replace(entry, placements=tuple(_moved(placement, first) for placement in entry.placements))
        for entry in adapters.entries
    )
    return replace(
        catalog,
        objects=(*catalog.objects, *(replace(item, base=base) for item in adapters.objects)),
        entries=(*catalog.entries, *moved),
        others=(*catalog.others, adapters.url),
        notes=(*catalog.notes, *adapters.notes),
        header_bytes=catalog.header_bytes + adapters.header_bytes,
    )


def _moved(placement: Placement, first: int) -> Placement:
    return replace(placement, holders=tuple((index + first, byte) for index, byte in placement.holders))


def placements_of(held: Sequence[tuple[int, Stored]], origin: Shape | None = None) -> tuple[Placement, ...]:
    """Where a tensor's bytes are.

    Parameters
    ----------
    held
        Objects by index that hold the same box, each with what it stores. Formats may cut large
        tensors; copies that are cut in another way than the first are left aside.
    origin
        First element of the box within the whole tensor.
    """
    first = [box for box, _ in held[0][1].boxes]
    group_by_layout = [(index, stored) for index, stored in held if [box for box, _ in stored.boxes] == first]
    return tuple(
        Placement(
            box if origin is None else box.shifted(origin),
            tuple((index, stored.boxes[number][1]) for index, stored in group_by_layout),
        )
        for number, box in enumerate(first)
    )


def _key_of(objects: Sequence[Opened], entry: Entry) -> str:
    return objects[entry.placements[0].holders[0][0]][0].key


def common_metadata(objects: Sequence[Opened]) -> dict[str, str]:
    """Metadata that no two objects disagree on."""
    values: dict[str, set[str]] = {}
    for _, contents in objects:
        for key, value in contents.metadata.items():
            values.setdefault(key, set()).add(value)
    return {key: found.pop() for key, found in values.items() if len(found) == 1}


def common_texts(objects: Iterable[Opened], names: NameFilter) -> tuple[dict[str, str], tuple[str, ...]]:
    """Texts that are taken, and the names of those that objects disagree on."""
    values: dict[str, set[str]] = {}
    for _, contents in objects:
        for name, text in contents.texts.items():
            if names.is_kept(name):
                values.setdefault(name, set()).add(text)
    differing = tuple(name for name, found in values.items() if len(found) > 1)
    return {name: found.pop() for name, found in values.items() if len(found) == 1}, differing


def dropped_names(objects: Iterable[Opened], names: NameFilter) -> tuple[str, ...]:
    """Names that some object holds and that are not taken."""
    found: dict[str, None] = {}
    for _, contents in objects:
        found |= dict.fromkeys(stored.spec.name for stored in contents.tensors)
        found |= dict.fromkeys(contents.texts)
    return names.dropped(found)
