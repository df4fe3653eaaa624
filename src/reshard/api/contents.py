"""Sources of requests: what to read of them, and the description of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine.shares import unwritten_ranks
from ..engine.sources import SourceOptions, read_contents
from ..engine.sources.parallel_sizes import ParallelSizes
from ..engine.sources.strategy_files import StrategySource, read_layout_file, read_strategy_files
from ..engine.workers import working
from ..errors import CatalogError, NotFound
from ..formats.containers import Container
from ..formats.strict_json import parse_json_object
from ..models.family_file import MAX_FAMILY_BYTES, FamilyKey
from ..models.own_family import read_own_family
from ..models.parallel_config import ParallelConfig, parse_parallel, parse_parallel_yaml
from ..planning.catalog import Catalog
from ..planning.conversion import MANIFEST_KEY
from ..planning.limits import Limits
from ..planning.share_documents import written_ranks
from ..planning.sources.selection import NameFilter
from ..storage import Location, open_location, open_source, read_object
from .connecting import connecting
from .option_field import read_config
from .request import OBJECT_SUFFIXES, SOURCE_OPTIONS, Request

YAML = (".yaml", ".yml")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*")


def inspect(url: str, **options: Any) -> Catalog:
    """Describe the checkpoint at a URL, reading headers only.

    Parameters
    ----------
    url
        A ``.safetensors`` or ``.ckpt`` object, or a prefix.
    options
        Those of :class:`reshard.api.Request` that concern the source. Without a strategy of rank
        shards each rank's tensors are listed as ``rank_R/name``.

    Raises
    ------
    SourceError
        No checkpoint is there.
    StorageError
        The store refused or failed.

    Examples
    --------
    >>> from reshard.formats.safetensors import plan_header
    >>> from reshard.storage import MemoryStore
    >>> from reshard.tensor import DType, TensorSpec
    >>> header = plan_header([TensorSpec("w", DType.F16, (2, 3))], {}).data
    >>> _ = MemoryStore("doc").put("m/model.safetensors", header + bytes(12))
    >>> [(e.spec.name, e.spec.shape) for e in inspect("memory://doc/m").entries]
    [('w', (2, 3))]
    """
    request = Request.of(("src", *SOURCE_OPTIONS), **(options | {"src": url}))
    with connecting(request):
        wanted, location = replace(source_options(request), proof=""), open_checkpoint(request.src)
        with working(request.concurrency or Limits().concurrency, location.store) as workers:
            catalog = read_contents(location, wanted, workers)
        note = _unfinished(location)
    return replace(catalog, notes=(*catalog.notes, note)) if note else catalog


def open_checkpoint(url: str) -> Location:
    """Open the place that a person names as a source, without sending a request.

    Raise CatalogError if nothing is there, but it may be the id of a repository of Hugging Face.

    Examples
    --------
    >>> open_checkpoint("HuggingFaceTB/SmolLM2-135M")
    Traceback (most recent call last):
    ...
    reshard.errors.CatalogError: HuggingFaceTB/SmolLM2-135M: no such file or folder on this machine
    For the repository of that name on Hugging Face write hf://HuggingFaceTB/SmolLM2-135M.
    """
    is_id = _REPOSITORY.fullmatch(url) and not url.endswith(OBJECT_SUFFIXES)
    if is_id and not Path(url).parent.exists():
        hint = f"For the repository of that name on Hugging Face write hf://{url}."
        raise CatalogError(f"{url}: no such file or folder on this machine", hint=hint)
    return open_source(url)


def _unfinished(location: Location) -> str:
    """Return a note on the shares that are missing, where several runs write one target."""
    if location.key.endswith(OBJECT_SUFFIXES) or location.child(MANIFEST_KEY).head_or_none():
        return ""
    missing = unwritten_ranks(location)
    return f"several runs write this target: ranks {written_ranks(missing)} are missing" if missing else ""


def source_options(request: Request) -> SourceOptions:
    """Read what a request asks of a source."""
    strategy = strategy_source(request.src_strategy, request.src_layout)
    if request.src_parallel:
        strategy = ParallelSizes(
            sizes=load_parallel(request.src_parallel, "src_parallel"),
            family=load_family_key(request.family),
            naming=None if request.to == "ms" else request.naming,  # then it is that of the target
            config=load_config(request.config, request.src),
            options=request.option or {},
        )
    return SourceOptions(
        strategy=strategy,
        names=NameFilter(request.keep, request.drop, request.network_only),
        file_suffix=request.file_suffix,
        keep_rank=request.keep_rank,
        check_crc=request.check_crc,
        load_ckpt_format=Container(request.load_ckpt_format) if request.load_ckpt_format else None,
        proof="twice" if request.reads_twice else "" if request.integrity == "off" else "kept",
    )


def strategy_source(strategy: str | None, layout: str | None) -> StrategySource | None:
    """Read the strategy or the layout file of one side, if there is one."""
    if layout:
        return read_layout_file(open_location(layout))
    return load_strategy_source(strategy) if strategy else None


def load_strategy_source(url: str) -> StrategySource:
    """Read a strategy of any form: a layout file if the name ends in .yaml or .yml, else MindSpore's files."""
    if url.endswith(YAML):
        return read_layout_file(open_location(url))
    source = read_strategy_files(open_location(url), Limits().concurrency)
    # MindSpore Transformers puts a merged file beside the files that it was merged from.
    stages = tuple(file for file in source.files if not file.is_merged)
    return replace(source, files=stages) if any(file.layouts for file in stages) else source


def load_family_key(family: str | None) -> FamilyKey | None:
    """Return the family that a request names, or read its file."""
    if family is None or not family.endswith(YAML):
        return family
    place = open_location(family)
    return read_own_family(read_object(place, MAX_FAMILY_BYTES), place.url)


def load_parallel(text: str, name: str = "parallel") -> ParallelConfig:
    """Read parallel sizes as text like ``dp=2,mp=4``, or from the YAML configuration at a URL.

    ``name`` is the option's. Raise StrategyError if that configuration has ``use_parallel: False`` beside sizes.
    """
    if not text.endswith(YAML):
        return parse_parallel(text, name)
    place = open_location(text)
    sizes = parse_parallel_yaml(read_object(place), place.url)
    sizes.check_used(place.url)
    return sizes


def prefix_of(url: str) -> Location:
    """Open the prefix of a checkpoint, or the one that its single object is below."""
    place = open_location(url)
    return place.parent if place.key.endswith(OBJECT_SUFFIXES) else place


def load_config(config: Mapping[str, object] | str | None, checkpoint: str) -> dict[str, object]:
    """Read config.json, by default the one beside a checkpoint; it is empty if there is none."""
    config = read_config(config) if isinstance(config, str) else config  # an original command has only text
    if isinstance(config, Mapping):
        return dict(config)
    place = prefix_of(checkpoint).child("config.json") if config is None else open_location(config)
    try:
        return parse_json_object(read_object(place), place.url)
    except NotFound:
        if config is None:
            return {}
        raise
