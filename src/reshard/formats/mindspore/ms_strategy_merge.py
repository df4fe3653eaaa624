"""Strategy files of pipeline stages: put together into one file, or into one ``Strategy``.

Source: mindspore 2.10.0, ``merge_pipeline_strategys`` and ``_convert_to_list``. What they pass over in
silence (a missing stage, two different files of one stage) is an error here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ...errors import StrategyError, raise_all
from ...tensor import Layout, Shape, Strategy
from .ms_strategy_file import StrategyFile, split_stage
from .ms_strategy_nested import fold_expanded, may_be_expanded

_Layouts = dict[str, Layout]


def merge_strategy_files(files: Sequence[StrategyFile]) -> StrategyFile:
    """Merge the files of all stages into one whose names are ``<stage>-<name>``.

    Parameters
    ----------
    files
        One a stage or one a rank; equal files of one stage count once.

    Raises
    ------
    StrategyError
        A file is empty or merged already, files of one stage differ, or a stage is missing.

    Examples
    --------
    >>> from .ms_strategy_file import OperatorItem
    >>> stages = [StrategyFile((OperatorItem("MatMul", s),), {"w": Layout((2,), ((0,),))}) for s in (1, 0)]
    >>> list(merge_strategy_files(stages).layouts)
    ['0-w', '1-w']
    """
    problems = [problem for file in files for problem in _merge_problems(file)]
    raise_all(StrategyError, "strategy files that cannot be merged", problems)
    stages = _by_stage(files, whole_files=True)
    merged = [(f"{stage}-", stages[stage]) for stage in sorted(stages)]
    return StrategyFile(
        tuple(item for _, file in merged for item in file.operators),
        {prefix + name: layout for prefix, file in merged for name, layout in file.layouts.items()},
        {prefix + name: shape for prefix, file in merged for name, shape in file.expanded_shapes.items()},
    )


def _merge_problems(file: StrategyFile) -> list[str]:
    if not file.operators or not file.layouts:
        return [f"{_called(file)} is empty: it has {len(file.operators)} operators, {len(file.layouts)} parameters"]
    return [f"{_called(file)} is merged already"] if file.is_merged else []


def to_strategy(
    files: Sequence[StrategyFile], shapes: Mapping[str, Shape] | None = None, *, local: bool = False
) -> Strategy:
    """Make one ``Strategy`` of a single file, of the files of all stages or ranks, or of a merged file.

    Parameters
    ----------
    files
        Equal files of one stage count once.
    shapes
        Of the tensors, in elements: needed for JSON files with layouts that MindSpore may have
        written in expanded form. Tensors that are not among them keep the layout of the file;
        without any shape such layouts are refused.
    local
        Whether ``shapes`` are what one rank holds.

    Raises
    ------
    StrategyError
        Stages are missing, files disagree, layouts count different devices, or a layout cannot be
        understood.

    Examples
    --------
    >>> to_strategy([StrategyFile((), {"w": Layout((2, 4), ((1, 0),))})]).device_count
    8
    """
    if not any(file.layouts for file in files):
        raise StrategyError("no strategy: none of the files has the layout of any parameter")
    stages = [_folded(file, shapes, local) for file in _stage_files(files)]
    counts = Counter(layout.device_count for layouts in stages for layout in layouts.values())
    strategy = Strategy(counts.most_common(1)[0][0], tuple(stages))
    fields = sorted(name for name in strategy.names if any(s[name].field_size for s in stages if name in s))
    raise_all(StrategyError, "parameters cut by fields, which interleaves their rows, are not supported", fields)
    return strategy


def _stage_files(files: Sequence[StrategyFile]) -> list[StrategyFile]:
    """One file a stage, all names plain."""
    problems = [
        f"{_called(file)}: {name}"
        for file in files
        if not file.is_merged
        for name in file.layouts
        if split_stage(name)[0] is not None
    ]
    raise_all(StrategyError, "some names carry their stage and others in the same file do not", problems)
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
        stage = file.stage or 0  # without operators nothing says so, and a run without stages need not have any
        first = stages.setdefault(stage, file)
        if first is not file and not _same(first, file, whole_files):
            problems.append(f"{_called(first)} and {_called(file)} are both of stage {stage} and differ")
    problems += _missing_stages(stages)
    raise_all(StrategyError, "strategy files that do not make one strategy", problems)
    return stages


def _same(a: StrategyFile, b: StrategyFile, whole_files: bool) -> bool:
    """Whether two files say the same; the order of items is arbitrary in what MindSpore writes."""
    if a.layouts != b.layouts:
        return False
    return not whole_files or (set(a.operators) == set(b.operators) and a.expanded_shapes == b.expanded_shapes)


def _unmerged(file: StrategyFile) -> dict[int, StrategyFile]:
    stages = sorted({split_stage(name)[0] or 0 for name in file.layouts} | file.operator_stages)
    raise_all(StrategyError, f"{_called(file)} does not hold all stages", _missing_stages(stages))
    layouts: list[_Layouts] = [{} for _ in stages]
    shapes: list[dict[str, Shape]] = [{} for _ in stages]
    for name, layout in file.layouts.items():
        stage, own_name = split_stage(name)
        layouts[stage or 0][own_name] = layout
        if name in file.expanded_shapes:
            shapes[stage or 0][own_name] = file.expanded_shapes[name]
    return {stage: StrategyFile((), layouts[stage], shapes[stage], name=file.name) for stage in stages}


def _missing_stages(stages: Sequence[int] | Mapping[int, object]) -> list[str]:
    """Name the stages that lack; a single made-up stage number must not make a list of millions."""
    last = max(stages, default=-1)
    if len(stages) == last + 1:
        return []
    return [f"stages 0..{last} are expected: {last + 1 - len(stages)} of them missing, found {sorted(stages)[:20]}"]


def _folded(file: StrategyFile, shapes: Mapping[str, Shape] | None, local: bool) -> _Layouts:
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
                problems.append(f"{_called(file)}: {name}: {error.message}")
    hint = "Use the protobuf form of the strategy: it holds the layouts themselves."
    raise_all(StrategyError, "layouts that the JSON form leaves open unless shapes settle them", problems, hint)
    return layouts


def _called(file: StrategyFile) -> str:
    return file.name or "a strategy file"
