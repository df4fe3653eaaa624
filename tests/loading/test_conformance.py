"""Loading equals converting: of every conformance case a rank gets what is written for it, and files have the bytes."""

from __future__ import annotations

import pytest
from loading.carried_out import objects_at
from oracle.cases import cases, memory_url
from support.checkpoints import decode, decode_ckpt

import reshard
from reshard.planning.targets.rank_target import RankTarget
from reshard.storage import open_location

pytestmark = pytest.mark.slow
CASES = [case for case in cases() if case.is_ours]


def tensors_in(objects):
    """Dtype, shape and bytes of every tensor, by object."""
    readers = {".safetensors": decode, ".ckpt": decode_ckpt}
    return {
        key: read(body)[0] for key, body in objects.items() for suffix, read in readers.items() if key.endswith(suffix)
    }


def loaded(plan, rank=None):
    with reshard.load(plan=plan, rank=rank) as shard:
        found = {name: (shard.spec(name), array) for name, array in shard}
    return {name: (spec.dtype.value, spec.shape, array.tobytes()) for name, (spec, array) in found.items()}


def test_there_are_cases():
    assert len(CASES) > 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_loaded_is_what_is_written(case):
    for request in case.answered_requests(case.upload(memory_url(f"load-{case.name}"))):
        plan = reshard.plan(**request.arguments)
        reshard.convert(plan=plan)
        target = plan.conversion.target
        place = open_location(plan.conversion.target_url)
        objects = {key: body for key, body in objects_at(place).items() if key in plan.conversion.keys}
        virtual = reshard.filesystem(plan=plan)
        assert {key: virtual.cat_file(key) for key in virtual.find("")} == objects
        written = tensors_in(objects)
        if isinstance(target, RankTarget):
            assert {rank: loaded(plan, rank) for rank in target.ranks} == {
                rank: written[target.name.replace("{rank}", str(rank))] for rank in target.ranks
            }
        else:
            assert loaded(plan) == {name: value for held in written.values() for name, value in held.items()}
