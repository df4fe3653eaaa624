"""The protobuf form of MindSpore strategy files, read and written.

Source: mindspore 2.10.0, ``train/node_strategy.proto`` (proto2, package mindspore.straspb, nothing packed).
"""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import FormatError
from ...tensor import Layout, Shape
from ..protobuf import Field, Message, bytes_field, int_field, text_field
from ..strict_json import shown
from .ms_strategy_file import OperatorItem, StrategyFile, make_layout

_CURRENT_STAGE, _OPERATOR, _LAYOUT = 1, 2, 3  # ParallelStrategyMap
_NAME, _BODY = 1, 2  # ParallelStrategyItem and ParallelLayoutItem alike
_STAGE, _CUTS = 1, 2  # ParallelStrategys
_DEV_MATRIX, _TENSOR_MAP, _SPLIT_SHAPE, _INDICES_OFFSET, _FIELD, _OPT_STEP, _OPT_SIZE = range(1, 8)  # ParallelLayouts
_DIM = 1  # ParallelStrategy, DevMatrix, TensorMap, ParamSplitShape and IndicesOffset alike

_Fields = dict[int, list[Field]]


def decode_protobuf(data: bytes, name: str) -> StrategyFile:
    """Read the protobuf form.

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
    >>> decode_protobuf(bytes.fromhex("0802"), "s.ckpt")
    StrategyFile(operators=(), layouts={}, expanded_shapes={}, current_stage=2, name='s.ckpt')
    """
    fields = Message.whole(data, name).grouped()
    place = f"{name}: ParallelStrategyMap"
    current_stage = _one(fields, _CURRENT_STAGE, "current_stage", place).unsigned(32)
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
    stage = _one(body, _STAGE, "stage", place).unsigned(32)
    cuts = (tuple(_unsigned(_dims(cut.message()))) for cut in body.get(_CUTS, []))
    return OperatorItem(node, stage, tuple(cuts))


def _layout_item(message: Message, name: str, known: dict[bytes, Layout]) -> tuple[str, Layout]:
    """A parameter and its layout; ``known`` holds those that were read, by their bytes: a model has few kinds."""
    fields, place = message.grouped(), f"{name}, byte {message.start}"
    parameter = _one(fields, _NAME, "param_name", place).message().text()
    body = _one(fields, _BODY, "parallel_layouts", place).message()
    payload = body.payload
    if payload not in known:
        known[payload] = _layout(body.grouped(), f"{place}, parameter {shown(parameter)}")
    return parameter, known[payload]


def _layout(fields: _Fields, place: str) -> Layout:
    split_shape, offsets = fields.get(_SPLIT_SHAPE, []), fields.get(_INDICES_OFFSET, [])
    return make_layout(
        place,
        _unsigned(_dims(_one(fields, _DEV_MATRIX, "dev_matrix", place).message())),
        _tensor_map(fields, place),
        (
            _int32(fields, _OPT_STEP, "opt_weight_shard_step", place),
            _int32(fields, _OPT_SIZE, "opt_weight_shard_size", place),
        ),
        (_int64s(split_shape), _int64s(offsets)),
        _int32(fields, _FIELD, "field", place),
    )


def _tensor_map(fields: _Fields, place: str) -> list[list[int]]:
    """One message is a flat map; several are one axis each, and empty ones only say that there are several."""
    axes = [_signed(_dims(axis.message()), 32) for axis in fields.get(_TENSOR_MAP, [])]
    if not axes:
        raise FormatError("missing field", where=place, expected="tensor_map", found="none")
    return [[entry] for entry in axes[0]] if len(axes) == 1 else [axis for axis in axes if axis]


def _dims(message: Message) -> list[Field]:
    return message.grouped().get(_DIM, [])


def _unsigned(dims: Iterable[Field]) -> list[int]:
    return [number for dim in dims for number in dim.unsigned_numbers(32)]


def _signed(dims: Iterable[Field], bits: int) -> list[int]:
    return [number for dim in dims for number in dim.signed_numbers(bits)]


def _int64s(messages: Iterable[Field]) -> list[int]:
    return [number for message in messages for number in _signed(_dims(message.message()), 64)]


def _int32(fields: _Fields, number: int, what: str, place: str) -> int:
    return _one(fields, number, what, place).signed(32)


def _one(fields: _Fields, number: int, what: str, place: str) -> Field:
    found = fields.get(number, [])
    if len(found) != 1:
        what_is_wrong = "repeated field" if found else "missing field"
        raise FormatError(what_is_wrong, where=place, expected=f"{what} once", found=f"{len(found)} times")
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
    items += [bytes_field(_OPERATOR, _encode_operator(item)) for item in file.operators]
    items += [bytes_field(_LAYOUT, _encode_item(name, layout)) for name, layout in file.layouts.items()]
    return b"".join(items)


def _encode_operator(item: OperatorItem) -> bytes:
    cuts = (bytes_field(_CUTS, _encode_dims(cut)) for cut in item.cuts)
    body = int_field(_STAGE, item.stage) + b"".join(cuts)
    return text_field(_NAME, item.name) + bytes_field(_BODY, body)


def _encode_item(name: str, layout: Layout) -> bytes:
    return text_field(_NAME, name) + bytes_field(_BODY, _encode_layout(layout))


def _encode_layout(layout: Layout) -> bytes:
    split = layout.row_split
    parts = [bytes_field(_DEV_MATRIX, _encode_dims(layout.device_matrix))]
    parts += [bytes_field(_TENSOR_MAP, _encode_dims(axis)) for axis in _written_map(layout)]
    parts += [
        bytes_field(_SPLIT_SHAPE, _encode_dims(split.counts if split else ())),
        bytes_field(_INDICES_OFFSET, _encode_dims(split.offsets if split else ())),
        int_field(_FIELD, layout.field_size),
        int_field(_OPT_STEP, layout.optimizer_shard_step),
        int_field(_OPT_SIZE, layout.optimizer_shard_size),
    ]
    return b"".join(parts)


def _written_map(layout: Layout) -> list[Shape]:
    """The tensor map as MindSpore writes it: flat where it can be, else nested, and then never as one message."""
    axes = [axis or (-1,) for axis in layout.tensor_map]
    if all(len(axis) == 1 for axis in axes):
        return [tuple(axis[0] for axis in axes)]
    return axes if len(axes) > 1 else [*axes, ()]


def _encode_dims(dims: Shape) -> bytes:
    return b"".join(int_field(_DIM, number) for number in dims)
