"""One object that holds whole tensors, named by its URL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ...planning.catalog import Catalog
from ...planning.sources.full_source import full_catalog
from ...planning.sources.source_headers import SourceHeaders, with_selection_notes
from ...storage import Location, ObjectInfo
from ..workers import Workers
from .headers import container_of, read_headers
from .source_format import Listing, SourceFormat, SourceOptions, refuse_rank_options


@dataclass(frozen=True, slots=True)
class SingleObject(SourceFormat):
    """A safetensors or ``.ckpt`` object."""

    location: Location
    info: ObjectInfo

    @classmethod
    def detect(cls, listing: Listing, _options: SourceOptions, _workers: Workers) -> Self | None:
        """Go by the URL's end alone: nothing is listed."""
        location = listing.location
        return cls(location, location.store.head(location.key)) if container_of(location.key) else None

    def read(self, options: SourceOptions, workers: Workers) -> Catalog:
        """See :meth:`SourceFormat.read`."""
        base, name = self.location.parent, self.location.key.rsplit("/", 1)[-1]
        kind = f"one {container_of(name)} object"
        refuse_rank_options(base.url, kind, options)
        headers = read_headers(base, {name: self.info}, workers, check_crc=options.check_crc)
        catalog = full_catalog(SourceHeaders(base.url, kind, headers, options.names))
        return with_selection_notes(catalog, options.names)
