"""Writing an iteration of MindSpore Transformers: which object holds which shard, and ``metadata.json``."""

from __future__ import annotations

import json
import string
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...errors import FormatError
from ...tensor import Layout, Strategy, TensorSpec
from ..strict_json import shown
from ..weight_index import relative_key_problem
from .ckpt_values import TYPE_NAME_OF
from .iteration import METADATA_NAME, ObjectKind, ObjectName
from .iteration_shards import Shard, assign_shards, cut_layout, list_shards, shard_numbers


@dataclass(frozen=True, slots=True)
class ShardObject:
    """An object and the tensors of which it holds one rank's shard.

    Parameters
    ----------
    name
        Relative to the iteration's folder.
    rank
        Whose shards it holds. Without redundancy its number in the name may be another.
    tensors
        Their names.
    """

    name: str
    rank: int
    tensors: tuple[str, ...]


def replicated_objects(
    specs: Sequence[TensorSpec], strategy: Strategy, optimizer_states: Collection[str], prefix: str
) -> tuple[ShardObject, ...]:
    """Give every rank objects with all that it has, one of weights and one of optimizer states.

    Source: MindFormers 2.1 ``save_checkpoint`` without ``remove_redundancy``.

    Parameters
    ----------
    specs
        The whole tensors.
    strategy
        How they are cut.
    optimizer_states
        The names that go to ``opt-`` objects: see ``is_optimizer_state``.
    prefix
        To put before the objects' names; empty for nothing.

    Raises
    ------
    StrategyError
        See ``list_shards``.
    FormatError
        The prefix is no plain name.

    Examples
    --------
    >>> from reshard.tensor import DType
    >>> for item in replicated_objects([TensorSpec("w", DType.F32, (4,))], Strategy(2, ({},)), (), ""):
    ...     print(item.name, item.rank, item.tensors)
    model-0000000-0000002.safetensors 0 ('w',)
    model-0000001-0000002.safetensors 1 ('w',)
    """
    objects = []
    for kind, shards in _by_kind(specs, strategy, optimizer_states):
        names: dict[int, list[str]] = {}
        for shard in shards:
            for rank in shard.ranks:
                names.setdefault(rank, []).append(shard.spec.name)
        for rank, held in names.items():
            name = str(ObjectName(kind, rank, strategy.rank_count, prefix))
            objects.append(ShardObject(name, rank, tuple(held)))
    return tuple(sorted(objects, key=lambda item: item.rank))


def balanced_objects(
    specs: Sequence[TensorSpec], strategy: Strategy, optimizer_states: Collection[str], prefix: str
) -> tuple[ShardObject, ...]:
    """Give every shard to one object, so that ranks write about as much.

    Ranks that get nothing of a kind have no object of it and are not counted in the names.

    Source: MindFormers 2.1 ``fully_parallel.py``, used with ``remove_redundancy``.

    Parameters
    ----------
    specs, strategy, optimizer_states, prefix
        As for ``replicated_objects``.

    Raises
    ------
    StrategyError
        See ``list_shards``.
    FormatError
        The prefix is no plain name.

    Examples
    --------
    >>> from reshard.tensor import DType
    >>> for item in balanced_objects([TensorSpec("w", DType.F32, (4,))], Strategy(2, ({},)), (), ""):
    ...     print(item.name, item.rank, item.tensors)
    model-0000000-0000001.safetensors 0 ('w',)
    """
    objects = []
    for kind, shards in _by_kind(specs, strategy, optimizer_states):
        names: dict[int, list[str]] = {}
        for shard, rank in assign_shards(shards):
            names.setdefault(rank, []).append(shard.spec.name)
        for number, rank in enumerate(sorted(names)):
            name = str(ObjectName(kind, number, len(names), prefix))
            objects.append(ShardObject(name, rank, tuple(names[rank])))
    return tuple(objects)


def encode_metadata(
    specs: Sequence[TensorSpec],
    strategy: Strategy,
    objects: Sequence[ShardObject],
    alias_name: Sequence[str] = (),
) -> bytes:
    """Write ``metadata.json``, in compact form as MindFormers does since 2.1.

    A tensor that several stages hold is described by its first stage's layout, as MindFormers does;
    its shards name the holders of all stages.

    Source: MindFormers 2.1 ``metadata.py``, ``save_metadata``.

    Parameters
    ----------
    specs
        The whole tensors, in the order to list them.
    strategy
        How they are cut. A tensor without a layout is whole on every rank.
    objects
        What was written: every shard in at least one of them.
    alias_name
        Names for device matrices of just so many dimensions; others get a, b, c, ..., as MindSpore gives them.

    Raises
    ------
    StrategyError
        See ``list_shards``.
    FormatError
        Dtypes that MindSpore has no name for, or objects that do not hold what they should (all are listed).

    Examples
    --------
    >>> from reshard.tensor import DType
    >>> specs, strategy = [TensorSpec("w", DType.F32, (4,))], Strategy(2, ({"w": Layout((2,), ((0,),))},))
    >>> document = json.loads(encode_metadata(specs, strategy, replicated_objects(specs, strategy, (), "")))
    >>> document["state_dict_metadata"]["w"]["chunk"]
    [{'global_offset': [0], 'local_shape': [2]}, {'global_offset': [1], 'local_shape': [2]}]
    >>> document["storage_data"]["('w', (1,))"]
    [{'file_name': 'model-0000001-0000002.safetensors', 'storage_rank': 1, 'rank_group': [1]}]
    """
    shards = list_shards(specs, strategy)
    problems = _spec_problems(specs) + _object_problems(shards, objects)
    if problems:
        raise FormatError(
            "unfit for metadata",
            where=METADATA_NAME,
            expected="known dtypes, and every shard in objects of ranks that have it",
            found=f"{len(problems)} problem{'s' * (len(problems) > 1)}",
            problems=problems,
        )
    chunks: dict[str, list[object]] = {}
    for shard in shards:
        chunks.setdefault(shard.spec.name, []).append({"global_offset": [shard.number], "local_shape": shard.box.shape})
    described = {spec.name: _description(spec, strategy, chunks[spec.name], tuple(alias_name)) for spec in specs}
    document = {"state_dict_metadata": described, "storage_data": _storage(shards, objects)}
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        found = shown(error.object[max(0, error.start - 20) : error.end + 20])
        raise FormatError(
            "half of a surrogate pair", where=METADATA_NAME, expected="names that UTF-8 can hold", found=found
        ) from error


def _by_kind(
    specs: Sequence[TensorSpec], strategy: Strategy, optimizer_states: Collection[str]
) -> list[tuple[ObjectKind, tuple[Shard, ...]]]:
    states = frozenset(optimizer_states)
    return [
        ("model", list_shards((spec for spec in specs if spec.name not in states), strategy)),
        ("opt", list_shards((spec for spec in specs if spec.name in states), strategy)),
    ]


def _description(
    spec: TensorSpec, strategy: Strategy, chunks: list[object], alias_name: tuple[str, ...]
) -> dict[str, object]:
    stage = next((number for number, layouts in enumerate(strategy.stages) if spec.name in layouts), None)
    layout = None if stage is None else cut_layout(strategy.stages[stage][spec.name])
    return {
        "properties": {
            "dtype": TYPE_NAME_OF[spec.dtype],
            "replica_id": _replica_ids(layout) if layout else 0,
            "allow_shape_mismatch": False,
            "allow_to_save": True,
        },
        "global_shape": spec.shape,
        "axis_fragmentations": layout.cuts if layout else (1,) * len(spec.shape),
        "layout": _layout(layout, stage * strategy.device_count, alias_name) if layout and stage is not None else None,
        "chunk": chunks,
    }


def _layout(layout: Layout, first_rank: int, alias_name: tuple[str, ...]) -> dict[str, object]:
    # MindFormers unpacks the values by their order, so the order of the keys is part of the format.
    return {
        "device_matrix": layout.device_matrix,
        "tensor_map": [-1 if not axis else axis[0] if len(axis) == 1 else axis for axis in layout.tensor_map],
        "interleaved_parallel": False,
        "alias_name": _aliases(len(layout.device_matrix), alias_name),
        "rank_list": list(range(first_rank, first_rank + layout.device_count)),
    }


def _aliases(dimension_count: int, alias_name: tuple[str, ...]) -> Sequence[str]:
    if len(alias_name) == dimension_count:
        return alias_name
    if dimension_count <= len(string.ascii_lowercase):
        return list(string.ascii_lowercase[:dimension_count])
    return [f"axis{number}" for number in range(dimension_count)]


@lru_cache(maxsize=256)
def _replica_ids(layout: Layout) -> tuple[int, ...]:
    """For each rank, how many ranks before it have the same shard."""
    seen: dict[int, int] = {}
    ids = []
    for number in shard_numbers(layout):
        ids.append(seen.get(number, 0))
        seen[number] = ids[-1] + 1
    return tuple(ids)


def _storage(shards: Iterable[Shard], objects: Iterable[ShardObject]) -> dict[str, list[dict[str, object]]]:
    at = {(shard.spec.name, rank): shard for shard in shards for rank in shard.ranks}
    storage: dict[str, list[dict[str, object]]] = {}
    for item in objects:
        for name in item.tensors:
            shard = at[name, item.rank]
            record = {"file_name": item.name, "storage_rank": item.rank, "rank_group": shard.ranks}
            storage.setdefault(shard.id, []).append(record)
    return storage


def _spec_problems(specs: Sequence[TensorSpec]) -> list[str]:
    problems, seen = [], set()
    for spec in specs:
        if spec.name in seen:
            problems.append(f"tensor {shown(spec.name)}: expected a name of its own, found one that is taken")
        if spec.dtype not in TYPE_NAME_OF:
            problems.append(f"tensor {shown(spec.name)}: expected a dtype that MindSpore has, found {spec.dtype}")
        seen.add(spec.name)
    return problems


def _object_problems(shards: Iterable[Shard], objects: Sequence[ShardObject]) -> list[str]:
    has = {(shard.spec.name, rank): (shard.spec.name, shard.number) for shard in shards for rank in shard.ranks}
    problems, stored, written = [], set(), set()
    for item in objects:
        place = f"object {shown(item.name)}"
        if trouble := relative_key_problem(item.name):
            problems.append(f"{place}: expected a plain key, found {trouble}")
        if item.name in written:
            problems.append(f"{place}: expected every object once, found it again")
        written.add(item.name)
        for name in item.tensors:
            if (name, item.rank) in has:
                stored.add(has[name, item.rank])
            else:
                problems.append(f"{place}: expected tensors of rank {item.rank}, found {shown(name)}")
    missing = sorted(set(has.values()) - stored)
    return problems + [f"tensor {shown(name)}: no object holds shard {number}" for name, number in missing]
