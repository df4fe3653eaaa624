"""How much of large models the store copies, from their headers alone: as published, with fewer layers."""

import functools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.planning import plan_for

from reshard.formats.safetensors import plan_header
from reshard.models.detecting import detect
from reshard.planning.catalog import ObjectHeader, SourceObject
from reshard.planning.change import Change, make_tensors
from reshard.planning.limits import MIB, Limits
from reshard.planning.sources.rank_source import rank_catalog
from reshard.planning.sources.source_headers import SourceHeaders
from reshard.planning.steps.copies import REPLICAS
from reshard.planning.targets.full_target import FullTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.tensor import TensorSpec

LIMITS = Limits(memory_bytes=1024 * MIB)
NEWEST = {"deepseek-v4-flash": "dp=2,mp=2,ep=4", "glm-4.5": "dp=2,mp=2,pp=2,ep=4,sp=true"}
SINGLE = FullTarget("m-{part}-{parts}.safetensors", "m.safetensors", "index.json", "pt", 1 << 40)


sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import plans  # noqa: E402


@functools.cache
def published(name):
    """A model with a few of its layers: catalog, and what makes MindSpore Transformers' form of it."""
    model = plans.MODELS[name]
    config = {**model.config, "num_hidden_layers": 4 if name in NEWEST else 8}
    config |= {"n_routed_experts": 16} if "n_routed_experts" in config else {}
    config |= {"num_nextn_predict_layers": 0} if name == "deepseek-v3" else {}
    model = replace(model, config=config, object_count=6)
    catalog = plans.catalog_of(list(model.tensors(config)), model.object_count)
    found = detect(config, [entry.spec.name for entry in catalog.entries])
    return model, catalog, Change(found.family.name, found.direction, found.naming, dict(found.options), config)


def strategy_of(name, parallel):
    model, catalog, change = published(name)
    return plans.strategy_of(replace(model, parallel=parallel), catalog, change)


def ranks(strategy):
    return RankTarget(strategy, tuple(range(strategy.rank_count)), "rank_{rank}/c.safetensors")


def trained(name, parallel):
    """The catalog of a model's rank shards."""
    _, catalog, change = published(name)
    strategy = strategy_of(name, parallel)
    specs = {tensor.spec.name: tensor.spec for tensor in make_tensors(catalog, {}, change).tensors}
    headers = []
    for rank in range(strategy.rank_count):
        layouts = strategy.stages[rank // strategy.device_count]
        boxes = {n: layouts[n].box_of(s.shape, rank % strategy.device_count) for n, s in specs.items() if n in layouts}
        encoded = plan_header([TensorSpec(n, specs[n].dtype, box.shape) for n, box in boxes.items()], {})
        key = f"rank_{rank}/checkpoint_{rank}.safetensors"
        headers.append(ObjectHeader.of(SourceObject(key, encoded.nbytes, f"etag of {key}"), encoded.header))
    return rank_catalog(SourceHeaders("s3://models/ranks", "", headers), range(strategy.rank_count), strategy)


def share(catalog, target, **more):
    cost = plan_for(catalog, target, "s3://models/made", LIMITS, copy_bases=(REPLICAS, 0), **more).cost
    return cost.copied_bytes / (cost.copied_bytes + cost.written_bytes)


@pytest.mark.parametrize(
    ("parallel", "least"), [("mp=8", 0.6), ("mp=2", 0.6), ("pp=4", 0.99), ("dp=2", 0.99), ("dp=4,mp=8", 0.9)]
)
def test_qwen_to_ranks(parallel, least):
    """Slices of the first axis are copied, those of the second are not: o_proj and down_proj, a third of it."""
    _, catalog, change = published("qwen2.5-72b")
    assert share(catalog, ranks(strategy_of("qwen2.5-72b", parallel)), change=change) >= least


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("mp=4", "mp=4,pp=4"),
        ("mp=4,pp=4", "mp=4"),
        ("mp=2,pp=2", "mp=2,pp=4"),
        ("mp=4", "dp=4,mp=4"),
        ("dp=2,mp=4", "mp=4"),
    ],
)
def test_changes_of_stages_and_replicas(before, after):
    catalog = trained("qwen2.5-72b", before)
    assert share(catalog, ranks(strategy_of("qwen2.5-72b", after))) >= 0.99


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 4), (4, 2)])
def test_changes_of_experts(before, after):
    catalog = trained("deepseek-v3", f"dp=4,mp=1,ep={before},sp=true")
    assert share(catalog, ranks(strategy_of("deepseek-v3", f"dp=4,mp=1,ep={after},sp=true"))) >= 0.99


def test_stages_are_merged():
    assert share(trained("qwen2.5-72b", "pp=4"), SINGLE) >= 0.99


@pytest.mark.parametrize("name", NEWEST)
def test_what_the_newest_models_read_is_needed_and_fits_the_memory(name):
    """FP4 and FP8 are dequantised, and experts turned and stacked, as they are read."""
    _, catalog, change = published(name)
    plan = plan_for(catalog, ranks(strategy_of(name, NEWEST[name])), "s3://m/ranks", LIMITS, change=change)
    assert plan.cost.peak_bytes <= LIMITS.memory_bytes
    assert plan.cost.needed_bytes <= plan.cost.read_bytes <= 1.02 * plan.cost.needed_bytes
