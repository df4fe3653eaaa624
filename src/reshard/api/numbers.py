"""Strategies from numbers: those of a parallel job, without a job."""

from __future__ import annotations

from collections.abc import Mapping

from ..models.detecting import detect
from ..models.parallel_strategy import derive_strategy
from ..planning.catalog import Catalog
from ..planning.change import make_tensors
from ..tensor import Strategy
from .changes import change_from, load_config, load_parallel, naming_of, strategy_by_numbers
from .options import Options
from .statements import inspect, save
from .strategies import encode_strategy


def make_strategy(
    dst: str,
    *,
    checkpoint: str,
    parallel: str,
    to: str | None = None,
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
        URL of a full checkpoint with the tensors that the strategy is for.
    parallel
        Numbers, as text like ``dp=2,mp=4``, or the URL of the YAML configuration of a training job.
    to
        ``ms`` or ``hf``: the strategy is for what the checkpoint becomes when it is converted so.
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
    numbers = load_parallel(parallel)  # first: what is wrong with it needs no store
    catalog, said = inspect(checkpoint), load_config(config, checkpoint)
    if to is not None:
        return _of_converted(dst, catalog, checkpoint, parallel, _asked(to, family, naming, config, options), overwrite)
    shapes = {entry.spec.name: entry.spec.shape for entry in catalog.entries}
    family = family or detect(said, shapes).family.name
    strategy = derive_strategy(
        family,
        naming or naming_of(family, shapes),
        numbers,
        shapes,
        nbytes={entry.spec.name: entry.spec.nbytes for entry in catalog.entries},
        config=said,
        options=options,
    )
    save(dst, encode_strategy(strategy, dst, shapes), overwrite=overwrite)
    return strategy


def _asked(
    to: str, family: str | None, naming: str | None, config: str | None, options: Mapping[str, object] | None
) -> Options:
    said = [f"{name}={value}" for name, value in (options or {}).items()]
    return {"to": to, "family": family, "naming": naming, "config": config, "option": said}


def _of_converted(
    dst: str, catalog: Catalog, checkpoint: str, parallel: str, asked: Options, overwrite: bool
) -> Strategy:
    """The strategy for what the family's rules make of a checkpoint."""
    same = {entry.spec.name: entry.spec.name for entry in catalog.entries}
    change, _ = change_from(asked, catalog, same, checkpoint)
    tensors = make_tensors(catalog, {}, change).tensors
    strategy = strategy_by_numbers(parallel, change, tensors, asked)
    shapes = {tensor.spec.name: tensor.spec.shape for tensor in tensors}
    save(dst, encode_strategy(strategy, dst, shapes), overwrite=overwrite)
    return strategy
