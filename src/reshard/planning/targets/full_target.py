"""Whole tensors, in one object or several: Hugging Face's form and MindSpore's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...formats.containers import Container
from ...formats.weight_index import encode_param_name_map, encode_weight_index
from ..catalog import SourceSharding
from ..outputs.output import Document, Output, SourceMetadata, TargetTensor, file_order, make_output, whole_box
from .part_shares import share_out

HYPER_NAME = "hyper_param.safetensors"
MAP_NAME = "param_name_map.json"


@dataclass(frozen=True, slots=True)
class FullTarget:
    """Whole tensors in one object, or in several with an index.

    Parameters
    ----------
    name
        Key of the object; with ``{part}`` and ``{parts}`` in it there may be several, numbered from 1.
    single_name
        Key to use instead when one object is enough.
    index_name
        Key of the index that is written when there are several; empty for none.
    format
        The header's ``format``: ``pt`` opens in Hugging Face's tools, ``ms`` is MindSpore's.
    object_bytes
        Tensor bytes in one object, at most, unless a single tensor is larger.
    container
        Format of the objects.
    """

    name: str
    single_name: str
    index_name: str
    format: str
    object_bytes: int
    container: Container = Container.SAFETENSORS

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Fill one object after the other, in the order of the source."""
        shares: list[list[int]] = [[]]
        filled = 0
        for index, tensor in enumerate(tensors):
            if shares[-1] and "{part" in self.name and filled + tensor.spec.nbytes > self.object_bytes:
                shares.append([])
                filled = 0
            shares[-1].append(index)
            filled += tensor.spec.nbytes
        order = _places(tensors)
        keys = [self._key(part, len(shares)) for part in range(1, len(shares) + 1)]
        return tuple(
            _whole(key, sorted(share, key=order.__getitem__), tensors, source_metadata, self.format, self.container)
            for key, share in zip(keys, shares, strict=True)
        )

    def documents(
        self, outputs: Sequence[Output], _tensors: Sequence[TargetTensor], _carried: SourceMetadata
    ) -> tuple[Document, ...]:
        """The index of several objects."""
        if len(outputs) < 2 or not self.index_name:
            return ()
        weight_map = {spec.name: output.keys[0] for output in outputs for spec in output.specs}
        total_bytes = sum(spec.nbytes for output in outputs for spec in output.specs)
        return (Document(self.index_name, encode_weight_index(weight_map, total_bytes)),)

    def notes(self, _tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """Nothing is on one side only."""
        return ()

    def _key(self, part: int, parts: int) -> str:
        if parts == 1:
            return self.single_name
        key = self.name
        for field, number in (("part", part), ("parts", parts)):
            key = key.replace(f"{{{field}:05d}}", f"{number:05d}").replace(f"{{{field}}}", str(number))
        return key


@dataclass(frozen=True, slots=True)
class PartsTarget:
    """A full checkpoint as MindSpore's ``unified_safetensors`` writes it.

    ``part<i>.safetensors`` from 0, filled evenly, ``param_name_map.json``, and, for tensors without a
    layout, ``hyper_param.safetensors``.

    Parameters
    ----------
    part_bytes
        As many parts are made as if each held so many bytes; single ones may be larger.
    """

    part_bytes: int

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Share the tensors out, the largest first, each to the part that has least."""
        weights = [i for i, tensor in enumerate(tensors) if tensor.sharding is not SourceSharding.UNLISTED]
        hyper = [i for i, tensor in enumerate(tensors) if tensor.sharding is SourceSharding.UNLISTED]
        shares = share_out([tensors[i].spec.nbytes for i in weights], self.part_bytes) if weights else ()
        order = _places(tensors)
        named = [(f"part{number}.safetensors", [weights[i] for i in share]) for number, share in enumerate(shares)]
        named += [(HYPER_NAME, hyper)] if hyper else []
        return tuple(
            _whole(name, sorted(share, key=order.__getitem__), tensors, source_metadata, "ms") for name, share in named
        )

    def documents(
        self, outputs: Sequence[Output], _tensors: Sequence[TargetTensor], _carried: SourceMetadata
    ) -> tuple[Document, ...]:
        """The map of the parts; hyper-parameters are not in it."""
        parts = [output for output in outputs if output.keys[0] != HYPER_NAME]
        weight_map = {spec.name: output.keys[0] for output in parts for spec in output.specs}
        total_bytes = sum(spec.nbytes for output in parts for spec in output.specs)
        return (Document(MAP_NAME, encode_param_name_map(weight_map, total_bytes)),)

    def notes(self, _tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """Nothing is on one side only."""
        return ()


def _places(tensors: Sequence[TargetTensor]) -> dict[int, int]:
    """The place of each tensor in file order."""
    return {index: position for position, index in enumerate(file_order(tensors))}


def _whole(
    key: str,
    share: Collection[int],
    tensors: Sequence[TargetTensor],
    source_metadata: SourceMetadata,
    form: str,
    container: Container = Container.SAFETENSORS,
) -> Output:
    held = [(index, whole_box(tensors[index])) for index in share]
    metadata = source_metadata.metadata_for([tensors[index].spec.name for index in share], format=form)
    return make_output([key], held, tensors, metadata, container, source_metadata.texts)
