"""Catalogs from headers: where every box lies, and what contradicts."""

import pytest
from support.checkpoints import catalog_of_objects, catalog_of_ranks, encode, header_of, random_model, rank_key, shards

from reshard.errors import CatalogError, StrategyError
from reshard.planning.sources.full_source import full_catalog
from reshard.planning.sources.source_headers import SourceHeaders
from reshard.tensor import Box, Layout, RowSplit, Strategy

MODEL = random_model({"embed": ("F32", (8, 6)), "norm": ("F32", (6,)), "head": ("BF16", (4, 6))})
ROWS, COLUMNS = Layout((2,), ((0,), ())), Layout((2,), ((), (0,)))
ALL = Strategy(2, ({"embed": ROWS, "norm": Layout((2,), ((),)), "head": COLUMNS},))
STAGES = Strategy(2, ({"embed": ROWS, "norm": Layout((2,), ((),))}, {"head": COLUMNS, "norm": Layout((2,), ((),))}))


def header(key, model, metadata=None):
    return header_of(key, encode(model, metadata))


def headers(objects):
    return SourceHeaders("m://s", "test", [header(key, model) for key, model in objects.items()])


def placements(catalog, name):
    entry = next(entry for entry in catalog.entries if entry.spec.name == name)
    return {
        (placement.box.start, placement.box.stop): [catalog.objects[index].key for index, _ in placement.holders]
        for placement in entry.placements
    }


def without(model, *names):
    return {name: value for name, value in model.items() if name not in names}


def only(model, *names):
    return {name: model[name] for name in names}


# Whole tensors.


def test_whole_tensors_keep_the_order_of_the_source():
    catalog = catalog_of_objects({"1": only(MODEL, "head"), "2": only(MODEL, "embed", "norm")})
    assert [entry.spec.name for entry in catalog.entries] == ["head", "embed", "norm"]
    assert placements(catalog, "embed") == {((0, 0), (8, 6)): ["2"]}
    assert catalog.nbytes == 8 * 6 * 4 + 6 * 4 + 4 * 6 * 2


def test_a_tensor_in_two_objects():
    with pytest.raises(CatalogError, match="do not make one checkpoint") as caught:
        full_catalog(headers({"1": MODEL, "2": only(MODEL, "norm", "head")}))
    assert caught.value.problems == ("norm: in 1 and in 2", "head: in 1 and in 2")


def test_an_index_decides_between_two_objects():
    objects = headers({"1": MODEL, "2": only(MODEL, "norm")})
    catalog = full_catalog(objects, {"embed": "1", "head": "1", "norm": "2"})
    assert placements(catalog, "norm") == {((0,), (6,)): ["2"]}


def test_everything_that_an_index_names_must_be_there():
    objects = headers({"1": only(MODEL, "embed"), "2": only(MODEL, "norm")})
    with pytest.raises(CatalogError, match="do not make one checkpoint") as caught:
        full_catalog(objects, {"embed": "1", "norm": "1", "head": "2", "tail": "2"})
    assert caught.value.problems == (
        "norm: expected in 1, not there",
        "head: expected in 2, not there",
        "tail: expected in 2, not there",
    )


def test_what_an_index_does_not_name_is_taken_all_the_same():
    catalog = full_catalog(headers({"1": MODEL}), {"embed": "1"})
    assert {entry.spec.name for entry in catalog.entries} == set(MODEL)


def test_metadata_that_objects_agree_on():
    objects = [header("1", {}, {"a": "1", "b": "1", "c": "1"}), header("2", {}, {"a": "1", "b": "2"})]
    assert SourceHeaders("m://s", "test", objects).metadata() == {"a": "1", "c": "1"}


def test_nothing_at_all():
    catalog = catalog_of_objects({"1": {}})
    assert (catalog.entries, catalog.nbytes, len(catalog.objects)) == ((), 0, 1)


# Rank shards.


def test_boxes_of_ranks_and_their_replicas():
    catalog = catalog_of_ranks(shards(MODEL, ALL), ALL)
    first, second = rank_key(0), rank_key(1)
    assert placements(catalog, "embed") == {((0, 0), (4, 6)): [first], ((4, 0), (8, 6)): [second]}
    assert placements(catalog, "norm") == {((0,), (6,)): [first, second]}
    assert placements(catalog, "head") == {((0, 0), (4, 3)): [first], ((0, 3), (4, 6)): [second]}
    assert {entry.spec.name: entry.spec.shape for entry in catalog.entries} == {
        name: shape for name, (_, shape, _) in MODEL.items()
    }


def test_a_tensor_of_several_stages_is_taken_from_the_first():
    """Copies that might differ are not mixed; that there are several is told."""
    catalog = catalog_of_ranks(shards(MODEL, STAGES), STAGES)
    assert placements(catalog, "norm") == {((0,), (6,)): [rank_key(0), rank_key(1)]}
    assert placements(catalog, "head") == {((0, 0), (4, 3)): [rank_key(2)], ((0, 3), (4, 6)): [rank_key(3)]}
    assert any("1 tensors are on several stages" in note and "norm" in note for note in catalog.notes)


def test_stages_that_cut_a_tensor_differently():
    strategy = Strategy(2, ({"embed": ROWS}, {"embed": COLUMNS}))
    catalog = catalog_of_ranks(shards(only(MODEL, "embed"), strategy), strategy)
    assert placements(catalog, "embed") == {((0, 0), (4, 6)): [rank_key(0)], ((4, 0), (8, 6)): [rank_key(1)]}


def test_removed_redundancy_is_no_loss():
    catalog = catalog_of_ranks(shards(MODEL, ALL, dropped=[(0, "norm")]), ALL)
    assert placements(catalog, "norm") == {((0,), (6,)): [rank_key(1)]}


def test_a_stage_without_its_copy():
    catalog = catalog_of_ranks(shards(MODEL, STAGES, dropped=[(0, "norm"), (1, "norm"), (3, "norm")]), STAGES)
    assert placements(catalog, "norm") == {((0,), (6,)): [rank_key(2)]}


def test_tensors_without_a_layout_are_whole_and_to_be_compared():
    strategy = Strategy(2, ({"embed": ROWS},))
    held = shards(MODEL, strategy)
    catalog = catalog_of_ranks(held, strategy)
    assert placements(catalog, "norm") == {((0,), (6,)): [rank_key(0), rank_key(1)]}
    assert {entry.spec.name for entry in catalog.unlisted_copies} == {"norm", "head"}
    held[1] = only(held[1], "embed")
    assert catalog_of_ranks(held, strategy).unlisted_copies == ()  # one copy has nothing to be compared with


def test_names_of_the_strategy_that_no_shard_has():
    strategy = Strategy(2, ({**ALL.stages[0], "ghost": ROWS},))
    catalog = catalog_of_ranks(shards(MODEL, strategy), strategy)
    assert any("ghost" in note for note in catalog.notes)
    assert "ghost" not in {entry.spec.name for entry in catalog.entries}


def test_sub_byte_tensors_of_ranks():
    model = random_model({"w": ("F4", (4, 6))})
    strategy = Strategy(2, ({"w": Layout((2,), ((), ()))},))
    catalog = catalog_of_ranks(shards(model, strategy), strategy)
    assert placements(catalog, "w") == {((0,), (12,)): [rank_key(0), rank_key(1)]}


def test_uneven_rows():
    uneven = Layout((3,), ((0,), ()), row_split=RowSplit((5, 0, 3), (0, 5, 5)))
    strategy = Strategy(3, ({"embed": uneven},))
    catalog = catalog_of_ranks(shards(only(MODEL, "embed"), strategy), strategy)
    [entry] = catalog.entries
    assert entry.spec.shape == (8, 6)
    filled = [placement.box for placement in entry.placements if not placement.box.is_empty]
    assert filled == [Box((0, 0), (5, 6)), Box((5, 0), (8, 6))]


# What contradicts: each error lists all of its kind.


def catch(error, held, strategy, match):
    with pytest.raises(error, match=match) as caught:
        catalog_of_ranks(held, strategy)
    return caught.value.problems


def test_more_ranks_than_the_strategy_has():
    held = {**shards(MODEL, ALL), 2: MODEL, 7: MODEL}
    problems = catch(StrategyError, held, ALL, "has only 2 ranks")
    assert [problem.split(":")[0] for problem in problems] == ["rank 2", "rank 7"]


@pytest.mark.parametrize(
    ("name", "layout", "problem"),
    [
        ("embed", Layout((2,), ((0,),)), "is for 1 axes, the tensor has 2"),
        ("embed", Layout((2,), ((0,), (), ())), "is for 3 axes, the tensor has 2"),
        ("norm", Layout((2,), (), optimizer_shard_size=-1), "is for 0 axes"),
    ],
)
def test_tensor_maps_of_other_tensors(name, layout, problem):
    strategy = Strategy(2, ({**ALL.stages[0], name: layout},))
    problems = catch(StrategyError, shards(MODEL, ALL), strategy, "do not fit the source strategy")
    assert [problem.split(":")[0] for problem in problems] == [name]
    assert problem in problems[0]


def test_shapes_that_differ_between_ranks():
    held = shards(MODEL, ALL)
    held[1] = {**held[1], "embed": random_model({"embed": ("F32", (3, 6))})["embed"]}
    [problem] = catch(StrategyError, held, ALL, "do not fit the source strategy")
    for text in ("embed: rank 0 has [4, 6]", "[8, 6]", "rank 1", "[3, 6]"):
        assert text in problem


def test_shapes_that_contradict_uneven_rows():
    uneven = Layout((2,), ((0,), ()), row_split=RowSplit((6, 2), (0, 6)))
    [problem] = catch(
        StrategyError, shards(only(MODEL, "embed"), ALL), Strategy(2, ({"embed": uneven},)), "do not fit the source"
    )
    assert "embed" in problem


def test_sub_byte_tensors_cannot_be_cut():
    model = random_model({"w": ("F4", (4, 6))})
    whole = Strategy(2, ({"w": Layout((2,), ((), ()))},))
    [problem] = catch(StrategyError, shards(model, whole), Strategy(2, ({"w": ROWS},)), "do not fit the source")
    assert problem == "w: F4 has no whole bytes to cut between"


def test_dtypes_that_differ_between_ranks():
    held = shards(MODEL, ALL)
    held[1] = {**held[1], "norm": random_model({"norm": ("F16", (6,))})["norm"]}
    [problem] = catch(CatalogError, held, ALL, "contradict each other")
    for text in ("norm: dtype differs between ranks", "rank 0 has F32 [6]", "rank 1 has F16 [6]"):
        assert text in problem


def test_boxes_that_no_shard_holds():
    held = shards(MODEL, ALL)
    held[1] = without(held[1], "embed", "head", "norm")
    [problem] = catch(CatalogError, held, ALL, "no shard holds")
    assert problem == "rank 1: 2 tensors, embed, head"


def test_a_rank_that_is_missing():
    held = shards(MODEL, ALL)
    del held[1]
    [problem] = catch(CatalogError, held, ALL, "no shard holds")
    assert "rank 1: 2 tensors" in problem
    assert "no shard of rank 1" in problem


def test_replicas_that_are_all_missing_are_one_problem():
    strategy = Strategy(4, ({"embed": Layout((2, 2), ((0,), ()))},))
    held = {rank: model for rank, model in shards(only(MODEL, "embed"), strategy).items() if rank in (0, 2)}
    [problem] = catch(CatalogError, held, strategy, "no shard holds")
    assert "rank 1, 3" in problem


def test_a_tensor_on_a_stage_that_should_not_have_it():
    held = shards(MODEL, STAGES)
    held[3] = {**held[3], "embed": held[0]["embed"]}
    [problem] = catch(CatalogError, held, STAGES, "contradict each other")
    assert problem == "embed: on ranks [3], but the strategy has it on other stages only"


def test_a_tensor_without_a_layout_of_two_shapes():
    strategy = Strategy(2, ({"embed": ROWS},))
    held = shards(MODEL, strategy)
    held[1] = {**held[1], "norm": random_model({"norm": ("F32", (3,))})["norm"]}
    [problem] = catch(CatalogError, held, strategy, "contradict each other")
    assert "norm: is unlisted and differs between ranks" in problem


def test_a_tensor_whose_shape_differs_between_stages():
    strategy = Strategy(2, ({"embed": ROWS}, {"embed": ROWS}))
    held = shards(only(MODEL, "embed"), strategy)
    held[2] = held[3] = random_model({"embed": ("F32", (4, 7))})
    [problem] = catch(CatalogError, held, strategy, "contradict each other")
    assert problem == "embed: whole on stage 1 it is F32 [8, 7], on an earlier stage F32 [8, 6]"


def test_all_problems_of_one_kind_are_told_together():
    held = shards(MODEL, ALL)
    held[1] = random_model({"embed": ("F32", (3, 6)), "norm": ("F32", (5,)), "head": ("BF16", (4, 2))})
    assert len(catch(StrategyError, held, ALL, "do not fit the source strategy")) == 3
