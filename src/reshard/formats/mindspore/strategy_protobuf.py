"""The protobuf form of MindSpore strategy files, read and written.

Source: mindspore 2.10.0, ``train/node_strategy.proto`` (proto2, package mindspore.straspb, nothing packed).
"""

from __future__ import annotations

from ...errors import FormatError
from ...tensor import Layout, Shape
from ..protobuf import Field, Message, bytes_field, int_field, text_field
from ..strict_json import shown
from .strategy_file import OperatorItem, StrategyFile, make_layout

_CURRENT_STAGE, _OPERATOR, _LAYOUT = 1, 2, 3  # ParallelStrategyMap
_NAME, _BODY = 1, 2  # ParallelStrategyItem and ParallelLayoutItem alike
_STAGE, _CUTS = 1, 2  # ParallelStrategys
_DEV_MATRIX, _TENSOR_MAP, _SPLIT_SHAPE, _INDICES_OFFSET, _FIELD, _OPT_STEP, _OPT_SIZE = range(1, 8)  # ParallelLayouts
_DIM = 1  # ParallelStrategy, DevMatrix, TensorMap, ParamSplitShape and IndicesOffset alike

_Fields = dict[int, list[Field]]


def decode_protobuf(data: bytes, name: str) -> StrategyFile:
    """Read the protobuf form of the file ``name``; raise FormatError if the bytes are no strategy file.

    Examples
    --------
    >>> decode_protobuf(bytes.fromhex("0802"), "s.ckpt")
    StrategyFile(operators=(), layouts={}, expanded_shapes={}, current_stage=2, name='s.ckpt')
    """
    fields = Message.whole(data, name).grouped()
    current_stage = _one(fields, _CURRENT_STAGE, "current_stage", f"{name}: ParallelStrategyMap").integer(32)
    operators = tuple(_operator(item.message(), name) for item in fields.get(_OPERATOR, []))
    layouts: dict[str, Layout] = {}
    known: dict[bytes, Layout] = {}
    for item in fields.get(_LAYOUT, []):
        parameter, layout = _layout_item(item.message(), name, known)
        if parameter in layouts:
            raise FormatError("repeated parameter", where=f"{name}, byte {item.offset}", found=shown(parameter))
        layouts[parameter] = layout
    return StrategyFile(operators, layouts, {}, current_stage, name)


def _operator(message: Message, name: str) -> OperatorItem:
    fields, place = message.grouped(), f"{name}, byte {message.start}"
    node = _one(fields, _NAME, "node_name", place).message().text()
    body = _one(fields, _BODY, "parallel_strategys", place).message().grouped()
    stage = _one(body, _STAGE, "stage", place).integer(32)
    cuts = (tuple(_dims(cut)) for cut in body.get(_CUTS, []))
    return OperatorItem(node, stage, tuple(cuts))


def _layout_item(message: Message, name: str, known: dict[bytes, Layout]) -> tuple[str, Layout]:
    """Read a parameter and its layout; ``known`` has the layouts so far by their bytes, few for a whole model."""
    fields, place = message.grouped(), f"{name}, byte {message.start}"
    parameter = _one(fields, _NAME, "param_name", place).message().text()
    body = _one(fields, _BODY, "parallel_layouts", place).message()
    payload = body.payload
    if payload not in known:
        known[payload] = _layout(body.grouped(), f"{place}, parameter {shown(parameter)}")
    return parameter, known[payload]


def _layout(fields: _Fields, place: str) -> Layout:
    def int32(number: int, what: str) -> int:
        return _one(fields, number, what, place).integer(32, is_signed=True)

    def int64s(number: int) -> list[int]:
        return [value for item in fields.get(number, []) for value in _dims(item, 64, is_signed=True)]

    return make_layout(
        place,
        _dims(_one(fields, _DEV_MATRIX, "dev_matrix", place)),
        _tensor_map(fields, place),
        (int32(_OPT_STEP, "opt_weight_shard_step"), int32(_OPT_SIZE, "opt_weight_shard_size")),
        (int64s(_SPLIT_SHAPE), int64s(_INDICES_OFFSET)),
        int32(_FIELD, "field"),
    )


def _tensor_map(fields: _Fields, place: str) -> list[list[int]]:
    """One message is a flat map; several are one axis each, and empty ones only mark that there are several."""
    axes = [_dims(axis, is_signed=True) for axis in fields.get(_TENSOR_MAP, [])]
    if not axes:
        raise FormatError("missing field", where=place, expected="tensor_map", found="none")
    return [[entry] for entry in axes[0]] if len(axes) == 1 else [axis for axis in axes if axis]


def _dims(item: Field, bits: int = 32, *, is_signed: bool = False) -> list[int]:
    dims = item.message().grouped().get(_DIM, [])
    return [number for dim in dims for number in dim.integers(bits, is_signed=is_signed)]


def _one(fields: _Fields, number: int, what: str, place: str) -> Field:
    found = fields.get(number, [])
    if len(found) != 1:
        problem = "repeated field" if found else "missing field"
        raise FormatError(problem, where=place, expected=f"{what} once", found=f"{len(found)} times")
    return found[0]


def encode_protobuf(file: StrategyFile) -> bytes:
    """Write the protobuf form, which MindSpore reads under every name that does not end in ``.json``.

    Examples
    --------
    >>> file = StrategyFile((OperatorItem("MatMul", 0),), {"w": Layout((2, 4), ((1, 0),))})
    >>> decode_protobuf(encode_protobuf(file), "s.ckpt") == file
    True
    """
    items = [int_field(_CURRENT_STAGE, file.current_stage)]
    for operator in file.operators:
        cuts = (bytes_field(_CUTS, _encode_dims(cut)) for cut in operator.cuts)
        body = int_field(_STAGE, operator.stage) + b"".join(cuts)
        items.append(bytes_field(_OPERATOR, text_field(_NAME, operator.name) + bytes_field(_BODY, body)))
    for name, layout in file.layouts.items():
        body = _encode_layout(layout)
        items.append(bytes_field(_LAYOUT, text_field(_NAME, name) + bytes_field(_BODY, body)))
    return b"".join(items)


def _encode_layout(layout: Layout) -> bytes:
    split = layout.row_split
    # MindSpore writes the tensor map flat if possible, else nested, and then never as one message.
    axes: list[Shape] = [axis or (-1,) for axis in layout.tensor_map]
    if all(len(axis) == 1 for axis in axes):
        axes = [tuple(axis[0] for axis in axes)]
    elif len(axes) == 1:
        axes.append(())
    parts = [bytes_field(_DEV_MATRIX, _encode_dims(layout.device_matrix))]
    parts += [bytes_field(_TENSOR_MAP, _encode_dims(axis)) for axis in axes]
    parts += [
        bytes_field(_SPLIT_SHAPE, _encode_dims(split.counts if split else ())),
        bytes_field(_INDICES_OFFSET, _encode_dims(split.offsets if split else ())),
        int_field(_FIELD, layout.field_size),
        int_field(_OPT_STEP, layout.optimizer_shard_step),
        int_field(_OPT_SIZE, layout.optimizer_shard_size),
    ]
    return b"".join(parts)


def _encode_dims(dims: Shape) -> bytes:
    return b"".join(int_field(_DIM, number) for number in dims)
