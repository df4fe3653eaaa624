"""What would refuse a run before it writes: looked at, and nothing is written."""

from __future__ import annotations

from ..engine.claim import Watch
from ..engine.destination import check_target
from ..engine.events import ignore
from ..engine.locations import Locations
from ..planning.plan import Plan
from ..storage import open_source, open_target, shared_connections
from .request import Request
from .statements import find_finished


@shared_connections()
def would_skip(plan: Plan, request: Request) -> bool:
    """Return whether a run would leave the outcome of an earlier one; raise what else would keep it from writing.

    Raises
    ------
    TargetExists
        Outputs exist that must not be replaced, or were changed since an earlier run.
    """
    conversion = plan.conversion
    manifest, missing = find_finished(conversion, request) or (None, 0)
    if manifest is not None and not missing:
        return True
    sources = [open_source(url) for url in (plan.catalog.url, *plan.catalog.others)]
    locations = Locations(sources, open_target(conversion.target_url))
    locations.target.writable_store()
    check_target(plan, locations, Watch(ignore, waits=False), overwrite=request.replaces or manifest is not None)
    return False
