"""Several runs, one destination: what is still missing of a target whose ranks several machines write."""

from __future__ import annotations

from ..engine.manifest import Manifest
from ..engine.outcome import conversion_at
from ..engine.shares import share_keys
from ..planning.conversion import MANIFEST_KEY
from ..planning.plan_json import conversion_ids
from ..planning.share_documents import shared_ranks
from ..planning.targets.rank_target import RankTarget
from ..storage import open_target, shared_connections


@shared_connections()
def missing_ranks(manifest: Manifest) -> tuple[int, ...] | None:
    """Return the ranks that no run has finished of the target that a share's manifest belongs to.

    None once the manifest of the whole is there. It reads names alone, so it may be asked every few seconds; if no rank
    is missing, another run is just writing that manifest, or the shares are not of one conversion.
    """
    conversion = manifest.conversion
    own_id, whole_id = conversion_ids(conversion)
    target = open_target(conversion.target_url)
    if own_id == whole_id or conversion_at(target, MANIFEST_KEY) == whole_id:
        return None
    spans = [span for key in share_keys(target) for span in shared_ranks(key)]
    whole = conversion.target.whole
    assert isinstance(whole, RankTarget)
    return tuple(rank for rank in whole.ranks if not any(rank in span for span in spans))
