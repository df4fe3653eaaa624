"""Shares of one conversion: the manifests of runs that each write some ranks, and the one that they make together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..errors import FormatError, NotFound
from ..planning.conversion import MANIFEST_KEY, Conversion
from ..planning.plan_json import conversion_ids
from ..planning.share_documents import shared_ranks
from ..planning.targets.rank_target import RankTarget
from ..storage import Location, read_object
from .digest import ReadProof
from .manifest import Manifest, ObjectReceipt, decode_manifest, encode_manifest
from .writer import checked_body

_SHARE_MANIFEST = "reshard-manifest-ranks_"


@dataclass(frozen=True, slots=True)
class Shares:
    """The finished shares of a target: their manifests, and the ranks of the whole that none of them has."""

    manifests: tuple[Manifest, ...]
    missing_ranks: tuple[int, ...]


def read_shares(target: Location) -> Shares | None:
    """Read the manifests of all finished shares; None if there are none.

    Raise FormatError for a manifest that cannot be read, and for manifests of different conversions.
    """
    manifests = tuple(_manifests(target, share_keys(target)))
    if not manifests:
        return None
    ids = {conversion_ids(manifest.conversion)[1] for manifest in manifests}
    if len(ids) > 1:
        raise FormatError(
            "manifests of different conversions", where=target.url, expected="shares of one", found=f"{len(ids)}"
        )
    return Shares(manifests, _missing(manifests))


def unwritten_ranks(target: Location) -> tuple[int, ...]:
    """Return the ranks that no finished share is about; none where there are no shares.

    Names tell, and one manifest how many ranks there are: they are long, and there may be hundreds.
    """
    keys = share_keys(target)
    first = next(_manifests(target, keys), None)
    if first is None or not isinstance(first.conversion.target, RankTarget):
        return ()
    return tuple(ranks_outside(keys, range(first.conversion.target.strategy.rank_count)))


def ranks_outside(keys: Iterable[str], ranks: Iterable[int]) -> Iterator[int]:
    """Yield the ranks that shares with these keys are not about."""
    spans = [span for key in keys for span in shared_ranks(key)]
    return (rank for rank in ranks if not any(rank in span for span in spans))


def join_shares(manifest: Manifest, target: Location) -> None:
    """Write the manifest of the whole once all of its shares are finished; any share may come last, or several.

    Whoever finds all of them complete writes the same manifest, so it does not matter who does.
    """
    whole = manifest.conversion.whole
    if whole is manifest.conversion or not isinstance(whole.target, RankTarget):
        return
    # Names tell whether it is worth reading the manifests, which are long.
    keys = share_keys(target)
    if [*ranks_outside(keys, whole.target.ranks)]:
        return
    whole_id = conversion_ids(whole)[0]
    # A share whose manifest is broken is not finished; what this run has written is right all the same.
    found = _manifests(target, keys, skip_broken=True)
    shares = [each for each in found if conversion_ids(each.conversion)[1] == whole_id]
    if _missing(shares):
        return
    receipts, reads = _joined(whole, shares), ReadProof.joined(share.reads for share in shares)
    data = encode_manifest(Manifest(whole, manifest.limits, receipts, reads))
    target.writable_store().put(target.child(MANIFEST_KEY).key, *checked_body(data, manifest.limits.integrity))


def share_keys(target: Location) -> list[str]:
    """Return the keys of the manifests of finished shares."""
    keys = (info.key.removeprefix(target.prefix) for info in target.store.list(f"{target.prefix}{_SHARE_MANIFEST}"))
    return [key for key in keys if shared_ranks(key)]


def _manifests(target: Location, keys: Iterable[str], *, skip_broken: bool = False) -> Iterator[Manifest]:
    for key in keys:
        place = target.child(key)
        try:
            yield decode_manifest(read_object(place), place.url)
        except NotFound:  # a run that replaces the target has just removed it
            continue
        except FormatError:
            if not skip_broken:
                raise


def _missing(manifests: Iterable[Manifest]) -> tuple[int, ...]:
    """Return the ranks of the whole that no share has."""
    found, wanted = set[int](), set[int]()
    for manifest in manifests:
        target = manifest.conversion.target
        assert isinstance(target, RankTarget)
        found.update(target.ranks)
        wanted.update(range(target.strategy.rank_count))
    return tuple(sorted(wanted - found))


def _joined(whole: Conversion, shares: Iterable[Manifest]) -> tuple[ObjectReceipt, ...]:
    """Return the receipts of all shares in the order of the whole; of two for one object either is as good."""
    by_key = {receipt.key: receipt for share in shares for receipt in share.receipts}
    return tuple(by_key[key] for key in whole.keys)
