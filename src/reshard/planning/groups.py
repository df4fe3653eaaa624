"""Which outputs to write together: sharing reads is weighed against the memory that open parts take."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import OverBudget, PlanError
from .cuts import find_cuts, walk
from .memory import Buffers, least_memory
from .steps import Group, Recipe, whole_reads

__all__ = ["form_groups"]

_WORTH_SHARING = 1.01


def form_groups(recipe: Recipe, families: Sequence[Sequence[int]], buffers: Buffers) -> tuple[Group, ...]:
    """Share each family of outputs out over groups.

    The fewest bytes read win; among group sizes that read about as little the smallest wins,
    since smaller steps overlap better. A group whose steps do not fit the memory is halved.

    Parameters
    ----------
    families
        Outputs by index that may share bytes (the ranks of one pipeline stage, say), in an order
        in which neighbours share most.

    Raises
    ------
    OverBudget
        Not even single outputs fit; the error tells the memory that would do.
    """
    groups: list[Group] = []
    for family in families:
        best = _best_size(recipe, family, buffers)
        shares = [family[start : start + best] for start in range(0, len(family), best)]
        groups += [_group(recipe, share, buffers) for share in shares]
    return tuple(groups)


def _best_size(recipe: Recipe, family: Sequence[int], buffers: Buffers) -> int:
    sizes, size = [], len(family)
    while size > 1:
        sizes.append(size)
        size = -(-size // 2)
    fitting = [size for size in sizes if _fits(recipe, family, size, buffers)]
    costs = {1: _bytes_read(recipe, family, 1)} if family else {1: 0}
    for size in fitting:
        costs[size] = _bytes_read(recipe, family, size)
    least = min(costs.values())
    return min(size for size, cost in costs.items() if cost <= least * _WORTH_SHARING)


def _bytes_read(recipe: Recipe, family: Sequence[int], size: int) -> int:
    return sum(
        whole_reads(recipe, [recipe.outputs[i] for i in family[start : start + size]])
        for start in range(0, len(family), size)
    )


def _fits(recipe: Recipe, family: Sequence[int], size: int, buffers: Buffers) -> bool:
    return all(
        _cut(recipe, family[start : start + size], buffers)[1] <= buffers.parts_bytes
        for start in range(0, len(family), size)
    )


def _group(recipe: Recipe, members: Sequence[int], buffers: Buffers) -> Group:
    group, step_bytes = _cut(recipe, members, buffers)
    if step_bytes > buffers.parts_bytes:
        needed_bytes = least_memory(recipe.limits, step_bytes)
        raise OverBudget(
            f"this conversion needs at least {needed_bytes} bytes of memory "
            f"(concurrency {recipe.limits.concurrency}), the limit is {recipe.limits.memory_bytes}",
            needed_bytes=needed_bytes,
            hint=f"Allow --memory {-(-needed_bytes >> 20)}MiB, or lower --concurrency.",
        )
    if len(group.cuts) >= recipe.limits.max_part_count:
        raise PlanError(f"{recipe.outputs[members[0]].keys[0]} would need {len(group.cuts) + 1} upload parts")
    return group


def _cut(recipe: Recipe, members: Sequence[int], buffers: Buffers) -> tuple[Group, int]:
    limits, outputs = recipe.limits, [recipe.outputs[i] for i in members]
    # Enough steps in flight that reading one and sending another overlap, whatever the group's size.
    in_flight = max(2, -(-2 * limits.concurrency // len(outputs)))
    wished = min(limits.part_bytes, buffers.parts_bytes // (in_flight * len(outputs)))
    fewest = -(-max(output.nbytes for output in outputs) // max(1, limits.max_part_count - 1))
    part_bytes = max(limits.min_part_bytes, wished, fewest)
    items = walk(outputs, recipe.tensors, limits)
    headers = [len(output.header) for output in outputs]
    cuts, step_bytes = find_cuts(items, headers, part_bytes, limits.min_part_bytes)
    return Group(tuple(members), cuts), step_bytes
