"""The manifest beside rank shards that reshard wrote: how they are cut, and under which names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import gcd

from ...errors import FormatError, StrategyError, option, raise_all
from ...planning.conversion import MANIFEST_KEY
from ...planning.targets.rank_target import RankTarget
from ...storage import Location, ObjectInfo
from ...tensor import Box, Layout, Shape, Strategy
from ..manifest import Manifest, decode_manifest
from .strategy_files import read_object

_NUMBER = re.compile("[0-9]+")


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """What a manifest says of the shards beside it.

    ``strategy`` has the layouts of the tensors that were written, ``shapes`` the whole tensors of that conversion, also
    of those without a layout. ``nbytes`` were read; ``note`` says what was relied on.
    """

    strategy: Strategy
    shapes: Mapping[str, Shape]
    nbytes: int
    note: str

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
                where = f"rank {{rank}} holds {_text(own)} of {list(self.shape)}"
                return place, f"{where}, by the given strategy {_text(other)}"
        return 0, ""


def _box(layout: Layout | None, shape: Shape, device: int) -> Box:
    return Box.whole(shape) if layout is None else layout.box_of(shape, device)


def _text(box: Box) -> str:
    return f"[{', '.join(f'{a}:{b}' for a, b in zip(box.start, box.stop, strict=True))}]"


def manifest_name(root: str, names: Collection[str]) -> str | None:
    """Return the name of the manifest that describes the ranks below ``root``, if there is one."""
    name = f"{root}{MANIFEST_KEY}"
    return name if name in names else None


def read_shard_manifest(
    location: Location, root: str, objects: Mapping[str, ObjectInfo], names: Collection[str]
) -> tuple[ShardManifest | None, str]:
    """Read what the manifest of a prefix says of some of its objects, the ranks' shards.

    Names are relative to the location, and ranks lie below ``root``. Without a manifest that describes these very
    objects return None, and if there is one, the reason why it is not used. Nothing that it names elsewhere is opened.
    """
    name = manifest_name(root, names)
    if name is None:
        return None, ""
    place = location.child(name)
    data = read_object(place)
    try:
        manifest = decode_manifest(data, place.url)
    except FormatError as error:
        return None, f"{name} is not used: {error.marked_message}"
    target = manifest.conversion.target
    if not isinstance(target, RankTarget):
        return None, f"{name} is not used: it is of another kind of checkpoint"
    if reason := _other_objects(manifest, root, objects):
        return None, f"{name} is not used: {reason}"
    etags = {receipt.key: receipt.etag for receipt in manifest.receipts}
    strange = [key for key, info in objects.items() if etags[key.removeprefix(root)] != info.etag]
    shapes = {tensor.spec.name: tensor.spec.shape for tensor in manifest.conversion.tensors}
    stages = tuple({key: each for key, each in stage.items() if key in shapes} for stage in target.strategy.stages)
    note = f"{name} says how the shards are cut"
    if strange:
        note += (
            f"; {len(strange)} of {len(objects)} have other etags than it records, as copies may: their lengths agree, "
            "and that is relied on"
        )
    return ShardManifest(Strategy(target.strategy.device_count, stages), shapes, len(data), note), ""


def _other_objects(manifest: Manifest, root: str, objects: Mapping[str, ObjectInfo]) -> str:
    """Say which objects are not those of a manifest; empty if all are."""
    lengths = {receipt.key: receipt.nbytes for receipt in manifest.receipts}
    unknown = [key for key in objects if key.removeprefix(root) not in lengths]
    if unknown:
        return f"it does not name {unknown[0]}" + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
    other = [key for key, info in objects.items() if lengths[key.removeprefix(root)] != info.nbytes]
    if not other:
        return ""
    expected, found = lengths[other[0].removeprefix(root)], objects[other[0]].nbytes
    rest = f", and {len(other) - 1} more differ" if len(other) > 1 else ""
    return f"{other[0]} has {found} bytes and not the {expected} that it records{rest}"
