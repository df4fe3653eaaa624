"""Values go to JSON and back by their type hints, and nothing that only looks like one is taken."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import pytest

from reshard.errors import FormatError
from reshard.planning.catalog import Entry, Placement, SourceObject, SourceSharding
from reshard.planning.codec import MAX_INTEGER, decode, encode
from reshard.planning.limits import Limits
from reshard.planning.targets import TARGETS, Target
from reshard.tensor import Box, DType, Layout, RowSplit, Strategy, TensorSpec


@dataclass(frozen=True)
class Inner:
    numbers: tuple[int, ...] = ()
    dtype: DType | None = None


@dataclass(frozen=True)
class Value:
    text: str = "x"
    count: int = 3
    share: float = 0.5
    is_set: bool = True
    data: bytes = b"\x00\xff"
    names: frozenset[str] = frozenset({"b", "a"})
    inner: Inner | None = None
    inners: tuple[Inner, ...] = (Inner((1, 2)), Inner(dtype=DType.BF16))
    mixed: Mapping[str, int | float | str | bool | None] = field(default_factory=dict)
    options: Mapping[str, int | str | bool] = field(default_factory=dict)
    anything: Mapping[str, object] = field(default_factory=dict)
    derived: int = field(init=False, default=7)


BODY = {
    "text": "x",
    "count": 3,
    "share": 0.5,
    "is_set": True,
    "data": "00ff",
    "names": ["a", "b"],
    "inner": None,
    "inners": [{"numbers": [1, 2], "dtype": None}, {"numbers": [], "dtype": "BF16"}],
    "mixed": {},
    "options": {},
    "anything": {},
}


@pytest.mark.parametrize(
    ("value", "changes"),
    [
        (Value(), {}),
        (Value(inner=Inner()), {"inner": {"numbers": [], "dtype": None}}),
        (Value(mixed={"a": 1, "b": -1.5, "c": "", "d": None, "e": True}), {
            "mixed": {"a": 1, "b": -1.5, "c": "", "d": None, "e": True}
        }),
        (Value(options={"a": -5, "b": False}), {"options": {"a": -5, "b": False}}),
        (Value(anything={"a": [1, {"b": None}]}), {"anything": {"a": [1, {"b": None}]}}),
    ],
)  # fmt: skip
def test_there_and_back(value, changes):
    assert encode(value) == BODY | changes
    assert decode(Value, encode(value)) == value


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"text": 1}, "text: expected a string, found a number"),
        ({"count": True}, "count: expected an integer from 0"),
        ({"count": 1.0}, "count: expected an integer from 0"),
        ({"count": "1"}, "count: expected an integer from 0"),
        ({"count": -1}, "count: expected an integer from 0"),
        ({"count": MAX_INTEGER + 1}, "count: expected an integer from 0"),
        ({"share": 1}, "share: expected a number with a point"),
        ({"is_set": 1}, "is_set: expected a boolean"),
        ({"data": "0"}, "data: expected bytes in hexadecimal"),
        ({"data": "zz"}, "data: expected bytes in hexadecimal"),
        ({"names": ["a", 1]}, "names: item 1: expected a string"),
        ({"names": "ab"}, "names: expected an array, found a string"),
        ({"inner": []}, "inner: expected an object, found an array"),
        ({"inner": {"numbers": []}}, "inner: wrong keys: expected numbers, dtype"),
        ({"inner": {"numbers": [], "dtype": None, "more": 1}}, "inner: wrong keys"),
        ({"inner": {"numbers": [], "dtype": "F31"}}, "inner: dtype: expected one of BOOL, "),
        ({"inner": {"numbers": [], "dtype": []}}, "inner: dtype: expected one of BOOL, "),
        ({"inner": {"numbers": [0, 1, -1], "dtype": None}}, "inner: numbers: item 2: expected an integer from 0"),
        ({"inner": {"numbers": [True], "dtype": None}}, "inner: numbers: item 0: expected an integer from 0"),
        ({"inners": [{}]}, "inners: item 0: wrong keys"),
        (
            {"mixed": {"a": []}},
            "mixed: a: expected an integer or a number with a point or a string or a boolean or null",
        ),
        ({"options": {"a": None}}, "options: a: expected an integer or a string or a boolean"),
        ({"options": {"a\nb": None}}, r"options: 'a\\nb': expected"),
        ({"options": {"a" * 10**6: None}}, "options: 'aaa"),
        ({"options": []}, "options: expected an object"),
    ],
)
def test_wrong_values_are_named_by_their_place(changes, problem):
    with pytest.raises(FormatError, match=f"^{problem}") as caught:
        decode(Value, BODY | changes)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("key", BODY)
def test_keys_that_lack(key):
    with pytest.raises(FormatError, match="wrong keys"):
        decode(Value, {name: value for name, value in BODY.items() if name != key})


def test_positional_values_are_arrays():
    layout = Layout((2,), ((0,), ()), -1, -1, RowSplit((5, 3), (0, 5)), 3)
    assert encode(layout) == [[2], [[0], []], -1, -1, [[5, 3], [0, 5]], 3]
    assert decode(Layout, encode(layout)) == layout
    with pytest.raises(FormatError, match="an array of 6"):
        decode(Layout, encode(layout)[:5])
    with pytest.raises(FormatError, match="optimizer_shard_size: expected an integer from -1"):
        decode(Layout, [[2], [], -2, 0, None, 0])
    assert decode(SourceObject, ["k", 1, "e", 0, "00"]) == SourceObject("k", 1, "e", 0, b"\0")


def test_strategies_list_each_layout_once():
    rows, whole = Layout((2,), ((0,),)), Layout((2,), ((),))
    strategy = Strategy(2, ({"a": rows, "b": Layout((2,), ((0,),))}, {"c": whole, "a": rows}))
    body = encode(strategy)
    assert [len(body["layouts"]), body["stages"]] == [2, [{"a": 0, "b": 0}, {"c": 1, "a": 0}]]
    assert decode(Strategy, body) == strategy


def test_entries_list_each_kind_once():
    whole = Placement(Box((0,), (4,)), ((0, 8), (1, 16)))
    halves = (Placement(Box((0,), (2,)), ((0, 20),)), Placement(Box((2,), (4,)), ((1, 30),)))
    entries = (
        Entry(TensorSpec("a", DType.U8, (4,)), (whole,)),
        Entry(TensorSpec("b", DType.U8, (4,)), (Placement(whole.box, ((1, 0),)),)),
        Entry(TensorSpec("c", DType.U8, (4,)), halves, SourceSharding.SHARDED),
        Entry(TensorSpec("d", DType.F4, (8,)), (Placement(Box((0,), (4,)), ((0, 40),)),)),
        Entry(TensorSpec("e", DType.F32, (0, 2)), ()),
    )
    body = encode(entries, tuple[Entry, ...])
    assert body == {
        "kinds": [
            ["U8", [4], "whole", None],
            ["U8", [4], "sharded", [[[0], [2]], [[2], [4]]]],
            ["F4", [8], "whole", None],
            ["F32", [0, 2], "whole", []],
        ],
        "tensors": [["a", 0, [0, 8, 1, 16]], ["b", 0, [1, 0]], ["c", 1, [0, 20], [1, 30]], ["d", 2, [0, 40]], ["e", 3]],
    }
    assert decode(tuple[Entry, ...], body) == entries


def test_targets_are_told_apart_by_kind():
    for kind, target in TARGETS.items():
        with pytest.raises(FormatError, match="wrong keys") as caught:
            decode(Target, {"kind": kind})
        assert caught.value.expected == ", ".join(each.name for each in fields(target))
    for kind in (None, 1, "", "Target", ["full"]):
        with pytest.raises(FormatError, match="kind: expected one of full, iteration"):
            decode(Target, {"kind": kind})


def test_what_a_value_refuses_is_refused():
    body = encode(Limits())
    assert decode(Limits, body) == Limits()
    with pytest.raises(FormatError, match="concurrency: expected an integer"):
        decode(Limits, body | {"concurrency": 1 << 80})
