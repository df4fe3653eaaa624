"""Where groups are cut, found once for groups that are alike: ranks of one stage are, and most stages are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from math import gcd

from .cuts import Cuts, find_cuts
from .kinds import Kinds
from .recipe import Recipe


class AlikeCuts:
    """Finds the cuts of groups, one output standing for all that are filled alike."""

    def __init__(self, recipe: Recipe, kinds: Kinds) -> None:
        self._recipe = recipe
        self._kinds = kinds
        self._found: dict[Hashable, Cuts] = {}

    def cut(self, members: Sequence[int], part_bytes: int) -> Cuts:
        """Cut a group of outputs, by index, as :func:`find_cuts` does."""
        counts = Counter(self._kinds.of_member(i) for i in members)
        first = {self._kinds.of_member(i): i for i in reversed(members)}
        standing = [first[member] for member in counts]
        # Cuts do not change when all outputs become twice as many; a step's bytes do.
        times = gcd(*counts.values())
        reduced = [count // times for count in counts.values()]
        kind = tuple(counts) if len(standing) > 1 else self._kinds.of_output(standing[0])
        key = kind, tuple(reduced), part_bytes
        if key not in self._found:
            self._found[key] = self._cut(standing, reduced, part_bytes)
        return replace(self._found[key], step_bytes=self._found[key].step_bytes * times)

    def _cut(self, standing: Sequence[int], counts: Sequence[int], part_bytes: int) -> Cuts:
        streamed = [self._recipe.streamed(i) for i in standing]
        items = self._recipe.walk(standing)
        return find_cuts(items, streamed, part_bytes, self._recipe.limits.min_part_bytes, counts)
