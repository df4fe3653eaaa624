"""Hugging Face's names where a strategy has MindSpore Transformers': which rules lead from one to the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from ..api.contents import load_config
from ..api.request import Request
from ..engine.sources.strategy_files import StrategySource
from ..errors import PlanError
from ..formats.mindspore.strategy_file import split_stage
from ..models.detecting import detect
from ..models.family_file import family_names
from ..planning.catalog import Catalog


def with_rules(request: Request, catalog: Catalog, target: StrategySource | None) -> tuple[Request, Sequence[str]]:
    """Ask for the family's rules if the source's names are Hugging Face's and the strategy's are not.

    The strategy's names tell the naming, and options of the rules. Without ``config.json`` the rules are asked for all
    the same, so that resolving the request tells what is missing. Raise PlanError if the strategy's names are of no
    naming of the source's family.
    """
    wanted = {split_stage(name)[1] for file in target.files for name in file.layouts} if target else set()
    names = [entry.spec.name for entry in catalog.entries]
    if request.to or _direction(names) != "to_ms" or _direction(wanted) != "to_hf":
        return request, ()
    request = replace(request, to="ms")
    config = load_config(request.config, request.src)
    if not config:
        return request, ()
    family = detect(config, names, family=request.family).family.name
    found = detect({}, wanted, family=family)
    note = (
        f"the source has Hugging Face's names, the target strategy those of MindSpore Transformers ({found.naming}): "
        f"tensors are converted by the rules of {family}"
    )
    options = {**dict(found.options), **(request.option or {})}
    return replace(request, naming=request.naming or found.naming, option=options or None), (note,)


def _direction(names: Collection[str]) -> str | None:
    """Return the direction in which every family that knows some of the names reads them; None if there is no such."""
    found = set()
    for family in family_names():
        try:
            found.add(detect({}, names, family=family).direction)
        except PlanError:
            continue
    return found.pop() if len(found) == 1 else None
