"""Pickles of other programs, read as plain values: nothing is imported, called or made that a pickle asks for.

A pickle is a program for a stack machine. The opcodes here are those that write data; a class or function may only be
one of a closed set, and applying it makes a :class:`PickledObject`, a record of what was asked for. Every other opcode
and name is refused.

Source: ``pickletools`` of Python 3.14; protocols 2 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ..errors import FormatError
from .strict_json import shown

_MEMORY_PER_BYTE = 10
_MEMORY_BASE_BYTES = 64 << 20

_MAX_INT_BYTES = 16
_SHOWN_CHARACTERS = 200
_OS_MODULES = ("posix", "nt")  # what pickles call the module os
# What values take, in bytes, besides a place on the stack or in the memo, of which one byte fills one at most. Genuine
# documents stay below eight times their length.
_LEAF_BYTES, _DICT_BYTES, _LIST_BYTES, _TUPLE_BYTES, _OBJECT_BYTES, _ITEM_BYTES = 40, 80, 72, 56, 72, 8
_MEMBER_BYTES = 64


@dataclass(frozen=True, slots=True, eq=False)
class PickledGlobal:
    """A class or function that a pickle names: ``torch.float32``."""

    path: str


@dataclass(slots=True, eq=False)
class PickledObject:
    """What a pickle makes of a class or function: the dotted name, its arguments, and what was set afterwards.

    ``values`` are those of the attributes ``names``; without names they are a tuple that the class takes apart.
    """

    path: str
    args: tuple[object, ...]
    names: tuple[object, ...] = ()
    values: tuple[object, ...] = ()

    def get(self, name: str) -> object:
        """Return an attribute; None if it was not set."""
        return self.values[self.names.index(name)] if name in self.names else None


PERSISTENT = "persistent id"
"""The path of an object that a pickle refers to by an id of its own; the id is the only argument."""


def parse_pickle(data: bytes, where: str, allowed: Collection[str]) -> object:
    """Return the value of a pickle that must end where the data does.

    ``allowed`` are the dotted names that it may use. Lists, dictionaries, tuples, text, bytes and numbers are
    themselves; an ``OrderedDict`` is a dictionary, a ``torch.Size`` a tuple. Values can be as deep as the data is long,
    and refer to each other in circles: walk only as far as is expected.

    Raises
    ------
    FormatError
        The bytes are no pickle, use another name or opcode, or would take too much memory.

    Examples
    --------
    >>> parse_pickle(bytes.fromhex("80 04 95 09 00 00 00 00 00 00 00 7d 8c 01 61 4b 01 85 73 2e"), "m", ())
    {'a': (1,)}
    >>> parse_pickle(b"cos\\nsystem\\n.", "m", ["torch.Size"])
    Traceback (most recent call last):
    ...
    reshard.errors.FormatError: m, byte 0: a pickle that is no plain checkpoint: expected only names that checkpoints \
use, found os.system
    Nothing of it was executed. Take the checkpoint from its origin again, or do not trust it.
    """
    machine = _Machine(data, where, allowed)
    try:
        return machine.run()
    except (IndexError, struct.error):
        raise machine.error("broken pickle", "a value for every opcode", "too few") from None
    except UnicodeDecodeError as error:
        raise machine.error("broken pickle", "text in UTF-8", shown(error.object[:20])) from None


class _Machine:
    """The stack, the memo and the position in the data."""

    def __init__(self, data: bytes, where: str, allowed: Collection[str]) -> None:
        self._data, self._where, self._allowed = data, where, allowed
        self._at = self._opcode_at = 0
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: list[object] = []
        self._dictionaries: dict[int, int] = {}  # places in the memo by identity
        self._names: dict[tuple[object, ...], tuple[object, ...]] = {}
        self._spare_bytes = _MEMORY_PER_BYTE * len(data) + _MEMORY_BASE_BYTES

    def error(self, what: str, expected: str, found: str, hint: str = "") -> FormatError:
        where = f"{self._where}, byte {self._opcode_at}"
        return FormatError(what, where=where, expected=expected, found=found, hint=hint)

    def run(self) -> object:
        data, stack, memo = self._data, self._stack, self._memo
        while True:
            self._opcode_at = at = self._at
            opcode = data[at] if at < len(data) else None
            # Half of a document is these three.
            if opcode == _MEMOIZE:
                self._at = at + 1
                self.memoize()
            elif opcode == _BINGET:
                stack.append(memo[data[at + 1]])
                self._at = at + 2
            elif opcode == _LONG_BINGET and at + 5 <= len(data):
                stack.append(memo[int.from_bytes(data[at + 1 : at + 5], "little")])
                self._at = at + 5
            elif opcode == _STOP:
                self._at = at + 1
                return self._result()
            elif (action := _ACTIONS.get(opcode)) is not None:
                self._at = at + 1
                action(self)
            else:
                found = "the end of the bytes" if opcode is None else f"{opcode:#04x}"
                raise self.error("broken pickle", "an opcode that writes data", found)

    def _result(self) -> object:
        if self._at != len(self._data) or len(self._stack) != 1 or self._marks:
            found = f"{len(self._stack)} values, {len(self._data) - self._at} bytes after them"
            raise self.error("broken pickle", "one value and nothing after it", found)
        return self._stack[0]

    def spend(self, nbytes: int) -> None:
        self._spare_bytes -= nbytes
        if self._spare_bytes < 0:
            most = (_MEMORY_PER_BYTE * len(self._data) + _MEMORY_BASE_BYTES) >> 20
            raise self.error(f"too many values for {len(self._data)} bytes", f"at most {most} MiB of them", "more")

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise self.error("broken pickle", f"{count} bytes", f"{len(self._data) - self._at}")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def line(self) -> str:
        stop = self._data.find(b"\n", self._at)
        if stop < 0:
            raise self.error("broken pickle", "a line", "no end of it")
        text = self.take(stop - self._at)
        self._at += 1
        return text.decode()

    def push(self, value: object, nbytes: int = _LEAF_BYTES) -> None:
        self.spend(nbytes)
        self._stack.append(value)

    def pop(self) -> object:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise self.error("broken pickle", "a value", "a mark")
        return self._stack.pop()

    def mark(self) -> None:
        self.spend(_LEAF_BYTES)
        self._marks.append(len(self._stack))

    def pop_mark(self) -> list[object]:
        first = self._marks.pop()
        self.spend(-_LEAF_BYTES)
        items = self._stack[first:]
        del self._stack[first:]
        return items

    def text(self, width: int) -> None:
        data = self.take(self.number(width))
        self.push(data.decode("utf-8"), _LEAF_BYTES + len(data))

    def raw(self, width: int) -> None:
        data = self.take(self.number(width))
        self.push(data, _LEAF_BYTES + len(data))

    def signed(self, count: int) -> None:
        if count > _MAX_INT_BYTES:
            raise self.error("broken pickle", f"numbers of at most {_MAX_INT_BYTES} bytes", f"{count} bytes")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def tuple_of(self, count: int | None) -> None:
        items = self.pop_mark() if count is None else [self.pop() for _ in range(count)][::-1]
        self.push(tuple(items), _TUPLE_BYTES + _ITEM_BYTES * len(items))

    def append(self, items: list[object]) -> None:
        target = self._top()
        if type(target) is not list:
            raise self.error("broken pickle", "a list to fill", type(target).__name__)
        self.spend(_ITEM_BYTES * len(items))
        target.extend(items)

    def put(self, items: list[object]) -> None:
        target = self._top()
        if type(target) is not dict or len(items) % 2:
            expected = "a dictionary, and a value for every key"
            raise self.error("broken pickle", expected, f"{type(target).__name__}, {len(items)} keys and values")
        self.spend(_MEMBER_BYTES * (len(items) // 2))
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a tuple walks all of it; objects are told apart by identity.
            if not isinstance(key, str | int | bytes | PickledObject | None):
                raise self.error("broken pickle", "text, numbers or objects as keys", type(key).__name__)
            target[key] = value

    def _top(self) -> object:
        target = self.pop()
        self._stack.append(target)
        return target

    def memoize(self, index: int | None = None) -> None:
        value = self._top()
        memo = self._memo
        if index is None or index == len(memo):
            if type(value) is dict:
                self._dictionaries[id(value)] = len(memo)
            memo.append(value)
        elif index < len(memo):
            memo[index] = value
        else:
            raise self.error("broken pickle", f"place {len(memo)} of the memo next", f"{index}")

    def name(self, module: object, name: object) -> None:
        path = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
        if path not in self._allowed:
            found = path if path.isprintable() and 0 < len(path) < _SHOWN_CHARACTERS else shown(path)
            raise self.error(
                "a pickle that is no plain checkpoint",
                "only names that checkpoints use",
                f"{found} (os.{shown(name)[1:-1]})" if module in _OS_MODULES else found,
                "Nothing of it was executed. Take the checkpoint from its origin again, or do not trust it.",
            )
        self.push(PickledGlobal(path))

    def apply(self) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, PickledGlobal) or not isinstance(args, tuple):
            found = f"{type(function).__name__} with {type(args).__name__}"
            raise self.error("broken pickle", "a name and its arguments", found)
        if function.path == "collections.OrderedDict" and not args:
            self.push({}, _DICT_BYTES)
        elif function.path == "torch.Size" and len(args) == 1 and isinstance(args[0], tuple):
            self.push(args[0], 0)
        else:
            self.push(PickledObject(function.path, args), _OBJECT_BYTES)

    def build(self) -> None:
        state, target = self.pop(), self._top()
        if isinstance(target, dict):
            return  # an OrderedDict may have attributes, as state dictionaries do: they are no content
        if not isinstance(target, PickledObject) or not isinstance(state, dict | tuple):
            raise self.error("broken pickle", "an object to set up", f"{type(target).__name__}, {type(state).__name__}")
        if isinstance(state, tuple):
            target.names, target.values = (), state
            return
        # Objects of a class share their names, and the dictionary, which only the memo has by now, is given up: it
        # is most of what a document would take.
        names = tuple(state)
        target.names = self._names.setdefault(names, names) if all(type(name) is str for name in names) else names
        target.values = tuple(state.values())
        self.spend(_TUPLE_BYTES + (_ITEM_BYTES - _MEMBER_BYTES) * len(names))
        if (place := self._dictionaries.pop(id(state), None)) is not None and self._memo[place] is state:
            self._memo[place] = None
            self.spend(-_DICT_BYTES)

    def persistent(self) -> None:
        self.push(PickledObject(PERSISTENT, (self.pop(),)), _OBJECT_BYTES)


def _stack_global(machine: _Machine) -> None:
    name = machine.pop()
    machine.name(machine.pop(), name)


_STOP, _MEMOIZE, _BINGET, _LONG_BINGET = ord("."), 0x94, ord("h"), ord("j")
_ACTIONS: Mapping[int | None, Callable[[_Machine], object]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    ord("("): _Machine.mark,
    ord("N"): lambda m: m.push(None, 0),
    0x88: lambda m: m.push(True, 0),
    0x89: lambda m: m.push(False, 0),
    ord("K"): lambda m: m.push(m.number(1), 0),
    ord("M"): lambda m: m.push(m.number(2)),
    ord("J"): lambda m: m.signed(4),
    0x8A: lambda m: m.signed(m.number(1)),  # LONG1
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("X"): lambda m: m.text(4),
    0x8C: lambda m: m.text(1),  # SHORT_BINUNICODE
    0x8D: lambda m: m.text(8),  # BINUNICODE8
    ord("B"): lambda m: m.raw(4),
    ord("C"): lambda m: m.raw(1),
    0x8E: lambda m: m.raw(8),  # BINBYTES8
    ord(")"): lambda m: m.push((), 0),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("t"): lambda m: m.tuple_of(None),
    ord("]"): lambda m: m.push([], _LIST_BYTES),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.pop_mark()),
    ord("}"): lambda m: m.push({}, _DICT_BYTES),
    ord("s"): lambda m: m.put([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.put(m.pop_mark()),
    ord("q"): lambda m: m.memoize(m.number(1)),
    ord("r"): lambda m: m.memoize(m.number(4)),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: _stack_global,
    ord("R"): _Machine.apply,
    0x81: _Machine.apply,  # NEWOBJ
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent,
}
