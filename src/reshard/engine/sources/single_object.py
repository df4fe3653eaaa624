"""A full checkpoint in one object that the URL names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from ...formats.containers import container_of
from ..workers import Workers
from .full_checkpoint import FullCheckpoint
from .source_format import Listing, SourceOptions


@dataclass(frozen=True, slots=True)
class SingleObject(FullCheckpoint):
    """A safetensors or ``.ckpt`` object."""

    expected: ClassVar[str] = ""

    @classmethod
    def detect(cls, listing: Listing, _options: SourceOptions, _workers: Workers) -> Self | None:
        """Go by the end of the URL alone: nothing is listed."""
        location, container = listing.location, container_of(listing.location.key)
        if container is None:
            return None
        info, name = location.store.head(location.key), location.key.rsplit("/", 1)[-1]
        return cls(location.parent, f"one {container} object", {name: info})
