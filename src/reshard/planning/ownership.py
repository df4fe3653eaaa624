"""Who holds which box of one tensor: the grid that a layout, or a plan's outputs, cut it into."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ..errors import UsageError
from ..formats.strict_json import shown
from ..tensor import Box, DType, Layout, Shape, Strategy, TensorSpec, extent_of
from .plan import Plan
from .targets.rank_target import RankTarget


@dataclass(frozen=True, slots=True)
class TensorGrid:
    """The boxes that a tensor is cut into, and who holds each.

    Parameters
    ----------
    name, dtype, shape
        The tensor; dtype and shape are None where only its layout is known: then an element stands for a piece.
    starts
        Where the pieces begin along each axis, ascending.
    stop
        Where the last ends along each axis.
    holders
        Ranks by the place of their box in the grid, or numbers of ``objects`` where the target has no ranks.
    stages
        Pipeline stages that hold it so; empty where there are none.
    objects
        Keys of the objects that hold it, where the target has no ranks.
    """

    name: str
    dtype: DType | None
    shape: Shape | None
    starts: tuple[tuple[int, ...], ...]
    stop: Shape
    holders: Mapping[Shape, tuple[int, ...]]
    stages: tuple[int, ...] = ()
    objects: tuple[str, ...] = ()

    @property
    def counts(self) -> Shape:
        """Pieces along each axis."""
        return tuple(map(len, self.starts))


def strategy_grids(strategy: Strategy, name: str, spec: TensorSpec | None = None) -> list[TensorGrid]:
    """Return the grid of a tensor for each way in which the stages of a strategy cut it.

    Raise UsageError if the strategy has no such tensor, StrategyError if the tensor does not fit its layout.

    Examples
    --------
    >>> strategy = Strategy(4, ({"w": Layout((2, 2), ((0,), ()))},))
    >>> (grid,) = strategy_grids(strategy, "w", TensorSpec("w", DType.F16, (8, 6)))
    >>> grid.starts, grid.holders
    (((0, 4), (0,)), {(0, 0): (0, 2), (1, 0): (1, 3)})
    """
    if name not in strategy.names:
        raise _unknown("the strategy", name, strategy.names)
    stages: dict[Layout, list[int]] = {}
    for stage, layouts in enumerate(strategy.stages):
        if name in layouts:
            stages.setdefault(layouts[name], []).append(stage)
    grids = []
    for layout, found in stages.items():
        shape = extent_of(spec)[0] if spec else layout.pieces
        if spec:
            layout.check(shape)
        holders: dict[Shape, list[int]] = {}
        for stage in found:
            for device in range(layout.device_count):
                holders.setdefault(layout.place_of(device), []).append(stage * layout.device_count + device)
        starts = tuple(
            tuple(range(0, size, max(1, size // pieces))) if size else (0,)
            for size, pieces in zip(shape, layout.pieces, strict=True)
        )
        if spec and layout.row_split:
            starts = (layout.row_split.offsets, *starts[1:])
        kept = {place: tuple(ranks) for place, ranks in sorted(holders.items())}
        dtype = spec.dtype if spec else None
        grids.append(TensorGrid(name, dtype, spec.shape if spec else None, starts, shape, kept, tuple(found)))
    return grids


def plan_grid(plan: Plan, name: str) -> TensorGrid:
    """Return the grid of a tensor of a plan's target; raise UsageError if the target has none of this name."""
    index = next((index for index, tensor in enumerate(plan.tensors) if tensor.spec.name == name), None)
    if index is None:
        raise _unknown("the target", name, [tensor.spec.name for tensor in plan.tensors])
    target = plan.conversion.target
    rank_of = target.rank_of_key if isinstance(target, RankTarget) else {}
    slots: dict[int, int | None] = {}  # ranks share the tuples of their tensors
    boxes: dict[Box, list[int]] = {}
    objects: list[str] = []
    for output in plan.outputs:
        if id(output.tensors) not in slots:
            slots[id(output.tensors)] = output.tensors.index(index) if index in output.tensors else None
        slot = slots[id(output.tensors)]
        if slot is not None:
            numbers = (
                [rank_of[key] for key in output.keys]
                if rank_of
                else range(len(objects), len(objects) + len(output.keys))
            )
            boxes.setdefault(output.boxes[slot], []).extend(numbers)
            objects += [] if rank_of else output.keys
    spec = plan.tensors[index].spec
    stop = extent_of(spec)[0]
    starts = tuple(tuple(sorted({box.start[axis] for box in boxes} or {0})) for axis in range(len(stop)))
    holders = {
        tuple(along.index(start) for along, start in zip(starts, box.start, strict=True)): tuple(sorted(ranks))
        for box, ranks in sorted(boxes.items(), key=lambda item: item[0].start)
    }
    stages = _stages(target.strategy, holders.values()) if isinstance(target, RankTarget) else ()
    return TensorGrid(name, spec.dtype, spec.shape, starts, stop, holders, stages, tuple(objects))


def _stages(strategy: Strategy, holders: Iterable[Iterable[int]]) -> tuple[int, ...]:
    return tuple(sorted({strategy.stage_of(rank) for ranks in holders for rank in ranks}))


def _unknown(where: str, name: str, names: Collection[str]) -> UsageError:
    near = difflib.get_close_matches(name, names, n=3) or sorted(each for each in names if name in each)[:3]
    hint = f"Did you mean {' or '.join(near)}?" if near else ""
    return UsageError(f"{where} has no tensor called {shown(name)}", hint=hint)
