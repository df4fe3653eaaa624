"""Several runs, one destination: what is still missing of a target whose ranks several machines write."""

from __future__ import annotations

from ..engine.outcome import conversion_at
from ..engine.shares import ranks_outside, share_keys
from ..planning.conversion import Conversion
from ..planning.plan_json import conversion_ids
from ..planning.targets.rank_target import RankTarget
from ..storage import open_target, shared_connections


@shared_connections()
def missing_ranks(conversion: Conversion) -> tuple[int, ...] | None:
    """Return the ranks of a target that no run has finished; ``conversion`` is the whole or a share of it.

    None once the manifest of the whole is there. It reads names alone, so it may be asked every few seconds; if no rank
    is missing, another run is just writing that manifest, or the shares are not of one conversion.
    """
    whole = conversion.whole
    target = open_target(conversion.target_url)
    if conversion_at(target, whole.manifest_key) == conversion_ids(whole)[0]:
        return None
    if not isinstance(whole.target, RankTarget):
        return ()
    return tuple(ranks_outside(share_keys(target), whole.target.ranks))
