"""Any plan whatever makes every byte once, of the right byte, within its limits."""

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkpoints import (
    catalog_of_objects,
    catalog_of_ranks,
    contents,
    decode,
    put_full,
    put_ranks,
    rank_key,
    shard,
    stored,
)
from support.conversions import convert, ranks_of
from support.plan_checker import check_plan
from support.random_plans import cases, full_targets, limits, object_shares, rank_shares, rank_targets

from reshard.errors import OverBudget, PlanError
from reshard.planning.plan import make_plan
from reshard.storage import Location, MemoryStore, StoreLimits
from reshard.tensor import Layout

# Plans take a while to draw and to check, and how long depends on the machine.
slow = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def checked(catalog, target, wished):
    """Check the plan, or else the one that is accepted according to the refusal."""
    plan, needed_bytes = planned(catalog, target, wished)
    if needed_bytes:
        assert needed_bytes > wished.memory_bytes
        plan, _ = planned(catalog, target, replace(wished, memory_bytes=needed_bytes))
        assert plan
        _, again = planned(catalog, target, replace(wished, memory_bytes=needed_bytes - 1))
        assert again == needed_bytes
    if plan:
        check_plan(plan)
    else:
        assert wished.max_part_count < 10_000  # these parts would be too many


def planned(catalog, target, limits):
    """The plan, or the memory it needs, or neither."""
    try:
        return make_plan(catalog, target, "memory://target", limits), 0
    except OverBudget as refusal:
        return None, refusal.needed_bytes
    except PlanError:
        return None, 0


@slow
@given(st.data(), cases(1), limits())
def test_full_to_ranks(data, case, wished):
    catalog = catalog_of_objects(data.draw(object_shares(case.model)))
    checked(catalog, data.draw(rank_targets(case.strategies[0])), wished)


@slow
@given(st.data(), cases(1), limits())
def test_ranks_to_full(data, case, wished):
    [strategy] = case.strategies
    catalog = catalog_of_ranks(data.draw(rank_shares(case.model, strategy)), strategy)
    checked(catalog, data.draw(full_targets()), wished)


@slow
@given(st.data(), cases(2), limits())
def test_ranks_to_ranks(data, case, wished):
    source, target = case.strategies
    catalog = catalog_of_ranks(data.draw(rank_shares(case.model, source)), source)
    checked(catalog, data.draw(rank_targets(covering(target, source))), wished)


def covering(target, source):
    """The target strategy, with layouts for all that the source cuts: else it would be refused."""
    cut = {name: layout for stage in source.stages for name, layout in stage.items() if name not in target.names}
    whole = {name: Layout((target.device_count,), ((),) * len(layout.tensor_map)) for name, layout in cut.items()}
    return replace(target, stages=({**target.stages[0], **whole}, *target.stages[1:]))


@slow
@given(st.data(), cases(1), limits())
def test_full_to_full(data, case, wished):
    catalog = catalog_of_objects(data.draw(object_shares(case.model)))
    checked(catalog, data.draw(full_targets()), wished)


# Through the real engine, with the bytes of random tensors.


def place(limits):
    """A store of its own that insists on the smallest part."""
    return Location(MemoryStore(limits=StoreLimits(min_part_bytes=limits.min_part_bytes)), "here")


def runnable(wished):
    """The same limits, but with memory for any case and few enough requests that threads keep up."""
    return replace(wished, memory_bytes=1 << 25, max_part_count=10_000, read_bytes=max(wished.read_bytes, 64))


def tensors_at(location):
    """Every tensor of a full checkpoint."""
    found = {}
    for name, body in stored(location).items():
        if name.endswith(".safetensors"):
            found |= decode(body)[0]
    return found


def shards_at(location):
    return {name: decode(body)[0] for name, body in stored(location).items() if name.endswith(".safetensors")}


@slow
@given(st.data(), cases(1), limits(), full_targets())
def test_split_then_merge_is_the_identity(data, case, wished, full):
    wished, [strategy] = runnable(wished), case.strategies
    source, split, merged = place(wished), place(wished), place(wished)
    put_full(source, data.draw(object_shares(case.model)))
    convert(source, split, ranks_of(strategy), wished)
    assert shards_at(split) == {
        rank_key(rank): contents(shard(case.model, strategy, rank)) for rank in range(strategy.rank_count)
    }
    convert(split, merged, full, wished, strategy)
    assert tensors_at(merged) == contents(case.model)


@slow
@given(st.data(), cases(2), limits())
def test_ranks_to_other_ranks_is_full_to_other_ranks(data, case, wished):
    wished, (first, second) = runnable(wished), case.strategies
    second = covering(second, first)
    ranks, full, from_ranks, from_full = (place(wished) for _ in range(4))
    put_ranks(ranks, data.draw(rank_shares(case.model, first)))
    put_full(full, data.draw(object_shares(case.model)))
    convert(ranks, from_ranks, ranks_of(second), wished, first)
    convert(full, from_full, ranks_of(second), wished)
    assert shards_at(from_ranks) == shards_at(from_full)
