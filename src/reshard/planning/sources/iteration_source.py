"""Catalogs of iterations of MindSpore Transformers, whose metadata gives every tensor's layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...errors import CatalogError, option, raise_all
from ...formats.container_format import HeaderTensor
from ...formats.mindspore.iteration_metadata import IterationMetadata, IterationTensor, StoredShard
from ...tensor import TensorSpec
from ..catalog import Catalog, Entry, ObjectHeader, Placement, SourceSharding
from .source_headers import SourceHeaders, placements_of


def iteration_catalog(source: SourceHeaders, metadata: IterationMetadata) -> Catalog:
    """Describe a source whose ``metadata.json`` says which object holds which box.

    ``source`` has those objects that the metadata names and that are there. Raise CatalogError for boxes that no object
    holds, tensors that differ from the metadata, and tensors that it does not name.
    """
    shards = _Shards(source.headers)
    kept = [tensor for tensor in metadata.tensors if source.names.is_kept(tensor.spec.name)]
    entries = [shards.entry(tensor) for tensor in kept]
    unknown = [
        f"{header.object.key}: {tensor.spec.name}: metadata.json does not name it"
        for header in source.headers
        for tensor in header.tensors
        if tensor.spec.name not in metadata.by_name and source.names.is_kept(tensor.spec.name)
    ]
    hint = (
        "Was the iteration copied whole, with its metadata.json? "
        f"Optimizer states can be left out with {option('drop')}."
    )
    problems = shards.problems + unknown
    raise_all(CatalogError, f"{source.url}: the objects contradict metadata.json", problems, hint)
    return source.catalog(entries)


class _Shards:
    """Looks shards up in the objects' headers, and collects contradictions."""

    def __init__(self, headers: Sequence[ObjectHeader]) -> None:
        self._tensors: dict[str, tuple[int, dict[str, HeaderTensor]]] = {
            header.object.key: (index, {tensor.spec.name: tensor for tensor in header.tensors})
            for index, header in enumerate(headers)
        }
        self.problems: list[str] = []

    def entry(self, tensor: IterationTensor) -> Entry:
        """Join the shards of a tensor."""
        placements = [placement for shard in tensor.shards for placement in self._placements(tensor, shard)]
        named = Counter(name for shard in tensor.shards for name in shard.file_names)
        self.problems += [
            f"{name}: {tensor.spec.name}: metadata.json has several shards there"
            for name, count in named.items()
            if count > 1
        ]
        is_whole = SourceSharding.WHOLE if tensor.layout else SourceSharding.UNLISTED
        sharding = SourceSharding.SHARDED if len(tensor.shards) > 1 else is_whole
        return Entry(tensor.spec, tuple(placements), sharding)

    def _placements(self, tensor: IterationTensor, shard: StoredShard) -> tuple[Placement, ...]:
        name, dtype = tensor.spec.name, tensor.spec.dtype
        expected = TensorSpec(name, dtype, shard.box.shape)
        # Only the stage that the layout describes, if it holds the shard, so that no tensor mixes two copies.
        ranks = set(tensor.layout.rank_list) if tensor.layout else set()
        of_stage = dict.fromkeys(copy.file_name for copy in shard.copies if copy.storage_rank in ranks)
        held: list[tuple[int, HeaderTensor]] = []
        for key in of_stage or shard.file_names:
            index, tensors = self._tensors.get(key, (0, {}))
            found = tensors.get(name)
            if found is None:
                continue
            if found.spec != expected:
                self.problems.append(
                    f"{key}: {name}: expected {dtype} {list(expected.shape)}, "
                    f"found {found.spec.dtype} {list(found.spec.shape)}"
                )
            held.append((index, found))
        if not held:
            self.problems.append(f"{name}: shard {shard.number} is in none of {', '.join(shard.file_names)}")
            return ()
        return placements_of(held, shard.box.start)
