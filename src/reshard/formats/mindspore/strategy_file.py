"""The content of a MindSpore strategy file, whichever of its two forms it has."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import FormatError, StrategyError
from ...tensor import MAX_RANK_COUNT, Layout, RowSplit, Shape

# A rank is a 32-bit number in MindSpore; the other bound keeps hostile files from costing more than they weigh.
_LARGEST_AXIS_COUNT = 64

_STAGE_PREFIX = re.compile(r"([0-9]{1,9})-(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class OperatorItem:
    """How the inputs of one operator node are cut; the only place where a file records its pipeline stage.

    ``cuts`` are, for each input, the pieces on each of its axes; empty if MindSpore did not record them.
    """

    name: str
    stage: int
    cuts: tuple[Shape, ...] = ()


@dataclass(frozen=True, slots=True)
class StrategyFile:
    """One strategy file: a single stage's, or several merged into one, where names are ``<stage>-<name>``.

    ``expanded_shapes``, in the JSON form alone, are the full shapes of parameters, in elements, in which an axis that
    several device dimensions cut is expanded to as many axes. They are left out where MindSpore writes wrong ones
    (uneven pieces). ``current_stage`` is a save counter, not a pipeline stage; merged files have 1. The ``name`` of
    the file is for errors.

    Examples
    --------
    >>> layouts = {"0-w": Layout((2,), ((0,),)), "1-v": Layout((2,), ((),))}
    >>> file = StrategyFile((OperatorItem("MatMul", 0), OperatorItem("MatMul", 1)), layouts)
    >>> file.is_merged, file.stage
    (True, None)
    """

    operators: tuple[OperatorItem, ...]
    layouts: Mapping[str, Layout]
    expanded_shapes: Mapping[str, Shape] = field(default_factory=dict)
    current_stage: int = 1
    name: str = field(default="", compare=False)

    @property
    def is_merged(self) -> bool:
        """Whether every name carries its stage."""
        return bool(self.layouts) and all(split_stage(name)[0] is not None for name in self.layouts)

    @property
    def operator_stages(self) -> frozenset[int]:
        """The stages that have operators."""
        return frozenset(item.stage for item in self.operators)

    @property
    def stage(self) -> int | None:
        """The one stage of the file; None if it is merged or does not record one."""
        if self.is_merged or len(self.operator_stages) != 1:
            return None
        return min(self.operator_stages)


def split_stage(name: str) -> tuple[int | None, str]:
    """Split a name of a merged file into the stage and the parameter's own name.

    Only the first dash counts, and only after digits alone: names may have dashes of their own.

    Examples
    --------
    >>> split_stage("12-embed-in.weight"), split_stage("embed-in.weight")
    ((12, 'embed-in.weight'), (None, 'embed-in.weight'))

    Source: mindspore 2.10.0, ``parallel/_parallel_serialization.py``, ``_convert_to_list``; it fails
    on further dashes.
    """
    match = _STAGE_PREFIX.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def make_layout(
    where: str,
    device_matrix: Sequence[int],
    tensor_map: Sequence[Sequence[int]],
    optimizer_shard: tuple[int, int],
    row_split: tuple[Sequence[int], Sequence[int]],
    field_size: int,
) -> Layout:
    """Make a layout of numbers read from the place ``where`` of a file; raise FormatError if they make none.

    A tensor axis that is not cut has the entry -1. ``optimizer_shard`` are step and size, ``row_split`` row counts
    and first rows, both empty for even pieces. ``field_size`` is that of a field-slice embedding, else 0.
    """
    entry_count = sum(max(1, len(axis)) for axis in tensor_map)
    if max(len(device_matrix), entry_count) > _LARGEST_AXIS_COUNT:
        found = f"{len(device_matrix)} in the device matrix, {entry_count} in the tensor map"
        raise FormatError("too many axes", where=where, expected=f"at most {_LARGEST_AXIS_COUNT}", found=found)
    device_count = math.prod(device_matrix)
    if device_count > MAX_RANK_COUNT:
        expected = f"at most {MAX_RANK_COUNT}"
        raise FormatError("too many devices", where=where, expected=expected, found=str(device_count))
    counts, offsets = map(tuple, row_split)
    entries = tuple(tuple(entry for entry in axis if entry != -1) for axis in tensor_map)
    step, size = optimizer_shard
    split = RowSplit(counts, offsets) if counts or offsets else None
    try:
        return Layout(tuple(device_matrix), entries, size, step, split, field_size)
    except StrategyError as error:
        raise FormatError("impossible layout", where=where, found=error.marked_message) from error
