"""The checksums that stores keep of a source's objects, compared with those of all that a run read of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ..planning.limits import Integrity
from ..planning.plan import Plan
from ..storage import KeptChecksum
from .digest import ReadLedger, ReadProof, damaged
from .locations import Locations, read_agreed, read_once
from .workers import Workers


def kept_checksums(plan: Plan, found: Mapping[int, KeptChecksum]) -> Mapping[int, KeptChecksum]:
    """Return those checksums of the source that are compared."""
    return {} if plan.limits.integrity is Integrity.OFF else found


def check_reads(plan: Plan, locations: Locations, workers: Workers, ledger: ReadLedger) -> ReadProof:
    """Compare every object that was read whole, and return what is known of all that was read.

    Raise Damaged if the bytes that arrived are not those of the store.
    """
    outcomes: dict[int, bool | None] = {}

    def settle(index: int) -> None:
        item = plan.catalog.objects[index]
        place = locations.source(item)
        # What differs may be what is read only now, a header or a gap; it is read again before all is refused.
        for read in (read_once, read_agreed):
            outcomes[index] = ledger.settle(index, item.nbytes, partial(read, place, etag=item.etag))
            if outcomes[index] is not False:
                return

    workers.map(settle, ledger.kept)
    wrong = [index for index, outcome in outcomes.items() if outcome is False]
    if wrong:
        raise damaged(locations.source(plan.catalog.objects[index]).url for index in wrong)
    object_count = sum(not item.fill for item in plan.catalog.objects)
    return ReadProof(plan.limits.read_count, object_count, sum(outcome is True for outcome in outcomes.values()))
