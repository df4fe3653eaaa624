"""Random models and strategies, of the kinds that MindSpore's tools take and answer rightly.

Kept out of the draw, since the tools are known to be wrong there: optimizer shards of axes cut in another
order than the device matrix has, uneven pieces, nested layouts in JSON or in .ckpt, optimizer shards and nested
layouts where redundancy is removed, names with a dash, gradients' buffers (``accu_grads``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from reshard.formats.mindspore.strategy_json import encode_json
from reshard.formats.mindspore.strategy_merge import from_strategy, parse_strategy_file, to_strategy
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.tensor import Layout, Strategy

REAL = Path(__file__).parents[1] / "conformance" / "strategies"
WRONG_TOOL = {"optmix", "optmix2", "optmix4", "manual"}
DTYPES = ("F16", "BF16", "F32", "F64", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
WEIGHT_DTYPES = ("F16", "BF16", "F32", *DTYPES)
EXTRAS = {"global_step": "I32", "epoch_num": "I64", "learning_rate": "F32", "loss_scale": "F16", "is_done": "BOOL"}
MAX_ELEMENTS = 20_000

Specs = Mapping[str, tuple[str, tuple[int, ...]]]  # dtype and shape by name


@dataclass(frozen=True)
class Partition:
    """A strategy, and the files it is in, by their names."""

    origin: str
    strategy: Strategy
    files: Mapping[str, bytes]

    @property
    def axes(self) -> dict[str, int]:
        """How many axes each tensor has."""
        return {name: len(layout.tensor_map) for name, layout in self.items()}

    @property
    def is_flat(self) -> bool:
        """Whether no axis is cut by several device dimensions."""
        return all(len(axis) <= 1 for _, layout in self.items() for axis in layout.tensor_map)

    @property
    def is_deduplicable(self) -> bool:
        """Whether MindSpore's own list of replicas is right; it reads the protobuf form only."""
        return (
            self.is_flat
            and "strategy.json" not in self.files
            and all(layout.optimizer_shard_size == 0 for _, layout in self.items())
        )

    def items(self) -> Iterator[tuple[str, Layout]]:
        for layouts in self.strategy.stages:
            yield from layouts.items()


@dataclass(frozen=True)
class Drawn:
    """What one case is about: a model, the strategy it is cut by first, and the one it is cut by then."""

    specs: Specs
    first: Partition
    second: Partition
    prefix: str
    rng: Random

    @property
    def cut_names(self) -> list[str]:
        return sorted(self.first.axes)


def draw(seed: int, index: int, form: str) -> Drawn:
    """One case; the same for the same arguments.

    Parameters
    ----------
    form
        ``safetensors`` or ``ckpt``: MindSpore's tools for .ckpt know fewer layouts.
    """
    rng = Random(f"{seed}/{form}/{index}")
    pool = [cutting for cutting in real_cuttings() if form == "safetensors" or cutting.is_flat]
    first = rng.choice(pool) if rng.random() < 0.6 else _random_cutting(rng, _random_axes(rng), form)
    fitting = [cutting for cutting in pool if cutting.axes == first.axes and cutting is not first]
    second = rng.choice(fitting) if fitting and rng.random() < 0.5 else _random_cutting(rng, first.axes, form)
    axes = _shuffled(rng, first.axes)
    specs = {name: (rng.choice(WEIGHT_DTYPES), _shape(rng, name, axes[name], first, second)) for name in axes}
    extras = rng.sample(sorted(EXTRAS), rng.randint(0, 3))
    specs |= {name: (EXTRAS[name], ()) for name in extras}
    specs |= {
        f"buffers.{i}": (rng.choice(DTYPES), tuple(rng.choices((1, 2, 3, 7), k=i))) for i in range(rng.randint(0, 6))
    }
    prefix = rng.choice(["net_", "checkpoint_", "llama_7b_rank_", "a"])
    return Drawn(specs, _in_some_form(rng, first, specs), _in_some_form(rng, second, specs), prefix, rng)


@cache
def real_cuttings() -> tuple[Partition, ...]:
    """Strategies that MindSpore's compiler wrote, without what its tools get wrong."""
    found = []
    for folder in sorted(REAL.glob("*/ckpt")):
        if folder.parent.name in WRONG_TOOL:
            continue
        by_stage = {}
        for path in sorted(folder.iterdir()):
            file = parse_strategy_file(path.read_bytes(), path.name)
            layouts = {name: layout for name, layout in file.layouts.items() if not name.startswith("accu_grads.")}
            file = replace(file, layouts=layouts)
            by_stage.setdefault(file.stage, (path, file))
        strategy = to_strategy([file for _, file in by_stage.values()])
        files = {path.name: encode_protobuf(file) for path, file in by_stage.values()}
        found.append(Partition(folder.parent.name, strategy, files))
    return tuple(found)


def _in_some_form(rng: Random, cutting: Partition, specs: Specs) -> Partition:
    """The strategy as it is, or as JSON where MindSpore can read it."""
    if cutting.strategy.stage_count > 1 or not cutting.is_flat or rng.random() < 0.7:
        return cutting
    (file,) = (parse_strategy_file(data, name) for name, data in cutting.files.items())
    shapes = {name: specs[name][1] for name in file.layouts}
    return replace(cutting, files={"strategy.json": encode_json(replace(file, expanded_shapes=shapes))})


def _random_axes(rng: Random) -> dict[str, int]:
    """Names of tensors and how many axes they have, by name."""
    kinds = {"attention.wq.weight": 2, "attention.wo.weight": 2, "feed_forward.w1.weight": 2, "norm.weight": 1}
    kinds |= {"conv.weight": 4, "experts.w1": 3, "attention.wq.bias": 1}
    layer_count = rng.randint(1, 3)
    chosen = rng.sample(sorted(kinds), rng.randint(2, len(kinds)))
    axes = {f"model.layers.{layer}.{name}": kinds[name] for layer in range(layer_count) for name in chosen}
    axes |= {"model.embed.embedding_weight": 2, "lm_head.weight": 2}
    if rng.random() < 0.5:
        axes |= {f"{moment}.{name}": axes[name] for moment in ("adam_m", "adam_v") for name in ("lm_head.weight",)}
    return axes


def _random_cutting(rng: Random, axes: Mapping[str, int], form: str) -> Partition:
    stage_count = rng.choice([1, 1, 1, 2, 4]) if len(axes) >= 4 else 1
    device_count = rng.choice([1, 2, 4, 4, 8]) if stage_count == 1 else rng.choice([2, 4])
    stages: list[dict[str, Layout]] = [{} for _ in range(stage_count)]
    optimizer = rng.random() < 0.4
    for place, name in enumerate(axes):
        stage = place * stage_count // len(axes)
        stages[stage][name] = _layout(rng, device_count, axes[name], nested=form == "safetensors", optimizer=optimizer)
    strategy = Strategy(device_count, tuple(stages))
    written = [from_strategy(strategy, stage) for stage in range(stage_count)]
    names = {stage * device_count: file for stage, file in enumerate(written)}
    files = {
        f"strategy_rank_{rank}.ckpt": encode_protobuf(replace(file, layouts=_shuffled(rng, file.layouts)))
        for rank, file in names.items()
    }
    return Partition("random", to_strategy(written), files)


def _layout(rng: Random, device_count: int, axis_count: int, *, nested: bool, optimizer: bool) -> Layout:
    matrix = _matrix(rng, device_count)
    entries = [entry for entry in range(len(matrix)) if matrix[-1 - entry] > 1]
    taken = rng.sample(entries, rng.randint(0, len(entries)))
    axes: list[list[int]] = [[] for _ in range(axis_count)]
    for entry in taken:
        free = [axis for axis in axes if not axis or (nested and axis_count > 1 and rng.random() < 0.7)]
        if free:
            rng.choice(free).append(entry)
    layout = Layout(matrix, tuple(map(tuple, axes)))
    in_device_order = [entry for axis in axes for entry in axis] == sorted((e for a in axes for e in a), reverse=True)
    flat = all(len(axis) <= 1 for axis in axes)
    if optimizer and in_device_order and flat and layout.replica_count > 1:
        return replace(layout, optimizer_shard_size=-1)
    return layout


def _matrix(rng: Random, device_count: int) -> tuple[int, ...]:
    sizes, left = [], device_count
    while left > 1:
        size = rng.choice([n for n in (2, 4, 8) if n <= left])
        sizes.append(size)
        left //= size
    return tuple(sizes) or (1,)


def _shuffled(rng: Random, items: Mapping[str, Any]) -> dict[str, Any]:
    """In any order, as MindSpore's hash tables have them."""
    return {name: items[name] for name in rng.sample(sorted(items), len(items))}


def _shape(rng: Random, name: str, axis_count: int, *cuttings: Partition) -> tuple[int, ...]:
    """A shape that every strategy divides."""
    least = [1] * axis_count
    for cutting in cuttings:
        for found, layout in cutting.items():
            if found == name:
                cuts = [*layout.cuts]
                cuts[0] *= layout.optimizer_pieces
                least = [math.lcm(a, b) for a, b in zip(least, cuts, strict=True)]
    shape: list[int] = []
    for axis, extent in enumerate(least):
        room = MAX_ELEMENTS // (math.prod(shape) * math.prod(least[axis:]) or 1)
        shape.append(extent * rng.choice([n for n in (1, 2, 3, 5, 12) if n <= max(1, room)]))
    return tuple(shape)
