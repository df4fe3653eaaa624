"""Steps derived by hand, for small cases that show one thing each."""

from dataclasses import replace

import pytest
from support.checkpoints import catalog_of_objects, catalog_of_ranks, encode, random_model, shards
from support.plan_checker import check_plan
from support.planning import plan_for

from reshard.planning.limits import Limits
from reshard.planning.steps.row_reads import RowReader
from reshard.planning.targets.full_target import FullTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.tensor import ByteRange, Layout, RowSplit, Strategy

SMALL = Limits(min_part_bytes=200, part_bytes=200, row_bytes=40, read_bytes=10_000)
FULL = FullTarget("model.safetensors", "model.safetensors", "", "pt", 10**9)
OUTER = Layout((2,), ((0,), ()))
INNER = Layout((2,), ((), (0,)))
WHOLE = Layout((2,), ((), ()))


def one_tensor(shape, dtype="U8"):
    return random_model({"w": (dtype, shape)})


def ranks(strategy):
    return RankTarget(strategy, tuple(range(strategy.rank_count)), "rank_{rank}/c{rank}.safetensors")


def steps(catalog, target, limits=SMALL):
    plan = plan_for(catalog, target, "memory://target", limits)
    check_plan(plan)
    return [step for index in range(len(plan.groups)) for step in plan.steps(index)], plan


def reads(found):
    return [[(read.object, read.range.start, read.range.stop) for read in step.reads] for step in found]


def parts(found):
    return [[(part.output, part.number, part.range.start, part.range.stop) for part in step.parts] for step in found]


def test_the_header_is_glued_to_the_first_part():
    model = one_tensor((10, 40))
    found, plan = steps(catalog_of_objects({"m.safetensors": model}), FULL)
    header, data = plan.outputs[0].frame.extents[0].start, len(encode(model)) - 400
    assert header == 104
    assert parts(found) == [[(0, 1, 0, 104 + 120)], [(0, 2, 224, 424)], [(0, 3, 424, 504)]]
    assert reads(found) == [[(0, data, data + 120)], [(0, data + 120, data + 320)], [(0, data + 320, data + 400)]]


def test_bytes_that_come_as_they_stand_are_received_in_place():
    found, _ = steps(catalog_of_objects({"m.safetensors": one_tensor((10, 40))}), FULL)
    assert all(read.is_direct for step in found for read in step.reads)


def test_slices_of_the_inner_axis_are_read_once_for_all_ranks():
    model = one_tensor((20, 40))
    found, plan = steps(catalog_of_objects({"m.safetensors": model}), ranks(Strategy(2, ({"w": INNER},))))
    assert [group.outputs for group in plan.groups] == [(0, 1)]
    assert all(len(step.reads) == 1 for step in found)
    assert not any(read.is_direct for step in found for read in step.reads)
    assert plan.cost.read_bytes == plan.cost.needed_bytes == 800


def test_slices_of_the_outer_axis_need_no_company():
    model = one_tensor((20, 40))
    found, plan = steps(catalog_of_objects({"m.safetensors": model}), ranks(Strategy(2, ({"w": OUTER},))))
    assert [group.outputs for group in plan.groups] == [(0,), (1,)]
    assert all(read.is_direct for step in found for read in step.reads)
    assert plan.cost.read_bytes == 800


def test_neighbours_in_the_source_are_one_read():
    model = random_model({"a": ("U8", (30,)), "b": ("U8", (30,)), "c": ("U8", (30,))})
    found, _ = steps(catalog_of_objects({"m.safetensors": model}), FULL, Limits())
    assert len(found) == 1
    start = len(encode(model)) - 90
    assert reads(found) == [[(0, start, start + 90)]]


def test_tensors_in_another_order_are_still_one_read():
    """b of the source is half as wide, so it comes after a; in two objects they are two reads."""
    model = random_model({"a": ("U8", (30,)), "b": ("I64", (3,))})
    together, _ = steps(catalog_of_objects({"m.safetensors": model}), FULL, Limits())
    assert [len(step.reads) for step in together] == [1]
    apart = catalog_of_objects({"1.safetensors": {"a": model["a"]}, "2.safetensors": {"b": model["b"]}})
    found, _ = steps(apart, FULL, Limits())
    assert [[read.object for read in step.reads] for step in found] == [[0, 1]]


def test_long_reads_are_cut_into_equal_ones():
    model = one_tensor((1000,))
    found, _ = steps(catalog_of_objects({"m.safetensors": model}), FULL, Limits(read_bytes=300))
    assert [read.range.nbytes for read in found[0].reads] == [250, 250, 250, 250]


def test_of_replicas_the_first_is_read():
    """No tensor is made of two replicas, which might differ after all, and neighbours stand together."""
    model = random_model(dict.fromkeys("abcd", ("U8", (40, 10))))
    strategy = Strategy(2, (dict.fromkeys(model, WHOLE),))
    found, plan = steps(catalog_of_ranks(shards(model, strategy), strategy), FULL)
    holders = [{object_ for object_, *_ in read} for read in reads(found)]
    assert {object_ for held in holders for object_ in held} == {0}
    assert plan.cost.read_bytes == 1600
    inner = Strategy(2, (dict.fromkeys(model, INNER),))
    _, shared = steps(catalog_of_ranks(shards(model, strategy), strategy), ranks(inner))
    assert shared.cost.read_bytes == 1600


def test_an_output_of_no_tensors_is_its_header():
    model = random_model({"a": ("U8", (4,)), "b": ("U8", (4,))})
    stages = Strategy(1, ({"a": Layout((1,), ((),)), "b": Layout((1,), ((),))}, {}))
    found, plan = steps(catalog_of_objects({"m.safetensors": model}), ranks(stages))
    empty = next(i for i, output in enumerate(plan.outputs) if not output.specs)
    [step] = [step for step in found if step.parts[0].output == empty]
    assert (step.reads, step.nbytes) == ((), plan.outputs[empty].nbytes)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
def test_tensors_without_elements_are_in_the_header_only(shape):
    model = random_model({"none": ("F32", shape), "some": ("F32", (3,))})
    _found, plan = steps(catalog_of_objects({"m.safetensors": model}), FULL)
    assert plan.cost.read_bytes == 12
    assert {spec.name: spec.shape for spec in plan.outputs[0].specs} == {"none": shape, "some": (3,)}


def test_a_rank_without_rows_holds_an_empty_slice():
    split = Layout((3,), ((0,), ()), row_split=RowSplit((4, 0, 2), (0, 4, 4)))
    _found, plan = steps(catalog_of_objects({"m.safetensors": one_tensor((6, 5))}), ranks(Strategy(3, ({"w": split},))))
    assert [output.specs[0].shape for output in plan.outputs] == [(4, 5), (0, 5), (2, 5)]
    assert plan.cost.read_bytes == 30


def test_sub_byte_tensors_travel_whole():
    model = random_model({"w": ("F4", (3, 10)), "v": ("F6_E2M3", (4,))})
    layouts = {"w": WHOLE, "v": Layout((2,), ((),))}
    _found, plan = steps(catalog_of_objects({"m.safetensors": model}), ranks(Strategy(2, (layouts,))))
    assert plan.cost.read_bytes == 15 + 3
    assert plan.outputs[0].keys == ("rank_0/c0.safetensors", "rank_1/c1.safetensors")


def test_replicas_of_an_output_are_one_output_sent_twice():
    found, plan = steps(
        catalog_of_objects({"m.safetensors": one_tensor((20, 40))}), ranks(Strategy(2, ({"w": WHOLE},)))
    )
    assert [output.keys for output in plan.outputs] == [("rank_0/c0.safetensors", "rank_1/c1.safetensors")]
    assert plan.cost.written_bytes == 2 * plan.outputs[0].nbytes
    assert plan.cost.part_count == 2 * len(found)


def test_norms_that_all_ranks_hold_are_needed_once():
    """A shared tensor goes to every rank of a group, a gap beside it to none."""
    model = random_model(
        {"a.norm": ("U8", (50,)), "b.gap": ("U8", (20,)), "c.norm": ("U8", (50,)), "w": ("U8", (8, 8))}
    )
    layout = Layout((2,), ((),))
    stages = Strategy(2, ({"a.norm": layout, "c.norm": layout, "w": INNER}, {"b.gap": layout}))
    plan = plan_for(
        catalog_of_objects({"m.safetensors": model}), RankTarget(stages, (0, 1), "{rank}.safetensors"), "m://", Limits()
    )
    check_plan(plan)
    assert (plan.cost.needed_bytes, plan.cost.read_bytes) == (164, 184)


def test_group_score_weighs_bytes_and_requests():
    catalog = catalog_of_objects({"m.safetensors": one_tensor((20, 40))})
    plan = plan_for(catalog, ranks(Strategy(2, ({"w": INNER},))), "memory://target", SMALL)
    assert RowReader(plan.draft).scores.group([0, 1]) == 800
    assert [RowReader(plan.draft).scores.group([output]) for output in (0, 1)] == [780, 780]  # all but half a row
    no_gaps = replace(plan.draft, limits=replace(plan.limits, max_gap_bytes=10, max_over_read=1))
    apart = 400 + 19 * 10  # a range for each row; the first may be joined to what is before the tensor
    assert RowReader(no_gaps).scores.group([0]) == apart


def test_steps_are_derived_by_number_in_any_order():
    catalog = catalog_of_objects({"m.safetensors": one_tensor((40, 40))})
    plan = plan_for(catalog, ranks(Strategy(2, ({"w": INNER},))), "memory://target", SMALL)
    in_order = {step.number: step for step in plan.steps(0)}
    assert len(in_order) > 3
    assert list(in_order) == list(plan.group_steps(0).numbers)
    fresh = plan_for(catalog, ranks(Strategy(2, ({"w": INNER},))), "memory://target", SMALL)
    assert all(fresh.step(0, number) == in_order[number] for number in reversed(in_order))


@pytest.mark.parametrize("matrix", [INNER, OUTER])
def test_the_size_of_a_step_is_that_of_the_step(matrix):
    catalog = catalog_of_objects({"m.safetensors": one_tensor((40, 40))})
    plan = plan_for(catalog, ranks(Strategy(2, ({"w": matrix},))), "memory://target", SMALL)
    for index in range(len(plan.groups)):
        steps = plan.group_steps(index)
        for number in steps.streaming:
            step, size = steps.step(number), steps.size(number)
            assert [(read.object, read.range) for read in step.reads] == [(b.object, b.range) for b in size.blocks]
            assert step.nbytes == size.nbytes


def test_a_step_is_derived_alike_however_often():
    catalog = catalog_of_objects({"m.safetensors": one_tensor((20, 40))})
    plan = plan_for(catalog, ranks(Strategy(2, ({"w": INNER},))), "memory://target", SMALL)
    again = plan_for(catalog, ranks(Strategy(2, ({"w": INNER},))), "memory://target", SMALL)
    assert plan == again
    assert list(plan.steps(0)) == list(plan.steps(0)) == list(again.steps(0))


def test_ranges_count_in_the_object():
    model = one_tensor((10,))
    found, _ = steps(catalog_of_objects({"m.safetensors": model}), FULL, Limits())
    body = encode(model)
    assert found[0].reads[0].range == ByteRange(len(body) - 10, len(body))
