"""MindSpore strategy files of any content: writing loses nothing, and no bytes break the readers."""

import contextlib
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from reshard.errors import FormatError, StrategyError
from reshard.formats.mindspore.strategy_file import OperatorItem, StrategyFile
from reshard.formats.mindspore.strategy_json import encode_json
from reshard.formats.mindspore.strategy_merge import from_strategy, parse_strategy_file, to_strategy
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.tensor import Layout, RowSplit, Strategy

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="-"), min_size=1, max_size=12)


@st.composite
def layouts(draw, device_count=8, nested=True, free_form=True):
    matrix = draw(st.sampled_from([(8,), (2, 4), (4, 2), (2, 2, 2), (1, 8), (2, 1, 4)]))
    axes = [[] for _ in range(draw(st.integers(0, 3)))]
    for entry in draw(st.permutations(range(len(matrix)))):
        choices = [axis for axis in axes if nested or not axis]
        if choices and draw(st.booleans()):
            draw(st.sampled_from(choices)).append(entry)
    plain = Layout(matrix, tuple(map(tuple, axes)))
    size = draw(st.sampled_from([0, -1, 1, *([2] if plain.replica_count % 2 == 0 else [])]))
    with contextlib.suppress(StrategyError):
        plain = Layout(matrix, plain.tensor_map, size, draw(st.integers(0, 8)))
    if free_form and draw(st.booleans()):
        numbers = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4).map(tuple)
        return Layout(matrix, plain.tensor_map, 0, 0, RowSplit(draw(numbers), draw(numbers)), draw(st.integers(0, 9)))
    return plain


def files(**options):
    cuts = st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple), max_size=3).map(tuple)
    operators = st.lists(
        st.builds(OperatorItem, NAMES, st.integers(0, 2**32 - 1), cuts), max_size=3, unique_by=lambda i: i.name
    )
    return st.builds(
        StrategyFile,
        operators.map(tuple),
        st.dictionaries(NAMES, layouts(**options), max_size=4),
        st.just({}),
        st.integers(0, 2**32 - 1),
    )


@given(files())
def test_protobuf_round_trip(file):
    assert parse_strategy_file(encode_protobuf(file), "s.ckpt") == file


@given(files(nested=False))
def test_json_round_trip(file):
    assert parse_strategy_file(encode_json(file), "s.json") == file


@given(st.lists(st.dictionaries(NAMES, layouts(free_form=False), max_size=4), min_size=1, max_size=3))
def test_strategy_round_trip(stages):
    strategy = Strategy(8, tuple(stages))
    if not strategy.names:
        return
    merged = parse_strategy_file(encode_protobuf(from_strategy(strategy)), "s.ckpt")
    by_stage = [from_strategy(strategy, stage) for stage in range(len(stages))]
    for again in (to_strategy([merged]), to_strategy(by_stage)):
        assert again.stage_count == len(stages)
        for rank in range(strategy.rank_count):
            assert boxes(again, rank) == boxes(strategy, rank)


def boxes(strategy, rank):
    layouts = strategy.stages[strategy.stage_of(rank)]
    return {name: box(layout, rank % 8) for name, layout in layouts.items()}


def box(layout, rank):
    if not layout.tensor_map and layout.optimizer_pieces > 1:
        return None  # a scalar cannot be cut, whatever its layout says
    return layout.box_of((64,) * len(layout.tensor_map), rank)


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes(data):
    for name in ("s.ckpt", "s.json"):
        with contextlib.suppress(FormatError):
            parse_strategy_file(data, name)


@settings(max_examples=300)
@given(files(), st.data())
def test_damaged_files(file, data):
    encoded = bytearray(encode_protobuf(file))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError, StrategyError):
        damaged = parse_strategy_file(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]), "s.ckpt")
        to_strategy([damaged])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**70) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=300)
@given(
    st.dictionaries(
        st.sampled_from(
            ["dev_matrix", "tensor_map", "tensor_shape", "field", "opt_weight_shard_size", "param_split_shape"]
        ),
        JSON_VALUES | st.lists(st.integers(-2, 9), max_size=4),
    )
)
def test_any_json(replaced):
    with contextlib.suppress(FormatError, StrategyError):
        item = {
            "dev_matrix": [2],
            "tensor_map": [0],
            "field": 0,
            "opt_weight_shard_step": 0,
            "opt_weight_shard_size": 0,
        }
        top = {"current_stage": 1, "parallel_strategy_item": {}, "parallel_layout_item": {"w": {**item, **replaced}}}
        to_strategy([parse_strategy_file(json.dumps(top).encode(), "s.json")])
