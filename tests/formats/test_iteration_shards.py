"""MindSpore Transformers' iterations: shards, and metadata that is written as theirs and read again."""

import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import StrategyError
from reshard.formats.mindspore.iteration import (
    is_optimizer_state,
)
from reshard.formats.mindspore.iteration_encode import (
    assign_shards,
    encode_metadata,
    shard_objects,
)
from reshard.formats.mindspore.iteration_metadata import parse_metadata
from reshard.formats.mindspore.iteration_shards import (
    Shard,
    cut_layout,
    list_shards,
    parse_shard_id,
    shard_box,
    shard_numbers,
)
from reshard.tensor import Box, DType, Layout, RowSplit, Strategy, TensorSpec

CASES = Path(__file__).parent.parent / "conformance" / "mindformers"
NAMES = ["ckpt2_dp2tp2", "ckpt2_dp2tp2_noredund", "ckpt2_dp2tp2_opt"]


def case(name):
    """The metadata of a case, with names of device dimensions as MindSpore gives them: a strategy has none."""
    path = CASES / name / "mf" / "checkpoint" / "iteration_00000007" / "metadata.json"
    if not path.is_file():
        pytest.skip(f"no case {name}")
    return path.read_bytes().replace(b'["dp","cp","tp"]', b'["a","b","c"]')


def parsed(name):
    metadata = parse_metadata(case(name), "metadata.json")
    return metadata, [tensor.spec for tensor in metadata.tensors], metadata.strategy()


def states(specs):
    names = {spec.name for spec in specs}
    return {name for name in names if is_optimizer_state(name, names)}


# --- shards


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("a.b", 0),
        ("it's", 3),
        ('a"b', 1),
        ('it\'s "both"', 2),
        ("a\\b", 1),
        ("a\nb\t\r\0\x1f", 1),
        ("ä漢\u200b\U000e0001", 10),
    ],
)
def test_shard_ids(name, number):
    shard = Shard(TensorSpec(name, DType.U8, ()), number, Box((), ()), (0,))
    assert shard.id == str((name, (number,)))
    assert parse_shard_id(shard.id) == (name, number)


@given(st.text(st.characters(exclude_categories=())), st.integers(0, 10**17))
def test_any_name_comes_back(name, number):
    assert parse_shard_id(str((name, (number,)))) == (name, number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "('a', 3)",
        "('a', (3))",
        "('a', (3, 4))",
        "('a', ())",
        "('a', (-3,))",
        "('a', (03,))",
        "('a', (3,)) ",
        "('a',(3,))",
        "(a, (3,))",
        "('a\", (3,))",
        "('a'b', (3,))",
        "('a\\', (3,))",
        "('a\\q', (3,))",
        "('a\\x1', (3,))",
        "('a\\U00110000', (3,))",
        "(b'a', (3,))",
        "('a', (1e3,))",
        "('a', (\u0663,))",
        "__import__('os')",
        "(" * 100_000,
    ],
)
def test_other_texts_are_no_shard_ids(text):
    assert parse_shard_id(text) is None


def test_long_shard_ids_take_no_time():
    begin = time.perf_counter()
    assert parse_shard_id("('" + "\\\\" * 10**6 + "', (3)") is None
    assert parse_shard_id("('" + "a" * 10**6 + "', (3,))") == ("a" * 10**6, 3)
    assert time.perf_counter() - begin < 5


@st.composite
def layouts(draw):
    """A layout and a shape that it cuts, with or without optimizer pieces, also in part of a dimension."""
    matrix = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3)))
    entries = draw(st.permutations(range(len(matrix))))
    axis_count = draw(st.integers(0, 3))
    axes = [[] for _ in range(axis_count)]
    for entry in entries[: draw(st.integers(0, len(entries)))] if axis_count else []:
        axes[draw(st.integers(0, axis_count - 1))].append(entry)
    tensor_map = tuple(tuple(axis) for axis in axes)
    layout = Layout(matrix, tensor_map)
    if axis_count:
        for size in draw(st.permutations([-1, 2, 3, 4, 6])):
            with contextlib.suppress(StrategyError):
                layout = Layout(matrix, tensor_map, draw(st.sampled_from([0, size])))
                break
    cuts = [c * (layout.optimizer_pieces if axis == 0 else 1) for axis, c in enumerate(layout.cuts)]
    return layout, tuple(c * draw(st.integers(0, 3)) for c in cuts)


@given(layouts())
def test_optimizer_pieces_become_cuts(drawn):
    layout, shape = drawn
    cut = cut_layout(layout)
    assert cut.optimizer_pieces == 1
    assert cut.device_count == layout.device_count
    for rank, number in enumerate(shard_numbers(layout)):
        assert cut.box_of(shape, rank) == layout.box_of(shape, rank) == shard_box(shape, cut.cuts, number)


def test_layouts_that_the_format_cannot_hold_are_named_together():
    spec = {"a": (4,), "b": (3,), "c": (), "d": (4,), "e": (4,)}
    stages = (
        {
            "a": Layout((2,), ((0,),), row_split=RowSplit((3, 1), (0, 3))),
            "b": Layout((2,), ((0,),)),
            "c": Layout((2,), (), optimizer_shard_size=-1),
            "d": Layout((2,), ((0,),)),
            "e": Layout((2,), ((0,),)),
        },
        {"d": Layout((2,), ((),))},
    )
    with pytest.raises(StrategyError) as error:
        list_shards([TensorSpec(name, DType.F32, shape) for name, shape in spec.items()], Strategy(2, stages))
    assert [problem.split(":")[0] for problem in error.value.problems] == ["'a'", "'b'", "'c'", "'d'"]


def test_fewer_holders_first_then_larger_then_by_id():
    only_one = Layout((2,), ((0,),))
    specs = [TensorSpec(name, DType.U8, (n,)) for name, n in [("z", 2), ("big", 9), ("b", 4), ("a", 4)]]
    assigned = assign_shards(list_shards(specs, Strategy(2, ({"z": only_one},))))
    assert [(s.spec.name, s.number, rank) for s, rank in assigned] == [
        ("z", 0, 0),
        ("z", 1, 1),
        ("big", 0, 0),
        ("a", 0, 1),
        ("b", 0, 1),
    ]


# --- the cases


@pytest.mark.parametrize("name", NAMES)
def test_cases_are_read(name):
    metadata, specs, strategy = parsed(name)
    document = json.loads(case(name))
    described = json.loads((CASES / name / "case.json").read_bytes())["files"]
    assert strategy.device_count == 4
    assert strategy.stage_count == 1
    assert strategy.names == {spec.name for spec in specs} == set(document["state_dict_metadata"])
    assert list(metadata.file_names) == sorted(described)
    for tensor in metadata.tensors:
        for shard in tensor.shards:
            for copied in shard.copies:
                assert tensor.spec.name in described[copied.file_name]["names"]
                assert shard.box == tensor.layout.layout.box_of(tensor.spec.shape, copied.storage_rank)
    assert parse_metadata(json.dumps(document, indent=4).encode(), "indented") == metadata


@pytest.mark.parametrize(("name", "prefix"), [*zip(NAMES, ["", "CKP", "CKP"], strict=True)])
def test_cases_are_written(name, prefix):
    """Compared as parsed JSON, and the keys' order too; only ``file_name`` depends on more than the layouts."""
    _, specs, strategy = parsed(name)
    is_balanced = name.endswith("noredund")
    objects = shard_objects(specs, strategy, states(specs), prefix, remove_redundancy=is_balanced)
    ours, theirs = json.loads(encode_metadata(specs, strategy, objects)), json.loads(case(name))
    assert ours == theirs
    assert list(ours["state_dict_metadata"]) == list(theirs["state_dict_metadata"])
    for key, entry in theirs["state_dict_metadata"].items():
        assert list(ours["state_dict_metadata"][key]["layout"]) == list(entry["layout"])
    if is_balanced:  # the others are written rank by rank, weights and states as they come
        assert list(ours["storage_data"]) == list(theirs["storage_data"])
    files = json.loads((CASES / name / "case.json").read_bytes())["files"]
    assert {item.name: (item.rank, sorted(item.tensors)) for item in objects} == {
        key: (file["rank"], sorted(file["names"])) for key, file in files.items()
    }


def test_metadata_is_compact():
    """Byte for byte the case without redundancy: nothing in it depends on the order of a dict of ours."""
    _, specs, strategy = parsed(NAMES[1])
    objects = shard_objects(specs, strategy, (), "CKP", remove_redundancy=True)
    assert encode_metadata(specs, strategy, objects) == case(NAMES[1])


def test_optimizer_shards_of_a_strategy_are_written_as_the_case_has_them():
    """The case's states are cut over dp on axis 0, beside what tp cuts: MindSpore's optimizer shard.

    Not those of the norms: the case cuts them over dp and leaves tp alone, where MindSpore takes all replicas.
    """
    _, specs, strategy = parsed(NAMES[2])
    layouts = dict(strategy.stages[0])
    names = {name for name in states(specs) if any(layouts[name.partition(".")[2]].tensor_map)}
    assert (len(states(specs)), len(names)) == (30, 20)
    for name in names:
        weight = layouts[name.partition(".")[2]]
        layouts[name] = Layout(weight.device_matrix, weight.tensor_map, optimizer_shard_size=-1)
    rebuilt = Strategy(4, (layouts,))
    objects = shard_objects(specs, rebuilt, states(specs), "CKP")
    assert json.loads(encode_metadata(specs, rebuilt, objects)) == json.loads(case(NAMES[2]))


def test_chunks_stand_in_the_order_in_which_ranks_show_them():
    metadata, _, _ = parsed(NAMES[2])
    tensor = metadata.by_name["adam_m.embedding.word_embeddings.weight"]
    assert tensor.cuts == (4, 1)
    assert tensor.layout.layout.tensor_map == ((0, 2), ())
    assert [shard.box.start for shard in tensor.shards] == [(0, 0), (48, 0), (24, 0), (72, 0)]
    assert [shard.file_names for shard in tensor.shards] == [
        (f"CKP-opt-000000{n}-0000004.safetensors",) for n in range(4)
    ]


# --- stages, plain tensors, redundancy

TIED = Strategy(
    2,
    (
        {"embed": Layout((2,), ((0,), ())), "a": Layout((1, 2), ((), (0,)))},
        {"embed": Layout((2,), ((0,), ())), "b": Layout((2,), ((0,), ()), optimizer_shard_size=0)},
    ),
)
TIED_SPECS = [TensorSpec(name, DType.BF16, (4, 2)) for name in ("embed", "a", "b")] + [
    TensorSpec("step", DType.I32, ())
]


def test_stages_and_tensors_without_layout():
    objects = shard_objects(TIED_SPECS, TIED, {"step"}, "")
    document = json.loads(encode_metadata(TIED_SPECS, TIED, objects))
    tensors, storage = document["state_dict_metadata"], document["storage_data"]
    assert tensors["b"]["layout"]["rank_list"] == [2, 3]
    assert tensors["embed"]["layout"]["rank_list"] == [0, 1]
    assert tensors["a"]["layout"]["alias_name"] == ["a", "b"]
    assert tensors["step"]["layout"] is None
    assert tensors["step"]["properties"]["replica_id"] == 0
    assert [r["storage_rank"] for r in storage["('embed', (1,))"]] == [1, 3]
    assert storage["('embed', (1,))"][0]["rank_group"] == [1, 3]
    assert storage["('step', (0,))"][3] == {
        "file_name": "opt-0000003-0000004.safetensors",
        "storage_rank": 3,
        "rank_group": [0, 1, 2, 3],
    }
    metadata = parse_metadata(json.dumps(document).encode(), "m")
    assert metadata.strategy() == TIED
    assert metadata.by_name["step"].layout is None


def test_a_tensor_that_stages_cut_in_another_order_has_its_boxes_but_no_strategy():
    spec = TensorSpec("w", DType.F32, (4,))
    strategy = Strategy(4, ({"w": Layout((2, 2), ((0,),))}, {"w": Layout((2, 2), ((1,),))}))
    metadata = parse_metadata(encode_metadata([spec], strategy, shard_objects([spec], strategy, (), "")), "m")
    assert [sorted(shard.ranks) for shard in metadata.tensors[0].shards] == [[0, 2, 4, 5], [1, 3, 6, 7]]
    with pytest.raises(StrategyError, match="'w': shard 0 on rank 5"):
        metadata.strategy()


def test_without_redundancy_idle_ranks_are_not_counted():
    specs = [TensorSpec("step", DType.I32, ()), TensorSpec("b", DType.F32, (4, 2))]
    objects = shard_objects(specs, TIED, (), "p", remove_redundancy=True)
    # Fewer holders first: b is rank 2's and 3's alone, and rank 1 is left with nothing.
    assert [(item.name, item.rank, item.tensors) for item in objects] == [
        ("p-model-0000000-0000003.safetensors", 0, ("step",)),
        ("p-model-0000001-0000003.safetensors", 2, ("b",)),
        ("p-model-0000002-0000003.safetensors", 3, ("b",)),
    ]
    metadata = parse_metadata(encode_metadata(specs, TIED, objects), "m")
    assert [copied.storage_rank for copied in metadata.by_name["b"].shards[1].copies] == [3]


def test_no_layouts_no_strategy():
    specs, strategy = [TensorSpec("w", DType.F32, (4,))], Strategy(2, ({},))
    assert (
        parse_metadata(encode_metadata(specs, strategy, shard_objects(specs, strategy, (), "")), "m").strategy() is None
    )


def test_optimizer_states():
    names = {"w", "adam_m.w", "adam_v.w", "moments.w", "new.w", "global_step", "model.layers.0.w", "accu_grads.gone"}
    assert {name for name in names if is_optimizer_state(name, names)} == names - {"w", "model.layers.0.w"}


@given(st.lists(layouts(), min_size=1, max_size=4), st.booleans(), st.data())
def test_what_is_written_is_read(drawn, balanced, data):
    count = drawn[0][0].device_count
    drawn = [item for item in drawn if item[0].device_count == count]
    dtypes = st.sampled_from([DType.F32, DType.BF16, DType.I8])
    names = data.draw(
        st.lists(st.text(max_size=5).filter(lambda t: t.isprintable()), min_size=len(drawn) + 1, unique=True)
    )
    specs = [TensorSpec(name, data.draw(dtypes), shape) for name, (_, shape) in zip(names, drawn, strict=False)]
    stages = tuple({} for _ in range(data.draw(st.integers(1, 3))))
    for spec, (layout, _) in zip(specs, drawn, strict=True):
        for stage in data.draw(st.sets(st.integers(0, len(stages) - 1), min_size=1)):
            stages[stage][spec.name] = layout
    strategy = Strategy(count, stages)
    specs.append(TensorSpec(names[-1] + "plain", DType.I64, (2,)))
    if len({spec.name for spec in specs}) < len(specs):
        return
    objects = shard_objects(specs, strategy, {specs[0].name}, "x", remove_redundancy=balanced)
    metadata = parse_metadata(encode_metadata(specs, strategy, objects), "m")
    assert [tensor.spec for tensor in metadata.tensors] == specs
    held = {(item.name, name): item.rank for item in objects for name in item.tensors}
    for tensor in metadata.tensors:
        boxes = set()
        for shard in tensor.shards:
            boxes.add(shard.box)
            for copied in shard.copies:
                assert held.pop((copied.file_name, tensor.spec.name)) == copied.storage_rank
                layout = strategy.layout(tensor.spec.name, copied.storage_rank)
                local_rank = copied.storage_rank % count
                whole = Box.whole(tensor.spec.shape)
                assert shard.box == (layout.box_of(tensor.spec.shape, local_rank) if layout else whole)
            assert len(shard.copies) == (1 if balanced else len(shard.copies[0].rank_group))
        assert sum(box.element_count for box in boxes) == Box.whole(tensor.spec.shape).element_count
    assert not held
