"""Conversions and limits as JSON, and back, by the type hints of their dataclasses.

A dataclass is an object with a key for each field, or an array of its fields; an enumeration is its value, a tuple an
array, a frozen set a sorted array. What thousands of tensors have in common is written once. Decoding is strict, as
anyone can write such a document: every key must be there and no other, numbers are bounded, and nothing is converted (a
boolean is no number). It takes time and memory that are linear in the document.
"""

from __future__ import annotations

import math
import types
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache, partial
from itertools import product
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import FormatError
from ..formats.safetensors import MAX_AXIS_COUNT
from ..formats.strict_json import json_kind, shown
from ..tensor import MAX_RANK_COUNT, Box, DType, Layout, RowSplit, Shape, Strategy, TensorSpec, extent_of
from .catalog import Entry, Placement, SourceObject, SourceSharding
from .outputs.output import MAX_NAME_LENGTH, Attachment
from .targets import TARGETS, Target

Decoder = Callable[[Any], Any]

MAX_INTEGER = 2**63 - 1
_MAX_CORNERS = 1 << 24
_MAX_ENTRY_COUNT = 500_000  # planning takes some 1.4 KB and 40 microseconds a tensor
_SHOWN_PLACE = 100
_SCALARS = {bool: "a boolean", float: "a number with a point", str: "a string", types.NoneType: "null"}
_SIGNED = frozenset({"copy_bases", "optimizer_shard_size", "optimizer_shard_step"})
"""Fields whose integers may be -1."""


def encode(value: Any, hint: object = None) -> Any:
    """Express a value in JSON's types; ``hint`` is its type hint, if that says more than its class."""
    own: type = type(value)
    form = _COMPACT.get(hint) or _COMPACT.get(own)
    if form:
        return form[0](value)
    if is_dataclass(own):
        found = {name: encode(getattr(value, name), hint) for name, hint in _hints(own).items()}
        if own in _POSITIONAL:
            return list(found.values())
        return {"kind": _KIND_OF[own], **found} if own in _KIND_OF else found
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: encode(each) for key, each in value.items()}
    if isinstance(value, tuple | list | frozenset):
        return [encode(each) for each in (sorted(value) if isinstance(value, frozenset) else value)]
    return value


def decode(hint: Any, value: object) -> Any:
    """Build the value of a type hint that :func:`encode` expressed.

    Raise FormatError for keys or values that do not fit the hint; its ``where`` is the path to them.

    Examples
    --------
    >>> decode(TensorSpec, {"name": "w", "dtype": "I8", "shape": [2, 3]})
    TensorSpec(name='w', dtype=<DType.I8: 'I8'>, shape=(2, 3))
    >>> decode(TensorSpec, {"name": "w", "dtype": "I8", "shape": [2, True]})
    Traceback (most recent call last):
    ...
    reshard.errors.FormatError: shape: item 1: expected an integer from 0 to 9223372036854775807, found True
    """
    return _decoder(hint)(value)


@cache
def _decoder(hint: Any) -> Decoder:
    origin, args = get_origin(hint), get_args(hint)
    if hint in _COMPACT:
        return _COMPACT[hint][1]
    if hint is Target:
        return partial(_decode_kind, {kind: _decoder_of_fields(of) for kind, of in TARGETS.items()})
    if isinstance(hint, type) and is_dataclass(hint):
        return _decoder_of_fields(hint)
    if origin in (Union, types.UnionType):
        return _decoder_of_union(args)
    if origin is tuple or origin is frozenset:
        if origin is tuple and args[0] is int:
            return integers
        return lambda value: origin(each_of(value, _decoder(args[0])))
    if origin is not None and issubclass(origin, Mapping):
        return lambda value: {key: at(key, _decoder(args[1]), each) for key, each in mapping(value).items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return partial(choice, {member.value: member for member in hint})
    return _PLAIN.get(hint) or partial(_exact, hint)


@cache
def _hints(of: type) -> dict[str, Any]:
    hints = get_type_hints(of)
    return {field.name: hints[field.name] for field in fields(of) if field.init}


def _decoder_of_fields(of: type) -> Decoder:
    decoders: dict[str, Any] = {name: _decoder(hint) for name, hint in _hints(of).items()}
    decoders |= {name: partial(decoders[name], least=-1) for name in decoders.keys() & _SIGNED}

    def decode_fields(value: object) -> object:
        if of in _POSITIONAL:
            found: Mapping[str, object] = dict(zip(decoders, items(value, len(decoders)), strict=True))
        else:
            found = fields_of(value, decoders)
        return of(**{name: at(name, decoder, found[name]) for name, decoder in decoders.items()})

    return decode_fields


def _decode_kind(decoders: Mapping[str, Decoder], value: object) -> object:
    found = dict(mapping(value))
    decoder = at("kind", partial(choice, decoders), found.pop("kind", None))
    return decoder(found)


def _decoder_of_union(args: tuple[Any, ...]) -> Decoder:
    if len(args) == 2 and types.NoneType in args:
        [of] = set(args) - {types.NoneType}
        return lambda value: None if value is None else _decoder(of)(value)
    expected = " or ".join(_SCALARS.get(of, "an integer") for of in args)

    def decode_scalar(value: object) -> object:
        if type(value) not in args:
            raise refused(expected, value)
        return integer(value, least=-MAX_INTEGER) if type(value) is int else value

    return decode_scalar


def _decode_bytes(value: object) -> bytes:
    try:
        return bytes.fromhex(text(value))
    except ValueError:
        raise refused("bytes in hexadecimal", value) from None


def _exact(of: type, value: object) -> object:
    if type(value) is not of:
        raise refused(_SCALARS[of], value)
    return value


# What compact forms and other documents are made of. All raise FormatError.


def refused(expected: str, found: object, where: str = "") -> FormatError:
    """Return the error for a value that is not as it must be."""
    return FormatError("", where=where, expected=expected, found=shown(found))


def at(place: str, decoder: Decoder, value: object) -> Any:
    """Decode a value, and put its place before that of an error."""
    try:
        return decoder(value)
    except FormatError as error:
        raise error.at(place if place.isprintable() and len(place) <= _SHOWN_PLACE else shown(place)) from None


def each_of(value: object, decoder: Decoder) -> list[Any]:
    """Decode an array item by item, and put the index before the place of an error."""
    found, made = items(value), list[Any]()
    try:
        for each in found:
            made.append(decoder(each))  # one by one: how many are made tells where an error is
    except FormatError as error:
        raise error.at(f"item {len(made)}") from None
    return made


def integer(value: object, least: int = 0, most: int = MAX_INTEGER) -> int:
    """Return an integer within bounds."""
    if type(value) is not int or not least <= value <= most:
        raise refused(f"an integer from {least} to {most}", value)
    return value


def integers(value: object, least: int = 0) -> tuple[int, ...]:
    """Return integers that are not less than ``least``."""
    found = items(value)
    if found and ({*map(type, found)} != {int} or min(found) < least or max(found) > MAX_INTEGER):
        each_of(found, partial(integer, least=least))  # slower, but tells which
    return tuple(found)


def text(value: object) -> str:
    """Return a string."""
    if type(value) is not str:
        raise FormatError("", expected="a string", found=json_kind(value))
    return value


def choice(of: Mapping[str, Any], value: object) -> Any:
    """Return the value that a string names."""
    if type(value) is not str or value not in of:
        raise refused(f"one of {', '.join(of)}", value)
    return of[value]


def items(value: object, *counts: int) -> list[Any]:
    """Return an array, of one of these lengths if any are given."""
    if type(value) is not list or (counts and len(value) not in counts):
        expected = f"an array of {' or '.join(map(str, counts))}" if counts else "an array"
        found = shown(value) if type(value) is list else json_kind(value)
        raise FormatError("", expected=expected, found=found)
    return value


def mapping(value: object) -> Mapping[str, Any]:
    """Return an object."""
    if type(value) is not dict:
        raise FormatError("", expected="an object", found=json_kind(value))
    return value


def fields_of(value: object, required: Collection[str], optional: Collection[str] = ()) -> Mapping[str, Any]:
    """Return an object with these keys and no others."""
    found = mapping(value)
    if not set(required) <= found.keys() <= {*required, *optional}:
        raise FormatError("wrong keys", expected=", ".join(required), found=shown(sorted(found)))
    return found


_PLAIN: dict[Any, Decoder] = {int: integer, str: text, bytes: _decode_bytes, object: lambda value: value}


# Compact forms.


@dataclass(frozen=True, slots=True)
class _EntryKind:
    """All of an entry but its name and the places that hold its boxes; ``boxes`` are None for the whole tensor."""

    dtype: DType
    shape: Shape
    sharding: SourceSharding
    boxes: tuple[Box, ...] | None
    axes: Shape = ()

    def tiling(self) -> tuple[Shape, tuple[Box, ...]]:
        """Return the extent and the boxes, unless no reader could hold such a tensor."""
        if len(self.shape) > MAX_AXIS_COUNT:
            raise refused(f"at most {MAX_AXIS_COUNT} axes", len(self.shape))
        if math.prod(extent or 1 for extent in self.shape) * self.dtype.bits > MAX_INTEGER:
            raise refused("less than 2**63 bits", self.shape)
        if math.prod(self.shape) * self.dtype.bits % 8:
            raise refused("elements that fill whole bytes", self.shape)
        extent, _ = extent_of(TensorSpec("", self.dtype, self.shape))
        if self.axes and (len(extent) != len(self.axes) or sorted(self.axes) != list(range(len(extent)))):
            raise refused(f"an order of {len(extent)} axes", self.axes)
        return extent, (Box.whole(extent),) if self.boxes is None else self.boxes


def _encode_entries(entries: tuple[Entry, ...]) -> dict[str, Any]:
    """Write every distinct kind once; a tensor is [name, index of its kind, holders of the first box, ...].

    The holders of a box are [object, first byte, object, first byte, ...].
    """
    numbers: dict[object, int] = {}
    kinds: list[_EntryKind] = []
    tensors: list[list[Any]] = []
    for entry in entries:
        spec, boxes = entry.spec, tuple([placement.box for placement in entry.placements])
        is_whole = len(boxes) == 1 and boxes[0].stop == extent_of(spec)[0] and not any(boxes[0].start)
        # Members of enumerations compute their hashes in Python; their ids are faster.
        key = id(spec.dtype), spec.shape, id(entry.sharding), is_whole or boxes, entry.axes
        number = numbers.get(key)
        if number is None:
            number = numbers[key] = len(kinds)
            kinds.append(_EntryKind(spec.dtype, spec.shape, entry.sharding, None if is_whole else boxes, entry.axes))
        tensors.append([spec.name, number, *[[n for pair in p.holders for n in pair] for p in entry.placements]])
    # Nearly every tensor is row-major: only the others say how they are stored.
    written = [encode(kind) for kind in kinds]
    return {"kinds": [each if each[-1] else each[:-1] for each in written], "tensors": tensors}


def _decode_entries(value: object) -> tuple[Entry, ...]:
    found = fields_of(value, ("kinds", "tensors"))
    written = at("kinds", items, found["kinds"])
    without = len(fields(_EntryKind)) - 1
    full = [[*kind, []] if type(kind) is list and len(kind) == without else kind for kind in written]
    kinds: tuple[_EntryKind, ...] = at("kinds", partial(decode, tuple[_EntryKind, ...]), full)
    if len(at("tensors", items, found["tensors"])) > _MAX_ENTRY_COUNT:
        raise FormatError("", where="tensors", expected=f"at most {_MAX_ENTRY_COUNT}", found=str(len(found["tensors"])))
    tilings = [kind.tiling() for kind in kinds]
    check_tilings(tilings)
    known = [(kind, boxes) for kind, (_, boxes) in zip(kinds, tilings, strict=True)]
    numbers: list[object] = []

    def decode_tensor(value: object) -> Entry:
        if type(value) is not list or len(value) < 2:
            raise refused("an array of a name, an index and holders", value)
        name, number, *places = value
        if type(name) is not str or len(name) > MAX_NAME_LENGTH:
            raise refused(f"a name of at most {MAX_NAME_LENGTH} characters", name)
        if type(number) is not int or not 0 <= number < len(known):
            raise refused(f"an index below {len(known)}", number)
        kind, boxes = known[number]
        if len(places) != len(boxes):
            raise refused(f"holders of {len(boxes)} boxes", len(places))
        placements = []
        for box, holders in zip(boxes, places, strict=True):
            if type(holders) is not list or not holders or len(holders) % 2:
                raise refused("holders, each an object and a first byte", holders)
            numbers.extend(holders)
            placements.append(Placement(box, tuple(zip(holders[::2], holders[1::2], strict=True))))
        return Entry(TensorSpec(name, kind.dtype, kind.shape), tuple(placements), kind.sharding, axes=kind.axes)

    entries = tuple(at("tensors", lambda value: each_of(value, decode_tensor), found["tensors"]))
    at("holders", integers, numbers)  # all at once: one by one they would take as long as all the rest
    return entries


def check_tilings(tilings: Sequence[tuple[Shape, Sequence[Box]]]) -> None:
    """Refuse boxes that do not tile their extent, each element once; they may hang over the end, but start inside."""
    corner_count = 0
    for extent, boxes in tilings:
        whole, inside = Box.whole(extent), []
        for box in boxes:
            if len(box.start) != len(extent) or len(box.stop) != len(extent):
                raise refused(f"boxes of {len(extent)} axes", box)
            held = whole.intersect(box)
            if min(box.shape, default=0) < 0 or (held is None and not box.is_empty):
                raise refused(f"boxes inside {list(extent)}", box)
            inside += [held] if held else []
        if whole.is_empty or inside == [whole]:
            continue
        cut = [axis for axis, n in enumerate(extent) if any(b.start[axis] or b.stop[axis] != n for b in inside)]
        corner_count += len(inside) << len(cut)
        if corner_count > _MAX_CORNERS:
            raise refused(f"boxes of at most {_MAX_CORNERS} corners", f"{len(boxes)} cut on {len(cut)} axes")
        # What boxes cover together changes only at their corners. So they cover every element once just when their
        # corners, signed by parity, add up to those of the whole. Axes that no box cuts need no corners.
        signed: Counter[Shape] = Counter()
        for box, sign in (*((box, 1) for box in inside), (whole, -1)):
            for ends in product((0, 1), repeat=len(cut)):
                corner = tuple([(box.stop if end else box.start)[axis] for axis, end in zip(cut, ends, strict=True)])
                signed[corner] += -sign if sum(ends) % 2 else sign
        if any(signed.values()):
            raise refused(f"boxes that tile {list(extent)}, each element once", boxes)


def _encode_strategy(strategy: Strategy) -> dict[str, Any]:
    """Write every distinct layout once; stages refer to them by index."""
    numbers: dict[Layout, int] = {}
    stages = [{name: numbers.setdefault(each, len(numbers)) for name, each in s.items()} for s in strategy.stages]
    return {"device_count": strategy.device_count, "layouts": encode(list(numbers)), "stages": stages}


def _decode_strategy(value: object) -> Strategy:
    found = fields_of(value, ("device_count", "layouts", "stages"))
    device_count, stages = at("device_count", integer, found["device_count"]), at("stages", items, found["stages"])
    if not 0 < device_count * len(stages) <= MAX_RANK_COUNT:
        raise refused(f"1 to {MAX_RANK_COUNT} ranks", device_count * len(stages))
    layouts: tuple[Layout, ...] = at("layouts", partial(decode, tuple[Layout, ...]), found["layouts"])
    if any(max(len(layout.device_matrix), len(layout.tensor_map)) > MAX_AXIS_COUNT for layout in layouts):
        raise FormatError("", where="layouts", expected=f"at most {MAX_AXIS_COUNT} axes")

    def decode_stage(value: object) -> Mapping[str, Layout]:
        numbers = mapping(value)
        if max(map(len, numbers), default=0) > MAX_NAME_LENGTH:
            raise refused(f"names of at most {MAX_NAME_LENGTH} characters", max(numbers, key=len))
        return {name: layouts[integer(number, most=len(layouts) - 1)] for name, number in numbers.items()}

    return Strategy(device_count, tuple(at("stages", lambda value: each_of(value, decode_stage), stages)))


_COMPACT: dict[Any, tuple[Callable[[Any], Any], Decoder]] = {
    tuple[Entry, ...]: (_encode_entries, _decode_entries),
    Strategy: (_encode_strategy, _decode_strategy),
}
"""Types with forms of their own."""
_POSITIONAL = frozenset({Attachment, Box, Layout, RowSplit, SourceObject, _EntryKind})
"""Dataclasses that are arrays of their fields."""
_KIND_OF: dict[type, str] = {of: kind for kind, of in TARGETS.items()}
