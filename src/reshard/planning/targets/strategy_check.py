"""Check that a strategy fits the tensors that it is to cut."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fnmatch import translate
from functools import cache
from itertools import zip_longest

from ...errors import PlanError, StrategyError, option, raise_all
from ...models.training_names import weight_of
from ...tensor import Shape, Strategy
from ..catalog import SourceSharding
from ..outputs.output import TargetTensor, sample

_NUMBER = re.compile("[0-9]+")
_SHOWN_DROPS = 3


def names_on_one_side(strategy: Strategy, ranks: Sequence[int], tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
    """Note tensors that are whole on every rank, and names of the strategy that are not written."""
    names, listed = {tensor.spec.name for tensor in tensors}, strategy.names
    written = frozenset[str]().union(*(strategy.stages[stage] for stage in {strategy.stage_of(r) for r in ranks}))
    sides = (
        (names - listed, "have no layout in the target strategy: whole on every rank"),
        (listed - names, "of the target strategy are not in the source: not written"),
        ((names & listed) - written, "are only on ranks that are not selected: not written"),
    )
    return tuple(f"{len(found)} tensors {what}: {sample(sorted(found), 5)}" for found, what in sides if found)


def count_slices(strategy: Strategy, ranks: Iterable[int], tensors: Sequence[TargetTensor]) -> int:
    """Return how many tensors these ranks hold together, at most."""
    listed = strategy.names
    unlisted = sum(tensor.spec.name not in listed for tensor in tensors)
    stages = Counter(map(strategy.stage_of, ranks))
    return sum(count * (unlisted + len(strategy.stages[stage])) for stage, count in stages.items())


def check_strategy_fits(strategy: Strategy, tensors: Sequence[TargetTensor], dropped: Collection[str]) -> None:
    """Refuse a strategy that cannot cut these tensors, or that belongs to another model.

    That names are missing which the request has ``dropped`` says nothing about the strategy.

    Raises
    ------
    StrategyError
        Layouts that do not fit their tensors, or names of another model, all of them listed.
    PlanError
        Tensors that are cut in the source and have no layout here.
    """
    _check_names(strategy, tensors, dropped)
    problems = []
    fitting: set[tuple[int, Shape, bool]] = set()  # most tensors are cut like another, on most stages
    for tensor in tensors:
        for stage, layouts in enumerate(strategy.stages):
            layout = layouts.get(tensor.spec.name)
            kind = id(layout), tensor.spec.shape, tensor.spec.dtype.is_sub_byte
            if layout is None or kind in fitting:
                continue
            try:
                layout.check(tensor.spec.shape)
                if tensor.spec.dtype.is_sub_byte and {*layout.cuts, layout.optimizer_pieces} - {1}:
                    raise StrategyError(f"{tensor.spec.dtype} has no whole bytes to cut between")
                fitting.add(kind)
            except StrategyError as error:
                problems.append(f"{tensor.spec.name} (stage {stage}): {error.marked_message}")
    hint = "Was this strategy made for this model? It must map every axis, and its cuts must divide the axes."
    raise_all(StrategyError, "the target strategy does not fit the tensors", problems, hint)

    # What the source cut must not become whole on every rank unnoticed: nobody would look for it there.
    listed = strategy.names
    cut = [t.spec.name for t in tensors if t.sharding is SourceSharding.SHARDED and t.spec.name not in listed]
    # Of an optimizer what is not cut may go along with what is; what the strategy lists, and weights, may not.
    kept = [t.spec.name for t in tensors if t.spec.name in listed or weight_of(t.spec.name) == t.spec.name]
    patterns = patterns_of_only(cut, kept)
    drops = " ".join(str(option("drop", pattern)) for pattern in patterns[:_SHOWN_DROPS])
    drops += " ..." if len(patterns) > _SHOWN_DROPS else ""
    hint = f"Leave them out ({drops}), or give the strategy of a network that has them."
    message = f"{len(cut)} tensors are cut over the source's ranks and have no layout in the target strategy"
    raise_all(PlanError, message, cut, hint)


def _check_names(strategy: Strategy, tensors: Sequence[TargetTensor], dropped: Collection[str]) -> None:
    """Refuse a strategy of another model or another naming: its weights would be left whole on every rank."""
    listed, names = strategy.names, {tensor.spec.name for tensor in tensors}
    if tensors and not listed & names:
        raise StrategyError(
            f"no tensor of the source is named in the target strategy: expected names like "
            f"{sample(sorted(listed))}, found {sample([t.spec.name for t in tensors])}",
            hint="Is this the strategy of another model, or of another naming of this one?",
        )
    # Without its numbers a name is the same in every layer.
    strange, kinds = sorted(names - listed), {_NUMBER.sub("#", name) for name in listed}
    raise_all(
        StrategyError,
        "the target strategy has layouts for some layers and none for others",
        [f"{name}: no layout" for name in strange if _NUMBER.sub("#", name) in kinds],
        hint="A pipeline stage is missing, or this is the strategy of a smaller model: "
        "give the merged strategy, or the prefix that holds the files of all stages.",
    )
    seen = names.union(dropped)
    unmet = sorted(name for name in listed - seen if not is_state(name, seen))
    if unmet and any(len(t.spec.shape) > 1 and t.spec.name not in listed for t in tensors):
        sides = zip_longest(
            (f"only in the strategy: {name}" for name in unmet), (f"only in the source: {name}" for name in strange)
        )
        raise StrategyError(
            f"the target strategy and the source name tensors differently: {len(unmet)} names of the strategy are "
            f"not in the source, {len(strange)} tensors of the source are not in the strategy",
            problems=[problem for pair in sides for problem in pair if problem],
            hint=f"Bring both to one naming: {option('to', 'ms')} or {option('to', 'hf')} converts a model's names, "
            f"{option('rename')} single ones. To leave tensors whole on every rank, add a rule "
            '{match: "*", split: []} to the layout file.',
        )


def patterns_of_only(chosen: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return few globs that match all the chosen names, and no other.

    Examples
    --------
    >>> patterns_of_only(["adam_m.w", "adam_m.v"], ["adam_m.w", "adam_m.v", "w"])
    ['adam_m.*']
    >>> patterns_of_only(["model.0.extra", "model.1.extra"], ["model.0.extra", "model.1.extra", "model.0.w"])
    ['model.*.extra']
    """
    others = set(names).difference(chosen)

    @cache
    def is_safe(pattern: str) -> bool:
        matches = re.compile(translate(pattern)).match
        return not any(map(matches, others))

    patterns: dict[str, None] = {}
    for name in sorted(chosen):
        parts = [glob.escape(part) for part in name.split(".")]
        numbered = ".".join("*" if _NUMBER.fullmatch(part) else part for part in parts)
        heads = [".".join([*parts[:depth], "*"]) for depth in range(1, len(parts))]
        tried = (*heads[:1], *[numbered] * (numbered != ".".join(parts)), *heads[1:])
        patterns[next((each for each in tried if is_safe(each)), glob.escape(name))] = None
    return list(patterns)


def is_state(name: str, names: Collection[str]) -> bool:
    """Return whether a name is of an optimizer state: one of ``names`` behind a prefix and a dot."""
    return any(name[at + 1 :] in names for at, character in enumerate(name) if character == ".")
