"""Tensors that hold runs of several parts, [q, k, v] after [q, k, v], and how many runs a strategy asks for.

A plain cut of such a tensor gives every rank whole runs only if there are as many runs as pieces. Neither names nor
shapes tell how many there are: a strategy does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import StrategyError, UsageError, option, raise_all
from ..tensor import Shape
from .family import Family, is_same_option
from .family_file import FamilyKey, load_family
from .parallel_rules import has_layouts, load_layouts
from .pattern import AxisPattern, name_key
from .settings import Settings, resolve_settings

BLOCKS = "blocks"
"""The option of families that counts runs."""

_SHOWN = 3


def has_contiguous_runs(family: FamilyKey, naming: str, options: Mapping[str, object]) -> bool:
    """Whether networks with these options expect each rank to hold one run: [its q, its k, its v].

    Examples
    --------
    >>> has_contiguous_runs("qwen3", "mcore", {"mlp_layout": "contiguous"}), has_contiguous_runs("qwen3", "mcore", {})
    (True, False)
    """
    if not has_layouts(family) or (layouts := load_layouts(family).get(naming)) is None:
        return False
    defaults = {choice.name: choice.default for choice in load_family(family).options}
    chosen = {**defaults, **options}
    return any(is_same_option(chosen.get(name), value) for name, value in layouts.runs)


def run_axes(
    family: Family, naming: str, options: Mapping[str, object], config: Mapping[str, object]
) -> dict[str, int]:
    """Return the axis that consists of runs, of each MindSpore tensor that has one, by the key of its name.

    Examples
    --------
    >>> from reshard.models.family_file import load_family
    >>> run_axes(load_family("qwen3"), "mcore", {"mlp_layout": "contiguous"}, {})
    {'decoder.layers.{}.mlp.linear_fc1.weight': 0}
    """
    settings = resolve_settings(family, config, options)
    counts = _counts_of_runs(family, settings)
    found: dict[str, int] = {}
    for row in family.naming(naming).rows:
        if not settings.holds(row.when):
            continue
        for hf, ms in row.forms:
            if not (settings.holds(hf.when) and settings.holds(ms.when)):
                continue
            for tensor in ms.tensors:
                for axis, pattern in enumerate(tensor.axes or ()):
                    if _is_in_runs(pattern, counts):
                        found[tensor.name.key] = axis
    return found


def _counts_of_runs(family: Family, settings: Settings) -> set[str]:
    """Return the parameters that are equal to the number of runs with these options."""
    counts = {BLOCKS}
    for parameter in family.parameters:  # what follows from others is declared behind them
        chosen = parameter.default
        if parameter.by:
            value = settings.options[parameter.by]
            chosen = next(expression for key, expression in parameter.choices if is_same_option(value, key))
        if getattr(chosen, "text", None) in counts:
            counts.add(parameter.name)
    return counts


def _is_in_runs(axis: AxisPattern, counts: set[str]) -> bool:
    """Whether an axis is a number of runs, each of several parts."""
    if len(axis.alternatives) != 1 or not axis.alternatives[0].items:
        return False
    first, *rest = axis.alternatives[0].items
    if isinstance(first, AxisPattern):
        return not rest and _is_in_runs(first, counts)
    return first in counts and any(isinstance(item, AxisPattern) and len(item.alternatives) > 1 for item in rest)


def blocks_for_cuts(
    axes: Mapping[str, int], cuts: Iterable[tuple[str, Shape]], given: int | None, side: str
) -> int | None:
    """Return how many runs there must be for each rank to hold one; None if no tensor has runs.

    ``cuts`` has names with the pieces on each axis, of every stage; ``given`` is the number that was asked for, and
    ``side`` says whose strategy it is. Raise StrategyError if tensors are cut differently, or into another number.

    Examples
    --------
    >>> blocks_for_cuts({"layers.{}.fc1": 0}, [("layers.0.fc1", (4, 1)), ("norm", (1,))], None, "target")
    4
    """
    names: dict[int, dict[str, None]] = {}
    for name, pieces in cuts:
        axis = axes.get(name_key(name))
        if axis is not None and axis < max(1, len(pieces)):
            names.setdefault(pieces[axis] if pieces else 1, {})[name] = None
    if not names:
        return None
    problems = [
        f"{ways}: {', '.join([*some][:_SHOWN])}{', ...' if len(some) > _SHOWN else ''}"
        for ways, some in sorted(names.items())
    ]
    if len(names) > 1:
        message = f"the {side} strategy cuts tensors that hold runs of several parts into different numbers of pieces"
        raise_all(StrategyError, message, problems, "Each rank needs one run of each: cut them all alike.")
    (ways,) = names
    if given is not None and given != ways:
        raise UsageError(
            f"{option('option', f'{BLOCKS}={given}')}, but the {side} strategy cuts the tensors that hold runs of "
            f"several parts into {ways} pieces",
            problems=problems,
            hint=f"Each rank holds one run: omit {BLOCKS}, or give {option('option', f'{BLOCKS}={ways}')}.",
        )
    return ways
