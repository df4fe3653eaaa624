"""The memory limit: how it is shared out, and that the number in a refusal is exactly the smallest that works."""

from dataclasses import asdict, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.checkpoints import catalog_of_objects, encode, random_model
from support.plan_checker import check_plan
from support.planning import plan_for

from reshard.errors import OverBudget, PlanError, UsageError
from reshard.planning.limits import KIB, MIB, Limits
from reshard.planning.steps.buffers import least_memory, share_memory
from reshard.planning.targets.full_target import FullTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.tensor import Layout, Strategy


@pytest.mark.parametrize("name", [name for name in asdict(Limits()) if name != "integrity"])
def test_few_may_be_zero(name):
    if name in ("max_gap_bytes", "kernel_bytes"):
        assert getattr(Limits(**{name: 0}), name) == 0
        value, least = -1, 0
    else:
        value, least = 0, 1
    with pytest.raises(UsageError, match=f"{name} must be at least {least}, found {value}"):
        Limits(**{name: value})


small_limits = st.builds(
    Limits,
    memory_bytes=st.integers(1, 64 * MIB),
    concurrency=st.one_of(st.integers(1, 4), st.integers(1, 40)),
    read_bytes=st.one_of(st.integers(1, 1000), st.integers(1, 16 * MIB)),
    client_bytes=st.integers(1, 2 * MIB),
)


@given(small_limits)
def test_memory_is_shared_out_whole_and_never_twice(limits):
    buffers = share_memory(limits)
    assert 1 <= buffers.read_bytes <= limits.read_bytes
    assert buffers.fixed_bytes == limits.concurrency * (buffers.read_bytes + limits.client_bytes)
    spare = limits.memory_bytes - buffers.fixed_bytes - buffers.parts_bytes
    assert 0 <= spare < limits.concurrency
    assert buffers.limits == replace(limits, read_bytes=buffers.read_bytes)


@given(small_limits)
def test_more_memory_never_leaves_less_for_parts(limits):
    more = replace(limits, memory_bytes=limits.memory_bytes + 1)
    assert share_memory(more).parts_bytes >= share_memory(limits).parts_bytes
    assert share_memory(more).read_bytes >= share_memory(limits).read_bytes


@example(Limits(concurrency=1, client_bytes=1), 7 * MIB - 1)  # reads take an eighth
@example(Limits(concurrency=1, client_bytes=1), 7 * MIB)
@example(Limits(concurrency=1, client_bytes=1), 1)  # reads are as short as can be
@example(Limits(concurrency=1, client_bytes=1), 1 << 40)  # reads are as long as wished
@given(small_limits, st.integers(1, 1 << 30))
def test_least_memory_is_least(limits, step_bytes):
    needed_bytes = least_memory(limits, step_bytes)
    assert share_memory(replace(limits, memory_bytes=needed_bytes)).parts_bytes >= step_bytes
    assert needed_bytes == 1 or share_memory(replace(limits, memory_bytes=needed_bytes - 1)).parts_bytes < step_bytes


@given(small_limits)
def test_limits_as_used_are_limits_as_given(limits):
    """A plan keeps the lowered limits: asked again, they must give the same buffers for reads."""
    used = share_memory(limits).limits
    assert share_memory(used).limits == used
    assert share_memory(used).fixed_bytes == share_memory(limits).fixed_bytes


ROWS = Strategy(4, ({"outer": Layout((4,), ((0,), ())), "inner": Layout((4,), ((), (0,)))},))
RANKS = RankTarget(ROWS, (0, 1, 2, 3), "rank_{rank}/checkpoint_{rank}.safetensors")
STAGES = Strategy(1, ({"outer": Layout((1,), ((), ()))}, {"inner": Layout((1,), ((), ()))}))
BY_STAGE = RankTarget(STAGES, (0, 1), "rank_{rank}/checkpoint_{rank}.safetensors")
FULL = FullTarget("model.safetensors", "model.safetensors", "", "pt", 10**9)
MODEL = random_model({"outer": ("F32", (64, 30)), "inner": ("BF16", (16, 512)), "norm": ("F32", (77,))})


@pytest.mark.parametrize("target", [RANKS, BY_STAGE, FULL], ids=["ranks", "stages", "full"])
@pytest.mark.parametrize(
    "wished",
    [
        Limits(concurrency=1, client_bytes=1, min_part_bytes=3000, row_bytes=500),
        Limits(concurrency=3, client_bytes=5, min_part_bytes=3000, row_bytes=500, read_bytes=1000),
        Limits(concurrency=7, client_bytes=1 * KIB, min_part_bytes=100, row_bytes=50, read_bytes=300 * KIB),
        Limits(concurrency=8),  # nothing can be cut: one step holds an output whole
        Limits(concurrency=2, client_bytes=1, min_part_bytes=200, row_bytes=1 * MIB, part_bytes=1),
        Limits(concurrency=1, client_bytes=1, min_part_bytes=1000, row_bytes=9, max_part_count=4),
    ],
    ids=["parts", "tiny reads", "finest", "default", "long rows", "few parts"],
)
def test_a_refusal_tells_the_smallest_limit_that_is_accepted(target, wished):
    catalog = catalog_of_objects({"model.safetensors": MODEL})

    def plan(memory_bytes):
        return plan_for(catalog, target, "memory://target", replace(wished, memory_bytes=memory_bytes))

    with pytest.raises(OverBudget) as refused:
        plan(1)
    needed_bytes = refused.value.needed_bytes
    with pytest.raises(OverBudget) as refused:
        plan(needed_bytes - 1)
    assert refused.value.needed_bytes == needed_bytes
    for memory_bytes in (
        needed_bytes,
        needed_bytes + 1,
        needed_bytes + 63,
        2 * needed_bytes,
        -(-needed_bytes >> 20) << 20,
    ):
        made = plan(memory_bytes)
        assert made.cost.peak_bytes <= memory_bytes
    check_plan(plan(needed_bytes))


def test_a_refusal_says_what_to_do():
    catalog = catalog_of_objects({"model.safetensors": MODEL})
    with pytest.raises(OverBudget) as refused:
        plan_for(catalog, FULL, "memory://target", Limits(memory_bytes=8 * MIB))
    error = refused.value
    mib = -(-error.needed_bytes >> 20)
    assert str(error) == (
        f"this conversion needs at least {error.needed_bytes} bytes of memory (concurrency 8), the limit is 8388608\n"
        f"Allow memory='{mib}MiB', or lower `concurrency`."
    )
    assert plan_for(catalog, FULL, "memory://target", Limits(memory_bytes=mib * MIB)).cost.peak_bytes <= mib * MIB


def test_a_refusal_carries_the_largest_need_of_all_outputs():
    """The first output alone would do with less."""
    model = random_model({"a.small": ("U8", (3000,)), "b.large": ("U8", (90_000,))})
    stages = Strategy(1, ({"a.small": Layout((1,), ((),))}, {"b.large": Layout((1,), ((),))}))
    target = RankTarget(stages, (0, 1), "rank_{rank}/c.safetensors")
    limits = Limits(memory_bytes=1, concurrency=1, client_bytes=1, read_bytes=1)
    with pytest.raises(OverBudget) as refused:
        plan_for(catalog_of_objects({"m.safetensors": model}), target, "memory://target", limits)
    assert refused.value.needed_bytes == 2 + len(encode({"b.large": model["b.large"]}, {"format": "ms"}))


def test_lower_concurrency_needs_less():
    catalog = catalog_of_objects({"model.safetensors": MODEL})

    def needed_bytes(concurrency):
        with pytest.raises(OverBudget) as refused:
            plan_for(catalog, RANKS, "memory://target", Limits(memory_bytes=1, concurrency=concurrency))
        return refused.value.needed_bytes

    needs = [needed_bytes(concurrency) for concurrency in (1, 2, 8, 64)]
    assert needs == sorted(set(needs))


@pytest.mark.parametrize(
    ("limits", "accepted"),
    [
        (Limits(min_part_bytes=100, max_part_bytes=700, row_bytes=100, part_bytes=600), True),
        (Limits(min_part_bytes=100, max_part_bytes=700, row_bytes=100), True),  # wished parts are longer than allowed
        (Limits(min_part_bytes=100, max_part_bytes=99, row_bytes=100), False),
        (Limits(min_part_bytes=100, max_part_bytes=500, max_part_count=3), False),  # 3 parts of 500 are not enough
        (Limits(min_part_bytes=100, max_part_bytes=150, row_bytes=900), False),  # a row is longer than a part may be
    ],
)
def test_parts_that_the_store_accepts(limits, accepted):
    model = random_model({"w": ("U8", (100, 50)), "v": ("U8", (10, 400))})
    catalog = catalog_of_objects({"m.safetensors": model})
    if accepted:
        check_plan(plan_for(catalog, FULL, "memory://target", limits))
        return
    with pytest.raises(PlanError, match=r"model\.safetensors \(\d+ bytes\) cannot be written in \d+ parts of 100 to"):
        plan_for(catalog, FULL, "memory://target", limits)
