"""Boxes of values that a step computes: which are needed, and which are computed together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ...tensor import Box, Patch
from ..outputs.output import Computation, Piece

_MOST_HULL = 1.25
"""Elements to compute for each one that is needed, at most, rather than starting another tile."""
_LEAST_TILE = 1 << 16
"""Elements that are not worth a tile of their own: scales and adapters are gathered again for each tile."""


class TileTarget(NamedTuple):
    """Where computed values go: the part of a patch in a slice, and the slice's place in a buffer."""

    patch: Patch
    held: Box
    itemsize: int
    buffer: int
    first_byte: int


@dataclass(slots=True)
class TileCollector:
    """Collects what is computed in one step, by the entry whose values it is of and the computation."""

    _targets: dict[tuple[int, Computation], list[TileTarget]] = field(default_factory=dict)

    def add(self, piece: Piece, target: TileTarget) -> None:
        """Note that values of a piece go to a target."""
        assert piece.computation is not None
        self._targets.setdefault((piece.source, piece.computation), []).append(target)

    @property
    def entries(self) -> list[int]:
        """The entries whose values are computed, ascending."""
        return sorted({source for source, _ in self._targets})

    def tiles(self) -> Iterator[tuple[int, Computation, Box, list[TileTarget]]]:
        """Yield every tile: the entry, the computation, the box of the entry, and where its values go."""
        for (source, computation), targets in self._targets.items():
            for box, some in _joined(targets):
                yield source, computation, box, some


def _joined(targets: list[TileTarget]) -> Iterator[tuple[Box, list[TileTarget]]]:
    """Join the boxes that fill their hull together: each is computed once for all who take from it.

    Boxes that are apart (row slices of several ranks) stay apart, to avoid computing, and reading, the gap.
    """
    hulls: dict[Box, list[TileTarget]] = {}
    for target in targets:
        hulls.setdefault(target.patch.source_hull, []).append(target)
    joined: list[tuple[Box, list[TileTarget]]] = []
    for one in sorted(hulls.items(), key=lambda item: (item[0].start, item[0].stop)):
        while joined and (box := _filled_hull(joined[-1][0], one[0])) is not None:
            one = box, [*joined.pop()[1], *one[1]]
        joined.append(one)
    yield from joined


def _filled_hull(a: Box, b: Box) -> Box | None:
    """Return the hull of two boxes, None if more than a little of it is in neither."""
    hull = Box(tuple(map(min, a.start, b.start)), tuple(map(max, a.stop, b.stop)))
    most = _MOST_HULL * (a.element_count + b.element_count)
    return hull if hull.element_count <= max(most, _LEAST_TILE) else None
