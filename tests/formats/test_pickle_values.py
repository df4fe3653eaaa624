"""Pickles are read as the data that they write, and refused by name where they ask for more."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reshard.errors import FormatError
from reshard.formats.pickle_values import PickledObject, parse_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.lists(inner).map(tuple),
    max_leaves=30,
)


@settings(max_examples=30)
@given(PLAIN, st.integers(3, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_back(value, protocol):
    assert parse_pickle(pickle.dumps(value, protocol), "p", ()) == value


def test_values_that_are_referred_to_again_are_one():
    inner = ["x"]
    found = parse_pickle(
        pickle.dumps({"a": inner, "b": inner, "c": OrderedDict(d=1)}), "p", {"collections.OrderedDict"}
    )
    assert found == {"a": ["x"], "b": ["x"], "c": {"d": 1}}
    assert found["a"] is found["b"]


class Hostile:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Hostile(os.system, "touch reshard-was-here"), r"os\.system"),
        (Hostile(eval, "1"), r"builtin\w*\.eval"),
        (Hostile(getattr, "", "x"), r"builtin\w*\.getattr"),
        ({"w": [Hostile(exec, "1")]}, r"builtin\w*\.exec"),
    ],
)
def test_other_names_are_refused_and_not_looked_up(value, name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match=rf"found .*{name}|opcode that writes data"):
        parse_pickle(pickle.dumps(value, protocol), "p", {"torch.Size"})
    assert not list(tmp_path.iterdir())


def test_calls_are_records():
    found = parse_pickle(b"ctorch\nLayout\n(K\x02K\x03tR}X\x01\x00\x00\x00aNsb.", "p", {"torch.Layout"})
    assert isinstance(found, PickledObject)
    assert (found.path, found.args, found.names, found.values) == ("torch.Layout", (2, 3), ("a",), (None,))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"N",
        b"NN.",
        b"N.N",
        b"(.",
        b"(N\x94.",
        b"h\x00.",
        b"Nq\x05.",
        b"}(K\x01u.",
        b"]K\x01s.",
        b"}]K\x01s.",
        b"\x8a\xff" + b"\x01" * 255 + b".",
        b"X\xff\xff\xff\xffa.",
        b"X\x01\x00\x00\x00\xff.",
        b"Nb.",
        b"N)R.",
        b"0.",
        b"cos",
        b"(i",
    ],
)
def test_broken_pickles_are_refused(data):
    with pytest.raises(FormatError):
        parse_pickle(data, "p", ())


def test_values_without_end_are_refused():
    with pytest.raises(FormatError, match=r"too many values for \d+ bytes"):
        parse_pickle(b"(" + b"}" * (5 << 18), "p", ())
