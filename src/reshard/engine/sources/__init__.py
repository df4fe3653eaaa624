"""Source formats, and the catalogs that are read from them: a new one is a module here and a line in the table."""

from __future__ import annotations

from ...errors import CatalogError, option
from ...planning.catalog import Catalog
from ...storage import Location
from ..workers import Workers
from .distributed_checkpoint import DistributedCheckpoint
from .full_checkpoint import FullCheckpoint, SingleObject
from .iteration_folder import IterationFolder
from .rank_shards import RankShards, read_tree
from .sharded_safetensors import ShardedSafetensors
from .source_format import Listing, SourceFormat, SourceOptions
from .zarr_store import ZarrStore

__all__ = ["SOURCE_FORMATS", "Listing", "SourceFormat", "SourceOptions", "read_catalog", "read_contents", "read_tree"]

SOURCE_FORMATS: tuple[type[SourceFormat], ...] = (
    SingleObject,
    ZarrStore,
    DistributedCheckpoint,
    IterationFolder,
    RankShards,
    ShardedSafetensors,
    FullCheckpoint,
)
"""Every kind of source, in the order in which they are tried: the first that detects itself is taken."""


def read_catalog(location: Location, options: SourceOptions, workers: Workers) -> Catalog:
    """Describe one object, or a prefix that holds a checkpoint of any kind, from headers.

    Raise CatalogError if there is no checkpoint, or objects do not make one; FormatError for broken headers, all in one
    error, and broken documents; StrategyError for shards that do not fit the strategy.
    """
    return _detect(location, options, workers).read(options, workers)


def read_contents(location: Location, options: SourceOptions, workers: Workers) -> Catalog:
    """Describe the objects at a location, also those that :func:`read_catalog` cannot join; see there.

    Every tensor of rank shards without a strategy is an entry of its own, named ``rank_R/name``.
    """
    return _detect(location, options, workers).contents(options, workers)


def _detect(location: Location, options: SourceOptions, workers: Workers) -> SourceFormat:
    listing = Listing(location, options.load_ckpt_format, options.proof == "twice")
    for source_format in SOURCE_FORMATS:
        source = source_format.detect(listing, options, workers)
        if source is not None:
            return source
    *most, last = [source_format.expected for source_format in SOURCE_FORMATS if source_format.expected]
    others = f"{len(listing.objects)} other objects ({', '.join(sorted(listing.objects)[:5])})"
    hint = "Check the prefix."
    if options.load_ckpt_format is not None:
        hint = f"Check the prefix, and {option('load_ckpt_format', str(options.load_ckpt_format))}."
    raise CatalogError(
        f"{location.url}: no checkpoint there: expected {', '.join(most)} or {last}, "
        f"found {others if listing.objects else 'nothing'}",
        hint=hint,
    )
