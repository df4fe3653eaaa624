"""Random models through random strategies and back: what comes out is what went in, bit for bit.

Everything goes through the library's statements: strategies as the files that MindSpore writes, objects
in memory stores, every conversion verified.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

import pytest
from support.checkpoints import (
    contents,
    decode,
    decode_ckpt,
    encode,
    encode_ckpt,
    random_model,
    shards,
    stored,
)

import reshard.api as reshard
from reshard.formats.mindspore.strategy_json import encode_json
from reshard.formats.mindspore.strategy_merge import from_strategy
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.storage import Location, MemoryStore
from reshard.tensor import Layout, Strategy

QUICK_COUNT, SLOW_COUNT = 50, 150
DTYPES = ("F32", "F32", "BF16", "BF16", "F16", "I8", "U8", "I64", "BOOL", "F64")
CONTAINERS = ("safetensors", "ckpt")


@dataclass(frozen=True)
class Parallel:
    """How a training run is laid out over its devices.

    ``nested`` are two dimensions of the grid that cut one axis; ``optimizer`` shards the optimizer's states, 0 for
    not at all, -1 for over all replicas.
    """

    stage_count: int
    replicas: int
    columns: int
    nested: tuple[int, ...]
    optimizer: int

    @property
    def device_count(self):
        return self.replicas * self.columns * (2 if self.nested else 1)

    def layout(self, axis_count, cut, *, is_state):
        """The layout of a tensor; ``cut`` is the axis that the devices share, None for none."""
        matrix = (self.replicas, 2, self.columns) if self.nested else (self.replicas, self.columns)
        axes = [()] * axis_count
        if cut is not None:
            axes[cut] = self.nested or (0,)
        is_sharded = is_state and axis_count and self.optimizer
        return Layout(matrix, tuple(axes), optimizer_shard_size=self.optimizer if is_sharded else 0)

    def strategy(self, model, outside, numbers):
        """Layers go to stages in turn; the tied tensor is on the first and on the last."""
        stages = [{} for _ in range(self.stage_count)]
        for name, (_, shape, _) in model.items():
            if name in outside:
                continue
            cut = numbers.choice([None, *(axis for axis, extent in enumerate(shape) if extent > 1)])
            layout = self.layout(len(shape), cut, is_state=name.startswith("adam") or numbers.random() < 0.3)
            place = sum(map(ord, name.removeprefix("adam_m."))) % self.stage_count
            for stage in {0, self.stage_count - 1} if name == "tied.weight" else {place}:
                stages[stage][name] = layout
        return Strategy(self.device_count, tuple(stages))


def random_parallel(numbers):
    made = Parallel(
        stage_count=numbers.choice([1, 1, 2, 3]),
        replicas=numbers.choice([1, 2, 4]),
        columns=numbers.choice([1, 2, 4]),
        nested=numbers.choice([(), (), (), (1, 0), (0, 1)]),
        optimizer=numbers.choice([0, 0, -1, -1, 2]),
    )
    return replace(made, optimizer=-1) if made.optimizer > 0 and made.replicas % made.optimizer else made


def random_weights(numbers):
    """A small model: weights, states of the optimizer, a tied tensor, hyper-parameters."""
    tensors = {"tied.weight": (numbers.choice(DTYPES), (64, 64))}
    for layer in range(numbers.randint(1, 3)):
        tensors[f"layers.{layer}.w"] = (numbers.choice(DTYPES), numbers.choice([(64, 128), (64, 64, 1), (128, 64)]))
        tensors[f"layers.{layer}.norm"] = ("F32", (64,))
        tensors[f"adam_m.layers.{layer}.w"] = ("F32", tensors[f"layers.{layer}.w"][1])
    outside = {"global_step": ("I32", ()), "epoch_num": ("I64", (1,))}
    kept = dict(itertools.islice(outside.items(), numbers.randint(0, 2)))
    return random_model({**tensors, **kept}, numbers.random()), set(kept)


class Trip:
    """A store, and strategies of two training runs in it as files."""

    def __init__(self, seed):
        self.numbers = random.Random(seed)
        self.store = MemoryStore(f"trip-{seed}")
        self.model, self.outside = random_weights(self.numbers)
        self.container = self.numbers.choice(CONTAINERS)
        for name in ("a", "b"):
            parallel = random_parallel(self.numbers)
            strategy = parallel.strategy(self.model, self.outside, self.numbers)
            setattr(self, name, strategy)
            self._put_strategy(name, strategy)
        self.put("full/model", self.model, self.container)

    def url(self, name):
        return f"memory://{self.store.url.removeprefix('memory://')}/{name}"

    def _put_strategy(self, name, strategy):
        """One merged file, or one a stage; protobuf, or JSON where it can tell everything."""
        is_nested = any(len(axis) > 1 for s in strategy.stages for layout in s.values() for axis in layout.tensor_map)
        if not is_nested and self.numbers.random() < 0.3:
            files = {f"stage_{s}.json": encode_json(from_strategy(strategy, s)) for s in range(strategy.stage_count)}
        elif self.numbers.random() < 0.5:
            files = {f"s_{s}.ckpt": encode_protobuf(from_strategy(strategy, s)) for s in range(strategy.stage_count)}
        else:
            files = {"merged.ckpt": encode_protobuf(from_strategy(strategy))}
        for key, body in files.items():
            self.store.put(f"strategy_{name}/{key}", body)

    def put(self, key, model, container):
        pieces = self.numbers.choice([600, 10**9])
        body = encode(model) if container == "safetensors" else encode_ckpt(model, piece_elements=pieces, has_crc=True)
        self.store.put(f"{key}.{container}", body)

    def convert(self, src, dst, **options):
        manifest = reshard.convert(self.url(src), self.url(dst), concurrency=2, check_crc=True, **options)
        report = reshard.verify(self.url(dst))
        assert report.is_ok, report.problems
        return manifest

    def tensors(self, prefix):
        """By object, what its tensors are."""
        found = {}
        for key, body in stored(Location(self.store, prefix)).items():
            if not key.endswith((".json", ".manifest.json")):
                found[key] = decode_ckpt(body)[0] if key.endswith(".ckpt") else decode(body)[0]
        return found

    def whole(self, prefix):
        """All tensors of a full checkpoint."""
        return {name: value for held in self.tensors(prefix).values() for name, value in held.items()}

    def random_ranks(self):
        return {"format": self.numbers.choice(CONTAINERS), "remove_redundancy": self.numbers.random() < 0.5}

    def random_full(self):
        form = self.numbers.choice(["hf", "mindspore", "ckpt"])
        return (
            {"format": "ckpt"} if form == "ckpt" else {"form": form, "part_size": self.numbers.choice([20_000, "1GB"])}
        )

    def strategy_url(self, name):
        return self.url(f"strategy_{name}")


def expected_shards(model, strategy):
    return {rank: contents(held) for rank, held in shards(model, strategy).items()}


def check_shards(found, model, strategy, *, is_deduplicated):
    """Every rank holds what is its own, or, where redundancy is removed, each box one of its owners."""
    by_rank = {int(key.split("/")[0].removeprefix("rank_")): held for key, held in found.items()}
    expected = expected_shards(model, strategy)
    if not is_deduplicated:
        assert by_rank == expected
        return
    seen = set()
    for rank, held in by_rank.items():
        assert held.items() <= expected[rank].items()
        for name, value in held.items():
            copy = (rank // strategy.device_count, name, value)
            if name in strategy.names:
                assert copy not in seen, f"{name}: two ranks of a stage have the same box"
            seen.add(copy)
    due = {(rank // strategy.device_count, *item) for rank, held in expected.items() for item in held.items()}
    assert seen == due


def check_trip(seed):
    trip = Trip(seed)
    first, second = trip.random_ranks(), trip.random_ranks()
    to_a, to_b = {"dst_strategy": trip.strategy_url("a"), **first}, {"dst_strategy": trip.strategy_url("b"), **second}
    if not (is_writable(trip.model, trip.a, first) and is_writable(trip.model, trip.b, second)):
        first["format"] = second["format"] = to_a["format"] = to_b["format"] = "safetensors"
    trip.convert("full", "ranks_a", **to_a)
    check_shards(trip.tensors("ranks_a"), trip.model, trip.a, is_deduplicated=first["remove_redundancy"])
    trip.convert("ranks_a", "back_a", src_strategy=trip.strategy_url("a"), **trip.random_full())
    assert trip.whole("back_a") == contents(trip.model)
    trip.convert("ranks_a", "ranks_b", src_strategy=trip.strategy_url("a"), **to_b)
    check_shards(trip.tensors("ranks_b"), trip.model, trip.b, is_deduplicated=second["remove_redundancy"])
    trip.convert("ranks_b", "back_b", src_strategy=trip.strategy_url("b"), **trip.random_full())
    assert trip.whole("back_b") == contents(trip.model)
    return trip


def is_writable(model, strategy, options):
    """Whether every rank has something to write: a .ckpt object without values is none."""
    if options["format"] == "safetensors" or not options["remove_redundancy"]:
        return options["format"] == "safetensors" or all(shards(model, strategy).values())
    return any(name not in strategy.names for name in model)  # those are on every rank


@pytest.mark.parametrize("seed", range(QUICK_COUNT))
def test_there_and_back(seed):
    check_trip(seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_there_and_back_many_times():
    for seed in range(QUICK_COUNT, QUICK_COUNT + SLOW_COUNT):
        try:
            check_trip(seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


def test_the_trips_take_every_road():
    """What the seeds above draw: both formats, nesting, several stages, optimizer shards, redundancy removed."""
    trips = [Trip(seed) for seed in range(QUICK_COUNT)]
    layouts = [layout for trip in trips for s in (trip.a, trip.b) for stage in s.stages for layout in stage.values()]
    assert any(len(axis) > 1 for layout in layouts for axis in layout.tensor_map)
    assert {layout.optimizer_shard_size for layout in layouts} >= {0, -1, 2}
    assert {trip.a.stage_count for trip in trips} == {1, 2, 3}
    assert {trip.container for trip in trips} == set(CONTAINERS)
    assert any(trip.outside for trip in trips)
    assert not all(trip.outside for trip in trips)
