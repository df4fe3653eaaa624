"""The device matrix of a layout with everything taken out that makes no difference to where a slice lies."""

from __future__ import annotations

from dataclasses import dataclass

from ...tensor import Layout


@dataclass(frozen=True, slots=True)
class GridDimension:
    """A dimension of a device matrix by the ranks that differ in it.

    Parameters
    ----------
    step
        Distance of neighbouring ranks.
    stop
        Ranks up to the end of the dimension: step times size.
    axis
        The tensor axis that it cuts, None for a free dimension.
    place
        Among the dimensions that cut the axis: 0 for the most significant.
    """

    step: int
    stop: int
    axis: int | None
    place: int

    @property
    def size(self) -> int:
        """Devices along the dimension."""
        return self.stop // self.step

    def continues(self, faster: GridDimension) -> bool:
        """Whether the two, neighbours in the matrix, cut one axis as a single dimension would."""
        return self.axis is not None and self.axis == faster.axis and self.place == faster.place - 1


def grid_dimensions(layout: Layout, *, join_free: bool) -> tuple[GridDimension, ...]:
    """The dimensions of more than one device, fastest first, those that act as one joined.

    Parameters
    ----------
    layout
        Whose device matrix to look at.
    join_free
        Whether to join neighbours that cut nothing, too.

    Examples
    --------
    >>> [(d.size, d.axis) for d in grid_dimensions(Layout((2, 1, 2, 2), ((3, 1), ())), join_free=False)]
    [(2, None), (4, 0)]
    """
    cut = {
        entry: (axis, place)
        for axis, entries in enumerate(layout.tensor_map)
        for place, entry in enumerate(entry for entry in entries if layout.device_matrix[-1 - entry] > 1)
    }
    dimensions: list[GridDimension] = []
    step = 1
    for entry, size in enumerate(reversed(layout.device_matrix)):
        if size == 1:
            continue
        dimension = GridDimension(step, step * size, *cut.get(entry, (None, 0)))
        faster = dimensions[-1] if dimensions else None
        if faster and (dimension.continues(faster) or (join_free and dimension.axis is faster.axis is None)):
            dimension = GridDimension(dimensions.pop().step, dimension.stop, dimension.axis, dimension.place)
        dimensions.append(dimension)
        step *= size
    return tuple(dimensions)
