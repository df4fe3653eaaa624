"""Which outputs share their reads, and what the memory makes of it."""

from dataclasses import replace

import pytest
from support.checkpoints import catalog_of_objects, catalog_of_ranks, random_model, shards
from support.plan_checker import check_plan
from support.planning import plan_for

from reshard.errors import OverBudget
from reshard.planning.limits import Limits
from reshard.planning.steps.buffers import least_memory
from reshard.planning.targets.full_target import FullTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.tensor import Layout, RowSplit, Strategy

LIMITS = Limits(
    memory_bytes=100_000,
    concurrency=1,
    client_bytes=1,
    read_bytes=1000,
    min_part_bytes=500,
    part_bytes=500,
    row_bytes=64,
)
FULL = FullTarget("model-{part}-{parts}.safetensors", "model.safetensors", "index.json", "pt", 10**9)


def split(count, axis):
    """One tensor axis cut over so many ranks."""
    return Layout((count,), tuple((0,) if each == axis else () for each in range(2)))


def plan_of(shapes, layouts, limits=LIMITS):
    count = next(iter(layouts.values())).device_count
    model = random_model({name: ("U8", shape) for name, shape in shapes.items()})
    target = RankTarget(Strategy(count, (layouts,)), tuple(range(count)), "rank_{rank}/c.safetensors")
    plan = plan_for(catalog_of_objects({"m.safetensors": model}), target, "memory://target", limits)
    check_plan(plan)
    return plan


def sizes(plan):
    return [len(group.outputs) for group in plan.groups]


@pytest.mark.parametrize("count", [2, 4, 6, 8])
def test_inner_splits_are_read_once_whatever_the_ranks(count):
    plan = plan_of({"w": (400, 48)}, {"w": split(count, 1)})
    assert sizes(plan) == [count]
    assert plan.cost.read_bytes == plan.cost.needed_bytes == 400 * 48


def test_outer_splits_are_written_one_by_one():
    plan = plan_of({"w": (400, 48)}, {"w": split(8, 0)})
    assert sizes(plan) == [1] * 8
    assert plan.cost.read_bytes == 400 * 48


def test_little_that_is_shared_is_read_again():
    """A norm that all ranks hold is no reason to open all their uploads at once."""
    plan = plan_of({"norm": (1, 48), "w": (4000, 48)}, {"norm": Layout((8,), ((), ())), "w": split(8, 0)})
    assert sizes(plan) == [1] * 8
    assert plan.cost.read_bytes == 4000 * 48 + 8 * 48


def test_much_that_is_shared_is_read_once():
    plan = plan_of({"embed": (4000, 48), "w": (400, 48)}, {"embed": Layout((4,), ((), ())), "w": split(4, 0)})
    assert sizes(plan) == [4]
    assert plan.cost.read_bytes == 4400 * 48


def test_replicas_and_slices():
    """dp2 mp4: eight ranks, four distinct outputs."""
    plan = plan_of({"w": (400, 48)}, {"w": Layout((2, 4), ((), (0,)))})
    assert sizes(plan) == [4]
    assert [len(output.keys) for output in plan.outputs] == [2] * 4
    assert plan.cost.read_bytes == 400 * 48


@pytest.mark.parametrize(
    ("memory_bytes", "group_size", "times_read"),
    [(100_000, 8, 1), (4200, 8, 1), (4100, 4, 2), (2100, 2, 4), (1100, 1, 8)],
)
def test_groups_shrink_to_fit_the_memory(memory_bytes, group_size, times_read):
    """Columns too narrow to be worth a request each: every group reads all rows."""
    limits = replace(LIMITS, memory_bytes=memory_bytes, read_bytes=100)
    plan = plan_of({"w": (1000, 48)}, {"w": split(8, 1)}, limits)
    assert sizes(plan) == [group_size] * (8 // group_size)
    assert plan.cost.read_bytes == pytest.approx(times_read * 48_000, rel=0.02)
    assert plan.cost.peak_bytes <= memory_bytes


def test_exact_bytes_are_not_bought_with_a_request_for_each_row():
    """One rank alone needs 1 of 128 bytes, too few to read the gaps; half the ranks read all rows in few reads."""
    limits = replace(LIMITS, memory_bytes=45_000, max_over_read=64)
    plan = plan_of({"w": (4000, 128)}, {"w": split(128, 1)}, limits)
    assert sizes(plan) == [64, 64]
    assert plan.cost.get_count < 4 * 4000 * 128 // limits.read_bytes


def test_the_last_group_takes_what_is_left():
    limits = replace(LIMITS, memory_bytes=3000, read_bytes=100)
    plan = plan_of({"w": (1000, 48)}, {"w": split(6, 1)}, limits)
    assert sizes(plan) == [3, 3]
    plan = plan_of({"w": (1000, 45)}, {"w": split(5, 1)}, replace(limits, memory_bytes=2600))
    assert sizes(plan) == [3, 2]


def test_each_stage_is_a_family():
    layout = split(2, 1)
    strategy = Strategy(2, ({"a": layout}, {"b": layout}))
    model = random_model({"a": ("U8", (200, 48)), "b": ("U8", (200, 48))})
    target = RankTarget(strategy, (0, 1, 2, 3), "rank_{rank}/c.safetensors")
    plan = plan_for(catalog_of_objects({"m.safetensors": model}), target, "memory://target", LIMITS)
    check_plan(plan)
    assert [group.outputs for group in plan.groups] == [(0, 1), (2, 3)]
    assert plan.cost.read_bytes == 2 * 200 * 48


def test_slices_that_are_stored_apart_are_read_apart():
    """The source is cut as the target is: nothing is shared, and no rank reads another's bytes."""
    strategy = Strategy(4, ({"w": split(4, 1)},))
    model = random_model({"w": ("U8", (400, 48))})
    catalog = catalog_of_ranks(shards(model, strategy), strategy)
    plan = plan_for(catalog, RankTarget(strategy, (0, 1, 2, 3), "rank_{rank}/c.safetensors"), "memory://t", LIMITS)
    check_plan(plan)
    assert sizes(plan) == [1] * 4
    assert all(read.is_direct for group in range(4) for step in plan.steps(group) for read in step.reads)


@pytest.mark.parametrize("axis", [0, 1])
def test_merging_reads_once(axis):
    strategy = Strategy(4, ({"w": split(4, axis)},))
    model = random_model({"w": ("U8", (400, 48))})
    plan = plan_for(catalog_of_ranks(shards(model, strategy), strategy), FULL, "memory://target", LIMITS)
    check_plan(plan)
    assert plan.cost.read_bytes == 400 * 48


def test_a_group_whose_outputs_end_apart_is_cut_by_those_that_go_on():
    """Uneven slices: the short output ends early and must not hold the others up beyond the memory."""
    uneven = Layout((2,), ((0,), ()), row_split=RowSplit((10, 990), (0, 10)))
    plan = plan_of(
        {"v": (100, 48), "w": (1000, 48)}, {"v": split(2, 1), "w": uneven}, replace(LIMITS, memory_bytes=6000)
    )
    assert plan.cost.peak_bytes <= 6000


def test_parts_grow_where_there_would_be_too_many():
    plan = plan_of({"w": (1000, 48)}, {"w": split(2, 1)}, replace(LIMITS, max_part_count=7))
    for index in range(len(plan.groups)):
        assert len(list(plan.steps(index))) <= 7


def test_few_parts_need_more_memory():
    limits = replace(LIMITS, max_part_count=4, memory_bytes=5000)
    with pytest.raises(OverBudget) as refused:
        plan_of({"w": (1000, 48)}, {"w": split(2, 1)}, limits)
    third_bytes = 24_000 // 3
    assert least_memory(limits, third_bytes) <= refused.value.needed_bytes <= least_memory(limits, third_bytes + 500)
    plan_of({"w": (1000, 48)}, {"w": split(2, 1)}, replace(limits, memory_bytes=refused.value.needed_bytes))


def test_parts_are_as_long_as_wished_where_memory_allows():
    plan = plan_of({"w": (4000, 48)}, {"w": split(2, 0)}, replace(LIMITS, part_bytes=10_000, memory_bytes=200_000))
    lengths = [part.range.nbytes for step in plan.steps(0) for part in step.parts]
    assert all(10_000 <= nbytes < 10_064 for nbytes in lengths[:-1])


def test_steps_are_small_enough_to_overlap():
    """Two steps at least must be under way at once, and enough of them to keep all requests busy."""
    for concurrency in (1, 4, 8):
        limits = replace(LIMITS, part_bytes=10**6, concurrency=concurrency)
        plan = plan_of({"w": (4000, 48)}, {"w": split(2, 0)}, limits)
        step_bytes = max(step.nbytes for step in plan.steps(0))
        assert 2 * concurrency * step_bytes <= plan.buffers.parts_bytes + 2 * concurrency * 64
