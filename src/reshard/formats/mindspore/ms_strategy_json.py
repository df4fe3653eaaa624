"""The JSON form of MindSpore strategy files, read and written.

Source: mindspore 2.10.0, ``parallel/_parallel_serialization.py``, ``_build_json_strategy``, and files that
its compiler wrote. Keys this reader does not know are stepped over, as MindSpore does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ...errors import FormatError, StrategyError
from ...tensor import Layout, Shape
from ..strict_json import json_kind, parse_json_object, shown
from .ms_strategy_file import OperatorItem, StrategyFile, make_layout

_JsonObject = dict[str, object]


def decode_json(data: bytes, name: str) -> StrategyFile:
    """Read the JSON form.

    An axis that several device dimensions cut is expanded to several axes in this form, without a
    trace; the layouts come out as the file has them (see ``fold_expanded``).

    Parameters
    ----------
    data
        The whole file.
    name
        What it is called, for errors.

    Raises
    ------
    FormatError
        The bytes are no strategy file.

    Examples
    --------
    >>> file = decode_json(b'{"current_stage": 2, "parallel_strategy_item": {}, "parallel_layout_item": {}}', "s.json")
    >>> file.layouts
    {}
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
            shapes[parameter] = _shape(item, len(layout.tensor_map), place)
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


def _shape(item: _JsonObject, axis_count: int, place: str) -> Shape:
    shape = tuple(_numbers(item, "tensor_shape", 63, place, low=0))
    if len(shape) != axis_count:
        raise FormatError("tensor_shape", where=place, expected=f"{axis_count} axes as in tensor_map", found=str(shape))
    return shape


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

    Where operators of two stages have one name, the later stays, as in MindSpore's own merge.

    Parameters
    ----------
    file
        What to write.
    shapes
        Full shapes to record for parameters that ``file.expanded_shapes`` does not have, by the
        name in the file; MindSpore does not read them.

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
