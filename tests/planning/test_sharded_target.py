"""Pieces for torch: every element once over all ranks, at the offsets in the header, and read back as they were."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.checkpoints import contents, decode, put_full, random_model, stored
from support.conversions import convert

from reshard.errors import StrategyError
from reshard.formats.sharding_info import SHARDING_KEY
from reshard.planning.limits import Limits
from reshard.planning.targets.full_target import FullTarget
from reshard.planning.targets.sharded_target import ShardedTarget
from reshard.storage import Location, MemoryStore
from reshard.tensor import Layout, RowSplit, Strategy

MODEL = random_model(
    {
        "rows": ("BF16", (8, 6)),
        "columns": ("F32", (4, 6)),
        "both": ("I64", (4, 6)),
        "tied": ("F16", (8, 2)),
        "uneven": ("U8", (7,)),
        "packed": ("F4", (4, 4)),
        "none": ("F32", (0, 4)),
        "scalar": ("F64", ()),
        "unlisted": ("BOOL", (3,)),
    }
)
ROWS = Layout((2, 2), ((1,), ()))
STAGES = (
    {
        "rows": Layout((2, 2), ((1,), ()), optimizer_shard_size=-1),
        "columns": Layout((2, 2), ((), (0,))),
        "tied": ROWS,
        "uneven": Layout((4,), ((0,),), row_split=RowSplit((3, 0, 2, 2), (0, 3, 3, 5))),
    },
    {
        "both": Layout((2, 2), ((1,), (0,))),
        "tied": Layout((2, 2), ((), ())),
        "packed": Layout((4,), ((), ())),
        "none": ROWS,
        "scalar": Layout((4,), ()),
    },
)
FULL = FullTarget("m-{part}.safetensors", "model.safetensors", "", "pt", 1 << 40)
LIMITS = Limits()


def shards_of(strategy):
    base = Location(MemoryStore(), "a")
    put_full(base.child("full"), {"model.safetensors": MODEL})
    convert(base.child("full"), base.child("shards"), ShardedTarget(strategy), LIMITS)
    return base


def test_every_element_is_written_once_at_its_offset():
    base = shards_of(Strategy(4, STAGES))
    times = {name: np.zeros(array.shape[:-1], int) for name, (_, _, array) in MODEL.items()}
    names = [name for name in stored(base.child("shards")) if name.endswith(".safetensors")]
    assert names == [f"shard-{rank:05}-model-00001-of-00001.safetensors" for rank in range(1, 9)]
    for name in names:
        tensors, metadata = decode(stored(base.child("shards"))[name])[:2]
        assert (metadata["format"], metadata["DCP_VERSION"]) == ("pt", "1.0")
        offsets = json.loads(metadata[SHARDING_KEY])
        assert offsets.keys() == tensors.keys()
        for tensor, (dtype, shape, data) in tensors.items():
            start, whole = offsets[tensor]["saved_offsets"], MODEL[tensor][2]
            assert len(start) == len(shape)
            held = np.frombuffer(data, np.uint8)
            if dtype == "F4":
                times[tensor] += 1
                assert held.tobytes() == whole.tobytes()
                continue
            inside = tuple(slice(first, first + extent) for first, extent in zip(start, shape, strict=True))
            times[tensor][inside] += 1
            assert np.array_equal(held.reshape(whole[inside].shape), whole[inside])
    assert [name for name, count in times.items() if (count != 1).any()] == []


def test_ranks_share_the_bytes_and_those_without_pieces_have_no_object():
    whole = Strategy(4, ({name: Layout((4,), ((),) * len(shape)) for name, (_, shape, _) in MODEL.items()},))
    sizes = [len(body) for name, body in stored(shards_of(whole).child("shards")).items() if name.startswith("shard")]
    assert len(sizes) == 4
    lone = Strategy(2, ({"rows": Layout((2,), ((), ()))},))
    base = Location(MemoryStore(), "a")
    put_full(base.child("full"), {"model.safetensors": {"rows": MODEL["rows"]}})
    convert(base.child("full"), base.child("shards"), ShardedTarget(lone), LIMITS)
    assert [name for name in stored(base.child("shards")) if name.startswith("shard")] == [
        "shard-00001-model-00001-of-00001.safetensors"
    ]


def test_shards_are_a_source():
    base = shards_of(Strategy(4, STAGES))
    convert(base.child("shards"), base.child("back"), FULL, LIMITS)
    tensors, metadata = decode(stored(base.child("back"))["model.safetensors"])[:2]
    assert tensors == contents(MODEL)
    assert metadata == {"format": "pt"}


def test_a_strategy_that_does_not_fit_is_refused():
    with pytest.raises(StrategyError, match=r"do not fit|cannot be cut"):
        shards_of(Strategy(5, ({"rows": Layout((5,), ((0,), ()))},)))
