"""Conversions between memory stores, without the library's statements around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from support.planning import plan_for

from reshard.engine.events import Listener, ignore
from reshard.engine.execute import Policy, execute
from reshard.engine.manifest import Manifest
from reshard.engine.sources import SourceOptions, read_catalog
from reshard.engine.workers import working
from reshard.planning.catalog import Catalog
from reshard.planning.limits import Limits
from reshard.planning.plan import Plan
from reshard.planning.share_documents import manifest_key_of
from reshard.planning.targets.rank_target import RankTarget
from reshard.planning.targets.target import Target
from reshard.storage import Location
from reshard.tensor import Strategy

from .checkpoints import rank_key


@dataclass(frozen=True)
class Known:
    """A strategy that needs no files."""

    known: Strategy

    def strategy(self, specs, *, local):
        return self.known


def catalog_at(location: Location, strategy: Strategy | None = None) -> Catalog:
    """The catalog of what lies at a place."""
    with working(2, location.store) as workers:
        return read_catalog(location, SourceOptions(Known(strategy) if strategy else None), workers)


def ranks_of(strategy: Strategy) -> RankTarget:
    """All ranks, under the keys that :mod:`support.checkpoints` writes."""
    return RankTarget(strategy, tuple(range(strategy.rank_count)), rank_key("{rank}"))


def planned(
    source: Location,
    target: Location,
    wished: Target,
    limits: Limits,
    strategy: Strategy | None = None,
    copy_bases: Sequence[int] = (),
) -> Plan:
    """The plan of a conversion."""
    catalog, manifest_key = catalog_at(source, strategy), manifest_key_of(wished)
    return plan_for(catalog, wished, target.url, limits, copy_bases=copy_bases, manifest_key=manifest_key)


def convert(
    source: Location,
    target: Location,
    wished: Target,
    limits: Limits,
    strategy: Strategy | None = None,
    *,
    overwrite: bool = False,
    listener: Listener = ignore,
    copy_bases: Sequence[int] = (),
) -> tuple[Plan, Manifest]:
    """Plan and execute."""
    plan = planned(source, target, wished, limits, strategy, copy_bases)
    return plan, execute(plan, source, target, policy=Policy(overwrite=overwrite), listener=listener)
