"""From an iteration of MindSpore Transformers, which tells its own layouts, to one catalog of whole tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ...errors import CatalogError, raise_all
from ...formats.mindspore.iteration_metadata import IterationMetadata, IterationTensor, StoredShard
from ...tensor import TensorSpec
from ..catalog import Catalog, Entry, Placement, SourceSharding, Stored
from .full_source import Opened, common_metadata, dropped_names, placements_of
from .selection import NameFilter

_HINT = "Was the iteration copied whole, with its metadata.json? Optimizer states can be left out with --drop."


def iteration_catalog(
    url: str,
    kind: str,
    metadata: IterationMetadata,
    objects: Sequence[Opened],
    notes: Iterable[str],
    names: NameFilter,
) -> tuple[Catalog, tuple[str, ...]]:
    """Describe a source whose ``metadata.json`` says which object holds which box.

    Parameters
    ----------
    objects
        Those of the named objects that are there.

    Returns
    -------
    tuple
        The catalog, and the names of tensors without a layout that several objects hold: whether
        their bytes agree must still be seen.

    Raises
    ------
    CatalogError
        Boxes that no object holds, tensors that differ from what the metadata says, or that it
        does not know.
    """
    builder = _IterationCatalog(metadata, objects)
    kept = [tensor for tensor in metadata.tensors if names.is_kept(tensor.spec.name)]
    entries = tuple(builder.entry(tensor) for tensor in kept)
    builder.find_unknown(names)
    raise_all(CatalogError, f"{url}: the objects are not what metadata.json says", builder.problems, _HINT)
    to_compare = [
        entry.spec.name
        for entry in entries
        if entry.sharding is SourceSharding.UNLISTED
        and any(len(placement.holders) > 1 for placement in entry.placements)
    ]
    catalog = Catalog(
        url,
        kind,
        tuple(item for item, _ in objects),
        entries,
        common_metadata(objects),
        tuple(notes),
        dropped=dropped_names(objects, names),
    )
    return catalog, tuple(to_compare)


def _of_one_stage(tensor: IterationTensor, shard: StoredShard) -> tuple[str, ...]:
    """Objects that hold a shard: those of the stage that the layout is of, so that no tensor mixes two copies."""
    ranks = set(tensor.layout.rank_list) if tensor.layout else set()
    first = [copy.file_name for copy in shard.copies if copy.storage_rank in ranks]
    return tuple(dict.fromkeys(first)) or shard.file_names


class _IterationCatalog:
    """Finds each tensor's boxes in the objects, and what contradicts."""

    def __init__(self, metadata: IterationMetadata, objects: Sequence[Opened]) -> None:
        self._known = metadata.by_name
        self._objects = objects
        self._stored: dict[str, tuple[int, Mapping[str, Stored]]] = {
            item.key: (index, {stored.spec.name: stored for stored in contents.tensors})
            for index, (item, contents) in enumerate(objects)
        }
        self.problems: list[str] = []

    def entry(self, tensor: IterationTensor) -> Entry:
        """Put a tensor together."""
        placements: list[Placement] = []
        for shard in tensor.shards:
            placements += self._placements(tensor, shard)
        named = Counter(name for shard in tensor.shards for name in shard.file_names)
        self.problems += [
            f"{name}: {tensor.spec.name}: metadata.json has several shards there"
            for name, count in named.items()
            if count > 1
        ]
        sharding = (
            SourceSharding.SHARDED
            if len(tensor.shards) > 1
            else SourceSharding.WHOLE
            if tensor.layout
            else SourceSharding.UNLISTED
        )
        return Entry(tensor.spec, tuple(placements), sharding)

    def _placements(self, tensor: IterationTensor, shard: StoredShard) -> tuple[Placement, ...]:
        spec = tensor.spec
        expected = TensorSpec(spec.name, spec.dtype, shard.box.shape)
        held: list[tuple[int, Stored]] = []
        for name in _of_one_stage(tensor, shard):
            index, tensors = self._stored.get(name, (0, {}))
            found = tensors.get(spec.name)
            if found is None:
                continue
            if found.spec != expected:
                self.problems.append(
                    f"{name}: {spec.name}: expected {expected.dtype} {list(expected.shape)}, "
                    f"found {found.spec.dtype} {list(found.spec.shape)}"
                )
            held.append((index, found))
        if not held:
            self.problems.append(f"{spec.name}: shard {shard.number} is in none of {', '.join(shard.file_names)}")
            return ()
        return placements_of(held, shard.box.start)

    def find_unknown(self, names: NameFilter) -> None:
        """Note tensors that the metadata does not speak of."""
        for item, contents in self._objects:
            for stored in contents.tensors:
                name = stored.spec.name
                if name not in self._known and names.is_kept(name):
                    self.problems.append(f"{item.key}: {name}: metadata.json does not know it")
