"""MindSpore strategy files: what they may not be, how stages come together, and that writing loses nothing."""

import json

import pytest

from reshard.errors import FormatError, StrategyError
from reshard.formats.mindspore.strategy_file import OperatorItem, StrategyFile, split_stage
from reshard.formats.mindspore.strategy_json import encode_json, fold_expanded
from reshard.formats.mindspore.strategy_merge import (
    from_strategy,
    merge_strategy_files,
    parse_strategy_file,
    to_strategy,
)
from reshard.formats.protobuf import bytes_field, int_field, text_field
from reshard.tensor import Layout, RowSplit, Strategy

COLUMN = Layout((2, 4), ((), (0,)))
ROW = Layout((8,), ((0,), ()))
STAGE = bytes_field(2, int_field(1, 0))


def stage_file(stage, layouts=None, **options):
    return StrategyFile((OperatorItem("MatMul", stage),), {"w": COLUMN} if layouts is None else layouts, **options)


def layout_bytes(**replaced):
    parts = {
        "dev_matrix": bytes_field(1, int_field(1, 2)),
        "tensor_map": bytes_field(2, int_field(1, 0)),
        "field": int_field(5, 0),
        "step": int_field(6, 0),
        "size": int_field(7, 0),
        **replaced,
    }
    return bytes_field(2, b"".join(parts.values()))


def file_bytes(layout, name="w"):
    return int_field(1, 1) + bytes_field(3, text_field(1, name) + layout)


def json_file(**replaced):
    item = {"dev_matrix": [2], "tensor_map": [0], "field": 0, "opt_weight_shard_step": 0, "opt_weight_shard_size": 0}
    item = {key: value for key, value in {**item, **replaced}.items() if value is not Ellipsis}
    top = {"current_stage": 1, "parallel_strategy_item": {}, "parallel_layout_item": {"w": item}}
    return json.dumps(top).encode()


# --- protobuf form


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([[0, -1]], ((0,), ())),
        ([[2, 0], [1]], ((2, 0), (1,))),
        ([[1, 0], []], ((1, 0),)),  # one axis, two device dimensions: the empty message says that it is nested
        ([[1], [-1]], ((1,), ())),
        ([[-1, 0], [1]], ((0,), (1,))),
        ([[]], ()),
    ],
)
def test_tensor_maps(messages, expected):
    written = b"".join(bytes_field(2, b"".join(int_field(1, e) for e in axis)) for axis in messages)
    matrix = bytes_field(1, int_field(1, 2) * 3)
    file = parse_strategy_file(file_bytes(layout_bytes(dev_matrix=matrix, tensor_map=written)), "s.ckpt")
    assert file.layouts["w"].tensor_map == expected


def test_packed_numbers_are_read_too():
    layout = layout_bytes(dev_matrix=bytes_field(1, bytes_field(1, b"\x02\x04")))
    assert parse_strategy_file(file_bytes(layout), "s.ckpt").layouts["w"].device_matrix == (2, 4)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "missing field: expected current_stage once"),
        (int_field(1, 1) * 2, "repeated field: expected current_stage once, found 2 times"),
        (text_field(1, "1"), "wire type"),
        (int_field(1, 1) + bytes_field(2, text_field(1, "MatMul")), "expected parallel_strategys once"),
        (int_field(1, 1) + bytes_field(2, STAGE), "expected node_name once"),
        (int_field(1, 1) + bytes_field(2, text_field(1, "M") + bytes_field(2, b"")), "expected stage once"),
        (int_field(1, 1) + bytes_field(3, text_field(1, "w")), "expected parallel_layouts once"),
        (int_field(1, 1) + bytes_field(3, layout_bytes()), "expected param_name once"),
        (file_bytes(layout_bytes(dev_matrix=b"")), "parameter 'w'.*expected dev_matrix once, found 0"),
        (file_bytes(layout_bytes(dev_matrix=bytes_field(1, b"\x08\x02") * 2)), "expected dev_matrix once, found 2"),
        (file_bytes(layout_bytes(dev_matrix=bytes_field(1, b""))), "impossible layout"),
        (file_bytes(layout_bytes(dev_matrix=bytes_field(1, int_field(1, 0)))), "impossible layout"),
        (file_bytes(layout_bytes(dev_matrix=bytes_field(1, int_field(1, 2**32 - 1)))), "too many devices"),
        (file_bytes(layout_bytes(dev_matrix=bytes_field(1, int_field(1, 1) * 65))), "too many axes"),
        (file_bytes(layout_bytes(tensor_map=b"")), "expected tensor_map, found none"),
        (file_bytes(layout_bytes(tensor_map=bytes_field(2, int_field(1, -1) * 65))), "too many axes"),
        (file_bytes(layout_bytes(tensor_map=bytes_field(2, int_field(1, -2)))), "impossible layout"),
        (file_bytes(layout_bytes(tensor_map=bytes_field(2, int_field(1, 1)))), "impossible layout"),
        (file_bytes(layout_bytes(tensor_map=bytes_field(2, int_field(1, 2**40)))), "number: expected"),
        (file_bytes(layout_bytes(field=b"")), "expected field once"),
        (file_bytes(layout_bytes(step=b"")), "expected opt_weight_shard_step once"),
        (file_bytes(layout_bytes(size=b"")), "expected opt_weight_shard_size once"),
        (file_bytes(layout_bytes(size=int_field(7, 2))), "impossible layout.*does not fit the 1 replicas"),
        (file_bytes(layout_bytes(size=int_field(7, -3))), "impossible layout"),
        (file_bytes(layout_bytes()) + file_bytes(layout_bytes())[2:], "repeated parameter: found 'w'"),
    ],
)
def test_broken_protobuf(data, problem):
    with pytest.raises(FormatError, match=problem) as caught:
        parse_strategy_file(data, "s.ckpt")
    assert str(caught.value).startswith("s.ckpt")


# --- JSON form


def test_json_form():
    data = json_file(tensor_map=[0, -1], tensor_shape=[4, 6], unknown=1)
    file = parse_strategy_file(data, "s.json")
    assert file.layouts == {"w": Layout((2,), ((0,), ()))}
    assert file.expanded_shapes == {"w": (4, 6)}


def test_json_shape_of_uneven_pieces_is_not_trusted():
    data = json_file(tensor_shape=[6], param_split_shape=[3, 1], indices_offset=[0, 3])
    file = parse_strategy_file(data, "s.json")
    assert file.layouts["w"].row_split == RowSplit((3, 1), (0, 3))
    assert file.expanded_shapes == {}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "invalid JSON"),
        (b"[]", "expected an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{}", "'parallel_strategy_item': expected an object, found nothing"),
        (b'{"parallel_strategy_item": {}, "parallel_layout_item": []}', "expected an object, found an array"),
        (b'{"parallel_strategy_item": {}, "parallel_layout_item": {}}', "'current_stage': expected an integer"),
        (b'{"parallel_strategy_item": {"M": {"stage": 0}}, "parallel_layout_item": {}}', "operator 'M'.*an array"),
        (
            b'{"parallel_strategy_item": {"M": {"parallel_strategy": [[1], 2]}}, "parallel_layout_item": {}}',
            "an array of integers, found a number: 2",
        ),
        (b'{"current_stage": 1, "current_stage": 1}', "repeated keys"),
        (json_file(dev_matrix=...), "parameter 'w': 'dev_matrix': expected an array of integers, found nothing"),
        (json_file(dev_matrix=[2.0]), "expected an integer, found a number: 2.0"),
        (json_file(dev_matrix=[True]), "expected an integer, found a boolean: True"),
        (json_file(dev_matrix=[2**40]), "a number of 32 bits"),
        (json_file(dev_matrix=[-1]), "a number of 32 bits"),
        (json_file(dev_matrix=[[2]]), "found an array"),
        (json_file(field=...), "'field'"),
        (json_file(tensor_map=[1]), "impossible layout"),
        (json_file(tensor_shape=[2, 3]), "expected 1 axes, like tensor_map"),
        (json_file(tensor_shape=None), "found null: None"),
    ],
)
def test_broken_json(data, problem):
    with pytest.raises(FormatError, match=problem) as caught:
        parse_strategy_file(data, "s.json")
    assert str(caught.value).startswith("s.json")


def test_json_cannot_hold_nested_layouts():
    file = stage_file(0, {"good": ROW, "bad": Layout((2, 4), ((1, 0),)), "worse": Layout((2, 4), ((), (0, 1)))})
    with pytest.raises(StrategyError, match="JSON form") as caught:
        encode_json(file)
    assert caught.value.problems == ("bad", "worse")


def test_json_records_shapes_that_are_known():
    file = stage_file(0, {"w": ROW, "v": ROW}, expanded_shapes={"w": (8, 2)})
    again = parse_strategy_file(encode_json(file, {"w": (1, 1), "v": (16, 3)}), "s.json")
    assert again.expanded_shapes == {"w": (8, 2), "v": (16, 3)}


# --- expanded layouts

NESTED = Layout((2, 2, 2), ((2,), (0,), (1,)))


def test_folding_needs_the_shape():
    file = stage_file(0, {"w": NESTED}, expanded_shapes={"w": (2, 4, 16)})
    with pytest.raises(StrategyError, match="leaves layouts undetermined") as caught:
        to_strategy([file])
    assert "w is [2, 4, 16]" in caught.value.problems[0]
    folded = Layout((2, 2, 2), ((2, 0), (1,)))
    assert to_strategy([file], {"w": (8, 16)}).stages[0]["w"] == folded
    assert to_strategy([file], {"w": (2, 8)}, local=True).stages[0]["w"] == folded
    assert to_strategy([file], {"w": (2, 4, 16)}).stages[0]["w"] == NESTED
    assert to_strategy([file], {"other": (1,)}).stages[0]["w"] == NESTED


def test_folding_with_optimizer_shards():
    flat = Layout((2, 2, 2), ((2,), (0,), ()), optimizer_shard_size=-1)
    assert fold_expanded(flat, (2, 8, 12), (2, 12), local=True).tensor_map == ((2, 0), ())
    assert fold_expanded(flat, (2, 8, 12), (16, 12)).tensor_map == ((2, 0), ())


@pytest.mark.parametrize("real", [(8, 8), (2, 64), (128,), (2, 4, 4, 4), ()])
def test_shapes_that_do_not_fold(real):
    with pytest.raises(StrategyError, match="does not fit a tensor"):
        fold_expanded(NESTED, (2, 4, 16), real)


def test_ambiguous_shards():
    layout = Layout((2, 2, 2), ((2,), (1,), (0,)))
    assert fold_expanded(layout, (2, 2, 8), (4, 8)).tensor_map == ((2, 1), (0,))
    assert fold_expanded(layout, (2, 2, 8), (2, 16)).tensor_map == ((2,), (1, 0))
    with pytest.raises(StrategyError, match="fits in more than one way a shard"):
        fold_expanded(layout, (2, 2, 8), (1, 4), local=True)


# --- stages


def test_split_stage():
    assert split_stage("3-model.embed-in.w") == (3, "model.embed-in.w")
    assert split_stage("model-3.w") == (None, "model-3.w")
    assert split_stage("-w") == (None, "-w")
    assert split_stage("3-") == (None, "3-")
    assert split_stage("9" * 10_000 + "-w")[0] is None


def test_merge_keeps_one_file_a_stage():
    files = [stage_file(1), stage_file(0), stage_file(1)]
    merged = merge_strategy_files(files)
    assert list(merged.layouts) == ["0-w", "1-w"]
    assert [item.stage for item in merged.operators] == [0, 1]
    assert (merged.is_merged, merged.stage, merged.current_stage) == (True, None, 1)
    assert to_strategy([merged]) == to_strategy(files) == Strategy(8, ({"w": COLUMN}, {"w": COLUMN}))


def test_merge_of_a_single_stage():
    assert list(merge_strategy_files([stage_file(0)]).layouts) == ["0-w"]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([stage_file(0), stage_file(2)], "expected stages 0..2: 1 are missing, found [0, 2]"),
        ([stage_file(1)], "expected stages 0..1: 1 are missing, found [1]"),
        ([stage_file(2**31)], "2147483648 are missing"),
        ([stage_file(0, name="a"), stage_file(0, {"w": ROW}, name="b")], "a and b are both of stage 0 and differ"),
        ([StrategyFile((), {"w": ROW}, name="a")], "a is empty: it has 0 operators, 1 parameters"),
        ([stage_file(0, {}, name="a")], "a is empty"),
        ([stage_file(0, {"0-w": ROW}, name="a")], "a is merged already"),
        (
            [StrategyFile((OperatorItem("M", 0), OperatorItem("N", 1)), {"w": ROW}, name="a")],
            "a has operators of stages [0, 1]: expected one",
        ),
    ],
)
def test_files_that_do_not_merge(files, problem):
    with pytest.raises(StrategyError) as caught:
        merge_strategy_files(files)
    assert any(problem in found for found in caught.value.problems)


def test_merge_lists_every_problem():
    files = [stage_file(0, {"w": ROW}), stage_file(0), stage_file(3), stage_file(3, {"w": ROW})]
    with pytest.raises(StrategyError) as caught:
        merge_strategy_files(files)
    assert len(caught.value.problems) == 3  # two conflicts, and stages 1 and 2


def test_merge_minds_operators_and_reading_does_not():
    files = [stage_file(0), StrategyFile((OperatorItem("Add", 0),), {"w": COLUMN})]
    with pytest.raises(StrategyError, match="do not make one strategy"):
        merge_strategy_files(files)
    assert to_strategy(files) == Strategy(8, ({"w": COLUMN},))


def test_order_of_items_does_not_matter():
    operators = OperatorItem("A", 0), OperatorItem("B", 0)
    files = [StrategyFile(operators, {"v": ROW, "w": ROW}), StrategyFile(operators[::-1], {"w": ROW, "v": ROW})]
    assert len(merge_strategy_files(files).layouts) == 2


def test_a_file_without_operators_is_a_single_stage():
    assert to_strategy([StrategyFile((), {"w": ROW})]).stage_count == 1


def test_parameters_of_several_stages():
    merged = StrategyFile((OperatorItem("M", 0), OperatorItem("M", 1)), {"0-w": COLUMN, "1-w": ROW, "1-a-b": ROW})
    assert to_strategy([merged]) == Strategy(8, ({"w": COLUMN}, {"w": ROW, "a-b": ROW}))


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([], "the strategy is empty"),
        ([stage_file(0, {})], "the strategy is empty"),
        ([stage_file(0, {"0-w": ROW, "v": ROW})], "only some names of a strategy file have a stage prefix"),
        ([stage_file(0, {"0-w": ROW}), stage_file(0, {"0-v": ROW})], "one merged strategy file and no other"),
        ([stage_file(0, {"0-w": ROW, "2-w": ROW}, name="a")], "a does not hold all stages"),
        ([stage_file(1, {"0-w": ROW, "2-w": ROW})], None),
        ([stage_file(0), stage_file(1, {"w": Layout((4,), ((),))})], "expected 8 devices"),
        ([stage_file(0, {"w": ROW, "v": Layout((8,), ((),), field_size=39)})], "cut by fields"),
    ],
)
def test_files_that_are_no_strategy(files, problem):
    if problem is None:
        assert to_strategy(files).stage_count == 3  # stage 1 has operators and no parameters
        return
    with pytest.raises(StrategyError, match=problem):
        to_strategy(files)


# --- back to files


def test_steps_as_mindspore_records_them():
    """The table of steps that MindSpore's compiler wrote for these layouts."""
    cases = [
        ((4, 2), ((0,), ()), -1, 2),
        ((4, 2), ((),), -1, 1),
        ((4, 2), ((0,), ()), 2, 2),
        ((4, 2), ((1,), ()), 2, 1),
        ((2, 2, 2), ((0,), (1,)), -1, 4),
        ((8,), ((), ()), 2, 1),
        ((2, 2, 2), ((2, 0), ()), -1, 2),
    ]
    layouts = {str(n): Layout(m, t, optimizer_shard_size=size) for n, (m, t, size, _) in enumerate(cases) if m != (4,)}
    written = from_strategy(Strategy(8, (layouts,))).layouts
    assert [written[str(n)].optimizer_shard_step for n in range(len(cases))] == [step for *_, step in cases]


def test_dimensions_of_one_device_are_dropped():
    layout = Layout((1, 4, 1, 2), ((3, 2), (1,), (0,)), optimizer_shard_size=-1)
    (written,) = from_strategy(Strategy(8, ({"w": layout},))).layouts.values()
    assert written == Layout((4, 2), ((1,), (), (0,)))
    (written,) = from_strategy(Strategy(1, ({"w": Layout((1, 1), ((0,),))},))).layouts.values()
    assert written == Layout((1,), ((),))


def test_needless_nesting_is_dropped():
    layouts = {"joined": Layout((2, 4), ((1, 0),)), "kept": Layout((2, 4), ((0, 1),))}
    written = from_strategy(Strategy(8, (layouts,))).layouts
    assert written == {"joined": Layout((8,), ((0,),)), "kept": layouts["kept"]}


def test_names_with_a_dash_cannot_be_written():
    with pytest.raises(StrategyError, match="with a dash") as caught:
        from_strategy(Strategy(8, ({"a-b": ROW, "c": ROW},)))
    assert caught.value.problems == ("a-b",)


@pytest.mark.parametrize("stage", [-1, 1])
def test_no_such_stage(stage):
    with pytest.raises(StrategyError, match="does not exist"):
        from_strategy(Strategy(8, ({"w": ROW},)), stage)
