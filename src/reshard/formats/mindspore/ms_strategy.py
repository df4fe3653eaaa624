"""MindSpore strategy files: read, merged, turned into a ``Strategy`` and back, written.

Both forms hold the same facts: protobuf under any name, JSON under names that end in ``.json``.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import StrategyError, raise_all
from ...tensor import Layout, Strategy
from .device_grid import grid_dimensions
from .ms_strategy_file import OperatorItem, StrategyFile
from .ms_strategy_json import decode_json
from .ms_strategy_protobuf import decode_protobuf


def parse_strategy_file(data: bytes, name: str) -> StrategyFile:
    """Read a strategy file in the form that its name says.

    Parameters
    ----------
    data
        The whole file.
    name
        Its key: JSON when it ends in ``.json``, protobuf otherwise, as MindSpore decides.

    Raises
    ------
    FormatError
        The bytes are no strategy file of that form.

    Examples
    --------
    >>> from reshard.formats.mindspore.ms_strategy_protobuf import encode_protobuf
    >>> layouts = {"w": Layout((2,), ((0,),))}
    >>> parse_strategy_file(encode_protobuf(StrategyFile((), layouts)), "ckpt_strategy_rank_0.ckpt").layouts == layouts
    True

    Source: mindspore 2.10.0, ``parallel/_parallel_serialization.py``, ``_build_searched_strategy``.
    """
    return decode_json(data, name) if name.endswith(".json") else decode_protobuf(data, name)


def from_strategy(strategy: Strategy, stage: int | None = None) -> StrategyFile:
    """Make the strategy file that MindSpore would have written.

    Parameters
    ----------
    strategy
        What to write.
    stage
        The pipeline stage to write; None for all of them: one merged file when there are several.

    Returns
    -------
    StrategyFile
        One operator item a stage stands for the network's own: the stage is recorded nowhere else.

    Raises
    ------
    StrategyError
        There is no such stage, or a name has a dash, which MindSpore's tools cannot read.

    Examples
    --------
    >>> strategy = Strategy(2, ({"w": Layout((2,), ((0,),))}, {"v": Layout((2,), ((),))}))
    >>> list(from_strategy(strategy).layouts), list(from_strategy(strategy, stage=1).layouts)
    (['0-w', '1-v'], ['v'])
    """
    raise_all(StrategyError, "MindSpore cannot read parameter names with a dash", _dashed(strategy))
    stages = range(strategy.stage_count) if stage is None else [stage]
    if stage is not None and not 0 <= stage < strategy.stage_count:
        raise StrategyError(f"stage {stage} does not exist: the strategy has {strategy.stage_count}")
    layouts = {
        (f"{s}-{name}" if len(stages) > 1 else name): _as_mindspore(layout)
        for s in stages
        for name, layout in strategy.stages[s].items()
    }
    return StrategyFile(tuple(OperatorItem(f"reshard_stage_{s}", s) for s in stages), layouts)


def _dashed(strategy: Strategy) -> list[str]:
    return sorted(name for name in strategy.names if "-" in name)


def _as_mindspore(layout: Layout) -> Layout:
    """The same slices in the form that most of MindSpore's tools read, with the step of the optimizer's pieces.

    Dimensions of size 1 go, and so does nesting where one larger dimension does the same: JSON and
    the tools for .ckpt checkpoints know flat maps only.

    Source: mindspore 2.10.0, compiled strategies: the step is always the product of the dimensions
    right of the last one that the tensor map leaves free.
    """
    dimensions = grid_dimensions(layout, join_free=False)
    axes: list[list[tuple[int, int]]] = [[] for _ in layout.tensor_map]
    for entry, dimension in enumerate(dimensions):
        if dimension.axis is not None:
            axes[dimension.axis].append((dimension.place, entry))
    is_cut = layout.optimizer_pieces > 1
    return replace(
        layout,
        device_matrix=tuple(dimension.size for dimension in reversed(dimensions)) or (1,),
        tensor_map=tuple(tuple(entry for _, entry in sorted(axis)) for axis in axes),
        optimizer_shard_size=layout.optimizer_shard_size if is_cut else 0,
        optimizer_shard_step=next(d.step for d in dimensions if d.axis is None) if is_cut else 0,
    )
