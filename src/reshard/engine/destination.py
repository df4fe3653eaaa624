"""The objects that a target holds before a run: whether they may be replaced, and which must go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import FormatError, NotFound, SourceChanged, TargetExists, option, raise_all
from ..planning.conversion import MANIFEST_KEY, Conversion
from ..planning.plan import Plan
from ..planning.plan_json import conversion_ids
from ..planning.share_documents import record_key_of, shared_ranks
from ..planning.targets import is_checkpoint_object
from ..planning.targets.rank_target import RankTarget
from ..planning.targets.written_keys import is_written_key
from ..storage import Location, ObjectInfo
from ..tensor import ByteRange
from .locations import Locations
from .manifest import START_BYTES, decode_manifest, ids_at_start
from .run_record import MAX_RECORD_BYTES, RunRecord, decode_record
from .sources.strategy_files import read_object

_LOOKS = 4
"""How often a target is looked at again because other shares changed between its listing and its reading."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A target before a run.

    Parameters
    ----------
    before
        Etags of the objects that will be replaced, by key.
    obsolete
        Keys of manifests that must go before anything new becomes visible: they vouch for what is replaced.
    leftovers
        Keys that an earlier conversion wrote and this one does not: no reader may mix old and new.
    """

    before: Mapping[str, str] = field(default_factory=dict)
    obsolete: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()


def check_target(plan: Plan, locations: Locations, *, overwrite: bool) -> Destination:
    """Look at a target before a run.

    Objects of a run of the same conversion that ended early are this run's to replace. Raise TargetExists if other
    outputs exist and must not be replaced, another checkpoint's objects are there, or the source would be removed.
    """
    for _ in range(_LOOKS):
        try:
            return _look_at(plan, locations, overwrite=overwrite)
        except (NotFound, SourceChanged):  # another share has just removed its record, or written its manifest
            continue
    return _look_at(plan, locations, overwrite=overwrite)


def _look_at(plan: Plan, locations: Locations, *, overwrite: bool) -> Destination:
    target, conversion = locations.target, plan.conversion
    scope, wanted = conversion.target.scope, {*conversion.keys, conversion.manifest_key}
    found = _found(conversion, target, wanted)
    record_key = record_key_of(conversion.manifest_key)
    own_id, whole_id = conversion_ids(conversion)
    before = {key: info.etag for key, info in found.items() if key in wanted}
    if before and not overwrite and _conversion_of_record(target, found.get(record_key)) != own_id:
        raise TargetExists(
            f"{target.url}: {len(before)} of {len(wanted)} outputs exist already",
            problems=sorted(before),
            hint=f"Give {option('overwrite')} to replace them, or another destination.",
        )
    if scope is None:  # every object is independent of its neighbours
        return Destination(before, _own_manifest(conversion, before))
    neighbours = _Neighbours.of(conversion, target, found, whole_id)
    if not overwrite:
        neighbours.check(conversion, target)
    others = [key for key in found if key.startswith(scope) and key not in wanted]
    kept = neighbours.keys_of_shares(conversion, overwrite=overwrite)
    old = [*_own_manifest(conversion, before), *neighbours.foreign]
    # Anyone can write a manifest: it cannot have objects removed that no conversion writes.
    written = set(filter(is_written_key, _written(target, old))).difference(kept)
    leftovers = tuple(sorted(written.intersection(others)))
    raise_all(
        TargetExists,
        f"{target.url}: another checkpoint's objects are there; readers could not tell them from the new ones",
        [key for key in others if is_checkpoint_object(key) and key not in leftovers and key not in kept],
        hint="Choose an empty destination, or remove them.",
    )
    read = {locations.source(item).identity for item in plan.catalog.objects}
    raise_all(
        TargetExists,
        f"{target.url}: an earlier conversion's outputs would be removed, and they are the source of this one",
        [key for key in leftovers if target.child(key).identity in read],
        hint="Choose another destination.",
    )
    obsolete = {*old, *neighbours.replaced(conversion)}
    return Destination(before, tuple(sorted(obsolete)), leftovers)


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """The documents of other runs at one target: shares of the same conversion, and manifests of other ones.

    ``ranks`` are those of each share's document by its key; ``whole`` is whether the manifest of the same conversion's
    whole is there.
    """

    ranks: Mapping[str, tuple[range, ...]]
    foreign: tuple[str, ...]
    has_whole: bool

    @classmethod
    def of(
        cls, conversion: Conversion, target: Location, found: Mapping[str, ObjectInfo], whole_id: str
    ) -> _Neighbours:
        own = {conversion.manifest_key, record_key_of(conversion.manifest_key)}
        ranks, foreign, has_whole = dict[str, tuple[range, ...]](), list[str](), False
        for key, info in found.items():
            if key in own or not (key == MANIFEST_KEY or shared_ranks(key)):
                continue
            if _whole_id(target, key, info) != whole_id:
                foreign += [key] * key.startswith(MANIFEST_KEY[: -len(".json")])  # a dead run's record harms nobody
            elif key == MANIFEST_KEY:
                has_whole = True
            else:
                ranks[key] = shared_ranks(key)
        return cls(ranks, tuple(foreign), has_whole)

    def check(self, conversion: Conversion, target: Location) -> None:
        """Refuse a target of another conversion, and a share that overlaps another one."""
        raise_all(
            TargetExists,
            f"{target.url}: manifests of another conversion are there",
            self.foreign,
            hint=f"Give {option('overwrite')} to replace what it wrote, or another destination.",
        )
        own = _own_ranks(conversion)
        raise_all(
            TargetExists,
            f"{target.url}: other runs of this conversion write some of these ranks",
            [key for key, spans in self.ranks.items() if any(rank in span for span in spans for rank in own)],
            hint="Give every run ranks of its own.",
        )

    def keys_of_shares(self, conversion: Conversion, *, overwrite: bool) -> Collection[str]:
        """Return the keys that other shares of the conversion write; with ``overwrite``, may be about to write."""
        target = conversion.target
        if not isinstance(target, RankTarget) or target.whole is target:
            return ()
        if overwrite or self.has_whole:
            return target.rank_of_key.keys()
        theirs = [span for spans in self.ranks.values() for span in spans]
        return {key for key, rank in target.rank_of_key.items() if any(rank in span for span in theirs)}

    def replaced(self, conversion: Conversion) -> Iterable[str]:
        """Return the manifests of the same conversion that vouch for what this run writes again."""
        if conversion.whole is not conversion:
            return [MANIFEST_KEY] if self.has_whole else []
        return [key for key in self.ranks if "manifest" in key]


def _own_ranks(conversion: Conversion) -> frozenset[int]:
    target = conversion.target
    if not isinstance(target, RankTarget) or target.whole is target:
        return frozenset()
    return frozenset(target.ranks)


def _found(conversion: Conversion, target: Location, wanted: Iterable[str]) -> dict[str, ObjectInfo]:
    """Return what concerns a conversion of all that is at its target."""
    key = conversion.manifest_key
    if conversion.target.scope is None or key == MANIFEST_KEY or shared_ranks(key):
        return dict(target.named_objects())
    # A single object has a manifest of its own: what else is there is not ours to list.
    keys = (*wanted, record_key_of(key))
    return {key: info for key in keys for info in [target.child(key).head_or_none()] if info}


def _own_manifest(conversion: Conversion, before: Collection[str]) -> tuple[str, ...]:
    return (conversion.manifest_key,) if conversion.manifest_key in before else ()


def _conversion_of_record(target: Location, info: ObjectInfo | None) -> str:
    """Return the id of the conversion that a run's record is about, empty if there is none."""
    record = _record(target, info)
    return record.conversion_id if record else ""


def _record(target: Location, info: ObjectInfo | None) -> RunRecord | None:
    if info is None or info.nbytes > MAX_RECORD_BYTES:
        return None
    return decode_record(target.store.read(info.key, ByteRange(0, info.nbytes), info.etag), info.key)


def _whole_id(target: Location, key: str, info: ObjectInfo) -> str:
    """Return the id of the whole conversion that a document is about, empty if it tells none."""
    if "manifest" not in key:
        record = _record(target, info)
        return record.whole_id if record else ""
    ids = ids_at_start(target.store.read(info.key, ByteRange(0, min(info.nbytes, START_BYTES)), info.etag))
    return ids[1] if ids else ""


def _written(target: Location, manifest_keys: Iterable[str]) -> set[str]:
    """Return the keys in the manifests that are about to go."""
    keys = set[str]()
    for key in manifest_keys:
        place = target.child(key)
        try:
            keys |= {receipt.key for receipt in decode_manifest(read_object(place), place.url).receipts}
        except FormatError:
            continue
    return keys
