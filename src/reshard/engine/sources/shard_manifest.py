"""The manifest beside rank shards that reshard wrote: how they are cut, and under which names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import gcd

from ...errors import FormatError, StrategyError, option, raise_all
from ...planning.conversion import MANIFEST_KEY
from ...planning.plan_json import conversion_ids
from ...planning.share_documents import shared_ranks
from ...planning.targets.rank_target import RankTarget
from ...storage import Location, ObjectInfo, read_object
from ...tensor import Box, ByteRange, Layout, Shape, Strategy
from ..manifest import Manifest, ObjectReceipt, decode_manifest
from ..workers import Workers

_NUMBER = re.compile("[0-9]+")
_MOST_COMPARED_BYTES = 64 << 20
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """What a manifest says of the shards beside it.

    ``strategy`` has the layouts of the tensors that were written, ``shapes`` the whole tensors of that conversion, also
    of those without a layout. ``nbytes`` were read from the objects ``called`` so. ``copied`` are the receipts of
    objects with other etags, by name: whether they are what was written is for :meth:`find_exchanged` to say. Ranks of
    networks that serve (``is_served``) are no parts of a model that could be joined.
    """

    strategy: Strategy
    shapes: Mapping[str, Shape]
    nbytes: int
    called: str
    copied: Mapping[str, ObjectReceipt]
    is_served: bool = False

    @property
    def note(self) -> str:
        """What is relied on, for the reader."""
        return f"{self.called} {'say' if ' more' in self.called else 'says'} how the shards are cut"

    def find_exchanged(self, base: Location, objects: Mapping[str, ObjectInfo], workers: Workers) -> tuple[str, str]:
        """Compare bytes of copied objects with their receipts: the smallest are read whole, and at least one.

        Return why the manifest is not used, if they are others than those that it describes, else an empty text; and a
        note on what was compared.
        """
        if not self.copied:
            return "", ""
        recorded = sorted((r.nbytes, key) for key, r in self.copied.items() if r.crc32c is not None)
        if not recorded:
            why = f"{next(iter(self.copied))} has another etag than it records, and it records no CRC-32C of any such"
            return f"{self.called} is not used: {why}", ""
        sampled, total = list[str](), 0
        for nbytes, key in recorded:
            total += nbytes
            if sampled and total > _MOST_COMPARED_BYTES:
                break
            sampled.append(key)
        for key in sampled:
            expected, found = self.copied[key].crc32c, _crc32c_of(base.child(key), objects[key], workers)
            if found != expected:
                why = f"{key} has the CRC-32C {found:08x} and not the {expected:08x} that it records"
                return f"{self.called} is not used: {why}", ""
        other = f"{len(self.copied)} of {len(objects)} have other etags than the manifest records, as copies may"
        return "", f"{other}: the CRC-32C of {len(sampled)} was compared and is the same"

    def check_agrees(self, given: Strategy, url: str) -> None:
        """Raise StrategyError if a given strategy cuts any of these shards in another way, or has other ranks."""
        known = self.strategy
        if given.rank_count != known.rank_count:
            problems = [f"{known.rank_count} ranks in the manifest, {given.rank_count} in the given strategy"]
        else:
            problems = list(self._other_slices(given))
        ways = f"{option('src_strategy')}, {option('src_layout')} and {option('src_parallel')}"
        hint = (
            f"Omit {ways}: the manifest says how these shards are cut. If others have replaced those that it "
            f"describes, remove {MANIFEST_KEY}."
        )
        message = f"{url}: the given source strategy contradicts {MANIFEST_KEY} beside the shards"
        raise_all(StrategyError, message, problems, hint)

    def _other_slices(self, given: Strategy) -> Iterator[str]:
        """Yield a line for each kind of tensors that are cut differently."""
        known, found = self.strategy, dict[tuple[str, str], tuple[int, dict[str, None]]]()
        compared: dict[_Pair, tuple[int, str]] = {}
        # Stages may have other sizes on both sides: within a block of ranks neither changes.
        step, listed = gcd(known.device_count, given.device_count), known.names
        for first in range(0, known.rank_count, step):
            ours, theirs = (side.stages[side.stage_of(first)] for side in (known, given))
            starts = first % known.device_count, first % given.device_count
            for name, shape in self.shapes.items():
                if name in listed and name not in ours:
                    continue  # these ranks do not hold it
                pair = _Pair((ours.get(name), theirs.get(name)), starts, shape)
                if pair not in compared:
                    compared[pair] = pair.difference(step)
                place, difference = compared[pair]
                if difference:
                    _, names = found.setdefault((_NUMBER.sub("*", name), difference), (first + place, {}))
                    names[name] = None
        for (kind, difference), (rank, names) in found.items():
            what = f"{kind} ({len(names)} tensors)" if len(names) > 1 else next(iter(names))
            yield f"{what}: {difference.replace('{rank}', str(rank))}"


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two layouts of one tensor on a block of ranks, which begins at these devices of their stages."""

    layouts: tuple[Layout | None, Layout | None]
    starts: tuple[int, int]
    shape: Shape

    def difference(self, step: int) -> tuple[int, str]:
        """Return the first of ``step`` ranks that holds other boxes, and what it holds; an empty text if none does."""
        ours, theirs = self.layouts
        if ours == theirs and self.starts[0] == self.starts[1]:
            return 0, ""
        for place in range(step):
            own = _box(ours, self.shape, self.starts[0] + place)
            try:
                other = _box(theirs, self.shape, self.starts[1] + place)
            except StrategyError as error:
                return place, f"by the given strategy, {error.marked_message}"
            if own != other:
                where = f"rank {{rank}} holds {own.text} of {list(self.shape)}"
                return place, f"{where}, by the given strategy {other.text}"
        return 0, ""


def _box(layout: Layout | None, shape: Shape, device: int) -> Box:
    return Box.whole(shape) if layout is None else layout.box_of(shape, device)


def read_shard_manifest(
    location: Location, root: str, objects: Mapping[str, ObjectInfo], names: Collection[str]
) -> tuple[ShardManifest | None, str]:
    """Read what the manifest of a prefix says of some of its objects, the ranks' shards.

    Names are relative to the location, and ranks lie below ``root``. Several runs that each write a share of the ranks
    have manifests of their own until the last of them is done. Without manifests that describe these very objects
    return None, and if there are any, the reason why they are not used: where they were written, other etags show that
    objects were replaced since. Nothing that they name elsewhere is opened.
    """
    keys = _manifest_names(root, names)
    if not keys:
        return None, ""
    called = keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"
    manifests, nbytes = list[Manifest](), 0
    try:
        for key in keys:
            data = read_object(location.child(key))
            manifests.append(decode_manifest(data, location.child(key).url))
            nbytes += len(data)
    except FormatError as error:
        return None, f"{called} is not used: {error.marked_message}"
    target = manifests[0].conversion.target
    if not isinstance(target, RankTarget):
        return None, f"{called} is not used: it is of another kind of checkpoint"
    if len({conversion_ids(manifest.conversion)[1] for manifest in manifests}) > 1:
        return None, f"{called} are not used: they are not shares of one conversion"
    receipts = {f"{root}{receipt.key}": receipt for manifest in manifests for receipt in manifest.receipts}
    if reason := _other_objects(receipts, objects):
        return None, f"{called} is not used: {reason}"
    copied = {key: receipts[key] for key, info in objects.items() if receipts[key].etag != info.etag}
    if copied and location.child(root).url == manifests[0].conversion.target_url:
        count = f"{len(copied)} of {len(objects)} objects were replaced since"
        return None, f"{called} is not used: {next(iter(copied))} has another etag than it records, so {count}"
    shapes = {tensor.spec.name: tensor.spec.shape for tensor in manifests[0].conversion.tensors}
    stages = tuple({key: each for key, each in stage.items() if key in shapes} for stage in target.strategy.stages)
    strategy = Strategy(target.strategy.device_count, stages)
    served = manifests[0].conversion.change.serving is not None
    return ShardManifest(strategy, shapes, nbytes, called, copied, served), ""


def _crc32c_of(place: Location, info: ObjectInfo, workers: Workers) -> int:
    """Read an object whole, in blocks that are held only while they are read."""
    from ...storage.checksums import crc_of, joined_crc  # with their library: only copies need it

    spans = [ByteRange(at, min(at + _BLOCK_BYTES, info.nbytes)) for at in range(0, info.nbytes, _BLOCK_BYTES)]
    found: dict[int, int] = {}

    def read(span: ByteRange) -> None:
        found[span.start] = crc_of(place.store.read(info.key, span, info.etag))

    workers.map(read, spans)
    return joined_crc((found[span.start], span.stop - span.start) for span in spans)


def _manifest_names(root: str, names: Collection[str]) -> list[str]:
    """Return the names of the manifests that describe the ranks below ``root``: of the whole, else of all shares."""
    whole = f"{root}{MANIFEST_KEY}"
    if whole in names:
        return [whole]
    below = (name.removeprefix(root) for name in names if name.startswith(root))
    return sorted(f"{root}{key}" for key in below if "manifest" in key and shared_ranks(key))


def _other_objects(receipts: Mapping[str, ObjectReceipt], objects: Mapping[str, ObjectInfo]) -> str:
    """Say which objects are not those of manifests; empty if all are."""
    unknown = [key for key in objects if key not in receipts]
    if unknown:
        return f"it does not name {unknown[0]}" + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
    other = [key for key, info in objects.items() if receipts[key].nbytes != info.nbytes]
    if not other:
        return ""
    expected, found = receipts[other[0]].nbytes, objects[other[0]].nbytes
    rest = f", and {len(other) - 1} more differ" if len(other) > 1 else ""
    return f"{other[0]} has {found} bytes and not the {expected} that it records{rest}"
