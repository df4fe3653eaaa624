"""Every kind of source keeps the contract of sources."""

import json

import numpy as np
import pytest
from engine.source_contract import MODEL, NONE, SourceContract
from support.checkpoints import encode, encode_ckpt, put_full, random_model, rank_key, shards, stored
from support.conversions import Known, convert
from support.dcp_writer import write_dcp

from reshard.engine.sources import SOURCE_FORMATS, SourceOptions, read_catalog
from reshard.engine.sources.distributed_checkpoint import DistributedCheckpoint
from reshard.engine.sources.full_checkpoint import FullCheckpoint, SingleObject
from reshard.engine.sources.iteration_folder import IterationFolder
from reshard.engine.sources.rank_shards import RankShards
from reshard.engine.sources.sharded_safetensors import ShardedSafetensors
from reshard.engine.sources.zarr_store import ZarrStore
from reshard.engine.workers import working
from reshard.errors import CatalogError
from reshard.formats.sharding_info import SHARDING_KEY, ShardName, encode_sharding_info
from reshard.planning.limits import Limits
from reshard.planning.targets.iteration_target import IterationTarget
from reshard.planning.targets.zarr_target import ZarrTarget
from reshard.storage import Location, MemoryStore
from reshard.tensor import Box, Layout, Strategy

ROWS, COLUMNS, WHOLE = Layout((2,), ((0,), ())), Layout((2,), ((), (0,))), Layout((2,), ((),))
REPEATED = Layout((2, 2), ((0,), ()))
STAGES = Strategy(
    2, ({"embed.weight": ROWS, "norm": WHOLE, "layers.0.weight": COLUMNS}, {"layers.1.weight": ROWS, "norm": WHOLE})
)
REPLICAS = Strategy(4, ({"embed.weight": REPEATED, "layers.0.weight": REPEATED, "layers.1.weight": REPEATED},))
AUTHOR, FLAG, STATE = {"author": "me"}, {"remove_redundancy": "False"}, {"global_step": 7, "loss_scale": 1.5}
WITH_NIBBLES = {**MODEL, **random_model({"packed": ("F4", (3, 8))})}
TEXTS = {"note": "texts \u4e2d"}


def put(place, name, body):
    place.store.put(place.child(name).key, body)


def part(*names):
    return {name: MODEL[name] for name in names}


FIRST, SECOND = part("embed.weight", "layers.0.weight", "scale"), part("layers.1.weight", "norm", "none")


class TestSingleSafetensors(SourceContract):
    source_format = SingleObject
    metadata = AUTHOR

    def write(self, place):
        put(place, "m.safetensors", encode(MODEL, self.metadata))
        return place.child("m.safetensors")

    def break_headers(self, place):
        place.store.put(place.key, b"\xff" * 100)
        return [place.key]


class TestSingleCkpt(TestSingleSafetensors):
    metadata = NONE
    texts = TEXTS

    def write(self, place):
        put(place, "m.ckpt", encode_ckpt(MODEL, self.texts, piece_elements=10))
        return place.child("m.ckpt")


class TestOneObjectBelowAPrefix(SourceContract):
    source_format = FullCheckpoint
    metadata = AUTHOR

    def write(self, place):
        put(place, "m.safetensors", encode(MODEL, self.metadata))
        put(place, "config.json", b"{}")
        return place


class TestHuggingFaceIndex(SourceContract):
    source_format = FullCheckpoint
    metadata = AUTHOR

    def write(self, place):
        put_full(place, {"model-1.safetensors": FIRST, "model-2.safetensors": SECOND})
        for name, model in (("model-1.safetensors", FIRST), ("model-2.safetensors", SECOND)):
            put(place, name, encode(model, {**self.metadata, "part": name}))
        return place


class TestMindSporeMap(SourceContract):
    source_format = FullCheckpoint

    def write(self, place):
        put(place, "part0.safetensors", encode({**FIRST, **part("norm", "none")}))
        put(place, "part1.safetensors", encode(part("layers.1.weight")))
        put(place, "hyper_param.safetensors", encode(part("scale")))
        names = {name: f"part{int(name == 'layers.1.weight')}.safetensors" for name in MODEL if name != "scale"}
        put(place, "part0.safetensors", encode({name: MODEL[name] for name, key in names.items() if "0" in key}))
        put(place, "param_name_map.json", json.dumps(names).encode())
        return place


class TestLoneRank(SourceContract):
    source_format = RankShards
    metadata = FLAG
    has_ranks = True

    def write(self, place):
        put(place, rank_key(0), encode(MODEL, self.metadata))
        return place


class TestRankShards(SourceContract):
    source_format = RankShards
    metadata = FLAG
    has_ranks = True
    strategy = STAGES

    def options(self, **more):
        return SourceOptions(**{"strategy": Known(self.strategy), **more})

    def write(self, place):
        for rank, held in shards(MODEL, self.strategy).items():
            put(place, rank_key(rank), encode(held, self.metadata))
        return place


class TestRankCkpt(TestRankShards):
    metadata = NONE
    texts = TEXTS
    strategy = REPLICAS

    def write(self, place):
        for rank, held in shards(MODEL, self.strategy).items():
            put(place, f"checkpoint/{rank_key(rank, suffix='.ckpt')}", encode_ckpt(held, self.texts, piece_elements=10))
        return place


class TestIteration(SourceContract):
    source_format = IterationFolder
    training_state = STATE
    target = IterationTarget(STAGES, 7, "net", common=STATE)

    def write(self, place):
        model = Location(MemoryStore(), "model")
        put_full(model, {"model.safetensors": MODEL})
        convert(model, place, self.target, Limits())
        return place

    def test_metadata_texts_and_training_state_go_along(self, source):
        catalog = self.read(source)
        assert {name: value for name, value in catalog.training_state.items() if value is not None} == (
            self.training_state
        )


class TestIterationWithoutRedundancy(TestIteration):
    target = IterationTarget(REPLICAS, 7, remove_redundancy=True, common=STATE)


class TestIterationOfOneDevice(SourceContract):
    source_format = IterationFolder

    def write(self, place):
        put(place, "model-0000000-0000002.safetensors", encode(FIRST))
        put(place, "model-0000001-0000002.safetensors", encode(SECOND))
        return place


class TestDistributedCheckpoint(SourceContract):
    source_format = DistributedCheckpoint

    def write(self, place):
        boxes = {name: [(Box.whole(shape), 0)] for name, (_, shape, _) in MODEL.items()}
        boxes["embed.weight"] = [(Box((5, 0), (8, 6)), 1), (Box((0, 0), (5, 6)), 0)]
        boxes["layers.0.weight"] = [(Box((0, 0), (4, 2)), 0), (Box((0, 2), (4, 6)), 1)]
        for name, body in write_dcp(MODEL, boxes).items():
            put(place, name, body)
        return place

    def break_headers(self, place):
        names = [name for name in stored(place) if name.endswith(".distcp")]
        for name in names:
            put(place, name, b"\xff" * len(stored(place)[name]))
        return names


class TestShardedSafetensors(SourceContract):
    source_format = ShardedSafetensors
    metadata = AUTHOR

    def write(self, place):
        cuts = {"embed.weight": (0, 5), "layers.0.weight": (1, 2)}
        for rank in range(2):
            held, offsets = {}, {}
            for name, (dtype, shape, array) in MODEL.items():
                if name in cuts:
                    axis, at = cuts[name]
                    part = np.split(array, [at], axis)[rank]
                    held[name] = (dtype, part.shape[:-1], part)
                    offsets[name] = tuple(at * rank * (axis == each) for each in range(len(shape)))
                elif rank == 1:
                    held[name], offsets[name] = (dtype, shape, array), (0,) * len(shape)
            metadata = {**AUTHOR, SHARDING_KEY: encode_sharding_info(offsets), "DCP_VERSION": "1.0"}
            put(place, str(ShardName(rank + 1, 1, 1)), encode(held, metadata))
        return place

    def test_other_names_will_do(self, source, place):
        for name, body in stored(source).items():
            put(place, f"other/{name.replace('shard', 'piece')}", body)
        assert self.read(source.child("other")).entries == self.read(source).entries

    def test_a_piece_alone_is_no_checkpoint(self, source):
        with pytest.raises(CatalogError, match="has a piece of it, from"):
            self.read(source.child(str(ShardName(2, 1, 1))))


class TestZarr(SourceContract):
    source_format = ZarrStore
    metadata = AUTHOR
    model = WITH_NIBBLES

    def write(self, place):
        model = Location(MemoryStore(), "model")
        put(model, "model.safetensors", encode(self.model, self.metadata))
        convert(model, place, ZarrTarget(50, {"embed.weight": (3, 6)}), Limits())
        return place

    def break_headers(self, place):
        put(place, "zarr.json", b"{")
        return ["zarr.json"]


class TestZarrWithoutConsolidatedMetadata(TestZarr):
    def write(self, place):
        super().write(place)
        root = json.loads(stored(place)["zarr.json"])
        del root["consolidated_metadata"]
        put(place, "zarr.json", json.dumps(root).encode())
        return place

    def break_headers(self, place):
        names = [name for name in stored(place) if name.endswith("/zarr.json")]
        for name in names:
            put(place, name, b"{")
        return names


def test_every_kind_is_tried():
    kinds = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, SourceContract)]
    assert {kind.source_format for kind in kinds if kind is not SourceContract} == set(SOURCE_FORMATS)


@pytest.mark.parametrize("source_format", SOURCE_FORMATS)
def test_what_is_expected_is_named_where_nothing_is_found(source_format):
    place = Location(MemoryStore(), "nothing")
    with working(1, place.store) as workers, pytest.raises(CatalogError, match="no checkpoint there") as caught:
        read_catalog(place, SourceOptions(), workers)
    assert source_format.expected in caught.value.message
