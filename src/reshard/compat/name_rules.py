"""Hugging Face's names where a strategy has MindSpore Transformers': which rules lead from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..api.contents import load_config, load_family_key
from ..api.request import Request
from ..engine.sources.strategy_files import StrategySource
from ..errors import PlanError
from ..formats.mindspore.strategy_file import split_stage
from ..models.detecting import detect, detect_side
from ..planning.catalog import Catalog


def with_rules(request: Request, catalog: Catalog, target: StrategySource | None) -> tuple[Request, Sequence[str]]:
    """Ask for the family's rules if the source's names are Hugging Face's and the strategy's are not.

    The strategy's names tell the naming, and options of the rules. Raise PlanError if they are of no naming of the
    source's family.
    """
    wanted = {split_stage(name)[1] for file in target.files for name in file.layouts} if target else set()
    names = [entry.spec.name for entry in catalog.entries]
    if request.to or detect_side(names) != "hf" or detect_side(wanted) != "ms":
        return request, ()
    request = replace(request, to="ms")
    key = load_family_key(request.family)
    family = key or detect(load_config(request.config, request.src), names).family.name
    try:
        found = detect({}, wanted, family=family)
    except PlanError as error:
        message = f"the target strategy's names are not those of {family}, which the source is"
        raise PlanError(message, hint=error.marked_hint) from None
    note = (
        f"the source has Hugging Face's names, the target strategy those of MindSpore Transformers ({found.naming}): "
        f"tensors are converted by the rules of {family}"
    )
    options = {**dict(found.options), **(request.option or {})}
    return replace(request, naming=request.naming or found.naming, option=options or None), (note,)
