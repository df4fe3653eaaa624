"""Whole tensors, in one object or several: Hugging Face's form and MindSpore's."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...errors import PlanError
from ...formats.containers import Container
from ...formats.weight_index import encode_param_name_map, encode_weight_index
from ..catalog import SourceSharding
from ..outputs.output import Document, Output, SourceMetadata, TargetTensor, file_order, make_output, whole_box
from .target import Target

HYPER_NAME = "hyper_param.safetensors"
MAP_NAME = "param_name_map.json"


@dataclass(frozen=True, slots=True)
class FullTarget(Target):
    """Whole tensors in one object, or in several with an index.

    Parameters
    ----------
    name, single_name
        Key of the object; with ``{part}`` and ``{parts}`` in it there may be several, numbered from 1. The other is
        the key to use when one object is enough.
    index_name
        Key of the index that is written when there are several; empty for none.
    format
        The header's ``format``: ``pt`` opens in Hugging Face's tools, ``ms`` is MindSpore's.
    object_bytes
        Tensor bytes in one object, at most, unless a single tensor is larger.
    """

    object_names: ClassVar[re.Pattern[str]] = re.compile(r"[^/]+\.safetensors|model\.safetensors\.index\.json")

    name: str
    single_name: str
    index_name: str
    format: str
    object_bytes: int
    container: Container = Container.SAFETENSORS

    @property
    def has_companions(self) -> bool:
        """A checkpoint with an index is a whole model, as Hugging Face's tools open it."""
        return bool(self.index_name)

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Fill one object after the other, in the order of the source."""
        parts: list[list[int]] = [[]]
        filled = 0
        for index, tensor in enumerate(tensors):
            if parts[-1] and "{part" in self.name and filled + tensor.spec.nbytes > self.object_bytes:
                parts.append([])
                filled = 0
            parts[-1].append(index)
            filled += tensor.spec.nbytes
        keyed = ((self._key(number, len(parts)), part) for number, part in enumerate(parts, start=1))
        return _whole_outputs(keyed, tensors, source_metadata, self.format, self.container)

    def documents(
        self, outputs: Sequence[Output], tensors: Sequence[TargetTensor], source_metadata: SourceMetadata
    ) -> tuple[Document, ...]:
        """Return the index, if there are several objects."""
        if len(outputs) < 2 or not self.index_name:
            return ()
        return (Document(self.index_name, encode_weight_index(*_weight_map(outputs))),)

    def _key(self, part: int, parts: int) -> str:
        if parts == 1:
            return self.single_name
        key = self.name
        for field, number in (("part", part), ("parts", parts)):
            key = key.replace(f"{{{field}:05d}}", f"{number:05d}").replace(f"{{{field}}}", str(number))
        return key


@dataclass(frozen=True, slots=True)
class PartsTarget(Target):
    """A full checkpoint as MindSpore's ``unified_safetensors`` writes it.

    ``part<i>.safetensors`` from 0, evenly filled up to about ``part_bytes``, at least 1 (a single tensor may be
    larger), ``param_name_map.json``, and, for tensors without a layout, ``hyper_param.safetensors``.
    """

    object_names: ClassVar[re.Pattern[str]] = re.compile(r"[^/]+\.safetensors|param_name_map\.json")

    part_bytes: int

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Distribute the tensors evenly; those without a layout have an object of their own."""
        unlisted = [i for i, tensor in enumerate(tensors) if tensor.sharding is SourceSharding.UNLISTED]
        weights = [i for i, tensor in enumerate(tensors) if tensor.sharding is not SourceSharding.UNLISTED]
        parts = share_out([tensors[i].spec.nbytes for i in weights], self.part_bytes) if weights else ()
        keyed = [(f"part{number}.safetensors", [weights[i] for i in part]) for number, part in enumerate(parts)]
        keyed += [(HYPER_NAME, unlisted)] if unlisted else []
        return _whole_outputs(keyed, tensors, source_metadata, "ms")

    def documents(
        self, outputs: Sequence[Output], tensors: Sequence[TargetTensor], source_metadata: SourceMetadata
    ) -> tuple[Document, ...]:
        """Return the map of the parts; it does not list hyper-parameters."""
        parts = [output for output in outputs if output.keys[0] != HYPER_NAME]
        return (Document(MAP_NAME, encode_param_name_map(*_weight_map(parts))),)

    def check_bounds(self, tensors: Sequence[TargetTensor]) -> int:
        """Refuse parts of no size."""
        if self.part_bytes < 1:
            raise PlanError(f"parts of {self.part_bytes} bytes: expected at least 1")
        return len(tensors)


def share_out(sizes: Sequence[int], part_bytes: int) -> tuple[tuple[int, ...], ...]:
    """Distribute whole tensors over parts as MindSpore's ``unified_safetensors`` does.

    There are as many parts as the total needs at ``part_bytes`` each. The largest tensor comes
    first, tensors of one size in the order given; each goes to the part with the fewest bytes so
    far, the first of those. A tensor is never cut, so a part may hold more than ``part_bytes``.

    Sizes are in bytes. Return, for each part, the positions of its tensors in ``sizes``, ascending: at least one part,
    and none without tensors unless there are no tensors at all.

    Examples
    --------
    >>> share_out([4, 9, 4, 5], part_bytes=12)
    ((1, 2), (0, 3))
    >>> share_out([], part_bytes=12)
    ((),)

    Source: mindspore 2.10.0, ``parallel/transform_safetensors.py``: ``split_num`` in
    ``unified_safetensors``, ``_split_weight_dict``. It lets tensors without bytes leave a part
    empty; here they ask for no part of their own.
    """
    count = max(1, min(-(-sum(sizes) // part_bytes), sum(size > 0 for size in sizes)))
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, part) for part in range(count)]  # a heap: on top the fewest bytes, of equals the first part
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        held_bytes, part = loads[0]
        parts[part].append(index)
        heapq.heapreplace(loads, (held_bytes + sizes[index], part))
    return tuple(tuple(sorted(part)) for part in parts)


def _whole_outputs(
    keyed: Iterable[tuple[str, Sequence[int]]],
    tensors: Sequence[TargetTensor],
    source_metadata: SourceMetadata,
    form: str,
    container: Container = Container.SAFETENSORS,
) -> tuple[Output, ...]:
    """Make one output of each key and its tensors."""
    position_of = {index: position for position, index in enumerate(file_order(tensors))}
    made = []
    for key, indices in keyed:
        boxes = [(index, whole_box(tensors[index])) for index in sorted(indices, key=position_of.__getitem__)]
        metadata = source_metadata.metadata_for([tensors[index].spec.name for index, _ in boxes], format=form)
        made.append(make_output([key], boxes, tensors, metadata, container, source_metadata.texts))
    return tuple(made)


def _weight_map(outputs: Sequence[Output]) -> tuple[dict[str, str], int]:
    """Return the key that holds each tensor, and the bytes of all tensors."""
    total_bytes = sum(spec.nbytes for output in outputs for spec in output.specs)
    return {spec.name: output.keys[0] for output in outputs for spec in output.specs}, total_bytes
