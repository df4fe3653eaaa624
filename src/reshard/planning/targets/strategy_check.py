"""Whether a strategy is one of these very tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import zip_longest

from ...errors import PlanError, StrategyError, raise_all
from ...tensor import Shape, Strategy
from ..catalog import SourceSharding
from ..outputs.output import TargetTensor, sample

_NUMBER = re.compile("[0-9]+")


def names_on_one_side(strategy: Strategy, ranks: Sequence[int], tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
    """Tell what is whole on every rank, and what of the strategy is not written."""
    names, held = {tensor.spec.name for tensor in tensors}, strategy.names
    written = frozenset[str]().union(*(strategy.stages[stage] for stage in {strategy.stage_of(r) for r in ranks}))
    return (
        *_named(sorted(names - held), "have no layout in the target strategy: whole on every rank"),
        *_named(sorted(held - names), "of the target strategy are not in the source: not written"),
        *_named(sorted((names & held) - written), "are on ranks that were not asked for: not written"),
    )


def check_strategy_fits(strategy: Strategy, tensors: Sequence[TargetTensor], dropped: Collection[str]) -> None:
    """Refuse a strategy that cannot cut these tensors, or that is not theirs.

    Parameters
    ----------
    dropped
        Names that were asked to be left out: that they are missing says nothing of the strategy.

    Raises
    ------
    StrategyError
        Layouts that do not fit their tensors, or names of another model, all of them listed.
    PlanError
        Tensors that were cut in the source and have no layout here.
    """
    _check_names(strategy, tensors, dropped)
    problems = []
    fitting: set[tuple[int, Shape, bool]] = set()  # most tensors are cut like another, on most stages
    for tensor in tensors:
        for stage, layouts in enumerate(strategy.stages):
            layout = layouts.get(tensor.spec.name)
            how = id(layout), tensor.spec.shape, tensor.spec.dtype.is_sub_byte
            if layout is None or how in fitting:
                continue
            try:
                layout.check(tensor.spec.shape)
                if tensor.spec.dtype.is_sub_byte and {*layout.cuts, layout.optimizer_pieces} - {1}:
                    raise StrategyError(f"{tensor.spec.dtype} has no whole bytes to cut between")
                fitting.add(how)
            except StrategyError as error:
                problems.append(f"{tensor.spec.name} (stage {stage}): {error.message}")
    hint = "Is this the strategy of this very model? Axes must be as many as it maps, and divide by its cuts."
    raise_all(StrategyError, "the target strategy does not fit the tensors", problems, hint)

    _check_cut(strategy, tensors)


def _check_cut(strategy: Strategy, tensors: Sequence[TargetTensor]) -> None:
    """Refuse to put whole on every rank what the source had cut: nobody would look for it there."""
    names = strategy.names
    cut = [
        tensor.spec.name
        for tensor in tensors
        if tensor.sharding is SourceSharding.SHARDED and tensor.spec.name not in names
    ]
    raise_all(
        PlanError,
        f"{len(cut)} tensors are cut over the source's ranks and have no layout in the target strategy",
        cut,
        hint=f"Leave them out ({_drops(cut)}), or give the strategy of a network that has them.",
    )


def _check_names(strategy: Strategy, tensors: Sequence[TargetTensor], dropped: Collection[str]) -> None:
    """Refuse a strategy of another model or another naming: its weights would be left whole on every rank."""
    known, names = strategy.names, {tensor.spec.name for tensor in tensors}
    if tensors and not known & names:
        raise StrategyError(
            f"no tensor of the source is named in the target strategy: expected names like "
            f"{sample(sorted(known))}, found {sample([t.spec.name for t in tensors])}",
            hint="Is this the strategy of another model, or of another naming of this one?",
        )
    strange, kinds = sorted(names - known), {_kind(name) for name in known}
    raise_all(
        StrategyError,
        "the target strategy has layouts for some layers and none for others",
        [f"{name}: no layout" for name in strange if _kind(name) in kinds],
        hint="A pipeline stage is missing, or this is the strategy of a smaller model: "
        "name the merged strategy, or the prefix that holds the files of all stages.",
    )
    seen = names.union(dropped)
    unmet = sorted(name for name in known - seen if not is_state(name, seen))
    if unmet and any(len(t.spec.shape) > 1 and t.spec.name not in known for t in tensors):
        sides = zip_longest(
            (f"only in the strategy: {name}" for name in unmet), (f"only in the source: {name}" for name in strange)
        )
        raise StrategyError(
            f"the target strategy and the source name tensors differently: {len(unmet)} names of the strategy are "
            f"not in the source, {len(strange)} tensors of the source are not in the strategy",
            problems=[problem for pair in sides for problem in pair if problem],
            hint="Bring both to one naming: --to ms or --to hf converts a model's names, --rename single ones. "
            "To leave tensors whole on every rank, say so: a layout file's rule "
            '{match: "*", split: []} does.',
        )


def is_state(name: str, names: Collection[str]) -> bool:
    """Whether a name is of an optimizer state: one of ``names`` behind a prefix and a dot."""
    return any(name[at + 1 :] in names for at, character in enumerate(name) if character == ".")


def _kind(name: str) -> str:
    """A name without its numbers: what is the same in every layer."""
    return _NUMBER.sub("#", name)


def _named(names: Sequence[str], what: str) -> tuple[str, ...]:
    return (f"{len(names)} tensors {what}: {sample(names, 5)}",) if names else ()


def _drops(names: Sequence[str], shown: int = 3) -> str:
    """How to leave names out, by what stands before their first dot."""
    heads = sorted({name.split(".")[0] for name in names})
    return " ".join(f"--drop '{head}.*'" for head in heads[:shown]) + (" ..." if len(heads) > shown else "")
