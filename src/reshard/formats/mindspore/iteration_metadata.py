"""Which object of an iteration's folder holds which shard of every tensor: ``metadata.json``, parsed strictly.

::

    {"state_dict_metadata": {"w": {
        "properties": {"dtype": "Float32", "replica_id": [0, 0], ...}, "global_shape": [4, 2],
        "axis_fragmentations": [1, 2],                    # equal pieces on each axis
        "layout": {"device_matrix": [2], "tensor_map": [-1, 0], "interleaved_parallel": false,
                   "alias_name": ["tp"], "rank_list": [0, 1]},
        "chunk": [{"global_offset": [0], "local_shape": [4, 1]}, {"global_offset": [1], ...}]}},
     "storage_data": {"('w', (0,))": [{"file_name": "model-0000000-0000002.safetensors", "storage_rank": 0,
                                       "rank_group": [0]}], ...}}

``global_offset`` is one number, whatever the axes: the shard's place when shards are counted row-major. Keys of
``storage_data`` are the ``str`` of a Python tuple. Keys that are not shown here are ignored, since
MindFormers adds some now and then (``rank_group`` came with 1.9).

Source: MindFormers 1.7 to 2.1, ``mindformers/checkpoint``: ``metadata.py`` and ``sharded_tensor.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from ...errors import StrategyError, raise_all
from ...tensor import Box, Layout, Shape, Strategy, TensorSpec
from ..findings import Findings
from ..safetensors import MAX_AXIS_COUNT
from ..strict_json import json_kind, parse_json_object, shown
from ..weight_index import relative_key_problem
from .ckpt import DTYPE_OF
from .iteration_shards import parse_shard_id, shard_box, shard_numbers

_LARGEST = 2**31 - 1  # rank, device or cut
_LARGEST_EXTENT = 2**63
_LARGEST_BITS = 2**63


@dataclass(frozen=True, slots=True)
class ShardCopy:
    """One object that holds a shard: its name in the iteration's folder, out of which it never leads, and its writer.

    ``rank_group`` is every rank that has the shard in memory; empty if the writer did not record them.
    """

    file_name: str
    storage_rank: int
    rank_group: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredShard:
    """One box of a tensor, its number (``global_offset``), and the objects that hold it, in the order listed."""

    number: int
    box: Box
    copies: tuple[ShardCopy, ...]

    @property
    def ranks(self) -> frozenset[int]:
        """Every rank that is known to have the shard."""
        return frozenset(copy.storage_rank for copy in self.copies).union(*(copy.rank_group for copy in self.copies))

    @property
    def file_names(self) -> tuple[str, ...]:
        """The objects' names, each once."""
        return tuple(dict.fromkeys(copy.file_name for copy in self.copies))


@dataclass(frozen=True, slots=True)
class StageLayout:
    """How a tensor is cut over the ranks of the first pipeline stage that holds it.

    In ``layout``, optimizer pieces are cuts like any other.
    """

    layout: Layout
    rank_list: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IterationTensor:
    """One tensor of the checkpoint, in ``cuts`` equal pieces on each axis.

    The shards tile it, in the order in which the ranks first hold them. Without a layout it is whole.
    """

    spec: TensorSpec
    cuts: Shape
    shards: tuple[StoredShard, ...]
    layout: StageLayout | None

    @property
    def holders(self) -> dict[int, int]:
        """Every rank that is known to have a shard of the tensor, and the shard's number."""
        return {rank: shard.number for shard in self.shards for rank in shard.ranks}


@dataclass(frozen=True)
class IterationMetadata:
    """The contents of one ``metadata.json``. Not slotted, so that its properties are built once."""

    tensors: tuple[IterationTensor, ...]

    @cached_property
    def by_name(self) -> Mapping[str, IterationTensor]:
        """The tensors by their names."""
        return {tensor.spec.name: tensor for tensor in self.tensors}

    @cached_property
    def file_names(self) -> tuple[str, ...]:
        """Every object that is named, once, in order."""
        return tuple(sorted({name for t in self.tensors for shard in t.shards for name in shard.file_names}))

    def strategy(self) -> Strategy | None:
        """Rebuild the strategy that training had; None if no tensor has a layout.

        A tensor that several stages hold is described once, for the first; its layout is taken for
        every stage that has a holder.

        Raises
        ------
        StrategyError
            The stages are not equal blocks of ranks, one after the other, or a rank has another shard
            than its layout gives it (all are listed).
        """
        laid_out = [(tensor, tensor.layout) for tensor in self.tensors if tensor.layout]
        if not laid_out:
            return None
        device_count = len(laid_out[0][1].rank_list)
        problems = [text for tensor, at in laid_out if (text := _stage_problem(tensor, at, device_count))]
        raise_all(StrategyError, f"expected stages of {device_count} consecutive ranks, each as described", problems)
        members = {t.spec.name: {rank // device_count for rank in (*t.holders, *at.rank_list)} for t, at in laid_out}
        present = sorted(set().union(*members.values()))
        if present[-1] != len(present) - 1:  # or a hostile rank would have us make stages without end
            raise StrategyError(f"expected stages from 0 without a gap, found {shown(present)}")
        stages: list[dict[str, Layout]] = [{} for _ in present]
        for tensor, at in laid_out:
            for stage in members[tensor.spec.name]:
                stages[stage][tensor.spec.name] = at.layout
        return Strategy(device_count, tuple(stages))


def _stage_problem(tensor: IterationTensor, at: StageLayout, device_count: int) -> str:
    first = at.rank_list[0]
    if first % device_count or at.rank_list != tuple(range(first, first + device_count)):
        return f"{shown(tensor.spec.name)}: ranks {shown(list(at.rank_list))}"
    numbers = shard_numbers(at.layout)
    for rank, number in tensor.holders.items():
        # Ranks of other stages; the parser has compared those of the stage that is described.
        if numbers[rank % device_count] != number:
            return f"{shown(tensor.spec.name)}: shard {number} on rank {rank}, to which its layout gives another"
    return ""


def parse_metadata(data: bytes, where: str) -> IterationMetadata:
    """Parse ``metadata.json`` and prove that every element of every tensor is in an object.

    Raises
    ------
    FormatError
        Not strict JSON, or parts that contradict each other; ``problems`` lists everything that is
        wrong (the first 10 000 problems).

    Examples
    --------
    >>> entry = '"global_shape": [4], "axis_fragmentations": [1], "chunk": [{"global_offset": [0], "local_shape": [4]}]'
    >>> described = '{"w": {"properties": {"dtype": "Float32"}, "layout": null, %s}}' % entry
    >>> stored = '''{"('w', (0,))": [{"file_name": "model-0000000-0000001.safetensors", "storage_rank": 0}]}'''
    >>> document = '{"state_dict_metadata": %s, "storage_data": %s}' % (described, stored)
    >>> (tensor,) = parse_metadata(document.encode(), "metadata.json").tensors
    >>> tensor.spec.shape, tensor.shards[0].box, tensor.shards[0].file_names
    ((4,), Box(start=(0,), stop=(4,)), ('model-0000000-0000001.safetensors',))
    """
    return _MetadataReader().read(parse_json_object(data, where), where)


class _MetadataReader:
    """Collects every finding before it gives up."""

    def __init__(self) -> None:
        self._findings = Findings()
        self._add = self._findings.add
        self._copies: dict[tuple[str, int], tuple[ShardCopy, ...]] = {}
        self._name_problem = cache(relative_key_problem)  # few objects, many records
        self._groups: dict[tuple[int, ...], tuple[int, ...]] = {}

    def read(self, document: Mapping[str, object], where: str) -> IterationMetadata:
        described = self._section(document, "state_dict_metadata")
        for text, records in self._section(document, "storage_data").items():
            self._read_records(text, records)
        tensors = {name: self._tensor(name, entry) for name, entry in described.items()}
        for name, number in self._copies:  # those that no tensor has claimed
            if name not in tensors or tensors[name]:
                self._add(f"storage_data {shown((name, (number,)))}", "a chunk in state_dict_metadata", "none")
        expected = "every shard of every tensor once, in objects of this folder"
        self._findings.raise_any("invalid metadata", where=where, expected=expected)
        return IterationMetadata(tuple(tensor for tensor in tensors.values() if tensor))

    def _section(self, document: Mapping[str, object], key: str) -> dict[str, object]:
        value = document.get(key)
        if isinstance(value, dict):
            return value
        self._add(key, "an object", json_kind(value) if key in document else "no such key")
        return {}

    def _integers(self, place: str, value: object, low: int, high: int) -> tuple[int, ...] | None:
        # bool is an int to isinstance, not to JSON.
        if isinstance(value, list) and all(type(item) is int and low <= item <= high for item in value):
            return tuple(value)
        self._add(place, f"an array of integers from {low} to {high}", shown(value))
        return None

    def _read_records(self, text: str, records: object) -> None:
        place = f"storage_data {shown(text)}"
        shard = parse_shard_id(text)
        if shard is None:
            self._add(place, "a key such as ('name', (0,))", "another")
        elif shard in self._copies:
            self._add(place, "every shard once", "a shard that is listed in another spelling")
        elif not isinstance(records, list) or not records:
            self._add(place, "a filled array of records", shown(records))
        else:
            copies = [self._copy(place, record) for record in records]
            # Equal records add nothing: MindFormers joins what an interrupted save left behind.
            self._copies[shard] = tuple(dict.fromkeys(copy for copy in copies if copy))

    def _copy(self, place: str, record: object) -> ShardCopy | None:
        if not isinstance(record, dict):
            self._add(place, "records that are objects", json_kind(record))
            return None
        name, rank = record.get("file_name"), record.get("storage_rank")
        if not isinstance(name, str) or (trouble := self._name_problem(name)):
            self._add(place, "a plain file_name", trouble if isinstance(name, str) else json_kind(name))
            return None
        if type(rank) is not int or not 0 <= rank <= _LARGEST:
            self._add(place, f"a storage_rank from 0 to {_LARGEST}", shown(rank))
            return None
        group: tuple[int, ...] | None = ()
        if "rank_group" in record:
            group = self._integers(f"{place}: rank_group", record["rank_group"], 0, _LARGEST)
            if group is not None and (rank not in group or len(set(group)) != len(group)):
                self._add(f"{place}: rank_group", f"each rank once, and {rank} among them", shown(list(group)))
        # Many records, few groups: each is kept once.
        return None if group is None else ShardCopy(name, rank, self._groups.setdefault(group, group))

    def _tensor(self, name: str, entry: object) -> IterationTensor | None:
        place, count_before = f"tensor {shown(name)}", self._findings.count
        if not isinstance(entry, dict):
            self._add(place, "an object", json_kind(entry))
            return None
        spec = self._spec(name, place, entry)
        cuts = self._integers(f"{place}: axis_fragmentations", entry.get("axis_fragmentations"), 1, _LARGEST)
        if spec is None or cuts is None:
            return None
        if len(spec.shape) != len(cuts) or any(extent % cut for extent, cut in zip(spec.shape, cuts, strict=True)):
            self._add(f"{place}: axis_fragmentations", f"equal pieces of {list(spec.shape)}", shown(list(cuts)))
            return None
        layout = self._layout(f"{place}: layout", entry["layout"], cuts) if entry.get("layout") is not None else None
        if "layout" not in entry:
            self._add(f"{place}: layout", "an object or null", "no such key")
        self._check_properties(place, entry["properties"], len(layout.rank_list) if layout else 0)
        shards = self._shards(place, spec, cuts, entry.get("chunk"), layout)
        return IterationTensor(spec, cuts, shards, layout) if self._findings.count == count_before else None

    def _spec(self, name: str, place: str, entry: dict[str, object]) -> TensorSpec | None:
        properties = entry.get("properties")
        type_name = properties.get("dtype") if isinstance(properties, dict) else None
        dtype = DTYPE_OF.get(type_name) if isinstance(type_name, str) else None
        if dtype is None:
            self._add(f"{place}: properties", f"a dtype of {', '.join(DTYPE_OF)}", shown(type_name))
        shape = self._integers(f"{place}: global_shape", entry.get("global_shape"), 0, _LARGEST_EXTENT)
        if dtype is None or shape is None:
            return None
        # The axes first: the product of a million of them takes forever.
        if len(shape) > MAX_AXIS_COUNT or math.prod(extent or 1 for extent in shape) * dtype.bits > _LARGEST_BITS:
            expected = f"at most {MAX_AXIS_COUNT} axes and {_LARGEST_BITS} bits"
            self._add(f"{place}: global_shape", expected, shown(list(shape)))
            return None
        return TensorSpec(name, dtype, shape)

    def _check_properties(self, place: str, properties: object, rank_count: int) -> None:
        assert isinstance(properties, dict)  # a dtype came out of it
        replica_id = properties.get("replica_id")
        if isinstance(replica_id, list):
            ids = self._integers(f"{place}: replica_id", replica_id, 0, _LARGEST)
            if ids is not None and rank_count not in (0, len(ids)):
                self._add(f"{place}: replica_id", f"{rank_count} numbers, one a rank", f"{len(ids)}")
        elif replica_id is not None and (type(replica_id) is not int or not 0 <= replica_id <= _LARGEST):
            self._add(f"{place}: replica_id", "a number, or one a rank", shown(replica_id))
        for key in ("allow_shape_mismatch", "allow_to_save"):
            if not isinstance(properties.get(key, False), bool):
                self._add(f"{place}: {key}", "a boolean", json_kind(properties[key]))

    def _layout(self, place: str, value: object, cuts: Shape) -> StageLayout | None:
        if not isinstance(value, dict):
            self._add(place, "an object or null", json_kind(value))
            return None
        ranks = self._integers(f"{place}: rank_list", value.get("rank_list"), 0, _LARGEST)
        matrix = self._integers(f"{place}: device_matrix", value.get("device_matrix"), 1, _LARGEST)
        aliases, tensor_map = value.get("alias_name"), _tensor_map(value.get("tensor_map"))
        if value.get("interleaved_parallel") is not False:
            # Slices of such a layout are no boxes; MindSpore has it for activations only.
            self._add(f"{place}: interleaved_parallel", "false", shown(value.get("interleaved_parallel")))
        if tensor_map is None:
            expected = "for each axis -1, a dimension or an array of dimensions"
            self._add(f"{place}: tensor_map", expected, shown(value.get("tensor_map")))
        if ranks is None or matrix is None or tensor_map is None:
            return None
        if not 0 < len(matrix) <= MAX_AXIS_COUNT or not math.prod(matrix) == len(ranks) == len(set(ranks)):
            expected = f"different ranks, as many as device_matrix {shown(list(matrix))} has"
            self._add(f"{place}: rank_list", expected, f"{len(ranks)}: {shown(list(ranks))}")
            return None
        names = aliases if isinstance(aliases, list) else []
        if not all(isinstance(name, str) for name in names) or not len(names) == len(set(names)) == len(matrix):
            self._add(f"{place}: alias_name", f"{len(matrix)} different names", shown(aliases))
            return None
        try:
            layout = Layout(matrix, tensor_map)
        except StrategyError as error:
            self._add(place, "a tensor map that fits its device matrix", error.marked_message)
            return None
        if layout.cuts != cuts:
            self._add(place, f"the cuts of axis_fragmentations: {list(cuts)}", shown(list(layout.cuts)))
            return None
        return StageLayout(layout, ranks)

    def _shards(
        self, place: str, spec: TensorSpec, cuts: Shape, chunks: object, layout: StageLayout | None
    ) -> tuple[StoredShard, ...]:
        # Compared with the number of chunks that the object spells out, so that nothing counts up to an absurd number.
        if not isinstance(chunks, list) or len(chunks) != math.prod(cuts):
            found = f"{len(chunks)} of them" if isinstance(chunks, list) else shown(chunks)
            self._add(f"{place}: chunk", f"{math.prod(cuts)} chunks, one a piece", found)
            return ()
        numbers = [self._number(place, chunk, spec.shape, cuts) for chunk in chunks]
        known = [number for number in numbers if number is not None]
        if len(set(known)) != len(known):
            self._add(f"{place}: chunk", "every global_offset once", shown(known))
            return ()
        shards = []
        for number in known:
            copies = self._copies.pop((spec.name, number), ())
            if not copies:
                self._add(place, f"a record in storage_data for chunk [{number}]", "none")
            shards.append(StoredShard(number, shard_box(spec.shape, cuts, number), copies))
        number_of = dict(zip(layout.rank_list, shard_numbers(layout.layout), strict=True)) if layout else {}
        for shard in shards if number_of else ():
            for rank in sorted(shard.ranks):  # ranks of other stages have a layout that is not recorded
                if number_of.get(rank, shard.number) != shard.number:
                    expected = f"chunk [{number_of[rank]}] on rank {rank}, according to its layout"
                    self._add(place, expected, f"[{shard.number}]")
        return tuple(shards)

    def _number(self, place: str, chunk: object, shape: Shape, cuts: Shape) -> int | None:
        local_shape = [extent // cut for extent, cut in zip(shape, cuts, strict=True)]
        fields = chunk if isinstance(chunk, dict) else {}
        found, offset = fields.get("local_shape"), fields.get("global_offset")
        if not isinstance(found, list) or found != local_shape or any(type(extent) is not int for extent in found):
            self._add(f"{place}: chunk", f"a local_shape of {local_shape}", shown(chunk))
            return None
        last = math.prod(cuts) - 1
        if isinstance(offset, list) and len(offset) == 1 and type(offset[0]) is int and 0 <= offset[0] <= last:
            return offset[0]
        self._add(f"{place}: chunk", f"a global_offset from [0] to [{last}]", shown(offset))
        return None


def _tensor_map(value: object) -> tuple[tuple[int, ...], ...] | None:
    """Return the map as a layout has it: a tuple an axis, empty for an axis that is not cut."""
    if not isinstance(value, list) or len(value) > MAX_AXIS_COUNT or [] in value:
        return None
    axes = [item if isinstance(item, list) else [] if item == -1 and type(item) is int else [item] for item in value]
    if any(type(entry) is not int or not 0 <= entry <= MAX_AXIS_COUNT for axis in axes for entry in axis):
        return None
    return tuple(tuple(axis) for axis in axes)
