"""Which outputs to write together: sharing reads is weighed against the memory that open parts take."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from ...errors import PlanError
from ..cost.counting import MANY_SLICES
from ..cost.memory import Buffers, least_memory, over_budget
from ..outputs.streamed import Streamed
from .alike_cuts import AlikeCuts
from .cuts import Cuts
from .group_reads import group_score
from .needs import Needs
from .recipe import Group, Recipe

_WORTH_SHARING = 1.01


def form_groups(
    recipe: Recipe, families: Sequence[Sequence[int]], buffers: Buffers, needs: Needs | None = None
) -> tuple[Group, ...]:
    """Share each family of outputs out over groups.

    Of the group sizes that fit the memory the one whose reads cost least wins, by bytes and requests
    together (:func:`reshard.planning.steps.reads.score`); among those that cost about as little the smallest
    wins, since smaller steps overlap better.

    Parameters
    ----------
    families
        Outputs by index that may share bytes (the ranks of one pipeline stage, say), in an order
        in which neighbours share most.
    needs
        What has been found out already, if anything has.

    Raises
    ------
    OverBudget
        No size fits the memory; the error tells the smallest limit that would do.
    PlanError
        An output cannot be written in parts that the store accepts.
    """
    needs = needs or Needs(recipe)
    cuts = AlikeCuts(recipe, needs.kinds)
    by_size = [_least_steps(recipe, cuts, family) for family in families]
    least_bytes = max((min(sizes.values()) for sizes in by_size), default=0)
    if least_memory(buffers.given, least_bytes) > buffers.given.memory_bytes:
        raise over_budget(buffers, least_bytes)
    groups: list[Group] = []
    for family, sizes in zip(families, by_size, strict=True):
        fitting = [size for size, step_bytes in sizes.items() if step_bytes <= buffers.parts_bytes]
        size = _best_size(recipe, needs, family, fitting)
        groups += [_group(recipe, cuts, share, buffers) for share in _shares(family, size)]
    return tuple(groups)


def _shares(family: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(family), size):
        yield family[start : start + size]


def _least_steps(recipe: Recipe, cutting: AlikeCuts, family: Sequence[int]) -> dict[int, int]:
    """Group sizes whose parts the store accepts, each with its largest step's bytes when cut as finely as can be."""
    found = {}
    size = len(family)
    while size:
        least = [cutting.cut(share, _least_part_bytes(recipe, share)) for share in _shares(family, size)]
        if all(_is_accepted(recipe, share, cuts) for share, cuts in zip(_shares(family, size), least, strict=True)):
            found[size] = max(cuts.step_bytes for cuts in least)
        size = -(-size // 2) if size > 1 else 0
    if not found:
        limits = recipe.limits
        longest = max((recipe.outputs[i] for i in family), key=lambda output: output.nbytes)
        raise PlanError(
            f"{longest.keys[0]} ({longest.nbytes} bytes) cannot be written in {limits.max_part_count} parts of "
            f"{limits.min_part_bytes} to {limits.max_part_bytes} bytes"
        )
    return found


def _best_size(recipe: Recipe, needs: Needs, family: Sequence[int], fitting: Sequence[int]) -> int:
    if len(fitting) == 1:
        return fitting[0]
    costs = {size: _score(recipe, needs, family, size) for size in fitting}
    least = min(costs.values())
    return min(size for size, cost in costs.items() if cost <= least * _WORTH_SHARING)


def _score(recipe: Recipe, needs: Needs, family: Sequence[int], size: int) -> int:
    """What groups of a size read, as a score; where slices are many, one group of each kind stands for all."""
    is_many = sum(len(recipe.outputs[i].tensors) for i in family) > MANY_SLICES
    found: dict[Hashable, int] = {}
    total = 0
    for share in _shares(family, size):
        key: Hashable = tuple(map(needs.kinds.of_output, share)) if is_many else share[0]
        if key not in found:
            found[key] = _group_score(recipe, needs, share)
        total += found[key]
    return total


def _group_score(recipe: Recipe, needs: Needs, members: Sequence[int]) -> int:
    if recipe.has_copies(members):
        return group_score(recipe, members)
    return needs.group_score([recipe.outputs[i] for i in members])


def _group(recipe: Recipe, cutting: AlikeCuts, members: Sequence[int], buffers: Buffers) -> Group:
    limits = recipe.limits
    # Enough steps in flight that reading one and sending another overlap, whatever the group's size.
    in_flight = max(2, -(-2 * limits.concurrency // len(members)))
    wished = min(limits.part_bytes, limits.max_part_bytes, buffers.parts_bytes // (in_flight * len(members)))
    least = _least_part_bytes(recipe, members)
    cuts = cutting.cut(members, max(least, wished))
    if cuts.step_bytes > buffers.parts_bytes or not _is_accepted(recipe, members, cuts):
        cuts = cutting.cut(members, least)
    return Group(tuple(members), cuts.cuts)


def _least_part_bytes(recipe: Recipe, members: Sequence[int]) -> int:
    """The smallest parts that are not too many."""
    most = recipe.limits.max_part_count - 1
    streamed = [recipe.streamed(i) for i in members]
    fewest = max(-(-each.nbytes // max(1, most - _besides(recipe, each))) for each in streamed)
    return max(recipe.limits.min_part_bytes, fewest)


def _besides(recipe: Recipe, streamed: Streamed) -> int:
    """Parts that an output has, at most, besides one in each step: copied ones, and one more at each seam."""
    return sum(1 + -(-run.nbytes // recipe.limits.most_copied_bytes) for run in streamed.copied)


def _is_accepted(recipe: Recipe, members: Sequence[int], cuts: Cuts) -> bool:
    """Whether the store takes parts as long and as many."""
    limits = recipe.limits
    besides = max(_besides(recipe, recipe.streamed(i)) for i in members)
    return len(cuts.cuts) + besides < limits.max_part_count and cuts.part_bytes <= limits.max_part_bytes
