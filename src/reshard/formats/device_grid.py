"""The device matrix of a layout, reduced to the dimensions that decide which slice a rank has."""

from __future__ import annotations

from dataclasses import dataclass

from ..tensor import Layout


@dataclass(frozen=True, slots=True)
class GridDimension:
    """A dimension of a device matrix: ``step`` is the distance between ranks that are neighbours in it.

    ``axis`` is the tensor axis that it cuts, None for a free dimension; ``place`` counts among the dimensions that
    cut the axis, 0 for the most significant.
    """

    step: int
    stop: int
    axis: int | None
    place: int

    @property
    def size(self) -> int:
        """Devices along the dimension."""
        return self.stop // self.step


def grid_dimensions(layout: Layout, *, join_free: bool) -> tuple[GridDimension, ...]:
    """Return the dimensions of more than one device, fastest first; those that act as one are joined.

    Neighbours that cut nothing are joined only with ``join_free``.

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
        # Two neighbours that cut one axis act as one only if the slower is also the next more significant.
        acts_as_one = join_free if dimension.axis is None else faster and dimension.place == faster.place - 1
        if faster and dimension.axis == faster.axis and acts_as_one:
            dimension = GridDimension(dimensions.pop().step, dimension.stop, dimension.axis, dimension.place)
        dimensions.append(dimension)
        step *= size
    return tuple(dimensions)
