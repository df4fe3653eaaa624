"""What is made: which tensors stand in which output, under which keys, with which metadata."""

import json
from dataclasses import replace

import pytest
from support.checkpoints import catalog_of_objects, random_model
from support.planning import plan_for, tensors_of

from reshard.errors import FormatError, PlanError, StrategyError
from reshard.formats.containers import Container
from reshard.planning.limits import Limits
from reshard.planning.outputs.output import SourceMetadata
from reshard.planning.targets import TARGETS, is_checkpoint_object
from reshard.planning.targets.full_target import FullTarget, PartsTarget
from reshard.planning.targets.iteration_target import IterationTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.planning.targets.serving_target import ServingTarget
from reshard.planning.targets.sharded_target import ShardedTarget
from reshard.planning.targets.tree_target import TreeTarget
from reshard.planning.targets.zarr_target import ZarrTarget
from reshard.tensor import MAX_RANK_COUNT, Box, Layout, RowSplit, Strategy

MODEL = random_model({"embed": ("F32", (8, 6)), "norm": ("F32", (6,)), "head": ("BF16", (4, 6)), "step": ("I64", ())})
ROWS, COLUMNS = Layout((2,), ((0,), ())), Layout((2,), ((), (0,)))
NORM, SCALAR = Layout((2,), ((),)), Layout((2,), ())
ALL = Strategy(2, ({"embed": ROWS, "norm": NORM, "head": COLUMNS, "step": SCALAR},))
STAGES = Strategy(2, ({"embed": ROWS, "norm": NORM}, {"head": COLUMNS, "norm": NORM}))
CATALOG = catalog_of_objects({name: {name: value} for name, value in MODEL.items()})
TENSORS = tensors_of(CATALOG)
NOTHING = SourceMetadata()


def ranks(strategy, chosen=None, name="rank_{rank}/c{rank}.safetensors"):
    return RankTarget(strategy, tuple(range(strategy.rank_count) if chosen is None else chosen), name)


def full(object_bytes=10**9, name="part-{part}-of-{parts}.safetensors", form="pt"):
    return FullTarget(name, "model.safetensors", "index.json", form, object_bytes)


def shapes(output):
    return {spec.name: spec.shape for spec in output.specs}


# Rank shards.


def test_every_rank_holds_its_slices():
    first, second = ranks(ALL).outputs(TENSORS, NOTHING)
    assert shapes(first) == {"step": (), "embed": (4, 6), "norm": (6,), "head": (4, 3)}
    assert shapes(second) == shapes(first)
    assert (first.boxes[1], second.boxes[1]) == (Box((0, 0), (4, 6)), Box((4, 0), (8, 6)))


def test_tensors_stand_in_the_order_of_the_safetensors_library():
    [first, _] = ranks(ALL).outputs(TENSORS, NOTHING)
    assert [spec.name for spec in first.specs] == ["step", "embed", "norm", "head"]  # widest dtype first, then by name


def test_offsets_of_an_output():
    [first, _] = ranks(ALL).outputs(TENSORS, NOTHING)
    [(_, header)] = first.frame.literals
    starts = [len(header) + nbytes for nbytes in (0, 8, 8 + 96, 8 + 96 + 24)]
    assert [extent.start for extent in first.frame.extents] == starts
    assert first.nbytes == first.frame.extents[-1].stop == starts[-1] + 24


def test_tensors_of_another_stage_are_not_here():
    outputs = {key: shapes(output) for output in ranks(STAGES).outputs(TENSORS, NOTHING) for key in output.keys}
    assert set(outputs["rank_0/c0.safetensors"]) == {"embed", "norm", "step"}
    assert set(outputs["rank_2/c2.safetensors"]) == {"head", "norm", "step"}


def test_tensors_without_a_layout_are_whole_on_every_rank():
    for output in ranks(STAGES).outputs(TENSORS, NOTHING):
        assert shapes(output)["step"] == ()
    notes = ranks(STAGES).notes(TENSORS)
    assert notes == ("1 tensors have no layout in the target strategy: whole on every rank: step",)


def test_names_that_only_the_strategy_has_are_told():
    strategy = Strategy(2, ({**ALL.stages[0], "adam_m.norm": NORM},))
    assert ranks(strategy).notes(TENSORS) == (
        "1 tensors of the target strategy are not in the source: not written: adam_m.norm",
    )


def test_ranks_with_equal_content_are_one_output():
    strategy = Strategy(4, ({"embed": Layout((2, 2), ((0,), ())), "head": Layout((4,), ((), ()))},))
    outputs = ranks(strategy).outputs(TENSORS, NOTHING)
    assert [output.keys for output in outputs] == [
        ("rank_0/c0.safetensors", "rank_2/c2.safetensors"),
        ("rank_1/c1.safetensors", "rank_3/c3.safetensors"),
    ]


def test_some_ranks_only():
    [output] = ranks(ALL, [1]).outputs(TENSORS, NOTHING)
    assert output.keys == ("rank_1/c1.safetensors",)
    assert output.boxes[1] == Box((4, 0), (8, 6))


def test_uneven_rows():
    uneven = Layout((2,), ((0,), ()), row_split=RowSplit((7, 1), (0, 7)))
    outputs = ranks(Strategy(2, ({"embed": uneven},))).outputs(TENSORS, NOTHING)
    assert [shapes(output)["embed"] for output in outputs] == [(7, 6), (1, 6)]


@pytest.mark.parametrize(
    ("name", "layout", "problem"),
    [
        ("embed", Layout((2,), ((0,),)), "is for 1 axes, the tensor has 2"),
        ("norm", Layout((2,), ((0,), ())), "is for 2 axes, the tensor has 1"),
        ("step", Layout((2,), ((),)), "is for 1 axes, the tensor has 0"),
        ("embed", Layout((2,), ((0,), ()), row_split=RowSplit((1, 2), (0, 1))), "does not tile"),
    ],
)
def test_layouts_that_do_not_fit(name, layout, problem):
    strategy = Strategy(2, ({**ALL.stages[0], name: layout},))
    with pytest.raises(StrategyError, match="does not fit the tensors") as caught:
        ranks(strategy).outputs(TENSORS, NOTHING)
    [found] = caught.value.problems
    assert found.startswith(f"{name} (stage 0): ")
    assert problem in found


def test_all_layouts_that_do_not_fit_are_told():
    three = Layout((5,), ((0,), ()))
    with pytest.raises(StrategyError) as caught:
        ranks(Strategy(5, ({"embed": three, "head": three}, {"embed": three}))).outputs(TENSORS, NOTHING)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "embed (stage 0)",
        "embed (stage 1)",
        "head (stage 0)",
    ]


def test_sub_byte_tensors_cannot_be_cut():
    tensors = tensors_of(catalog_of_objects({"m": random_model({"w": ("F4", (4, 6))})}))
    with pytest.raises(StrategyError) as caught:
        ranks(Strategy(2, ({"w": ROWS},))).outputs(tensors, NOTHING)
    assert caught.value.problems == ("w (stage 0): F4 has no whole bytes to cut between",)
    [output] = ranks(Strategy(2, ({"w": Layout((2,), ((), ()))},))).outputs(tensors, NOTHING)
    assert (shapes(output), output.nbytes - output.frame.extents[0].start) == ({"w": (4, 6)}, 12)


def test_a_strategy_of_another_model():
    with pytest.raises(StrategyError, match="no tensor of the source is named in the target strategy"):
        ranks(Strategy(2, ({"other": ROWS},))).outputs(TENSORS, NOTHING)


def test_a_strategy_of_another_naming():
    with pytest.raises(StrategyError, match="name tensors differently") as caught:
        ranks(Strategy(2, ({"embed": ROWS, "HEAD": COLUMNS},))).outputs(TENSORS, NOTHING)
    assert caught.value.problems[:2] == ("only in the strategy: HEAD", "only in the source: head")


def test_names_that_were_left_out_are_no_other_naming():
    strategy = Strategy(2, ({"embed": ROWS, "gone": ROWS, "adam_m.gone": ROWS},))
    with pytest.raises(StrategyError, match="name tensors differently"):
        ranks(strategy).outputs(TENSORS, NOTHING)
    first, _ = ranks(strategy).outputs(TENSORS, SourceMetadata(dropped=frozenset({"gone"})))
    assert shapes(first) == {"step": (), "embed": (4, 6), "norm": (6,), "head": (4, 6)}


def test_a_strategy_of_fewer_layers():
    tensors = tensors_of(catalog_of_objects({"m": random_model({f"layers.{i}.w": ("U8", (2, 2)) for i in range(3)})}))
    with pytest.raises(StrategyError, match="layouts for some layers and none for others") as caught:
        ranks(Strategy(2, ({"layers.0.w": ROWS},))).outputs(tensors, NOTHING)
    assert caught.value.problems == ("layers.1.w: no layout", "layers.2.w: no layout")


def test_an_empty_source_fits_any_strategy():
    outputs = ranks(ALL).outputs((), NOTHING)
    assert [output.specs for output in outputs] == [()]
    assert len(outputs[0].keys) == 2


# Whole tensors.


def test_one_object_when_one_is_enough():
    [output] = full().outputs(TENSORS, NOTHING)
    assert output.keys == ("model.safetensors",)
    assert full().documents([output], TENSORS, SourceMetadata()) == ()


@pytest.mark.parametrize(
    ("object_bytes", "shares"),
    [
        (1, [["embed"], ["norm"], ["head"], ["step"]]),
        (192, [["embed"], ["norm", "head", "step"]]),
        (191, [["embed"], ["norm", "head", "step"]]),  # a tensor larger than an object has one of its own
        (216, [["embed", "norm"], ["head", "step"]]),
        (272, [["embed", "norm", "head", "step"]]),
    ],
)
def test_objects_are_filled_in_the_order_of_the_source(object_bytes, shares):
    outputs = full(object_bytes).outputs(TENSORS, NOTHING)
    assert [sorted(shapes(output)) for output in outputs] == [sorted(share) for share in shares]
    if len(shares) > 1:
        keys = [f"part-{number}-of-{len(shares)}.safetensors" for number in range(1, len(shares) + 1)]
        assert [output.keys for output in outputs] == [(key,) for key in keys]


def test_the_index_of_several_objects():
    target = full(192)
    outputs = target.outputs(TENSORS, NOTHING)
    [document] = target.documents(outputs, TENSORS, SourceMetadata())
    assert document.key == "index.json"
    index = json.loads(document.data)
    assert index["metadata"]["total_size"] == 272
    assert index["weight_map"] == {
        "embed": "part-1-of-2.safetensors",
        "norm": "part-2-of-2.safetensors",
        "head": "part-2-of-2.safetensors",
        "step": "part-2-of-2.safetensors",
    }


def test_a_name_without_parts_is_one_object():
    [output] = full(1, name="all.safetensors").outputs(TENSORS, NOTHING)
    assert len(output.specs) == 4


# Metadata.


@pytest.mark.parametrize("form", ["pt", "ms"])
def test_metadata_is_carried_but_bookkeeping_is_ours(form):
    metadata = {"author": "x", "format": "np", "crc_num": "1", "remove_redundancy": "True"}
    [output] = full(form=form).outputs(TENSORS, SourceMetadata.of(replace(CATALOG, metadata=metadata), {}))
    assert output.metadata == {"author": "x", "format": form}


def test_notes_under_a_tensors_name_go_where_it_goes():
    source_metadata = SourceMetadata.of(replace(CATALOG, metadata={"embed": "int4", "author": "x"}), {})
    by_key = {key: output for output in ranks(STAGES).outputs(TENSORS, source_metadata) for key in output.keys}
    assert by_key["rank_0/c0.safetensors"].metadata == {"embed": "int4", "author": "x", "format": "ms"}
    assert by_key["rank_2/c2.safetensors"].metadata == {"author": "x", "format": "ms"}


# Keys and names that cannot be.


def plan(target, model=MODEL, **options):
    return plan_for(catalog_of_objects({"m": model}), target, "memory://target", Limits(), **options)


def test_two_outputs_under_one_key():
    with pytest.raises(PlanError, match="several outputs would have the same key") as caught:
        plan(ranks(ALL, name="same.safetensors"))
    assert caught.value.problems == ("same.safetensors",)


def test_the_index_under_an_outputs_key():
    with pytest.raises(PlanError, match="several outputs would have the same key"):
        plan(FullTarget("index{part}.json", "model.safetensors", "index1.json", "pt", 1))


def test_names_that_no_header_can_hold():
    model = random_model({"__metadata__": ("U8", (1,))})
    tensors = [
        type(TENSORS[0])(TENSORS[0].spec.__class__(name, dtype, shape), ()) for name, (dtype, shape, _) in model.items()
    ]
    [output] = full().outputs(tensors, NOTHING)
    with pytest.raises(FormatError, match="tensors that safetensors cannot store"):
        _ = output.frame


# What else a target tells.


KINDS = {
    "full": full(),
    "one object": FullTarget("m.ckpt", "m.ckpt", "", "pt", 1, Container.CKPT),
    "parts": PartsTarget(100),
    "ranks": ranks(ALL),
    "iteration": IterationTarget(ALL, 7),
    "serving": ServingTarget(ALL, tuple(range(ALL.rank_count)), "model-rank-{rank}-part-0.safetensors"),
    "sharded": ShardedTarget(ALL),
    "tree": TreeTarget(Container.CKPT),
    "zarr": ZarrTarget(100),
}


@pytest.mark.parametrize(
    ("kind", "scope", "has_companions"),
    [
        ("full", "", True),
        ("one object", "", False),
        ("parts", "", False),
        ("ranks", "", False),
        ("iteration", "iteration_00000007/", False),
        ("serving", "", True),
        ("sharded", "", True),
        ("tree", None, False),
        ("zarr", "", True),
    ],
)
def test_what_belongs_to_a_target(kind, scope, has_companions):
    assert (KINDS[kind].scope, KINDS[kind].has_companions) == (scope, has_companions)


def test_headers_of_an_engines_ranks_have_no_metadata():
    outputs = KINDS["serving"].outputs(TENSORS, SourceMetadata({"author": "x"}))
    assert [dict(output.metadata) for output in outputs] == [{}] * len(outputs)


def test_every_kind_is_tried_above():
    assert {type(target) for target in KINDS.values()} == set(TARGETS.values())


@pytest.mark.parametrize("kind", ["full", "parts", "ranks", "iteration", "serving", "sharded", "zarr"])
def test_readers_take_what_a_target_writes_for_a_checkpoint(kind):
    target = KINDS[kind]
    outputs = target.outputs(TENSORS, NOTHING)
    keys = {key for output in outputs for key in output.keys}
    documents = {each.key for each in target.documents(outputs, TENSORS, NOTHING)}
    if kind == "zarr":
        assert not any(map(is_checkpoint_object, keys)), "chunks are found by their array's document"
        keys = set()
    unread = {key for key in keys | documents if not is_checkpoint_object(key)}
    assert unread <= {"index.json", *(f"iteration_00000007/{name}.json" for name in ("common", "metadata"))}


@pytest.mark.parametrize(
    "key",
    [
        "notes.txt", "config.json", "tokenizer.json", "a/model.safetensors", "rank_x/a.safetensors", "model.ckpt",
        "a/rank_0/b.ckpt", "rank_0/a/b.safetensors", "iteration_1/a.ckpt", "zarr.jsonx",
        "model.safetensors.index.jsonx",
        "reshard-manifest.json", "",
    ],
)  # fmt: skip
def test_other_objects_are_no_checkpoint(key):
    assert not is_checkpoint_object(key)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_of_the_usual_size_are_within_bounds(kind):
    assert KINDS[kind].check_bounds(TENSORS) == {"ranks": 2, "iteration": 2, "serving": 2, "sharded": 2}.get(kind, 4)


def vast(tensor_count):
    """A strategy of as many ranks as a saved plan may have."""
    layout = Layout((MAX_RANK_COUNT,), ((), ()))
    return Strategy(MAX_RANK_COUNT, ({f"t{number}": layout for number in range(tensor_count)},))


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (PartsTarget(0), "parts of 0 bytes"),
        (ZarrTarget(0), "chunks of 0 bytes"),
        (ranks(ALL, [0, 2]), "ranks: expected ascending ones below 2"),
        (ranks(ALL, [1, 0]), "ranks: expected ascending ones below 2"),
        (ranks(ALL, name="{rank!r}"), "expected no braces"),
        (ranks(vast(1025)), "tensors over all ranks"),
        (replace(ranks(vast(129)), remove_redundancy=True), "tensors over all ranks"),
        (IterationTarget(vast(33), 7), "tensors over all ranks"),
        (IterationTarget(Strategy(1 << 13, ({"embed": Layout((1 << 13,), ((), ()))},)), 7), "ranks in metadata.json"),
    ],
)
def test_bounds_of_targets(target, problem):
    with pytest.raises(PlanError, match=problem):
        target.check_bounds(TENSORS)


def test_ranks_that_differ_by_hand_are_examined_one_by_one():
    counts = (1,) * (MAX_RANK_COUNT)
    by_hand = Layout((MAX_RANK_COUNT,), ((0,), ()), row_split=RowSplit(counts, tuple(range(MAX_RANK_COUNT))))
    target = ranks(Strategy(MAX_RANK_COUNT, ({"embed": by_hand, **{f"t{i}": by_hand for i in range(128)}},)))
    with pytest.raises(PlanError, match="tensors over all layouts"):
        target.check_bounds(TENSORS)
