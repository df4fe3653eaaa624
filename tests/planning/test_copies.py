"""Copied ranges: all that is contiguous in one object and long enough, and nothing else."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkpoints import catalog_of_objects, catalog_of_ranks, random_model, shards
from support.plan_checker import check_plan
from support.planning import plan_for
from support.random_plans import cases, full_targets, limits, object_shares, rank_shares, rank_targets

from reshard.errors import OverBudget, PlanError
from reshard.formats.containers import Container
from reshard.planning.change import Change
from reshard.planning.limits import Limits
from reshard.planning.outputs.output import Piece, TargetTensor, make_output
from reshard.planning.plan import without_copies
from reshard.planning.steps.copies import REPLICAS, CopyFinder
from reshard.planning.steps.draft import Draft
from reshard.planning.targets.full_target import FullTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.tensor import Box, DType, Layout, Patch, Strategy, TensorSpec

LEAST = 500
LIMITS = Limits(
    min_part_bytes=LEAST, part_bytes=LEAST, copy_bytes=1 << 20, min_copy_source_bytes=1, row_bytes=16, read_bytes=4096
)
SINGLE = FullTarget("m-{part}-{parts}.safetensors", "m.safetensors", "index.json", "pt", 10**9)


def plan_of(catalog, target=SINGLE, limits=LIMITS, copy_bases=(REPLICAS, 0), **more):
    plan = plan_for(catalog, target, "memory://target", limits, copy_bases=copy_bases, **more)
    if not more:
        check_plan(plan)
    return plan


def model_of(shapes, dtype="U8"):
    return random_model({name: (dtype, shape) for name, shape in shapes.items()})


def copies_of(plan, output=0):
    """What is copied of an output: ``(start, stop, key of the source)``."""
    return [(c.start, c.stop, plan.catalog.objects[c.object].key) for c in plan.draft.copied_ranges[output]]


def span_of(plan, name, output=0):
    """The first byte of a tensor in an output."""
    found = plan.outputs[output]
    slot = [spec.name for spec in found.specs].index(name)
    [extent] = [extent for extent in found.frame.extents if extent.slot == slot]
    return extent.start, extent.stop


def head_of(plan, output=0):
    return plan.outputs[output].frame.extents[0].start


# Any copies are legal.


@st.composite
def any_plans(draw):
    """Everything that a plan with copies is made from."""
    case = draw(cases(2))
    if draw(st.booleans()):
        catalog = catalog_of_objects(draw(object_shares(case.model)))
    else:
        [source, _] = case.strategies
        catalog = catalog_of_ranks(draw(rank_shares(case.model, source)), source)
        return catalog, draw(full_targets()), draw(limits())
    return catalog, draw(st.one_of(rank_targets(case.strategies[1]), full_targets())), draw(limits())


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(any_plans())
def test_ranges_and_stretches_between_are_parts(drawn):
    catalog, target, wished = drawn
    wished = replace(wished, memory_bytes=1 << 30)
    try:
        plan = plan_for(catalog, target, "memory://target", wished, copy_bases=(REPLICAS, 0))
    except (PlanError, OverBudget):
        with pytest.raises((PlanError, OverBudget)):  # what cannot be copied in so few parts can be streamed, if at all
            plan_for(catalog, target, "memory://target", wished)
        return
    if not plan.copy_bases:
        return
    for output, copied in zip(plan.outputs, plan.draft.copied_ranges, strict=True):
        edges = [0, *(edge for item in copied for edge in (item.start, item.stop))]
        assert edges == sorted(edges)
        assert not copied or edges[-1] <= output.nbytes
        assert all(item.nbytes >= wished.min_part_bytes for item in copied)
        gaps = [b - a for a, b in list(pairwise(edges))[::2]]
        assert all(gap == 0 or gap >= wished.min_part_bytes for gap in gaps)
        assert not copied or gaps[0]  # the bytes before the first tensor are in no source
        for item in copied:
            assert plan.catalog.objects[item.object].nbytes >= wished.min_copy_source_bytes


# All that can be copied is.


def test_whole_tensors_are_joined_over_their_neighbours():
    """Small ones among them, which would not be parts of their own; only the header takes a part's worth."""
    model = model_of({"a": (3, 7), "b": (50, 40), "c": (9,), "d": (60, 30), "e": (3,)})
    plan = plan_of(catalog_of_objects({"m.safetensors": model}))
    [(start, stop, key)] = copies_of(plan)
    assert (stop, key) == (plan.outputs[0].nbytes, "m.safetensors")
    assert start == max(LEAST, head_of(plan))
    assert plan.cost.copied_bytes == plan.outputs[0].nbytes - start


def test_a_short_header_takes_what_it_lacks():
    plan = plan_of(catalog_of_objects({"m.safetensors": model_of({"a": (5000,)})}))
    assert head_of(plan) < LEAST
    assert copies_of(plan) == [(LEAST, plan.outputs[0].nbytes, "m.safetensors")]


def test_a_long_header_takes_nothing():
    model = model_of({f"{i:03d}": (200,) for i in range(20)})
    plan = plan_of(catalog_of_objects({"m.safetensors": model}))
    assert head_of(plan) > LEAST
    assert copies_of(plan) == [(head_of(plan), plan.outputs[0].nbytes, "m.safetensors")]


@pytest.mark.parametrize(("dtype", "itemsize"), [("F16", 2), ("F32", 4), ("F64", 8)])
def test_elements_stay_whole(dtype, itemsize):
    """The header is shorter than a part by a number of bytes that is no multiple of an element's."""
    model = random_model({"a": (dtype, (4000 // itemsize,))})
    wished = replace(LIMITS, min_part_bytes=LEAST + 1)
    plan = plan_of(catalog_of_objects({"m.safetensors": model}), limits=wished)
    [(start, _, _)] = copies_of(plan)
    assert 0 <= start - (LEAST + 1) < itemsize
    assert (start - head_of(plan)) % itemsize == 0


def test_a_short_tensor_between_takes_what_it_lacks_of_the_one_after():
    """The norm is in another object, so it is streamed, with the first bytes of what follows it."""
    whole = model_of({"a": (5000,), "b.norm": (40,), "c": (5000,)})
    held = {"1.safetensors": {n: whole[n] for n in ("a", "c")}, "2.safetensors": {"b.norm": whole["b.norm"]}}
    plan = plan_of(catalog_of_objects(held))
    start, stop = span_of(plan, "b.norm")
    assert copies_of(plan) == [
        (LEAST, start, "1.safetensors"),
        (start + LEAST, plan.outputs[0].nbytes, "1.safetensors"),
    ]
    assert stop < start + LEAST


def test_neighbours_of_other_objects_follow_each_other_without_a_stretch_between():
    whole = model_of({"a": (2000,), "b": (3000,), "c": (999,)})
    plan = plan_of(catalog_of_objects({f"{name}.safetensors": {name: whole[name]} for name in whole}))
    (_, a), (_, b), (_, c) = (span_of(plan, name) for name in "abc")
    assert copies_of(plan) == [
        (LEAST, a, "a.safetensors"),
        (a, b, "b.safetensors"),
        (b, c, "c.safetensors"),
    ]


def test_a_short_tensor_after_the_last_copied_one_is_the_last_part():
    whole = model_of({"a": (2000,), "b": (3,)})
    plan = plan_of(catalog_of_objects({"1.safetensors": {"a": whole["a"]}, "2.safetensors": {"b": whole["b"]}}))
    [group] = plan.groups
    steps = list(plan.steps(0))
    assert copies_of(plan) == [(LEAST, span_of(plan, "a")[1], "1.safetensors")]
    assert [part.range.nbytes for step in steps for part in step.parts] == [LEAST, 3]
    assert not plan.draft.is_small(group)


@pytest.mark.parametrize(("first", "second", "expected"), [(600, 700, "a"), (600, 1200, "ac"), (600, 990, "c")])
def test_of_two_that_cannot_both_be_copied_the_longer_is(first, second, expected):
    """Between them is a byte, which takes all but a few bytes of the one after it."""
    whole = model_of({"a": (first + LEAST,), "b": (1,), "c": (second,)})
    held = {"1.safetensors": {n: whole[n] for n in "ac"}, "2.safetensors": {"b": whole["b"]}}
    plan = plan_of(catalog_of_objects(held))
    ends = {span_of(plan, name)[1]: name for name in "abc"}
    assert "".join(ends[stop] for _, stop, _ in copies_of(plan)) == expected


def cut(count, axis):
    return Layout((count,), ((0,), ()) if axis == 0 else ((), (0,)))


def ranks(layout, **more):
    count = layout.device_count
    return RankTarget(Strategy(count, ({"w": layout},)), tuple(range(count)), "rank_{rank}/c.safetensors", **more)


def test_rows_of_a_row_split_are_copied():
    plan = plan_of(catalog_of_objects({"m.safetensors": model_of({"w": (400, 20)})}), ranks(cut(4, 0)))
    for output in range(4):
        [(start, stop, _)] = copies_of(plan, output)
        assert (start, stop) == (LEAST, plan.outputs[output].nbytes)
        [source] = plan.draft.copied_ranges[output]
        assert source.first == plan.catalog.entries[0].placements[0].holders[0][1] + 2000 * output + LEAST - head_of(
            plan, output
        )


def test_rows_of_a_row_split_that_are_too_short_are_not():
    plan = plan_of(catalog_of_objects({"m.safetensors": model_of({"w": (400, 4)})}), ranks(cut(4, 0)))
    assert plan.draft.copied_ranges == ((),) * 4


def test_columns_of_a_column_split_are_not_copied():
    plan = plan_of(catalog_of_objects({"m.safetensors": model_of({"w": (4, 8000)})}), ranks(cut(4, 0)))
    assert all(plan.draft.copied_ranges)
    plan = plan_of(catalog_of_objects({"m.safetensors": model_of({"w": (4000, 8)})}), ranks(cut(4, 1)))
    assert plan.draft.copied_ranges == ((),) * 4


def test_columns_that_are_each_a_part_are_copied():
    """Whatever the axis: what counts is how long the bytes are that stand together."""
    plan = plan_of(catalog_of_objects({"m.safetensors": model_of({"w": (3, 4000)})}), ranks(cut(2, 1)))
    for output, column in enumerate((0, 2000)):
        head, _ = span_of(plan, "w", output)
        base = plan.catalog.entries[0].placements[0].holders[0][1] + column
        assert [(c.start, c.stop, c.first - base) for c in plan.draft.copied_ranges[output]] == [
            (LEAST, head + 2000, LEAST - head),
            (head + 2000, head + 4000, 4000),
            (head + 4000, head + 6000, 8000),
        ]


def test_pieces_of_a_merged_tensor_are_copied():
    strategy = Strategy(2, ({"w": cut(2, 0)},))
    catalog = catalog_of_ranks(shards(model_of({"w": (100, 60)}), strategy), strategy)
    plan = plan_of(catalog)
    head, stop = span_of(plan, "w")
    assert copies_of(plan) == [
        (LEAST, head + 3000, "rank_0/checkpoint_0.safetensors"),
        (head + 3000, stop, "rank_1/checkpoint_1.safetensors"),
    ]


def test_only_stages_change_so_all_is_copied():
    names = [f"layer.{i}" for i in range(8)]
    split = {name: cut(2, 0) for name in names}
    four = Strategy(2, tuple({name: split[name] for name in names[i : i + 2]} for i in range(0, 8, 2)))
    one = Strategy(2, (split,))
    model = model_of(dict.fromkeys(names, (200, 60)))
    catalog = catalog_of_ranks(shards(model, four), four)
    plan = plan_of(catalog, RankTarget(one, (0, 1), "rank_{rank}/c.safetensors"))
    for output in range(2):
        assert [(start, key[:6]) for start, _, key in copies_of(plan, output)] == [
            (
                max(LEAST, head_of(plan, output)) if not stage else span_of(plan, names[2 * stage], output)[0],
                f"rank_{2 * stage + output}",
            )
            for stage in range(4)
        ]


def test_replicas_of_the_source_do_not_divide_a_run():
    """Neighbours are taken from one of the ranks that hold them, not from each in turn."""
    strategy = Strategy(4, ({name: Layout((4,), ((), ())) for name in ("a", "b", "c")},))
    catalog = catalog_of_ranks(shards(model_of({"a": (30, 40), "b": (2, 2), "c": (30, 40)}), strategy), strategy)
    plan = plan_of(catalog)
    assert copies_of(plan) == [(LEAST, plan.outputs[0].nbytes, "rank_0/checkpoint_0.safetensors")]


def test_small_replicas_are_taken_from_where_their_neighbours_are():
    """Every rank has the norms: rank 1's matrices are copied with its own, not with those of rank 0."""
    layouts = {name: cut(2, 0) for name in ("a.w", "b.w", "c.w")} | {
        name: Layout((2,), ((),)) for name in ("a.n", "b.n")
    }
    strategy = Strategy(2, (layouts,))
    model = model_of({"a.n": (9,), "a.w": (80, 40), "b.n": (7,), "b.w": (80, 40), "c.w": (80, 40)})
    catalog = catalog_of_ranks(shards(model, strategy), strategy)
    plan = plan_of(catalog, RankTarget(strategy, (0, 1), "rank_{rank}/d.safetensors"))
    for rank in range(2):
        assert copies_of(plan, rank) == [
            (LEAST, plan.outputs[rank].nbytes, f"rank_{rank}/checkpoint_{rank}.safetensors")
        ]


def test_another_replica_is_copied_where_the_first_cannot_be():
    strategy = Strategy(2, ({"w": Layout((2,), ((), ()))},))
    catalog = catalog_of_ranks(shards(model_of({"w": (80, 40)}), strategy), strategy)
    first, second = catalog.objects
    catalog = replace(catalog, objects=(replace(first, base=1), second), others=("memory://elsewhere",))
    assert [key for *_, key in copies_of(plan_of(catalog))] == ["rank_1/checkpoint_1.safetensors"]


def test_a_cast_is_not_copied():
    catalog = catalog_of_objects({"m.safetensors": random_model({"a": ("F32", (40, 60)), "b": ("BF16", (40, 60))})})
    plan = plan_of(catalog, change=Change(dtype=DType.BF16))
    assert [(start, stop) for start, stop, _ in copies_of(plan)] == [span_of(plan, "b")]


def woven(source_shape, target_shape, order):
    """What is copied of a tensor whose axes are those of the source in another order."""
    catalog = catalog_of_objects({"m.safetensors": model_of({"w": source_shape})})
    patch = Patch(
        tuple((extent,) for extent in target_shape),
        tuple((extent,) for extent in source_shape),
        (0,) * len(order),
        target_shape,
        (0,) * len(order),
        order,
    )
    tensors = (TargetTensor(TensorSpec("w", DType.U8, target_shape), (Piece(patch, 0),)),)
    output = make_output(["m.safetensors"], [(0, Box.whole(target_shape))], tensors, {})
    draft = Draft(catalog, tensors, (output,), LIMITS)
    return output.frame.extents[0].start, CopyFinder(draft, (0,)).find(output)


def test_transposed_tensors_are_not_copied():
    assert woven((60, 80), (80, 60), (1, 0))[1] == ()


def test_rows_that_change_places_are_copied():
    """They are long enough one by one; the first goes without what the header takes."""
    head, found = woven((2, 3, 2000), (3, 2, 2000), (1, 0, 2))
    assert [copy.stop for copy in found] == [head + 2000 * (row + 1) for row in range(6)]
    ends = [copy.first + copy.nbytes for copy in found]
    assert [(end - min(ends)) // 2000 for end in ends] == [0, 3, 1, 4, 2, 5]


def test_ckpt_is_copied_except_the_bytes_between_its_values():
    """Names and shapes stand before each value: they go with the first bytes of it."""
    target = FullTarget("m.ckpt", "m.ckpt", "", "pt", 10**9, Container.CKPT)
    plan = plan_of(catalog_of_objects({"m.safetensors": model_of({"a": (4000,), "b": (3000,)})}), target)
    (a, after_a), (b, after_b) = span_of(plan, "a"), span_of(plan, "b")
    assert 0 < b - after_a < LEAST
    assert a < LEAST
    assert [(start, stop) for start, stop, _ in copies_of(plan)] == [(LEAST, after_a), (after_a + LEAST, after_b)]


# What the store does not take.


def test_a_source_that_is_too_short_is_not_copied_from():
    whole = model_of({"a": (2000,), "b": (2000,), "c": (4000,)})
    held = {"1.safetensors": {"c": whole["c"]}, "2.safetensors": {n: whole[n] for n in "ab"}}
    catalog = catalog_of_objects(held)
    short, long = sorted(item.nbytes for item in catalog.objects)
    plan = plan_of(catalog, limits=replace(LIMITS, min_copy_source_bytes=long))
    assert short < long
    assert {key for _, _, key in copies_of(plan)} == {next(o.key for o in catalog.objects if o.nbytes == long)}
    plan = plan_of(catalog, limits=replace(LIMITS, min_copy_source_bytes=long + 1))
    assert copies_of(plan) == []


def test_only_bases_that_can_be_reached_are_copied_from():
    catalog = catalog_of_objects({"1.safetensors": model_of({"a": (4000,)}), "2.safetensors": model_of({"b": (4000,)})})
    here, there = catalog.objects
    catalog = replace(catalog, objects=(here, replace(there, base=1)), others=("memory://elsewhere",))
    names = {
        (REPLICAS, 0): {here.key},
        (REPLICAS, 1): {there.key},
        (REPLICAS, 0, 1): {here.key, there.key},
        (REPLICAS,): set(),
    }
    for bases, keys in names.items():
        assert {key for _, _, key in copies_of(plan_of(catalog, copy_bases=bases))} == keys


def test_nothing_is_copied_unless_the_store_can():
    plan = plan_of(catalog_of_objects({"m.safetensors": model_of({"a": (4000,)})}), copy_bases=())
    assert plan.draft.copied_ranges == ()
    assert (plan.cost.copied_bytes, plan.cost.copy_count) == (0, 0)


def test_long_ranges_are_several_parts():
    catalog = catalog_of_objects({"m.safetensors": model_of({"a": (10_000,)})})
    plan = plan_of(catalog, limits=replace(LIMITS, copy_bytes=3000))
    lengths = [copy.range.nbytes for step in plan.steps(0) for copy in step.copies]
    assert len(lengths) == 4
    assert max(lengths) - min(lengths) <= 1
    assert sum(lengths) == plan.cost.copied_bytes


@pytest.mark.parametrize("most", [4, 8, 16, 40, 10_000])
def test_parts_are_not_too_many(most):
    """Shorter ranges are streamed where copies would make too many parts."""
    whole = model_of({f"{i:02d}": (600 + 150 * (i % 7),) for i in range(30)})
    held = {f"{i}.safetensors": {n: whole[n] for n in list(whole)[i::3]} for i in range(3)}
    plan = plan_of(catalog_of_objects(held), limits=replace(LIMITS, max_part_count=most))
    parts = [part.number for step in plan.steps(0) for part in (*step.parts, *step.copies)]
    assert len(parts) <= most
    assert (plan.cost.copy_count > 25) == (most == 10_000)


def test_equal_outputs_are_sent_once():
    strategy = Strategy(6, ({"w": Layout((3, 2), ((0,), ()))},))
    catalog = catalog_of_objects({"m.safetensors": model_of({"w": (2000, 4)})})
    plan = plan_of(catalog, RankTarget(strategy, tuple(range(6)), "rank_{rank}/c.safetensors"), copy_bases=(REPLICAS,))
    assert [len(output.keys) for output in plan.outputs] == [3, 3]
    assert plan.cost.written_bytes == sum(output.nbytes for output in plan.outputs)
    assert plan.cost.copied_bytes == 2 * plan.cost.written_bytes


def test_equal_outputs_that_are_too_short_are_all_sent():
    strategy = Strategy(2, ({"w": Layout((2,), ((), ()))},))
    catalog = catalog_of_objects({"m.safetensors": model_of({"w": (2000, 4)})})
    target = RankTarget(strategy, (0, 1), "rank_{rank}/c.safetensors")
    plan = plan_of(catalog, target, replace(LIMITS, min_copy_source_bytes=10_000))
    assert plan.cost.copied_bytes == 0
    assert plan.cost.written_bytes == 2 * plan.outputs[0].nbytes


def test_what_copies_take_too_much_memory_for_is_streamed():
    """A refusal is never for the sake of copies."""
    whole = model_of({"a": (2000,), "b.norm": (900,), "c": (2000,)})
    held = {"1.safetensors": {n: whole[n] for n in ("a", "c")}, "2.safetensors": {"b.norm": whole["b.norm"]}}
    catalog = catalog_of_objects(held)
    for memory in range(1000, 12_000, 100):
        wished = replace(LIMITS, memory_bytes=memory, concurrency=1, client_bytes=1, read_bytes=64, row_bytes=1)
        try:
            plan_for(catalog, SINGLE, "memory://target", wished)
        except OverBudget:
            continue
        check_plan(plan_for(catalog, SINGLE, "memory://target", wished, copy_bases=(REPLICAS, 0)))


def test_without_copies_is_the_plan_of_a_store_that_copies_nothing():
    catalog = catalog_of_objects({"m.safetensors": model_of({"a": (4000,)})})
    assert without_copies(plan_of(catalog)) == plan_of(catalog, copy_bases=())
