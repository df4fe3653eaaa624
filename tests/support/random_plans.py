"""hypothesis strategies for everything a plan is made from: models, layouts, sources, targets, limits."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from reshard.planning.limits import Limits
from reshard.planning.target import FullTarget, RankTarget
from reshard.tensor import DType, Layout, RowSplit, Strategy

from .checkpoints import array_shape, owned, rank_key, shards

MAX_ELEMENTS = 2500
DTYPES = st.sampled_from([*["F32", "BF16", "U8", "I64", "C64", "BOOL", "F8_E4M3"], "BF16", "F32", "F4", "F6_E2M3"])


@dataclass(frozen=True)
class Case:
    """A model and the strategies it can be cut by."""

    model: dict
    strategies: tuple[Strategy, ...]


@st.composite
def cases(draw, strategy_count=2, max_tensors=5):
    """A model, and strategies that all fit it."""
    count = draw(st.integers(1, max_tensors))
    names = [f"{letter}.weight" for letter in draw(st.permutations("abcdefgh"[:count]))]
    dtypes = {name: DType(draw(DTYPES)) for name in names}
    axes = {name: draw(st.integers(0, 4)) for name in names}
    sketches = [draw(_sketches(names, dtypes, axes)) for _ in range(strategy_count)]
    shapes = {name: draw(_shapes(name, dtypes[name], axes[name], sketches)) for name in names}
    strategies = tuple(_finished(draw, sketch, shapes) for sketch in sketches)
    numbers = np.random.default_rng(draw(st.integers(0, 99)))
    model = {
        name: (dtype, shapes[name], numbers.integers(0, 256, array_shape(dtype, shapes[name]), np.uint8))
        for name, dtype in dtypes.items()
    }
    return Case(model, strategies)


@dataclass
class _Sketch:
    """A strategy before the shapes are known: row splits still to be filled in."""

    device_count: int
    stages: list[dict[str, Layout]]
    by_hand: set[tuple[int, str]]


@st.composite
def _sketches(draw, names, dtypes, axes):
    device_count = draw(st.sampled_from([1, 2, 3, 4, 4, 6, 6, 8, 9, 12]))
    stage_count = draw(st.integers(1, min(3, 12 // device_count)))
    sketch = _Sketch(device_count, [{} for _ in range(stage_count)], set())
    for name in names:
        for stage in draw(st.sets(st.integers(0, stage_count - 1), min_size=draw(st.sampled_from([0, 1, 1, 1, 1])))):
            sketch.stages[stage][name] = draw(_layouts(device_count, axes[name], dtypes[name]))
            if axes[name] and dtypes[name].bits >= 8 and draw(st.integers(0, 5)) == 0:
                plain = replace(sketch.stages[stage][name], optimizer_shard_size=0)
                sketch.stages[stage][name] = plain
                sketch.by_hand.add((stage, name))
    if not any(sketch.stages):
        sketch.stages[0][names[0]] = draw(_layouts(device_count, axes[names[0]], dtypes[names[0]]))
    return sketch


@st.composite
def _layouts(draw, device_count, axis_count, dtype):
    matrix = draw(_matrices(device_count))
    cut = [[] for _ in range(axis_count)]
    if axis_count and dtype.bits >= 8:
        entries = draw(st.permutations(range(len(matrix))))
        for entry in entries[: draw(st.integers(0, len(matrix)))]:
            cut[draw(st.integers(0, axis_count - 1))].append(entry)
    plain = Layout(matrix, tuple(map(tuple, cut)))
    if axis_count and dtype.bits >= 8 and draw(st.integers(0, 2)) == 0:
        return replace(plain, optimizer_shard_size=-1)
    return plain


@st.composite
def _matrices(draw, device_count):
    """A grid of so many devices, perhaps with dimensions of size 1."""
    matrix, left = [], device_count
    while left > 1:
        size = draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0]))
        matrix.append(size)
        left //= size
    if draw(st.integers(0, 3)) == 0:
        matrix.insert(draw(st.integers(0, len(matrix))), 1)
    return tuple(matrix) or (1,)


@st.composite
def _shapes(draw, name, dtype, axis_count, sketches):
    """A shape that every sketch divides; too large a tensor loses its layouts' cuts."""
    if dtype.bits < 8:
        shape = [draw(st.integers(0, 5)) for _ in range(axis_count)]
        return (*shape[:-1], draw(st.sampled_from([0, 4, 8, 12]))) if axis_count else _no_scalar(name, sketches)
    least = _least(name, axis_count, sketches)
    if math.prod(least) > MAX_ELEMENTS:
        for sketch in sketches:
            for layouts in sketch.stages:
                if name in layouts:
                    layouts[name] = Layout((sketch.device_count,), ((),) * axis_count)
        least = [1] * axis_count
    shape = []
    for extent in least:
        room = MAX_ELEMENTS // max(1, math.prod(shape) * math.prod(least[len(shape) :]))
        shape.append(extent * draw(st.sampled_from([n for n in (1, 1, 2, 3, 5, 17) if n <= max(1, room)])))
    if shape and draw(st.integers(0, 15)) == 0:
        shape[draw(st.integers(0, axis_count - 1))] = 0
    return tuple(shape)


def _no_scalar(name, sketches):
    """A single sub-byte element fills no byte: make it two on one axis."""
    for sketch in sketches:
        for layouts in sketch.stages:
            if name in layouts:
                layouts[name] = Layout(layouts[name].device_matrix, ((),))
    return (8,)


def _least(name, axis_count, sketches):
    extents = [1] * axis_count
    for sketch in sketches:
        for stage, layouts in enumerate(sketch.stages):
            if name not in layouts:
                continue
            cuts = list(layouts[name].cuts)
            if axis_count:
                cuts[0] = 1 if (stage, name) in sketch.by_hand else cuts[0] * layouts[name].optimizer_pieces
            extents = [math.lcm(a, b) for a, b in zip(extents, cuts, strict=True)]
    return extents


def _finished(draw, sketch, shapes):
    for stage, name in sorted(sketch.by_hand):
        layout, rows = sketch.stages[stage][name], shapes[name][0]
        inner = sorted(draw(st.integers(0, rows)) for _ in range(layout.cuts[0] - 1))
        edges = [0, *inner, rows]
        counts = tuple(b - a for a, b in itertools.pairwise(edges))
        sketch.stages[stage][name] = replace(layout, row_split=RowSplit(counts, tuple(edges[:-1])))
    return Strategy(sketch.device_count, tuple(sketch.stages))


@st.composite
def object_shares(draw, model):
    """The tensors of a model shared out over objects."""
    count = draw(st.integers(1, 3))
    held = {}
    for name, value in model.items():
        held.setdefault(f"model-{draw(st.integers(1, count))}.safetensors", {})[name] = value
    return held


@st.composite
def rank_shares(draw, model, strategy):
    """What the ranks hold, with some replicas removed, as MindSpore's ``remove_redundancy`` does."""
    dropped = draw(redundancies(model, strategy))
    held = shards(model, strategy, dropped)
    return {rank: tensors for rank, tensors in held.items() if tensors or draw(st.booleans())}


@st.composite
def redundancies(draw, model, strategy):
    """Pairs (rank, name) that need not be stored, since other ranks of the same stage have the same slice."""
    dropped = []
    if draw(st.booleans()):
        return dropped
    for name, (dtype, _shape, array) in model.items():
        layouts = [(stage, layouts[name]) for stage, layouts in enumerate(strategy.stages) if name in layouts]
        for stage, layout in layouts:
            first = stage * strategy.device_count
            places = np.arange(array.size).reshape(array.shape)
            owners = {}
            for rank in range(strategy.device_count):
                part = places if dtype.bits < 8 else owned(places, layout, rank)
                if part.size:
                    owners.setdefault(part.tobytes(), []).append(first + rank)
            for ranks in owners.values():
                kept = draw(st.sampled_from(ranks))
                dropped += [(rank, name) for rank in ranks if rank != kept and draw(st.booleans())]
        if not layouts and strategy.rank_count > 1:
            kept = draw(st.integers(0, strategy.rank_count - 1))
            dropped += [(rank, name) for rank in range(strategy.rank_count) if rank != kept and draw(st.booleans())]
    return dropped


@st.composite
def rank_targets(draw, strategy):
    """All ranks of a strategy, or some."""
    ranks = range(strategy.rank_count)
    if draw(st.integers(0, 4)) == 0:
        ranks = sorted(draw(st.sets(st.sampled_from(ranks), min_size=1)))
    return RankTarget(strategy, tuple(ranks), rank_key("{rank}"))


@st.composite
def full_targets(draw):
    """One object, or as many as are needed."""
    object_bytes = draw(st.sampled_from([1, 500, 10**9]))
    names = "model-{part:05d}-of-{parts:05d}.safetensors", "model.safetensors", "model.safetensors.index.json"
    return FullTarget(*names, draw(st.sampled_from(["pt", "ms"])), object_bytes)


@st.composite
def limits(draw):
    """Limits so small that small tensors are cut into many parts and reads."""
    min_part_bytes = draw(st.sampled_from([1, 64, 64, 500, 5000]))
    return Limits(
        memory_bytes=draw(st.sampled_from([1, 3000, 9000, 1 << 20])),
        concurrency=draw(st.integers(1, 5)),
        read_bytes=draw(st.sampled_from([1, 7, 64, 500, 1 << 20])),
        part_bytes=draw(st.sampled_from([1, 100, 2000, 1 << 20])),
        max_gap_bytes=draw(st.sampled_from([0, 1, 16, 300, 1 << 19])),
        max_over_read=draw(st.sampled_from([1, 2, 8, 64])),
        client_bytes=draw(st.sampled_from([1, 100])),
        row_bytes=draw(st.sampled_from([1, 8, 100, 1 << 18])),
        min_part_bytes=min_part_bytes,
        max_part_bytes=draw(st.sampled_from([1 << 20, 5 << 30])),
        max_part_count=draw(st.sampled_from([10_000, 10_000, 20, 3, 1])),
    )
