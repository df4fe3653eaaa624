"""The objects that a target holds before a run: whether they may be replaced, and which must go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import FormatError, NotFound, SourceChanged, TargetExists, TargetInUse, option, raise_all
from ..planning.conversion import MANIFEST_KEY, Conversion
from ..planning.plan import Plan
from ..planning.plan_json import conversion_ids
from ..planning.share_documents import is_record_key, record_key_of, shared_ranks
from ..planning.targets import is_checkpoint_object
from ..planning.targets.rank_target import RankTarget
from ..planning.targets.written_keys import is_written_key
from ..storage import Location, ObjectInfo, read_object
from ..tensor import ByteRange
from .claim import Claim, Watch, in_use, put_record
from .journal import last_begun
from .locations import Locations
from .manifest import START_BYTES, decode_manifest, ids_at_start
from .run_record import MAX_RECORD_BYTES, RunRecord, decode_record

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
        Etags of manifests that must go before anything new becomes visible, by key: they vouch for what is replaced.
    leftovers
        Etags of objects that an earlier conversion wrote and this one does not, by key: no reader may mix old and new.
    """

    before: Mapping[str, str] = field(default_factory=dict)
    obsolete: Mapping[str, str] = field(default_factory=dict)
    leftovers: Mapping[str, str] = field(default_factory=dict)


def check_target(
    plan: Plan, locations: Locations, watch: Watch, *, overwrite: bool, claim: Claim | None = None
) -> Destination:
    """Look at a target before a run.

    Objects of a run of the same conversion that ended early are this run's to replace; a ``claim`` of this run
    has replaced that run's record, and knows it. With a claim, runs of other records that are dead and in the way lose
    theirs: if they were only slow, they notice. Raise TargetExists if other
    outputs exist and must not be replaced, another checkpoint's objects are there, or the source would be removed.
    """
    for _ in range(_LOOKS):
        try:
            return _look_at(plan, locations, watch, claim, overwrite=overwrite)
        except (NotFound, SourceChanged):  # another share has just removed its record, or written its manifest
            continue
    return _look_at(plan, locations, watch, claim, overwrite=overwrite)


def _look_at(plan: Plan, locations: Locations, watch: Watch, claim: Claim | None, *, overwrite: bool) -> Destination:
    target, conversion = locations.target, plan.conversion
    scope, wanted = conversion.target.scope, {*conversion.keys, conversion.manifest_key}
    found = _found(conversion, target, wanted)
    record_key = record_key_of(conversion.manifest_key)
    own_id, whole_id = conversion_ids(conversion)
    before = {key: info.etag for key, info in found.items() if key in wanted}
    left_by = claim.left[1] if claim else _owner(target.child(record_key), found.get(record_key))
    if before and not overwrite and left_by != own_id:
        raise TargetExists(
            f"{target.url}: {len(before)} of {len(wanted)} outputs exist already",
            problems=sorted(before),
            hint=f"Give {option('overwrite')} to replace them, or another destination.",
        )
    if scope is None:  # every object is independent of its neighbours
        return Destination(before, {key: before[key] for key in _own_manifest(conversion, before)})
    neighbours = _Neighbours.of(conversion, target, found, whole_id)
    neighbours.settle(conversion, target, watch, claim)
    if not overwrite:
        neighbours.check(conversion, target)
    others = [key for key in found if key.startswith(scope) and key not in wanted]
    kept = neighbours.keys_of_shares(conversion, overwrite=overwrite)
    old = [*_own_manifest(conversion, before), *neighbours.foreign]
    # Anyone can write a manifest: it cannot have objects removed that no conversion writes.
    written = set(filter(is_written_key, _written(target, old))).difference(kept)
    leftovers = {key: found[key].etag for key in sorted(written.intersection(others))}
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
    obsolete = {key: found[key].etag for key in sorted({*old, *neighbours.replaced(conversion)}) if key in found}
    return Destination(before, obsolete, leftovers)


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """The documents of other runs at one target.

    ``ranks`` are those of every share of the same conversion, by the key of its document: a manifest if it is finished,
    else the record of its run. ``foreign`` are keys of manifests of other conversions. ``records`` are those of runs
    with their etags; ``strange`` are keys of the ones of other conversions. ``has_whole`` is whether the manifest of
    the same conversion's whole is there.
    """

    ranks: Mapping[str, tuple[range, ...]]
    foreign: tuple[str, ...]
    records: Mapping[str, tuple[RunRecord, str]]
    strange: frozenset[str]
    has_whole: bool

    @classmethod
    def of(
        cls, conversion: Conversion, target: Location, found: Mapping[str, ObjectInfo], whole_id: str
    ) -> _Neighbours:
        own = {conversion.manifest_key, record_key_of(conversion.manifest_key)}
        everyone = (range(len(rank_keys)),) if (rank_keys := _rank_of_key(conversion)) else ()
        ranks, records = dict[str, tuple[range, ...]](), dict[str, tuple[RunRecord, str]]()
        foreign, strange, has_whole = list[str](), set[str](), False
        for key, info in found.items():
            if key in own or not (key in _OF_THE_WHOLE or shared_ranks(key)):
                continue
            if is_record_key(key):
                record = _record(target, info)
                if record is None:
                    continue
                records[key] = record, info.etag
                if record.whole_id == whole_id:  # what a dead run of this conversion has left is right, too
                    ranks[key] = shared_ranks(key) or everyone
                else:
                    strange.add(key)
            elif _whole_id(target, info) != whole_id:
                foreign.append(key)
            elif key == MANIFEST_KEY:
                has_whole = True
            else:
                ranks[key] = shared_ranks(key)
        return cls(ranks, tuple(foreign), records, frozenset(strange), has_whole)

    def settle(self, conversion: Conversion, target: Location, watch: Watch, claim: Claim | None) -> None:
        """Refuse a target where other runs are writing what this one writes, or what readers would take for it.

        Who has a claim marks the records of those that are dead: one that was only slow finds its claim lost.
        """
        in_the_way = {*self.strange, *self._overlapping(_own_ranks(conversion))} & self.records.keys()
        living = []
        for key in sorted(in_the_way):
            (record, etag), place = self.records[key], target.child(key)
            if not watch.is_dead(place, record, etag):
                # Of two that find each other before either has begun, one gives way.
                if claim is None or claim.record.run_id > record.run_id or not watch.gives_way(place, record):
                    living.append(key)
            elif claim is not None and record.beat >= 0:
                now = place.head_or_none()
                if now is not None and now.etag == etag:
                    put_record(place, record.pushed_out(), etag)
        for key in self.strange.intersection(living):
            raise in_use(target, self.records[key][0])
        raise_all(
            TargetInUse,
            f"{target.url}: other runs of this conversion are writing some of these ranks",
            living,
            hint="Give every run ranks of its own, or wait until those have ended.",
        )

    def check(self, conversion: Conversion, target: Location) -> None:
        """Refuse a target of another conversion, and a share that overlaps another one."""
        raise_all(
            TargetExists,
            f"{target.url}: manifests of another conversion are there",
            self.foreign,
            hint=f"Give {option('overwrite')} to replace what it wrote, or another destination.",
        )
        if conversion.whole is not conversion:
            raise_all(
                TargetExists,
                f"{target.url}: other runs of this conversion have written some of these ranks",
                [key for key in self._overlapping(_own_ranks(conversion)) if not is_record_key(key)],
                hint=f"Give every run ranks of its own, or {option('overwrite')} to write these again.",
            )

    def _overlapping(self, own: Collection[int]) -> list[str]:
        return [key for key, spans in self.ranks.items() if any(rank in span for span in spans for rank in own)]

    def keys_of_shares(self, conversion: Conversion, *, overwrite: bool) -> Collection[str]:
        """Return the keys that other shares of the conversion write; with ``overwrite``, may be about to write."""
        if conversion.whole is conversion:
            return ()
        rank_of_key = _rank_of_key(conversion)
        if overwrite or self.has_whole:
            return rank_of_key.keys()
        theirs = [span for spans in self.ranks.values() for span in spans]
        return {key for key, rank in rank_of_key.items() if any(rank in span for span in theirs)}

    def replaced(self, conversion: Conversion) -> Iterable[str]:
        """Return the manifests of the same conversion that vouch for what this run writes again."""
        if conversion.whole is not conversion:
            return [MANIFEST_KEY] if self.has_whole else []
        return [key for key in self.ranks if not is_record_key(key)]


_OF_THE_WHOLE = (MANIFEST_KEY, record_key_of(MANIFEST_KEY))


def _own_ranks(conversion: Conversion) -> Collection[int]:
    """Return the ranks that a conversion writes; none for a target without ranks."""
    target = conversion.target
    return frozenset(target.ranks) if isinstance(target, RankTarget) else frozenset()


def _rank_of_key(conversion: Conversion) -> Mapping[str, int]:
    target = conversion.target
    return target.rank_of_key if isinstance(target, RankTarget) else {}


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


def _record(target: Location, info: ObjectInfo | None) -> RunRecord | None:
    if info is None or info.nbytes > MAX_RECORD_BYTES:
        return None
    return decode_record(target.store.read(info.key, ByteRange(0, info.nbytes), info.etag), info.key)


def _owner(place: Location, info: ObjectInfo | None) -> str:
    """Return the conversion whose objects a run has left: its own once it has begun, else that of the one before it."""
    record = _record(place.parent, info)
    if record is None:
        return ""
    return last_begun(place, record.runs)[1]


def _whole_id(target: Location, info: ObjectInfo) -> str:
    """Return the id of the whole conversion that a manifest is about, empty if it tells none."""
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
