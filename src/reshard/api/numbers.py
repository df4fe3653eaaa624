"""Strategies from numbers: those of a parallel job, without a job."""

from __future__ import annotations

from collections.abc import Mapping

from ..engine.strategies import read_object
from ..errors import NotFound, UsageError
from ..formats.layout_file import encode_layout_file
from ..formats.ms_strategy import encode_json, encode_protobuf, from_strategy, split_stage
from ..formats.strict_json import parse_json_object
from ..models.detecting import detect
from ..models.parallel import Parallel
from ..models.parallel_layouts import strategy_from_numbers
from ..models.parallel_rules import load_layouts
from ..models.parallel_text import parse_parallel, parse_parallel_config
from ..planning.catalog import Catalog
from ..storage import open_location
from ..tensor import Shape, Strategy
from .statements import inspect, save

__all__ = ["load_config", "load_parallel", "make_strategy"]

_YAML = (".yaml", ".yml")


def make_strategy(
    dst: str,
    *,
    checkpoint: str,
    parallel: Parallel | str,
    family: str | None = None,
    naming: str | None = None,
    config: str | None = None,
    options: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> Strategy:
    """Write the strategy that training with these numbers would have, and return it.

    Parameters
    ----------
    dst
        What to write: a layout file if it ends in .yaml, MindSpore's JSON form if in .json, else protobuf.
    checkpoint
        URL of a full checkpoint with the tensors that the strategy is for, in the names of the target.
    parallel
        Numbers, as text like ``dp=2,mp=4``, or the URL of the YAML configuration of a training job.
    family
        Whose rules to follow; by default what config.json and the names say.
    naming
        Which of the family's namings the tensors have; by default the one that knows them all.
    config
        URL of config.json; by default the one beside the checkpoint's objects, if it is there.
    options
        Options of the naming.

    Raises
    ------
    UsageError
        The naming cannot be told, or the numbers cannot be read.
    PlanError
        The family cannot be told.
    StrategyError
        Numbers and tensors do not fit each other.
    TargetExists
        ``dst`` exists, and ``overwrite`` is not set.
    """
    numbers = load_parallel(parallel) if isinstance(parallel, str) else parallel
    catalog, said = inspect(checkpoint), load_config(config, checkpoint)
    shapes = {entry.spec.name: entry.spec.shape for entry in catalog.entries}
    family = family or detect(said, shapes).family.name
    strategy = strategy_from_numbers(
        family,
        naming or _naming_of(family, shapes),
        numbers,
        shapes,
        nbytes=_nbytes(catalog),
        config=said,
        options=options,
    )
    save(dst, _encode(strategy, dst, shapes), overwrite=overwrite)
    return strategy


def load_parallel(text: str) -> Parallel:
    """Read numbers as text, or from the YAML configuration at a URL.

    Examples
    --------
    >>> load_parallel("dp=2,mp=4").rank_count
    8
    """
    if not text.endswith(_YAML):
        return parse_parallel(text)
    place = open_location(text)
    return parse_parallel_config(read_object(place), place.url)


def load_config(url: str | None, checkpoint: str) -> dict[str, object]:
    """Read config.json; an empty one if none is named and none lies beside the checkpoint's objects."""
    if url is not None:
        place = open_location(url)
        return parse_json_object(read_object(place), place.url)
    base = open_location(checkpoint)
    beside = base.parent if checkpoint.rstrip("/").endswith((".safetensors", ".ckpt")) else base
    place = beside.child("config.json")
    try:
        return parse_json_object(read_object(place), place.url)
    except NotFound:
        return {}


def _naming_of(family: str, shapes: Mapping[str, Shape]) -> str:
    namings = load_layouts(family)
    unknown = {naming: rules.unknown(shapes) for naming, rules in namings.items()}
    fitting = [naming for naming, names in unknown.items() if not names]
    if len(fitting) == 1:
        return fitting[0]
    found = [f"{naming}: {len(names)} unknown, {', '.join(names[:3])}" for naming, names in unknown.items() if names]
    told = f"the tensors fit {' and '.join(fitting) or 'none'} of the namings of {family}"
    raise UsageError(told, hint="Name the one that is meant: --naming.", problems=found)


def _nbytes(catalog: Catalog) -> dict[str, int]:
    return {entry.spec.name: entry.spec.nbytes for entry in catalog.entries}


def _encode(strategy: Strategy, url: str, shapes: Mapping[str, Shape]) -> bytes:
    if url.endswith(_YAML):
        return encode_layout_file(strategy)
    file = from_strategy(strategy)
    if not url.endswith(".json"):
        return encode_protobuf(file)
    return encode_json(file, {name: shapes[split_stage(name)[1]] for name in file.layouts})
