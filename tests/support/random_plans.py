"""hypothesis strategies for everything a plan is made from: models, layouts, sources, targets, limits."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields, replace

import numpy as np
from hypothesis import strategies as st

from reshard.formats.containers import Container
from reshard.planning.limits import Limits
from reshard.planning.sources.full_source import full_catalog, tree_catalog
from reshard.planning.sources.rank_source import rank_catalog
from reshard.planning.sources.selection import NameFilter
from reshard.planning.sources.source_headers import SourceHeaders
from reshard.planning.targets.full_target import FullTarget, PartsTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.planning.targets.tree_target import TreeTarget, tree_name
from reshard.tensor import DType, Layout, RowSplit, Strategy

from .checkpoints import (
    CKPT_TYPES,
    array_shape,
    encode,
    encode_ckpt,
    header_of,
    header_of_ckpt,
    list_ckpt,
    list_safetensors,
    owned,
    rank_key,
    shards,
)

MAX_ELEMENTS = 2500
DTYPES = st.sampled_from([*["F32", "BF16", "U8", "I64", "C64", "BOOL", "F8_E4M3"], "BF16", "F32", "F4", "F6_E2M3"])
ANY_CONTAINER = st.sampled_from(list(Container))
TEXTS = st.dictionaries(st.sampled_from(["note", "note.more"]), st.text("ab\u4e2d\U0001f600", max_size=40), max_size=2)


@dataclass(frozen=True)
class Case:
    """A model and the strategies it can be cut by."""

    model: dict
    strategies: tuple[Strategy, ...]

    def _repr_pretty_(self, printer, _cycle):
        printer.text(f"Case({_without_bytes(self.model)}, {self.strategies})")


def _without_bytes(model):
    """A model as a failing test shows it: hypothesis prints every field of a dataclass, whatever its ``repr`` is."""
    return {name: f"{dtype} {list(shape)}" for name, (dtype, shape, _) in model.items()}


@st.composite
def cases(draw, strategy_count=2, max_tensors=5, dtypes=DTYPES):
    """A model, and strategies that all fit it."""
    count = draw(st.integers(1, max_tensors))
    names = [f"{letter}.weight" for letter in draw(st.permutations("abcdefgh"[:count]))]
    dtypes = {name: DType(draw(dtypes)) for name in names}
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


# Sources and targets of any format.


@dataclass(frozen=True)
class Source:
    """Objects in a store: what they are made of, how they are cut, and what is asked of them.

    ``tensors`` are those that are taken, by their names in the catalog; ``outside`` are the names that no
    layout of the source has.
    """

    objects: dict[str, bytes]
    tensors: dict
    texts: dict[str, str]
    names: NameFilter
    strategy: Strategy | None
    outside: frozenset[str]
    is_tree: bool = False

    def __repr__(self):
        objects = {key: _listed(key, body) for key, body in self.objects.items()}
        rest = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("objects", "tensors")}
        return f"Source(objects={objects}, tensors={_without_bytes(self.tensors)}, {rest})"

    def _repr_pretty_(self, printer, _cycle):
        printer.text(repr(self))

    def catalog(self, url="memory://source"):
        """The catalog, made without a store."""
        headers = [(header_of_ckpt if _is_ckpt(key) else header_of)(key, body) for key, body in self.objects.items()]
        source = SourceHeaders(url, "test", headers, self.names)
        if self.is_tree:
            return tree_catalog(source, tree_name)
        if self.strategy is None:
            return full_catalog(source)
        ranks = [int(key.split("/")[0].removeprefix("rank_")) for key in self.objects]
        return rank_catalog(source, ranks, self.strategy)


def _is_ckpt(key):
    return key.endswith(".ckpt")


def _listed(key, body):
    """What an object holds, and in how many bytes each piece of it."""
    listed = list_ckpt(body)[0] if _is_ckpt(key) else list_safetensors(body)[0]
    return [f"{name} {dtype} {list(shape)} {[b - a for a, b in spans]}" for name, dtype, shape, spans in listed]


CKPT_DTYPES = st.sampled_from([*sorted(CKPT_TYPES), "F32", "BF16"])


@st.composite
def any_cases(draw, strategy_count):
    """Cases whose tensors ``.ckpt`` can hold, mostly."""
    return draw(cases(strategy_count, dtypes=draw(st.sampled_from([CKPT_DTYPES, CKPT_DTYPES, DTYPES]))))


def _can_be_ckpt(model):
    return all(dtype.value in CKPT_TYPES for dtype, _, _ in model.values())


@st.composite
def _bodies(draw, held, texts, container, *, is_alike=False):
    """Objects of some tensors each; of .ckpt each cuts its tensors as it likes, unless all cut alike."""
    bodies = {}
    piece_counts = draw(st.sampled_from([[1], [7], [1, 3, 7, 20]]))
    if is_alike:
        piece_counts = [draw(st.sampled_from(piece_counts))]
    most = max((math.prod(shape) for model in held.values() for _, shape, _ in model.values()), default=0)
    for key, model in held.items():
        if container is Container.CKPT:
            if model or texts:
                piece = max(1, most // draw(st.sampled_from(piece_counts)))
                body = encode_ckpt(model, texts, piece_elements=piece, has_crc=draw(st.booleans()))
                bodies[f"{key}.ckpt"] = body
        else:
            bodies[f"{key}.safetensors"] = encode(model, {"author": "me", "format": "pt"})
    return bodies


@st.composite
def any_sources(draw, case, strategy, *, is_tree=False):
    """A full checkpoint if the strategy is None, else rank shards; some tensors are not to be taken."""
    model, is_ckpt = case.model, _can_be_ckpt(case.model) and draw(st.booleans())
    container = Container.CKPT if is_ckpt else Container.SAFETENSORS
    texts = draw(TEXTS) if is_ckpt and not is_tree else {}
    # To name a tensor that the source cuts is no use if the target needs some to be left.
    dropped = draw(st.sets(st.sampled_from(sorted(model)), max_size=len(model) - 1)) if draw(st.booleans()) else set()
    names = NameFilter(drop=tuple(sorted(dropped)))
    if is_tree:
        held = draw(tree_shares(model))
        tensors = {
            tree_name(f"{key}{container.suffix}", name): value
            for key, of_one in held.items()
            for name, value in of_one.items()
            if name not in dropped
        }
        return Source(draw(_bodies(held, texts, container)), tensors, texts, names, None, frozenset(), is_tree=True)
    tensors = {name: value for name, value in model.items() if name not in dropped}
    if strategy is None:
        held = {key.removesuffix(".safetensors"): value for key, value in draw(object_shares(model)).items()}
        return Source(draw(_bodies(held, texts, container)), tensors, texts, names, None, frozenset())
    held = {rank_key(rank, suffix=""): value for rank, value in draw(rank_shares(model, strategy)).items()}
    outside = frozenset(tensors) - strategy.names
    # MindSpore cuts by size alone: what has no layout, and so is the same on every rank, is cut alike on all.
    bodies = draw(_bodies(held, texts, container, is_alike=bool(outside)))
    return Source(bodies, tensors, texts, names, strategy, outside)


@st.composite
def tree_shares(draw, model):
    """Objects below ``rank_<R>/`` that need not fit each other: a tensor may be in several, whole in each."""
    held = {}
    for rank in range(draw(st.integers(1, 3))):
        names = draw(st.sets(st.sampled_from(sorted(model)), min_size=1))
        held[f"rank_{rank}/part{rank}"] = {name: model[name] for name in sorted(names)}
    return held


@st.composite
def any_targets(draw, strategy, container):
    """Anything that whole tensors can be made into."""
    kind = draw(st.sampled_from(["ranks", "ranks", "full", "parts"]))
    if kind == "ranks":
        wished = draw(rank_targets(strategy))
        name = rank_key("{rank}", suffix=container.suffix)
        return replace(wished, name=name, container=container, remove_redundancy=draw(st.booleans()))
    if kind == "parts" and container is Container.SAFETENSORS:
        return PartsTarget(draw(st.sampled_from([1, 500, 10**9])))
    if container is Container.CKPT:
        return FullTarget("model.ckpt", "model.ckpt", "", "pt", 10**9, container)
    return draw(full_targets())


@st.composite
def tree_targets(draw):
    """Every object on its own."""
    return TreeTarget(draw(ANY_CONTAINER))


@st.composite
def new_names(draw, names):
    """New names for some tensors, all different; two may change places."""
    names = sorted(names)
    if not draw(st.booleans()):
        return {}
    chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) if names else []
    fresh = [f"new.{name}" for name in chosen]
    return dict(zip(chosen, draw(st.sampled_from([fresh, chosen[::-1]])), strict=True))


def under_new_names(strategy, renamed):
    """The same layouts by the names of the target."""
    stages = tuple({renamed.get(name, name): layout for name, layout in stage.items()} for stage in strategy.stages)
    return replace(strategy, stages=stages)


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
        copy_bytes=draw(st.sampled_from([1, 200, 1 << 20])),
        min_copy_source_bytes=draw(st.sampled_from([1, 1, 2000])),
        max_part_bytes=draw(st.sampled_from([1 << 20, 5 << 30])),
        max_part_count=draw(st.sampled_from([10_000, 10_000, 20, 3, 1])),
    )
