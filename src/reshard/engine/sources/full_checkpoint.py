"""A full checkpoint below a prefix: the objects of an index, or a single object without one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

from ...errors import CatalogError, option, raise_all
from ...formats.containers import Container, container_of
from ...formats.weight_index import parse_param_name_map, parse_weight_index
from ...planning.catalog import Catalog
from ...planning.sources.full_source import full_catalog
from ...planning.sources.source_headers import SourceHeaders, with_selection_notes
from ...planning.targets.full_target import HYPER_NAME, MAP_NAME
from ...storage import Location, ObjectInfo, read_object
from ..workers import Workers
from .headers import read_headers
from .source_format import Listing, SourceFormat, SourceOptions, refuse_other_format, refuse_rank_options

_HF_INDEX = "model.safetensors.index.json"
_INDEXES = {
    _HF_INDEX: ("Hugging Face checkpoint", parse_weight_index),
    MAP_NAME: ("MindSpore full checkpoint", parse_param_name_map),
}


def has_full_checkpoint(listing: Listing) -> bool:
    """Return whether a full checkpoint lies beside rank shards, where a ``.ckpt`` is a strategy."""
    direct = (name for name in listing.tensor_names if "/" not in name)
    return any(container_of(name) is not Container.CKPT for name in direct) or has_index(listing)


def has_index(listing: Listing) -> bool:
    """Return whether an index lies there that says which objects belong together."""
    return any(name in listing.objects for name in _indexes(listing))


def _indexes(listing: Listing) -> Iterable[str]:
    """Return the indexes to look for: all are of safetensors."""
    return () if listing.container is Container.CKPT else _INDEXES


@dataclass(frozen=True, slots=True)
class FullCheckpoint(SourceFormat):
    """Whole tensors in one or several objects, by their names relative to ``base``."""

    expected: ClassVar[str] = f"*.safetensors, {_HF_INDEX}, {MAP_NAME}"

    base: Location
    kind: str
    objects: Mapping[str, ObjectInfo]
    notes: tuple[str, ...] = ()
    weight_map: Mapping[str, str] = field(default_factory=dict)
    index_bytes: int = 0

    @classmethod
    def detect(cls, listing: Listing, _options: SourceOptions, _workers: Workers) -> Self | None:
        """Follow the index if there is one."""
        beside = "rank shards beside the full checkpoint are ignored: a source strategy would ask for them"
        notes = (beside,) if any(listing.rank_objects.by_rank.values()) else ()
        for name in _indexes(listing):
            if name in listing.objects:
                kind, parse = _INDEXES[name]
                place = listing.location.child(name)
                data = read_object(place)
                weight_map = parse(data, place.url).weight_map
                objects, aside = _indexed(listing, weight_map)
                return cls(listing.location, kind, objects, (*aside, *notes), weight_map, len(data))
        # A .ckpt beside safetensors is a strategy, say; alone it is the checkpoint.
        direct = [name for name in listing.tensor_names if "/" not in name]
        _refuse_both(listing, direct)
        direct = [name for name in direct if container_of(name) is Container.SAFETENSORS] or direct
        if not direct:
            return None
        form = direct[0].rsplit(".", 1)[-1]
        if len(direct) > 1:
            raise CatalogError(
                f"{listing.location.url}: {len(direct)} {form} objects and no index that says how they belong together",
                problems=direct,
                hint=f"Expected {_HF_INDEX} or {MAP_NAME} beside them; or name one object.",
            )
        others = [name for name in listing.tensor_names if name != direct[0]]
        note = f"{len(others)} other objects are ignored: {', '.join(others[:5])}"
        notes = (note, *notes) if others else notes
        return cls(listing.location, f"one {form} object", {direct[0]: listing.objects[direct[0]]}, notes)

    def read(self, options: SourceOptions, workers: Workers) -> Catalog:
        """See :meth:`SourceFormat.read`."""
        refuse_rank_options(self.base.url, self.kind, options)
        refuse_other_format(self.base.url, self.kind, container_of(next(iter(self.objects))), options)
        headers = read_headers(self.base, self.objects, workers, options)
        source = SourceHeaders(self.base.url, self.kind, headers, options.names, self.notes, self.index_bytes)
        return with_selection_notes(full_catalog(source, self.weight_map), options.names)


@dataclass(frozen=True, slots=True)
class SingleObject(FullCheckpoint):
    """A full checkpoint in one safetensors or ``.ckpt`` object that the URL names."""

    expected: ClassVar[str] = ""

    @classmethod
    def detect(cls, listing: Listing, _options: SourceOptions, _workers: Workers) -> Self | None:
        """Go by the end of the URL alone: nothing is listed."""
        location, container = listing.location, container_of(listing.location.key)
        if container is None:
            return None
        info, name = location.store.head(location.key), location.key.rsplit("/", 1)[-1]
        return cls(location.parent, f"one {container} object", {name: info})


def _refuse_both(listing: Listing, direct: Sequence[str]) -> None:
    """Refuse objects of which each is there in both formats, as after a conversion in place."""
    stems = [{n.rpartition(".")[0] for n in direct if container_of(n) is container} for container in Container]
    if stems[0] == stems[1] and direct:
        choices = " or ".join(str(option("load_ckpt_format", container.value)) for container in Container)
        url = listing.location.url
        raise CatalogError(f"{url}: every object is there as .ckpt and as .safetensors: choose with {choices}")


def _indexed(listing: Listing, weight_map: Mapping[str, str]) -> tuple[dict[str, ObjectInfo], tuple[str, ...]]:
    """Return the objects of an index, and a note of others that are ignored."""
    names = sorted(set(weight_map.values()))
    missing = [listing.location.child(name).url for name in names if name not in listing.objects]
    hint = "Copy them there, or name one object to take it alone."
    raise_all(CatalogError, f"{listing.location.url}: the index names objects that are not there", missing, hint)
    if HYPER_NAME in listing.objects and HYPER_NAME not in names:
        names.append(HYPER_NAME)  # MindSpore keeps it out of its map
    aside = [name for name in listing.tensor_names if name not in names]
    note = f"{len(aside)} objects that the index does not name are ignored: {', '.join(aside[:5])}"
    return {name: listing.objects[name] for name in names}, (note,) if aside else ()
