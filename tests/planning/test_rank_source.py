"""Rank shards as a source: what is left out, whose copy is taken, and what contradicts; both formats."""

import pytest
from support.checkpoints import (
    encode,
    encode_ckpt,
    header_of,
    header_of_ckpt,
    random_model,
    rank_key,
    shards,
)
from support.planning import plan_for

from reshard.errors import CatalogError, PlanError, StrategyError
from reshard.planning.catalog import SourceSharding
from reshard.planning.limits import Limits
from reshard.planning.sources.rank_source import rank_catalog, take_copy_of_rank
from reshard.planning.sources.selection import NameFilter
from reshard.planning.sources.source_headers import ALL_NAMES, SourceHeaders
from reshard.planning.targets.full_target import PartsTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.tensor import Layout, Strategy

MODEL = random_model({"embed": ("F32", (8, 6)), "norm": ("F32", (6,)), "head": ("BF16", (4, 6)), "step": ("I64", (1,))})
ROWS, COLUMNS, NORM = Layout((2,), ((0,), ())), Layout((2,), ((), (0,))), Layout((2,), ((),))
ONE = Strategy(2, ({"embed": ROWS, "norm": NORM, "head": COLUMNS},))
TWO = Strategy(2, ({"embed": ROWS, "norm": NORM}, {"head": COLUMNS}))


def catalog_of(held, strategy, names=ALL_NAMES, keep_rank=None, *, texts=None, pieces=None, flags=None):
    """The catalog, and names to compare; of .ckpt objects if there are texts or pieces."""
    headers = []
    for rank, model in held.items():
        if texts is None and pieces is None:
            headers.append(header_of(rank_key(rank), encode(model, (flags or {}).get(rank))))
        else:
            count = (pieces or {}).get(rank, 10**9)
            body = encode_ckpt(model, (texts or {}).get(rank), piece_elements=count)
            headers.append(header_of_ckpt(rank_key(rank), body))
    catalog = rank_catalog(SourceHeaders("memory://s", "test", headers, names), tuple(held), strategy, keep_rank)
    return catalog, tuple(entry.spec.name for entry in catalog.unlisted_copies)


def problems_of(error, match, *args, **options):
    with pytest.raises(error, match=match) as caught:
        catalog_of(*args, **options)
    return caught.value.problems


def entry_of(catalog, name):
    return next(entry for entry in catalog.entries if entry.spec.name == name)


def holders_of(catalog, name):
    """The objects that hold each box of a tensor."""
    return [
        [catalog.objects[index].key for index, _ in placement.holders]
        for placement in entry_of(catalog, name).placements
    ]


def changed(held, rank, **tensors):
    return {**held, rank: {**held[rank], **tensors}}


def lacking(held, rank, *names):
    return {**held, rank: {name: value for name, value in held[rank].items() if name not in names}}


# Origins.


def test_origins():
    catalog, to_compare = catalog_of(shards(MODEL, ONE), ONE)
    assert {entry.spec.name: entry.sharding for entry in catalog.entries} == {
        "embed": SourceSharding.SHARDED,
        "norm": SourceSharding.WHOLE,
        "head": SourceSharding.SHARDED,
        "step": SourceSharding.UNLISTED,
    }
    assert to_compare == ("step",)


def planned(catalog, target):
    return plan_for(catalog, target, "memory://t", Limits())


def ranks(strategy):
    return RankTarget(strategy, tuple(range(strategy.rank_count)), "r{rank}")


def test_what_the_source_cuts_needs_a_layout_in_the_target():
    catalog, _ = catalog_of(shards(MODEL, ONE), ONE)
    with pytest.raises(PlanError, match="2 tensors are cut over the source's ranks and have no layout") as caught:
        planned(catalog, ranks(Strategy(2, ({"norm": NORM},))))
    assert set(caught.value.problems) == {"embed", "head"}
    assert "drop='embed' drop='head'" in str(caught.value)


def test_what_the_source_has_whole_is_copied_to_every_rank():
    catalog, _ = catalog_of(shards(MODEL, ONE), ONE)
    plan = planned(catalog, ranks(Strategy(2, ({"embed": COLUMNS, "head": COLUMNS},))))
    assert all({"norm", "step"} <= {spec.name for spec in output.specs} for output in plan.outputs)


def test_tensors_outside_of_every_layout_are_hyper_parameters():
    catalog, _ = catalog_of(shards(MODEL, ONE), ONE)
    by_key = {
        output.keys[0]: {spec.name for spec in output.specs} for output in planned(catalog, PartsTarget(1)).outputs
    }
    assert by_key.pop("hyper_param.safetensors") == {"step"}
    assert sorted(name for names in by_key.values() for name in names) == ["embed", "head", "norm"]


# Leaving tensors out.


@pytest.mark.parametrize("spoilt", ["shape", "dtype", "missing", "another stage"])
def test_what_is_dropped_cannot_be_wrong(spoilt):
    held, strategy = shards(MODEL, TWO), TWO
    held = {
        "shape": lambda: changed(held, 1, embed=random_model({"embed": ("F32", (3, 6))})["embed"]),
        "dtype": lambda: changed(held, 1, embed=random_model({"embed": ("F16", (4, 6))})["embed"]),
        "missing": lambda: lacking(held, 1, "embed"),
        "another stage": lambda: changed(held, 3, embed=held[0]["embed"]),
    }[spoilt]()
    with pytest.raises((CatalogError, StrategyError)):
        catalog_of(held, strategy)
    catalog, _ = catalog_of(held, strategy, NameFilter(drop=("emb*",)))
    assert {entry.spec.name for entry in catalog.entries} == {"norm", "head", "step"}
    assert catalog.dropped == ("embed",)


def test_what_is_not_kept_is_dropped():
    catalog, _ = catalog_of(shards(MODEL, ONE), ONE, NameFilter(keep=("prefix:n",)))
    assert [entry.spec.name for entry in catalog.entries] == ["norm"]
    assert set(catalog.dropped) == {"embed", "head", "step"}


def test_texts_are_dropped_by_name():
    texts = {rank: {"note": f"of {rank}", "kept": "x"} for rank in range(2)}
    catalog, _ = catalog_of(shards(MODEL, ONE), ONE, NameFilter(drop=("note",)), texts=texts)
    assert (catalog.texts, catalog.dropped) == ({"kept": "x"}, ("note",))


# Lost stages.


def test_a_stage_without_any_shard():
    held = {rank: model for rank, model in shards(MODEL, TWO).items() if rank < 2}
    [problem] = problems_of(CatalogError, "no shard holds", held, TWO)
    assert problem == "rank 2, 3: 1 tensors, head (no shard of rank 2, 3)"


def test_a_stage_without_any_shard_whose_tensors_are_dropped():
    held = {rank: model for rank, model in shards(MODEL, TWO).items() if rank < 2}
    catalog, _ = catalog_of(held, TWO, NameFilter(drop=("head",)))
    assert {entry.spec.name for entry in catalog.entries} == {"embed", "norm", "step"}


def test_a_lost_stage_of_which_another_has_the_tensor():
    tied = Strategy(2, ({"embed": ROWS}, {"embed": ROWS}))
    held = {rank: model for rank, model in shards({"embed": MODEL["embed"]}, tied).items() if rank > 1}
    catalog, _ = catalog_of(held, tied)
    assert holders_of(catalog, "embed") == [[rank_key(2)], [rank_key(3)]]


def test_a_tensor_that_was_never_saved_is_told():
    held = {rank: {n: v for n, v in model.items() if n != "norm"} for rank, model in shards(MODEL, ONE).items()}
    catalog, _ = catalog_of(held, ONE)
    assert any("1 tensors of the source strategy are in no shard: norm" in note for note in catalog.notes)


# Redundancy.


def test_flags_of_redundancy_are_told():
    flags = {0: {"remove_redundancy": "True"}, 1: {"remove_redundancy": "False"}}
    catalog, _ = catalog_of(lacking(shards(MODEL, ONE), 1, "norm"), ONE, flags=flags)
    assert any("remove_redundancy is True in 1 of 2 headers" in note and "rank 1" in note for note in catalog.notes)
    assert holders_of(catalog, "norm") == [[rank_key(0)]]


def test_a_flag_that_says_more_than_there_is():
    flags = {rank: {"remove_redundancy": "True"} for rank in range(2)}
    catalog, _ = catalog_of(shards(MODEL, ONE), ONE, flags=flags)
    assert (
        "remove_redundancy is True in 2 of 2 headers, but no box of the strategy is missing anywhere" in catalog.notes
    )


def test_redundancy_that_was_removed_without_a_flag():
    catalog, _ = catalog_of(lacking(shards(MODEL, ONE), 0, "norm"), ONE)
    assert any("1 boxes are missing on rank 0" in note for note in catalog.notes)


# Whose copy.


def test_the_dtype_or_shape_of_a_copy_that_differs():
    held = changed(shards(MODEL, ONE), 1, step=random_model({"step": ("I32", (2,))})["step"])
    [problem] = problems_of(CatalogError, "contradict each other", held, ONE)
    for text in ("step: is unlisted and differs between ranks", "rank 0 has I64 [1]", "rank 1 has I32 [2]"):
        assert text in problem
    for rank, spec in enumerate([("I64", (1,)), ("I32", (2,))]):
        catalog, to_compare = catalog_of(held, ONE, keep_rank=rank)
        found = entry_of(catalog, "step").spec
        assert (found.dtype.value, found.shape) == spec
        assert holders_of(catalog, "step") == [[rank_key(rank)]]
        assert to_compare == ()
        assert f"1 unlisted tensors are rank {rank}'s: step" in catalog.notes


def test_a_rank_to_keep_that_lacks_the_tensor():
    strategy = Strategy(3, ({"embed": Layout((3,), ((), (0,)))},))
    model = {name: MODEL[name] for name in ("embed", "step")}
    held = lacking(changed(shards(model, strategy), 1, step=random_model({"step": ("I32", ())})["step"]), 2, "step")
    for keep in (2, 7):
        [problem] = problems_of(CatalogError, "contradict each other", held, strategy, keep_rank=keep)
        assert problem.startswith("step: is unlisted")


def test_copies_of_one_rank_only():
    catalog, _ = catalog_of(shards(MODEL, ONE), ONE)
    kept = take_copy_of_rank(catalog, "step", 1, rank_key(1))
    assert holders_of(kept, "step") == [[rank_key(1)]]
    assert holders_of(kept, "norm") == holders_of(catalog, "norm")
    with pytest.raises(CatalogError, match="step: rank 5 does not have it"):
        take_copy_of_rank(catalog, "step", 5, rank_key(5))


def test_texts_that_differ():
    texts = {0: {"note": "a", "same": "x"}, 1: {"note": "b", "same": "x"}}
    assert problems_of(CatalogError, "contradict", shards(MODEL, ONE), ONE, texts=texts) == (
        "note: text that differs between ranks",
    )
    catalog, _ = catalog_of(shards(MODEL, ONE), ONE, texts=texts, keep_rank=1)
    assert catalog.texts == {"note": "b", "same": "x"}


def test_texts_that_differ_and_the_rank_to_keep_has_none():
    texts = {0: {"note": "a"}, 1: {}, 2: {"note": "b"}}
    strategy = Strategy(3, ({"embed": Layout((3,), ((), (0,)))},))
    held = shards({name: MODEL[name] for name in ("embed", "step")}, strategy)
    problems = problems_of(CatalogError, "contradict", held, strategy, texts=texts, keep_rank=1)
    assert problems == ("note: text that differs between ranks",)


# Tensors in several pieces.


def test_pieces_are_boxes_of_the_whole():
    catalog, _ = catalog_of(shards(MODEL, ONE), ONE, pieces={0: 12, 1: 12})
    found = [(p.box.start, p.box.stop) for p in entry_of(catalog, "embed").placements]
    assert found == [((row, 0), (row + 2, 6)) for row in (0, 2, 4, 6)]


def test_replicas_cut_alike_are_all_holders():
    catalog, _ = catalog_of(shards(MODEL, ONE), ONE, pieces={0: 4, 1: 4})
    assert holders_of(catalog, "norm") == [[rank_key(0), rank_key(1)]] * 2


def test_replicas_cut_differently_are_left_aside():
    """No tensor is made of two copies; a layout says that they are equal."""
    catalog, _ = catalog_of(shards(MODEL, ONE), ONE, pieces={0: 4, 1: 5})
    assert holders_of(catalog, "norm") == [[rank_key(0)]] * 2


LONG = {**MODEL, "long": random_model({"long": ("U8", (9,))})["long"]}


def test_copies_without_a_layout_that_are_cut_differently_cannot_be_compared():
    """Left aside, nobody would see whether their bytes differ."""
    [problem] = problems_of(CatalogError, "contradict", shards(LONG, ONE), ONE, pieces={0: 4, 1: 5})
    assert problem.startswith("long: ")
    assert "pieces" in problem


@pytest.mark.parametrize("rank", [0, 1])
def test_one_copy_of_those_that_are_cut_differently(rank):
    catalog, to_compare = catalog_of(shards(LONG, ONE), ONE, pieces={0: 4, 1: 5}, keep_rank=rank)
    assert {key for keys in holders_of(catalog, "long") for key in keys} == {rank_key(rank)}
    assert "long" not in to_compare
