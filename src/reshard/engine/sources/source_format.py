"""The protocol that every kind of source follows, and the values that its methods take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, Protocol, Self

from ...errors import StorageError, UsageError, option
from ...formats.containers import Container, container_of
from ...formats.mindspore.rank_objects import RankObjects, find_rank_objects
from ...planning.catalog import Catalog
from ...planning.sources.selection import NameFilter
from ...storage import Location, ObjectInfo
from ..workers import Workers
from .strategy_files import StrategySource

_MOST_LISTINGS = 4


HeaderProof = Literal["", "kept", "twice"]
"""Which headers are read until two reads agree: none, those of objects whose store keeps a checksum, or all."""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """The part of a request that is about its source; a full checkpoint has no strategy."""

    strategy: StrategySource | None = None
    names: NameFilter = field(default_factory=NameFilter)
    file_suffix: str | None = None
    keep_rank: int | None = None
    check_crc: bool = False
    load_ckpt_format: Container | None = None
    proof: HeaderProof = ""


@dataclass(frozen=True)
class Listing:
    """A location and the objects below it; not slotted, so that the store is asked once, and only if need be.

    With a container, tensors are looked for in objects of that format alone. With ``is_proven`` two listings in a row
    must agree: nobody would miss an object whose name was damaged on its way.
    """

    location: Location
    container: Container | None = None
    is_proven: bool = False

    @cached_property
    def objects(self) -> Mapping[str, ObjectInfo]:
        """Every object below the location by its relative name."""
        found = dict(self.location.named_objects())
        for _ in range(_MOST_LISTINGS * self.is_proven):
            before, found = found, dict(self.location.named_objects())
            if found == before:
                return found
        if self.is_proven:
            raise StorageError(
                f"{self.location.url}: no two of {_MOST_LISTINGS + 1} listings in a row agree",
                hint="It is being written, or something between here and the store changes bytes.",
            )
        return found

    @cached_property
    def tensor_names(self) -> tuple[str, ...]:
        """The objects whose names end like a format of tensors."""
        found = ((name, container_of(name)) for name in self.objects)
        return tuple(name for name, held in found if held and self.container in (None, held))

    @cached_property
    def rank_objects(self) -> RankObjects:
        """The objects below ``rank_<R>/``."""
        return find_rank_objects(self.objects, self.container)


class SourceFormat(Protocol):
    """One kind of source: the class detects it, an instance is one that was found.

    ``SOURCE_FORMATS`` lists the kinds in the order in which they are tried.
    """

    expected: ClassVar[str] = ""
    """Objects that show this kind, for the message that nothing was found."""

    @classmethod
    def detect(cls, listing: Listing, options: SourceOptions, workers: Workers, /) -> Self | None:
        """Return the source if a location holds one of this kind, else None.

        Reads documents that say which objects belong together (an index, metadata), and no tensor's header. Raise
        CatalogError if it is of this kind, and incomplete or ambiguous, and FormatError for broken documents.
        """

    def read(self, options: SourceOptions, workers: Workers) -> Catalog:
        """Describe the source from its headers, and compare copies that must be equal.

        Raise UsageError for options that do not apply to this kind, or select tensors that are not there; CatalogError
        or StrategyError if the objects do not make one checkpoint; one FormatError for all broken headers.
        """

    def contents(self, options: SourceOptions, workers: Workers) -> Catalog:
        """Describe the source for people: without comparing copies, and also where no catalog can be made of it."""
        return self.read(options, workers)


def refuse_other_format(url: str, kind: str, container: Container | None, options: SourceOptions) -> None:
    """Raise UsageError if another format is asked for than the one that a source has."""
    if options.load_ckpt_format not in (None, container):
        asked = option("load_ckpt_format", str(options.load_ckpt_format))
        raise UsageError(f"{url}: {asked}, but this is {kind}", hint="Omit it: it chooses where both formats lie.")


def refuse_rank_options(url: str, kind: str, options: SourceOptions) -> None:
    """Raise UsageError if options are given that only rank shards have."""
    if options.file_suffix is not None:
        raise UsageError(f"{url}: {option('file_suffix')} chooses among rank shards; this is {kind}")
    if options.keep_rank is not None:
        raise UsageError(f"{url}: {option('keep_rank', options.keep_rank)}, but there are {kind}, without ranks")
    if options.strategy is not None:
        ways = f"{option('src_strategy')}, {option('src_layout')} and {option('src_parallel')}"
        raise UsageError(
            f"{url}: a source strategy is given, but this is a full checkpoint ({kind})",
            hint=f"Omit {ways}, or name the prefix that holds rank_0/.",
        )
