"""Any plan whatever makes every byte once, of the right byte, within its limits."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.checkpoints import (
    catalog_of_objects,
    catalog_of_ranks,
    ckpt_in_pieces,
    contents,
    decode,
    put_full,
    put_ranks,
    rank_key,
    shard,
    stored,
)
from support.conversions import Known, convert, ranks_of
from support.plan_checker import check_objects, check_plan, contents_of, is_fit_for_ckpt
from support.planning import plan_for
from support.random_plans import (
    ANY_CONTAINER,
    any_cases,
    any_sources,
    any_targets,
    cases,
    full_targets,
    limits,
    new_names,
    object_shares,
    rank_shares,
    rank_targets,
    tree_targets,
    under_new_names,
)

from reshard.engine.execute import execute
from reshard.engine.sources import SourceOptions, read_catalog
from reshard.engine.verification import verify_manifest
from reshard.engine.workers import working
from reshard.errors import FormatError, OverBudget, PlanError
from reshard.formats.containers import Container
from reshard.planning import conversion_check
from reshard.planning.plan import without_copies
from reshard.planning.steps.copies import REPLICAS
from reshard.planning.targets.rank_target import RankTarget
from reshard.storage import Location, MemoryStore, StoreLimits
from reshard.storage.checksums import crc_of
from reshard.tensor import Layout

# Plans take a while to draw and to check, and how long depends on the machine.
slow = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
# What fails here is large, and to make it smaller would take minutes.
quick = settings(parent=slow, max_examples=40, phases=[Phase.explicit, Phase.reuse, Phase.generate])


COPY_BASES = st.sampled_from([(), (REPLICAS, 0), (REPLICAS, 0), (REPLICAS,)])


def checked(catalog, target, wished, renamed=None, copy_bases=()):
    """Check the plan, or else the one that is accepted according to the refusal."""
    plan, needed_bytes = planned(catalog, target, wished, renamed, copy_bases)
    if needed_bytes:
        assert needed_bytes > wished.memory_bytes
        plan, _ = planned(catalog, target, replace(wished, memory_bytes=needed_bytes), renamed, copy_bases)
        assert plan
        _, again = planned(catalog, target, replace(wished, memory_bytes=needed_bytes - 1), renamed, copy_bases)
        assert again == needed_bytes
    if plan:
        check_plan(plan)
    else:
        assert wished.max_part_count < 10_000  # these parts would be too many


def planned(catalog, target, limits, renamed=None, copy_bases=()):
    """The plan, or the memory it needs, or neither where parts would be too many or too long."""
    try:
        return plan_for(catalog, target, "memory://target", limits, renamed=renamed, copy_bases=copy_bases), 0
    except OverBudget as refusal:
        return None, refusal.needed_bytes
    except PlanError as error:
        if "cannot be written in" not in str(error):
            raise
        return None, 0


@slow
@given(st.data(), cases(1), limits(), COPY_BASES)
def test_full_to_ranks(data, case, wished, copy_bases):
    catalog = catalog_of_objects(data.draw(object_shares(case.model)))
    checked(catalog, data.draw(rank_targets(case.strategies[0])), wished, None, copy_bases)


@slow
@given(st.data(), cases(1), limits(), COPY_BASES)
def test_ranks_to_full(data, case, wished, copy_bases):
    [strategy] = case.strategies
    catalog = catalog_of_ranks(data.draw(rank_shares(case.model, strategy)), strategy)
    checked(catalog, data.draw(full_targets()), wished, None, copy_bases)


@slow
@given(st.data(), cases(2), limits(), COPY_BASES)
def test_ranks_to_ranks(data, case, wished, copy_bases):
    source, target = case.strategies
    catalog = catalog_of_ranks(data.draw(rank_shares(case.model, source)), source)
    checked(catalog, data.draw(rank_targets(covering(target, source))), wished, None, copy_bases)


def covering(target, source):
    """The target strategy, with layouts for all that the source cuts: else it would be refused."""
    cut = {name: layout for stage in source.stages for name, layout in stage.items() if name not in target.names}
    whole = {name: Layout((target.device_count,), ((),) * len(layout.tensor_map)) for name, layout in cut.items()}
    return replace(target, stages=({**target.stages[0], **whole}, *target.stages[1:]))


@slow
@given(st.data(), cases(1), limits(), COPY_BASES)
def test_full_to_full(data, case, wished, copy_bases):
    catalog = catalog_of_objects(data.draw(object_shares(case.model)))
    checked(catalog, data.draw(full_targets()), wished, None, copy_bases)


# Any source to any target.


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    """Tensors of a few bytes are several values of a .ckpt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Container.CKPT, "definition", ckpt_in_pieces(100))
        patch.setattr(conversion_check, "PIECE_BYTES", 100)
        yield


@st.composite
def conversions(draw):
    """A source, a target, and new names of tensors."""
    case = draw(any_cases(2))
    if draw(st.integers(0, 4)) == 0:
        return draw(any_sources(case, None, is_tree=True)), draw(tree_targets()), {}
    first = draw(st.sampled_from([None, case.strategies[0]]))
    source = draw(any_sources(case, first))
    renamed = draw(new_names(source.tensors))
    # What the source cuts must have a layout; and at least one tensor must, or the strategy is another model's.
    second = covering(case.strategies[1], first or case.strategies[0])
    container = draw(ANY_CONTAINER)
    return source, draw(any_targets(under_new_names(second, renamed), container)), renamed


def unfit(source, target, renamed):
    """Why a target cannot hold what the source does; empty if it can."""
    tensors = {renamed.get(name, name): value for name, value in source.tensors.items()}
    if not tensors:
        return ""  # a tree whose objects are all left out
    is_ckpt = getattr(target, "container", Container.SAFETENSORS) is Container.CKPT
    if isinstance(target, RankTarget) and not target.strategy.names & tensors.keys():
        return "no tensor of the source is named"
    if source.texts and not is_ckpt:
        return "cannot hold text values"
    if is_ckpt and not is_fit_for_ckpt(target, tensors, source.texts):
        return r"values that \.ckpt cannot hold|nothing to write"
    return ""


@quick
@given(conversions(), limits(), COPY_BASES)
def test_any_source_to_any_target(conversion, wished, copy_bases):
    source, target, renamed = conversion
    catalog, problem = source.catalog(), unfit(*conversion)
    assert {entry.spec.name for entry in catalog.entries} == set(source.tensors)
    assert set(catalog.dropped) == set(source.names.drop) & everything_in(source)
    if problem:
        with pytest.raises((PlanError, FormatError), match=problem):
            plan_for(catalog, target, "memory://target", replace(wished, memory_bytes=1 << 40), renamed=renamed)
        return
    checked(catalog, target, wished, renamed, copy_bases)


def everything_in(source):
    """Names of tensors that some object of the source holds."""
    return {name for key, body in source.objects.items() for name in contents_of(key, body)[0]}


# Through the real engine, with the bytes of random tensors.


@quick
@given(st.data(), conversions().filter(lambda made: not made[0].is_tree), limits(), COPY_BASES)
def test_any_source_to_any_target_for_real(data, conversion, wished, copy_bases):
    source, target, renamed = conversion
    if unfit(*conversion):
        return
    there, here, wished = place(wished), place(wished), runnable(wished)
    for key, body in source.objects.items():
        there.store.put(there.child(key).key, body)
    if source.strategy is None and len(source.objects) > 1:
        weight_map = {name: key for key, body in source.objects.items() for name in contents_of(key, body)[0]}
        index = json.dumps({"weight_map": weight_map}).encode()
        there.store.put(there.child("model.safetensors.index.json").key, index)
    with working(2, there.store) as workers:
        strategy = Known(source.strategy) if source.strategy else None
        catalog = read_catalog(there, SourceOptions(strategy, source.names, check_crc=True), workers)
    plan = plan_for(catalog, target, here.url, wished, renamed=renamed, copy_bases=copy_bases)
    manifest = execute(plan, there, here)
    assert verify_manifest(manifest, there, here).is_ok
    written = stored(here)
    del written[plan.conversion.manifest_key]
    check_streamed_is_the_same(plan, there, place(wished), written)
    check_spoilt_copy_is_found(data, plan, manifest, there, here)
    documents = {name: written.pop(name) for name in list(written) if name.endswith(".json")}
    found = {name: contents_of(name, body) for name, body in written.items()}
    tensors = {renamed.get(name, name): value for name, value in source.tensors.items()}
    outside = {renamed.get(name, name) for name in source.outside}
    check_objects(target, found, documents, tensors, outside, source.texts)


def check_streamed_is_the_same(plan, source, target, written):
    """A store that copies nothing gets the same objects."""
    manifest = execute(without_copies(plan), source, target)
    assert verify_manifest(manifest, source, target).is_ok
    streamed = stored(target)
    del streamed[plan.conversion.manifest_key]
    assert streamed == written
    assert all(receipt.crc32c == crc_of(written[receipt.key]) for receipt in manifest.receipts)


def check_spoilt_copy_is_found(data, plan, manifest, source, target):
    """One byte of something copied, under any key."""
    copied = [copy for index in range(len(plan.groups)) for step in plan.steps(index) for copy in step.copies]
    digests = {receipt.key: receipt.crc32c for receipt in manifest.receipts}
    for output in {copy.output for copy in copied}:
        assert {digests[key] for key in plan.outputs[output].keys} == {None}
    if not copied:
        return
    copy = copied[data.draw(st.integers(0, len(copied) - 1))]  # a list of all would be too long to show
    key = data.draw(st.sampled_from(plan.outputs[copy.output].keys))
    byte = data.draw(st.integers(copy.range.start, copy.range.stop - 1))
    body = stored(target)[key]
    target.store.put(target.child(key).key, body[:byte] + bytes([body[byte] ^ 1]) + body[byte + 1 :])
    [problem] = verify_manifest(manifest, source, target).problems
    assert f"{target.child(key).url}: byte {byte} differs (in tensor " in problem


def place(limits):
    """A store of its own that insists on the smallest part, and copies from what is long enough."""
    accepted = StoreLimits(min_part_bytes=limits.min_part_bytes, min_copy_source_bytes=limits.min_copy_source_bytes)
    return Location(MemoryStore(limits=accepted), "here")


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
