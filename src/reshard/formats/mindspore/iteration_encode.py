"""Writing an iteration of MindSpore Transformers: which rank writes which shard, and ``metadata.json``."""

from __future__ import annotations

import json
import string
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...errors import FormatError
from ...tensor import Layout, Strategy, TensorSpec
from ..findings import Findings
from ..strict_json import shown
from ..weight_index import relative_key_problem
from .ckpt import TYPE_NAME_OF
from .iteration import METADATA_NAME, ObjectKind, ObjectName
from .iteration_shards import Shard, cut_layout, list_shards, shard_numbers


@dataclass(frozen=True, slots=True)
class ShardObject:
    """An object that holds one rank's shard of some tensors; ``name`` is relative to the iteration's folder.

    Without redundancy the number in the name may differ from the rank.
    """

    name: str
    rank: int
    tensors: tuple[str, ...]


def shard_objects(
    specs: Sequence[TensorSpec],
    strategy: Strategy,
    optimizer_states: Collection[str],
    prefix: str,
    *,
    remove_redundancy: bool = False,
) -> tuple[ShardObject, ...]:
    """Decide which objects are written: of weights and, apart from them, of optimizer states.

    Every rank writes all that it has; without redundancy, every shard goes to one object, so that ranks write about
    as much, and ranks that get nothing of a kind have no object of it and are not counted in the names.

    ``optimizer_states`` are the names that go to ``opt-`` objects (see ``is_optimizer_state``); ``prefix`` is the
    start of the objects' names, a plain name or nothing.

    Source: MindFormers 2.1 ``save_checkpoint`` and, for ``remove_redundancy``, ``fully_parallel.py``.

    Examples
    --------
    >>> from reshard.tensor import DType
    >>> for item in shard_objects([TensorSpec("w", DType.F32, (4,))], Strategy(2, ({},)), (), ""):
    ...     print(item.name, item.rank, item.tensors)
    model-0000000-0000002.safetensors 0 ('w',)
    model-0000001-0000002.safetensors 1 ('w',)
    """
    objects, states = [], frozenset(optimizer_states)
    kinds: tuple[ObjectKind, ...] = ("model", "opt")
    for kind in kinds:
        shards = list_shards((spec for spec in specs if (spec.name in states) == (kind == "opt")), strategy)
        everywhere = ((shard, rank) for shard in shards for rank in shard.ranks)
        names: dict[int, list[str]] = {}
        for shard, rank in assign_shards(shards) if remove_redundancy else everywhere:
            names.setdefault(rank, []).append(shard.spec.name)
        count = len(names) if remove_redundancy else strategy.rank_count
        for number, (rank, held) in enumerate(sorted(names.items())):
            name = ObjectName(kind, number if remove_redundancy else rank, count, prefix)
            objects.append(ShardObject(str(name), rank, tuple(held)))
    return tuple(objects if remove_redundancy else sorted(objects, key=lambda item: item.rank))


def assign_shards(shards: Sequence[Shard]) -> tuple[tuple[Shard, int], ...]:
    """Assign each shard to the one rank that writes it, so that ranks write about as much.

    Shards that fewer ranks have come first, then larger ones, then by the text of their ids;
    each goes to the rank that has least to write so far, the first of several. MindFormers balances
    weights and optimizer states apart.

    Source: MindFormers 2.1 ``fully_parallel.py``, ``distribute_shards``. It counts 16 bytes an element for types that
    it does not know; here their true size counts.

    Examples
    --------
    >>> from reshard.tensor import DType
    >>> strategy = Strategy(2, ({},))
    >>> specs = [TensorSpec("a", DType.U8, (1,)), TensorSpec("b", DType.U8, (3,)), TensorSpec("c", DType.U8, (2,))]
    >>> [(shard.spec.name, rank) for shard, rank in assign_shards(list_shards(specs, strategy))]
    [('b', 0), ('c', 1), ('a', 1)]
    """
    loads = dict.fromkeys(sorted({rank for shard in shards for rank in shard.ranks}), 0)
    assigned = []
    for shard in sorted(shards, key=lambda shard: (len(shard.ranks), -shard.nbytes, shard.id)):
        rank = min(shard.ranks, key=loads.__getitem__)
        loads[rank] += shard.nbytes
        assigned.append((shard, rank))
    return tuple(assigned)


def encode_metadata(specs: Sequence[TensorSpec], strategy: Strategy, objects: Sequence[ShardObject]) -> bytes:
    """Write ``metadata.json`` in compact form, as MindFormers does since 2.1, tensors in the order of ``specs``.

    A tensor that several stages hold is described by its first stage's layout, as MindFormers does;
    its shards name the holders of all stages. A tensor without a layout is whole on every rank.

    Source: MindFormers 2.1 ``metadata.py``, ``save_metadata``.

    Raises
    ------
    StrategyError
        As for ``list_shards``.
    FormatError
        MindSpore has no name for a dtype, or objects do not hold what they should (all are listed).

    Examples
    --------
    >>> from reshard.tensor import DType
    >>> specs, strategy = [TensorSpec("w", DType.F32, (4,))], Strategy(2, ({"w": Layout((2,), ((0,),))},))
    >>> document = json.loads(encode_metadata(specs, strategy, shard_objects(specs, strategy, (), "")))
    >>> document["storage_data"]["('w', (1,))"]
    [{'file_name': 'model-0000001-0000002.safetensors', 'storage_rank': 1, 'rank_group': [1]}]
    """
    shards = list_shards(specs, strategy)
    _check_metadata(specs, shards, objects)
    chunks: dict[str, list[object]] = {}
    for shard in shards:
        chunks.setdefault(shard.spec.name, []).append({"global_offset": [shard.number], "local_shape": shard.box.shape})
    described = {spec.name: _description(spec, strategy, chunks[spec.name]) for spec in specs}
    at = {(shard.spec.name, rank): shard for shard in shards for rank in shard.ranks}
    storage: dict[str, list[dict[str, object]]] = {}
    for item in objects:
        for name in item.tensors:
            shard = at[name, item.rank]
            record = {"file_name": item.name, "storage_rank": item.rank, "rank_group": shard.ranks}
            storage.setdefault(shard.id, []).append(record)
    document = {"state_dict_metadata": described, "storage_data": storage}
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        found = shown(error.object[max(0, error.start - 20) : error.end + 20])
        raise FormatError(
            "unpaired surrogate", where=METADATA_NAME, expected="names that UTF-8 can encode", found=found
        ) from error


def _description(spec: TensorSpec, strategy: Strategy, chunks: list[object]) -> dict[str, object]:
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
        "layout": _layout(layout, stage * strategy.device_count) if layout and stage is not None else None,
        "chunk": chunks,
    }


def _layout(layout: Layout, first_rank: int) -> dict[str, object]:
    # MindFormers unpacks the values by their order, so the order of the keys is part of the format.
    dimensions = range(len(layout.device_matrix))
    letters = string.ascii_lowercase  # the names that MindSpore gives
    return {
        "device_matrix": layout.device_matrix,
        "tensor_map": [-1 if not axis else axis[0] if len(axis) == 1 else axis for axis in layout.tensor_map],
        "interleaved_parallel": False,
        "alias_name": [letters[n] if len(dimensions) <= len(letters) else f"axis{n}" for n in dimensions],
        "rank_list": list(range(first_rank, first_rank + layout.device_count)),
    }


@lru_cache(maxsize=256)
def _replica_ids(layout: Layout) -> tuple[int, ...]:
    """Return for each rank how many ranks before it have the same shard."""
    seen: dict[int, int] = {}
    ids = []
    for number in shard_numbers(layout):
        ids.append(seen.get(number, 0))
        seen[number] = ids[-1] + 1
    return tuple(ids)


def _check_metadata(specs: Sequence[TensorSpec], shards: Iterable[Shard], objects: Sequence[ShardObject]) -> None:
    findings, seen = Findings(), set()
    for spec in specs:
        if spec.name in seen:
            findings.add(f"tensor {shown(spec.name)}", "a unique name", "a name that is taken")
        if spec.dtype not in TYPE_NAME_OF:
            findings.add(f"tensor {shown(spec.name)}", "a dtype that MindSpore has", spec.dtype)
        seen.add(spec.name)
    has = {(shard.spec.name, rank): (shard.spec.name, shard.number) for shard in shards for rank in shard.ranks}
    stored, written = set(), set()
    for item in objects:
        place = f"object {shown(item.name)}"
        if trouble := relative_key_problem(item.name):
            findings.add(place, "a plain key", trouble)
        if item.name in written:
            findings.add(place, "every object once", "it again")
        written.add(item.name)
        for name in item.tensors:
            if (name, item.rank) in has:
                stored.add(has[name, item.rank])
            else:
                findings.add(place, f"tensors of rank {item.rank}", shown(name))
    for name, number in sorted(set(has.values()) - stored):
        findings.add(f"tensor {shown(name)}", f"an object that holds shard {number}", "none")
    expected = "known dtypes, and every shard in objects of ranks that have it"
    findings.raise_any("metadata cannot describe the tensors", where=METADATA_NAME, expected=expected)
