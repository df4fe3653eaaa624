"""Outputs of ranks are derived from what they share, and are what they would be one by one."""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import catalog_of_objects
from support.planning import plan_for, tensors_of
from support.random_plans import cases, rank_targets

from reshard.formats.container_format import HeaderTensor
from reshard.planning.catalog import Catalog, ObjectHeader, SourceObject
from reshard.planning.cost.cost import count_cost
from reshard.planning.limits import Limits
from reshard.planning.outputs.layouts import Partitions
from reshard.planning.outputs.output import SourceMetadata, file_order, make_output, whole_box
from reshard.planning.plan_json import decode_plan, encode_plan
from reshard.planning.sources.full_source import full_catalog
from reshard.planning.sources.source_headers import SourceHeaders
from reshard.planning.steps.row_reads import RowReader
from reshard.planning.targets.rank_target import RankTarget
from reshard.tensor import Box, DType, Layout, Strategy, TensorSpec


def writers_of(target, tensors):
    """The one rank that writes each box that layouts give to several, by stage and the tensor's name."""
    shared = {}
    for tensor in sorted(tensors, key=lambda tensor: tensor.spec.name):
        for stage in range(target.strategy.stage_count):
            boxes = {}
            for rank in range(stage * target.strategy.device_count, (stage + 1) * target.strategy.device_count):
                if (box := box_of(target, tensor, rank)) is not None:
                    boxes.setdefault(box, []).append(rank)
            for box, ranks in boxes.items():
                shared.setdefault(tuple(ranks), []).append((stage, tensor.spec.name, box))
    return {what: ranks[turn % len(ranks)] for ranks, held in shared.items() for turn, what in enumerate(held)}


def box_of(target, tensor, rank):
    """What a layout gives a rank; packed elements are whole."""
    layout = target.strategy.layout(tensor.spec.name, rank)
    if layout is None or tensor.spec.dtype.bits < 8:
        return None if layout is None else whole_box(tensor)
    return layout.box_of(tensor.spec.shape, rank % target.strategy.device_count)


def one_by_one(target, tensors):
    """Every rank's boxes as its layouts say; ranks with equal boxes are one output."""
    distinct, writers = {}, writers_of(target, tensors) if target.remove_redundancy else {}
    for rank in target.ranks:
        held = []
        for index in file_order(tensors):
            name, box = tensors[index].spec.name, box_of(target, tensors[index], rank)
            if box is not None and writers.get((target.strategy.stage_of(rank), name, box), rank) == rank:
                held.append((index, box))
            elif name not in target.strategy.names:
                held.append((index, whole_box(tensors[index])))
        distinct.setdefault(tuple(held), []).append(target.name.replace("{rank}", str(rank)))
    metadata = {"format": "ms", **({"remove_redundancy": "True"} if target.remove_redundancy else {})}
    return [make_output(keys, held, tensors, metadata) for held, keys in distinct.items()]


@given(
    cases(1).flatmap(lambda case: rank_targets(case.strategies[0]).map(lambda target: (case, target))), st.booleans()
)
def test_derived_outputs_are_those_made_one_by_one(drawn, remove_redundancy):
    case, target = drawn[0], replace(drawn[1], remove_redundancy=remove_redundancy)
    tensors = tensors_of(catalog_of_objects({"all.safetensors": case.model}))
    made, expected = target.outputs(tensors, SourceMetadata()), one_by_one(target, tensors)
    assert [output.keys for output in made] == [output.keys for output in expected]
    for output, other in zip(made, expected, strict=True):
        assert (output.tensors, tuple(output.boxes), output.specs) == (other.tensors, other.boxes, other.specs)
        assert (output.metadata, output.frame, output.nbytes) == (other.metadata, other.frame, other.nbytes)
        assert output == other
        assert [output.boxes[slot] for slot in range(len(output.boxes))] == list(other.boxes)


def test_boxes_of_ranks_are_a_sequence():
    layout = Layout((2, 2), ((1,), (0,)))
    strategy = Strategy(4, ({"a": layout, "b": layout},))
    model = {name: (DType.U8, (4, 4), np.zeros((4, 4), np.uint8)) for name in "ab"}
    tensors = tensors_of(catalog_of_objects({"all.safetensors": model}))
    outputs = RankTarget(strategy, (0, 1, 2, 3), "{rank}").outputs(tensors, SourceMetadata())
    first, last = outputs[0].boxes, outputs[-1].boxes
    assert len(last) == 2
    assert last[:1] == (Box((2, 2), (4, 4)),)
    assert (last == outputs[-1].boxes, first == last, last == (last[0], last[1])) == (True, False, True)
    assert hash(last) == hash(tuple(last))
    assert len({id(output.layout) for output in outputs}) == 1


def test_partitions_of_equal_layouts_are_one():
    partitions = Partitions()
    made = partitions.of((4,), Layout((2,), ((0,),)))
    assert partitions.of((4,), Layout((2,), ((0,),))) is made
    assert partitions.of((6,), Layout((2,), ((0,),))) is not made
    assert partitions.of((4,), None).box(1) == Box((0,), (4,))


COUNT, SHAPE = 1100, (64, 128)
LIMITS = Limits(memory_bytes=64 << 20, concurrency=2, part_bytes=8192, min_part_bytes=4096)


@pytest.fixture(scope="module")
def big_plan():
    """A plan of more than a million slices, each of two by four elements."""
    specs = [TensorSpec(f"t{number:04d}", DType.U8, SHAPE) for number in range(COUNT)]
    starts = itertools.count(100, 64 * 128)
    stored = tuple(HeaderTensor(spec, ((Box.whole(SHAPE), start),)) for spec, start in zip(specs, starts, strict=False))
    header = ObjectHeader(SourceObject("model.safetensors", 100 + COUNT * 64 * 128, "etag"), stored)
    catalog: Catalog = full_catalog(SourceHeaders("memory://source", "test", [header]))
    layouts = {spec.name: Layout((32, 32), ((1,), (0,))) for spec in specs}
    target = RankTarget(Strategy(1024, (layouts,)), tuple(range(1024)), "rank_{rank}.safetensors")
    return plan_for(catalog, target, "memory://target", LIMITS)


def test_steps_of_one_output_of_a_big_plan(big_plan):
    last = len(big_plan.outputs) - 1
    [index] = [number for number, group in enumerate(big_plan.groups) if last in group.outputs]
    output = big_plan.outputs[last]
    sources = np.full(output.nbytes, -1)  # of each byte of the output, its place in the source
    for step in big_plan.steps(index):
        [number] = [number for number, part in enumerate(step.parts) if part.output == last]
        here = sources[step.parts[number].range.start : step.parts[number].range.stop]
        for read in step.reads:
            for copy in read.scatters:
                if copy.buffer == number:
                    runs = zip(copy.scatter.source_runs.starts(), copy.scatter.target_runs.starts(), strict=True)
                    for source, place in runs:
                        assert (here[place : place + copy.scatter.nbytes] == -1).all()
                        first = read.range.start + source
                        here[place : place + copy.scatter.nbytes] = range(first, first + copy.scatter.nbytes)
    whole = np.arange(64 * 128).reshape(SHAPE)[62:64, 124:128].ravel()
    [(_, header)] = output.frame.literals
    expected = np.concatenate([100 + number * 64 * 128 + whole for number in range(COUNT)])
    assert (sources[: len(header)] == -1).all()
    assert (sources[len(header) :] == expected).all()


def test_equivalent_groups_are_counted_once(big_plan):
    plan = big_plan
    exact = count_cost(plan.draft, plan.groups, plan.conversion, plan.buffers, RowReader(plan.draft, 1 << 30))
    assert replace(plan.cost, read_bytes=0, needed_bytes=0, get_count=0) == replace(
        exact, read_bytes=0, needed_bytes=0, get_count=0
    )
    assert plan.cost.needed_bytes == exact.needed_bytes
    assert plan.cost.read_bytes == pytest.approx(exact.read_bytes, rel=0.02)
    assert plan.cost.get_count == pytest.approx(exact.get_count, rel=0.02)


def test_a_big_plan_is_small_when_saved(big_plan):
    data = encode_plan(big_plan)
    assert len(data) < 1 << 20
    assert decode_plan(data, "plan") == big_plan


@given(cases(1).flatmap(lambda case: rank_targets(case.strategies[0]).map(lambda target: (case, target))))
def test_a_plan_carries_what_it_would_derive(drawn):
    case, target = drawn
    plan = plan_for(catalog_of_objects({"all.safetensors": case.model}), target, "memory://t", Limits())
    anew = replace(plan)
    assert "draft" in vars(plan), "found while planning"
    assert "draft" not in vars(anew)
    assert plan.draft == anew.draft
    for group in range(len(plan.groups)):
        assert list(plan.steps(group)) == list(anew.steps(group))


def test_several_threads_may_walk_the_groups_of_one_plan():
    layout = Layout((8,), ((0,), ()))
    strategy = Strategy(8, ({"a": layout, "b": layout},))
    model = {name: (DType.U8, (8, 4), np.zeros((8, 4), np.uint8)) for name in "ab"}
    target = RankTarget(strategy, tuple(range(8)), "{rank}")
    draft = plan_for(catalog_of_objects({"all.safetensors": model}), target, "memory://t", Limits()).draft
    before = sys.getswitchinterval()

    def walk_all(first):
        for turn in range(1500):
            wanted = (first, (first + turn) % 8)[: 1 + (turn % 8 > 0)]
            rows = draft.walk(wanted)
            assert [len(row.slices) for row in rows] == [len(wanted)] * 2

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(walk_all, range(4)))
    finally:
        sys.setswitchinterval(before)
