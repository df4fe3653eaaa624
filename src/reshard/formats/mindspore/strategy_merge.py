"""MindSpore strategy files parsed by name, merged over pipeline stages, and turned into a ``Strategy`` and back.

Source: mindspore 2.10.0, ``merge_pipeline_strategys`` and ``_convert_to_list``. What they ignore silently
(a missing stage, two different files of one stage) is an error here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...errors import StrategyError, raise_all
from ...tensor import Layout, Shape, Strategy
from ..device_grid import grid_dimensions
from .strategy_file import OperatorItem, StrategyFile, split_stage
from .strategy_json import decode_json, fold_expanded, may_be_expanded
from .strategy_protobuf import decode_protobuf


def parse_strategy_file(data: bytes, name: str) -> StrategyFile:
    """Read a strategy file: JSON if its name ends in ``.json``, protobuf otherwise, as MindSpore decides.

    Source: mindspore 2.10.0, ``parallel/_parallel_serialization.py``, ``_build_searched_strategy``.
    """
    return decode_json(data, name) if name.endswith(".json") else decode_protobuf(data, name)


def merge_strategy_files(files: Sequence[StrategyFile]) -> StrategyFile:
    """Merge the files of all stages or ranks into one whose names are ``<stage>-<name>``.

    Raise StrategyError if a file is empty or merged already, files of one stage differ, or a stage is missing.

    Examples
    --------
    >>> stages = [StrategyFile((OperatorItem("MatMul", s),), {"w": Layout((2,), ((0,),))}) for s in (1, 0)]
    >>> list(merge_strategy_files(stages).layouts)
    ['0-w', '1-w']
    """
    problems = []
    for file in files:
        if not file.operators or not file.layouts:
            found = f"{len(file.operators)} operators, {len(file.layouts)} parameters"
            problems.append(f"{_called(file)} is empty: it has {found}")
        elif file.is_merged:
            problems.append(f"{_called(file)} is merged already")
    raise_all(StrategyError, "strategy files cannot be merged", problems)
    stages = _by_stage(files, whole_files=True)
    merged = [(f"{stage}-", stages[stage]) for stage in sorted(stages)]
    return StrategyFile(
        tuple(item for _, file in merged for item in file.operators),
        {prefix + name: layout for prefix, file in merged for name, layout in file.layouts.items()},
        {prefix + name: shape for prefix, file in merged for name, shape in file.expanded_shapes.items()},
    )


def to_strategy(
    files: Sequence[StrategyFile], shapes: Mapping[str, Shape] | None = None, *, local: bool = False
) -> Strategy:
    """Make one ``Strategy`` of a single file, of the files of all stages or ranks, or of a merged file.

    Equal files of one stage count once. The tensors' shapes in elements (with ``local``, one rank's) are needed for
    JSON files with layouts that MindSpore may have written in expanded form: tensors that are not among them keep the
    layout of the file; without any shape such layouts are refused.

    Raises
    ------
    StrategyError
        Stages are missing, files disagree, layouts count different devices, or a layout is ambiguous.

    Examples
    --------
    >>> to_strategy([StrategyFile((), {"w": Layout((2, 4), ((1, 0),))})]).device_count
    8
    """
    if not any(file.layouts for file in files):
        raise StrategyError("the strategy is empty: no file has the layout of any parameter")
    stages = [_folded(file, shapes, local) for file in stage_files(files)]
    counts = Counter(layout.device_count for layouts in stages for layout in layouts.values())
    strategy = Strategy(counts.most_common(1)[0][0], tuple(stages))
    fields = sorted(name for name in strategy.names if any(s[name].field_size for s in stages if name in s))
    raise_all(StrategyError, "parameters cut by fields, which interleaves their rows, are not supported", fields)
    return strategy


def stage_files(files: Sequence[StrategyFile]) -> list[StrategyFile]:
    """Return one file a stage, in order, with plain names.

    Raise StrategyError if stages are missing, files of one stage differ, or a merged file is not alone.
    """
    problems = [
        f"{_called(file)}: {name}"
        for file in files
        if not file.is_merged
        for name in file.layouts
        if split_stage(name)[0] is not None
    ]
    raise_all(StrategyError, "only some names of a strategy file have a stage prefix", problems)
    if not any(file.is_merged for file in files):
        stages = _by_stage(files, whole_files=False)
    elif all(file == files[0] for file in files[1:]):
        stages = _unmerged(files[0])
    else:
        raise StrategyError(f"expected one merged strategy file and no other, found {len(files)} files")
    return [stages[stage] for stage in sorted(stages)]


def _by_stage(files: Sequence[StrategyFile], *, whole_files: bool) -> dict[int, StrategyFile]:
    stages: dict[int, StrategyFile] = {}
    problems: list[str] = []
    for file in files:
        if len(file.operator_stages) > 1:
            problems.append(f"{_called(file)} has operators of stages {sorted(file.operator_stages)}: expected one")
            continue
        stage = file.stage or 0  # without operators no stage is recorded, and a run without stages need not have any
        first = stages.setdefault(stage, file)
        # The order of items is arbitrary in files that MindSpore writes.
        is_same = first.layouts == file.layouts and (
            not whole_files
            or (set(first.operators) == set(file.operators) and first.expanded_shapes == file.expanded_shapes)
        )
        if not is_same:
            problems.append(f"{_called(first)} and {_called(file)} are both of stage {stage} and differ")
    problems += _missing_stages(stages)
    raise_all(StrategyError, "strategy files do not make one strategy", problems)
    return stages


def _unmerged(file: StrategyFile) -> dict[int, StrategyFile]:
    stages = sorted({split_stage(name)[0] or 0 for name in file.layouts} | file.operator_stages)
    raise_all(StrategyError, f"{_called(file)} does not hold all stages", _missing_stages(stages))
    layouts: list[dict[str, Layout]] = [{} for _ in stages]
    shapes: list[dict[str, Shape]] = [{} for _ in stages]
    for name, layout in file.layouts.items():
        stage, own_name = split_stage(name)
        layouts[stage or 0][own_name] = layout
        if name in file.expanded_shapes:
            shapes[stage or 0][own_name] = file.expanded_shapes[name]
    return {stage: StrategyFile((), layouts[stage], shapes[stage], name=file.name) for stage in stages}


def _missing_stages(stages: Sequence[int] | Mapping[int, object]) -> list[str]:
    """Describe gaps between stages; a single made-up stage number must not make a list of millions."""
    last = max(stages, default=-1)
    if len(stages) == last + 1:
        return []
    return [f"expected stages 0..{last}: {last + 1 - len(stages)} are missing, found {sorted(stages)[:20]}"]


def _folded(file: StrategyFile, shapes: Mapping[str, Shape] | None, local: bool) -> dict[str, Layout]:
    layouts, problems = dict(file.layouts), []
    for name, expanded in file.expanded_shapes.items():
        layout = layouts[name]
        if not shapes:
            if may_be_expanded(layout, expanded):
                problems.append(f"{_called(file)}: {name} is {list(expanded)} with or without expanded axes")
        elif name in shapes:
            try:
                layouts[name] = fold_expanded(layout, expanded, shapes[name], local=local)
            except StrategyError as error:
                problems.append(f"{_called(file)}: {name}: {error.marked_message}")
    hint = "Use the protobuf form of the strategy: it holds the layouts themselves."
    raise_all(StrategyError, "the JSON form of the strategy leaves layouts undetermined", problems, hint)
    return layouts


def _called(file: StrategyFile) -> str:
    return file.name or "a strategy file"


def from_strategy(strategy: Strategy, stage: int | None = None) -> StrategyFile:
    """Make the strategy file that MindSpore would have written for one stage, or merged for all stages.

    One operator item a stage replaces the network's own, since the stage is recorded nowhere else. Raise StrategyError
    if there is no such stage, or a name has a dash, which MindSpore's tools cannot read.

    Examples
    --------
    >>> strategy = Strategy(2, ({"w": Layout((2,), ((0,),))}, {"v": Layout((2,), ((),))}))
    >>> list(from_strategy(strategy).layouts), list(from_strategy(strategy, stage=1).layouts)
    (['0-w', '1-v'], ['v'])
    """
    dashed = sorted(name for name in strategy.names if "-" in name)
    raise_all(StrategyError, "MindSpore cannot read parameter names with a dash", dashed)
    stages = range(strategy.stage_count) if stage is None else [stage]
    if stage is not None and not 0 <= stage < strategy.stage_count:
        raise StrategyError(f"stage {stage} does not exist: the strategy has {strategy.stage_count}")
    layouts = {
        (f"{s}-{name}" if len(stages) > 1 else name): _as_mindspore(layout)
        for s in stages
        for name, layout in strategy.stages[s].items()
    }
    return StrategyFile(tuple(OperatorItem(f"reshard_stage_{s}", s) for s in stages), layouts)


def _as_mindspore(layout: Layout) -> Layout:
    """Return the same slices in the form that most of MindSpore's tools read, with the optimizer shard's step.

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
