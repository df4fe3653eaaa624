"""Strategies from numbers: those of a parallel job, without a job."""

from __future__ import annotations

from collections.abc import Mapping

from ..models.detecting import detect
from ..models.parallel import Parallel
from ..models.parallel_layouts import strategy_from_numbers
from ..planning.catalog import Catalog
from ..tensor import Strategy
from .changes import load_config, load_parallel, naming_of
from .statements import inspect, save
from .strategies import encode_strategy

__all__ = ["make_strategy"]


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
        naming or naming_of(family, shapes),
        numbers,
        shapes,
        nbytes=_nbytes(catalog),
        config=said,
        options=options,
    )
    save(dst, encode_strategy(strategy, dst, shapes), overwrite=overwrite)
    return strategy


def _nbytes(catalog: Catalog) -> dict[str, int]:
    return {entry.spec.name: entry.spec.nbytes for entry in catalog.entries}
