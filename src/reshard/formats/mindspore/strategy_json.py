"""The JSON form of MindSpore strategy files, read and written, and its expanded layouts folded back.

MindSpore expands an axis that several device dimensions cut to as many axes, and leaves no trace of it: 8 rows cut
by device dimensions of 2 and 2 become the axes 2 and 4, cut by one dimension each.

Source: mindspore 2.10.0, ``parallel/_parallel_serialization.py``, ``_build_json_strategy``, and JSON and protobuf
files of one compilation side by side. Keys that this reader does not know are skipped, as MindSpore does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, pairwise

from ...errors import FormatError, StrategyError
from ...tensor import Layout, Shape
from ..strict_json import json_kind, parse_json_object, shown
from .strategy_file import OperatorItem, StrategyFile, make_layout

_LARGEST_AXIS_COUNT = 16
_JsonObject = dict[str, object]


def decode_json(data: bytes, name: str) -> StrategyFile:
    """Read the JSON form of the file ``name``; raise FormatError if the bytes are no strategy file.

    Its layouts may be expanded: see :func:`fold_expanded`.
    """
    top = parse_json_object(data, name)
    operators = _object(top, "parallel_strategy_item", name)
    items = _object(top, "parallel_layout_item", name)
    layouts: dict[str, Layout] = {}
    shapes: dict[str, Shape] = {}
    for parameter in items:
        place = f"{name}: parameter {shown(parameter)}"
        item = _object(items, parameter, place)
        layouts[parameter] = layout = _layout(item, place)
        if "tensor_shape" in item and layout.row_split is None:
            shapes[parameter] = shape = tuple(_numbers(item, "tensor_shape", 63, place, low=0))
            if len(shape) != len(layout.tensor_map):
                expected = f"{len(layout.tensor_map)} axes, like tensor_map"
                raise FormatError("tensor_shape", where=place, expected=expected, found=shown(list(shape)))
    nodes = tuple(_operator(operators, node, name) for node in operators)
    return StrategyFile(nodes, layouts, shapes, _number(top, "current_stage", 32, name, low=0), name)


def _operator(operators: _JsonObject, node: str, name: str) -> OperatorItem:
    place = f"{name}: operator {shown(node)}"
    item = _object(operators, node, place)
    inputs = item.get("parallel_strategy")
    if not isinstance(inputs, list):
        raise _wrong(item, "parallel_strategy", place, "an array")
    cuts = tuple(tuple(_numbers({"parallel_strategy": cut}, "parallel_strategy", 32, place, low=0)) for cut in inputs)
    return OperatorItem(node, _number(item, "stage", 32, place, low=0), cuts)


def _layout(item: _JsonObject, place: str) -> Layout:
    step, size = (_number(item, f"opt_weight_shard_{what}", 31, place) for what in ("step", "size"))
    counts, offsets = (
        _numbers(item, key, 63, place) if key in item else [] for key in ("param_split_shape", "indices_offset")
    )
    return make_layout(
        place,
        _numbers(item, "dev_matrix", 32, place, low=0),
        [[entry] for entry in _numbers(item, "tensor_map", 31, place)],
        (step, size),
        (counts, offsets),
        _number(item, "field", 31, place),
    )


def _object(parent: _JsonObject, key: str, place: str) -> _JsonObject:
    value = parent.get(key)
    if not isinstance(value, dict):
        raise _wrong(parent, key, place, "an object")
    return value


def _numbers(item: _JsonObject, key: str, bits: int, place: str, low: int | None = None) -> list[int]:
    values = item.get(key)
    if not isinstance(values, list):
        raise _wrong(item, key, place, "an array of integers")
    return [_number({key: value}, key, bits, place, low) for value in values]


def _number(item: _JsonObject, key: str, bits: int, place: str, low: int | None = None) -> int:
    value, limit = item.get(key), 1 << bits
    if type(value) is not int:
        raise _wrong(item, key, place, "an integer")
    if not (-limit if low is None else low) <= value < limit:
        raise FormatError(shown(key), where=place, expected=f"a number of {bits} bits", found=shown(value))
    return value


def _wrong(item: _JsonObject, key: str, place: str, expected: str) -> FormatError:
    found = f"{json_kind(item[key])}: {shown(item[key])}" if key in item else "nothing"
    return FormatError(shown(key), where=place, expected=expected, found=found)


def encode_json(file: StrategyFile, shapes: Mapping[str, Shape] | None = None) -> bytes:
    """Write the JSON form, which MindSpore reads under names that end in ``.json``.

    If operators of two stages have one name, the later one stays, as in MindSpore's own merge. ``shapes`` are
    full shapes to record for parameters that ``file.expanded_shapes`` lacks; MindSpore does not read them.

    Raises
    ------
    StrategyError
        A parameter's axis is cut by several device dimensions: MindSpore writes such layouts in
        expanded form, which neither it nor anyone else can read back.

    Examples
    --------
    >>> file = StrategyFile((OperatorItem("MatMul", 0),), {"w": Layout((2, 4), ((1,), ()))})
    >>> decode_json(encode_json(file), "s.json") == file
    True
    """
    nested = sorted(name for name, layout in file.layouts.items() if any(len(axis) > 1 for axis in layout.tensor_map))
    if nested:
        raise StrategyError(
            "the JSON form of a strategy cannot hold an axis that is cut by several device dimensions",
            problems=nested,
            hint="Write the protobuf form: any name that does not end in .json.",
        )
    known = {**(shapes or {}), **file.expanded_shapes}
    top = {
        "current_stage": file.current_stage,
        "parallel_layout_item": {name: _item(layout, known.get(name)) for name, layout in file.layouts.items()},
        "parallel_strategy_item": {
            item.name: {"parallel_strategy": item.cuts, "stage": item.stage} for item in file.operators
        },
    }
    return json.dumps(top).encode()


def _item(layout: Layout, shape: Shape | None) -> _JsonObject:
    item: _JsonObject = {
        "dev_matrix": layout.device_matrix,
        "field": layout.field_size,
        "opt_weight_shard_size": layout.optimizer_shard_size,
        "opt_weight_shard_step": layout.optimizer_shard_step,
        "tensor_map": [axis[0] if axis else -1 for axis in layout.tensor_map],
    }
    if shape is not None:
        item["tensor_shape"] = shape
    if layout.row_split:
        item["param_split_shape"], item["indices_offset"] = layout.row_split.counts, layout.row_split.offsets
    return item


def may_be_expanded(layout: Layout, expanded_shape: Shape) -> bool:
    """Return whether two neighbouring axes could be one axis of the tensor that MindSpore expanded.

    Examples
    --------
    >>> layout = Layout((2, 4), ((1,), (0,)))
    >>> may_be_expanded(layout, (2, 12)), may_be_expanded(layout, (8, 12))
    (True, False)
    """
    pairs = range(len(layout.tensor_map) - 1)
    return any(_is_outer(layout, expanded_shape, axis) and layout.tensor_map[axis + 1] for axis in pairs)


def fold_expanded(layout: Layout, expanded_shape: Shape, real_shape: Shape, *, local: bool = False) -> Layout:
    """Recover the layout of a tensor from the expanded one, by the shape that the tensor really has.

    Layout and expanded shape are those of the file; ``real_shape`` is in elements, with ``local`` of one rank's
    shard. If it has as many axes as the layout, nothing was expanded. Raise StrategyError if no folding gives the real
    shape, or more than one does.

    Examples
    --------
    >>> fold_expanded(Layout((2, 2, 2), ((2,), (0,), (1,))), (2, 4, 16), (8, 16)).tensor_map
    ((2, 0), (1,))
    """
    if len(real_shape) == len(layout.tensor_map):
        return layout
    foldings = _foldings(layout, expanded_shape, real_shape, local)
    if len(foldings) != 1:
        found = "fits in more than one way" if foldings else "does not fit"
        kind = "shard" if local else "tensor"
        hint = "Use the protobuf form of the strategy: it holds the layout itself."
        raise StrategyError(f"expanded shape {list(expanded_shape)} {found} a {kind} of {list(real_shape)}", hint=hint)
    bounds = pairwise((0, *foldings[0]))
    folded = tuple(tuple(chain.from_iterable(layout.tensor_map[start:stop])) for start, stop in bounds)
    return replace(layout, tensor_map=folded)


def _foldings(layout: Layout, expanded_shape: Shape, real_shape: Shape, local: bool) -> list[tuple[int, ...]]:
    """Return up to two ways to group the expanded axes: for each real axis, the end of its group.

    ``tails[start]`` are the ways to make the real axes so far, last first, of the expanded axes from ``start`` on.
    Two of each are enough to distinguish a unique folding from an ambiguous one, and keep the work polynomial.
    """
    count = len(expanded_shape)
    if count > _LARGEST_AXIS_COUNT or count != len(layout.tensor_map):
        return []
    tails: dict[int, list[tuple[int, ...]]] = {count: [()]}
    for axis in reversed(range(len(real_shape))):
        pieces = layout.optimizer_pieces if axis == 0 else 1
        extent = real_shape[axis] * (pieces if local else 1)
        tails = {
            start: [
                (stop, *tail)
                for stop, rest in tails.items()
                if _is_axis(layout, expanded_shape, (start, stop), extent, local)
                for tail in rest
            ][:2]
            for start in range(count)
        }
    return tails.get(0, [])


def _is_axis(layout: Layout, expanded_shape: Shape, group: tuple[int, int], extent: int, local: bool) -> bool:
    """Return whether a group ``[start, stop)`` of expanded axes could be one real axis of ``extent`` elements."""
    start, stop = group
    if stop <= start:
        return False
    whole = math.prod(expanded_shape[start:stop])
    if whole != extent * (math.prod(layout.cuts[start:stop]) if local else 1):
        return False
    outer = all(_is_outer(layout, expanded_shape, axis) for axis in range(start, stop - 1))
    return outer and (stop - start == 1 or bool(layout.tensor_map[stop - 1]))


def _is_outer(layout: Layout, expanded_shape: Shape, axis: int) -> bool:
    """Return whether one device dimension cuts an axis into single elements, as all but the last of a group are."""
    return bool(layout.tensor_map[axis]) and expanded_shape[axis] == layout.cuts[axis]
