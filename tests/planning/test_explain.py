"""An output is explained as its steps make it, byte for byte."""

import itertools
import json
from dataclasses import dataclass, field, fields
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.checkpoints import catalog_of_objects, catalog_of_ranks
from support.planning import plan_for
from support.random_plans import cases, full_targets, limits, object_shares, rank_shares, rank_targets

from reshard.errors import OverBudget, PlanError, UsageError
from reshard.formats.safetensors import plan_header
from reshard.planning.catalog import ObjectHeader, SourceObject
from reshard.planning.change import Change
from reshard.planning.explain import explain, explanation_to_json
from reshard.planning.limits import Limits
from reshard.planning.plan import Plan
from reshard.planning.sources.full_source import full_catalog
from reshard.planning.sources.source_headers import SourceHeaders
from reshard.planning.steps.copies import REPLICAS
from reshard.planning.targets.full_target import FullTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.tensor import ByteRange, DType, Layout, Strategy, TensorSpec

SPEC, ONE, TWO = (TensorSpec(name, DType.U8, (4,)) for name in ("qkv", "q", "k"))
slow = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
COPY_BASES = st.sampled_from([(), (REPLICAS, 0), (REPLICAS, 0), (REPLICAS,)])
SMALL = Limits(min_part_bytes=1, part_bytes=100, row_bytes=1, read_bytes=50, min_copy_source_bytes=1, copy_bytes=64)


def random_plan(data, case, wished, copy_bases):
    """A plan of full or cut source and target, or no example."""
    [strategy] = case.strategies
    if data.draw(st.booleans()):
        catalog = catalog_of_objects(data.draw(object_shares(case.model)))
        target = data.draw(rank_targets(strategy))
    else:
        catalog = catalog_of_ranks(data.draw(rank_shares(case.model, strategy)), strategy)
        target = data.draw(full_targets())
    try:
        return plan_for(catalog, target, "memory://target", wished, copy_bases=copy_bases)
    except (OverBudget, PlanError):
        assume(False)


@slow
@given(st.data(), cases(1), limits(), COPY_BASES)
def test_parts_cover_every_output_once_and_are_those_of_the_steps(data, case, wished, copy_bases):
    plan = random_plan(data, case, wished, copy_bases)
    planned = {(part.output, part.number): (part, step) for step, part in every_part(plan)}
    for index, output in enumerate(plan.outputs):
        for key in output.keys:
            found = explain(plan, key)
            assert_covered(found)
            assert found.keys == output.keys
            if any(part.filled == "replica" for part in found.parts):
                assert key != output.keys[0]
                assert found.copied_bytes == output.nbytes
                continue
            assert len(found.parts) == sum(place[0] == index for place in planned)
            for part in found.parts:
                check_part(plan, part, *planned[index, part.number])
    for other in (*plan.conversion.documents, *plan.conversion.attachments):
        assert_covered(explain(plan, other.key))


def every_part(plan):
    for group in range(len(plan.groups)):
        for step in plan.steps(group):
            yield from ((step, part) for part in (*step.parts, *step.copies))


def assert_covered(found):
    edges = [0, *(part.range.stop for part in found.parts)]
    assert [part.range.start for part in found.parts] == edges[:-1]
    assert edges[-1] == found.nbytes == found.copied_bytes + found.streamed_bytes + found.literal_bytes
    assert all(a.number < b.number for a, b in itertools.pairwise(found.parts))


def check_part(plan, found, part, step):
    assert (found.range, found.step, found.group) == (part.range, step.number, step.group)
    keys = [item.key for item in plan.catalog.objects]
    if step.copies:
        assert found.filled == "copied"
        [source] = found.sources
        assert (source.object, source.range) == (keys[part.object], part.source_range)
        return
    position = step.parts.index(part)
    reads = [read for read in step.reads if any(copy.buffer == position for copy in read.scatters)]
    assert [(one.object, one.range) for one in found.sources] == [(keys[read.object], read.range) for read in reads]
    filled = sum(copy.scatter.total_nbytes for read in reads for copy in read.scatters if copy.buffer == position)
    assert filled + found.literal_nbytes == part.range.nbytes
    assert (found.filled == "literal") == (not reads)


@slow
@given(st.data(), cases(1), limits(), COPY_BASES)
def test_tensors_are_where_the_parts_are(data, case, wished, copy_bases):
    plan = random_plan(data, case, wished, copy_bases)
    for tensor in plan.tensors:
        found = explain(plan, tensor.spec.name)
        holders = [output for output in plan.outputs if tensor.spec.name in {spec.name for spec in output.specs}]
        assert sorted(held.keys for held in found.held) == sorted(output.keys for output in holders)
        total = 0
        for held in found.held:
            [output] = [output for output in holders if output.keys == held.keys]
            nbytes = sum(span.nbytes for span in held.ranges)
            total += nbytes
            [spec] = [spec for spec in output.specs if spec.name == tensor.spec.name]
            assert nbytes == spec.nbytes == sum(one.nbytes for one in held.sources)
            assert set(held.parts) <= set(explain(plan, held.keys[0]).parts)
            assert bool(held.parts) == bool(nbytes)
        assert found.copied_bytes + found.streamed_bytes == total


def catalog(specs):
    encoded = plan_header(specs, {})
    headers = [ObjectHeader.of(SourceObject("m", encoded.nbytes, "e"), encoded.header)]
    return full_catalog(SourceHeaders("memory://source", "test", headers))


def ranks(**layouts):
    return RankTarget(Strategy(2, ({n: Layout((2,), m) for n, m in layouts.items()},)), (0, 1), "r{rank}.safetensors")


@dataclass(frozen=True)
class CountingPlan(Plan):
    """A plan that notes which steps are derived."""

    derived: list = field(default_factory=list)

    def step(self, group, number):
        self.derived.append((group, number))
        return super().step(group, number)

    @classmethod
    def of(cls, plan):
        return cls(**{each.name: getattr(plan, each.name) for each in fields(Plan)})


def test_only_the_steps_of_an_object_are_derived():
    spec = [TensorSpec(name, DType.U8, (400,)) for name in ("a", "b")]
    target = FullTarget("{part}.safetensors", "m.safetensors", "index.json", "pt", 500)
    plan = CountingPlan.of(plan_for(catalog(spec), target, "memory://target", SMALL))
    assert len(plan.groups) == 2
    explain(plan, plan.outputs[1].keys[0])
    [group] = [index for index, group in enumerate(plan.groups) if 1 in group.outputs]
    assert plan.derived == [(group, number) for number in plan.group_steps(group).numbers]


@pytest.mark.parametrize("copy_bases", [(), (REPLICAS, 0)])
def test_only_the_steps_of_a_tensor_are_derived(copy_bases):
    """Two ranks share the steps of their group: each step is derived once for both."""
    names = [f"w{number}" for number in range(8)]
    spec = [TensorSpec(name, DType.U8, (20, 40)) for name in names]
    target = ranks(**dict.fromkeys(names, ((), (0,))))
    plan = CountingPlan.of(plan_for(catalog(spec), target, "memory://target", SMALL, copy_bases=copy_bases))
    every = [(group, number) for group in range(len(plan.groups)) for number in plan.group_steps(group).numbers]
    found = explain(plan, "w5")
    held = {(part.group, part.step) for one in found.held for part in one.parts}
    assert len(found.held) == 2
    assert held == set(plan.derived)
    assert len(plan.derived) == len(held)
    assert 2 < len(held) < len(every) / 4


def test_replicas_are_copied_from_the_first():
    spec = [TensorSpec("w", DType.U8, (400,))]
    plan = plan_for(catalog(spec), ranks(w=((),)), "memory://target", SMALL, copy_bases=(REPLICAS,))
    found = explain(plan, "r1.safetensors")
    assert found.keys == ("r0.safetensors", "r1.safetensors")
    assert {part.filled for part in found.parts} == {"replica"}
    assert found.parts[0].sources[0].object == "r0.safetensors"
    assert found.parts[0].sources[0].base == -1
    assert explain(plan, "r0.safetensors").copied_bytes == 0


def test_what_is_computed_says_so():
    spec = [TensorSpec("w", DType.F32, (100, 4))]
    target = FullTarget("m", "m.safetensors", "", "pt", 10**9)
    plan = plan_for(catalog(spec), target, "memory://target", SMALL, change=Change(dtype=DType.F16))
    parts = explain(plan, "m.safetensors").parts
    assert {part.kernels for part in parts} == {("cast",)}
    assert all(part.sources for part in parts)
    found = explain(plan, "w")
    assert (found.dtype, found.streamed_bytes) == ("F16", 800)
    assert sum(one.nbytes for one in found.held[0].sources) == 1600


def test_a_tensor_is_found_by_its_old_name():
    spec = [TensorSpec("old", DType.U8, (40,)), TensorSpec("other", DType.U8, (40,))]
    target = FullTarget("m", "m.safetensors", "", "pt", 10**9)
    plan = plan_for(catalog(spec), target, "memory://target", SMALL, renamed={"old": "new"})
    assert explain(plan, "old") == explain(plan, "new")
    assert explain(plan, "new").made_of == ("old",)


def test_a_tensor_that_becomes_several_is_asked_about_by_their_names():
    plan = SimpleNamespace(
        outputs=(), conversion=SimpleNamespace(documents=(), attachments=()),
        catalog=SimpleNamespace(entries=[SimpleNamespace(spec=SPEC)]),
        tensors=[SimpleNamespace(spec=spec, pieces=[SimpleNamespace(source=0)]) for spec in (ONE, TWO)],
    )  # fmt: skip
    with pytest.raises(UsageError, match="2 tensors of the target are made of 'qkv'") as refused:
        explain(plan, "qkv")
    assert "q, k" in refused.value.hint


@pytest.mark.parametrize(("name", "near"), [("w.wieght", "w.weight"), ("r0.safetensor", "r0.safetensors"), ("?", "")])
def test_an_unknown_name_tells_those_like_it(name, near):
    plan = plan_for(
        catalog([TensorSpec("w.weight", DType.U8, (4,))]), ranks(**{"w.weight": ((),)}), "memory://target", SMALL
    )
    with pytest.raises(UsageError, match="no object and no tensor") as refused:
        explain(plan, name)
    assert near in refused.value.hint
    assert refused.value.hint


def test_it_is_json():
    plan = plan_for(catalog([TensorSpec("w", DType.U8, (4, 4))]), ranks(w=((0,), ())), "memory://target", SMALL)
    found = json.loads(json.dumps(explanation_to_json(explain(plan, "w"))))
    assert (found["kind"], found["held"][1]["box"]) == ("tensor", {"start": [2, 0], "stop": [4, 4]})
    assert ByteRange(**found["held"][1]["ranges"][0]).nbytes == 8
