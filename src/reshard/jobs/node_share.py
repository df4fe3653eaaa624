"""One node's share of a conversion."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..api.request import Request
from ..api.resolve import Resolved, resolve
from ..api.shares import missing_ranks
from ..api.statements import convert_resolved
from ..engine.events import Listener, ignore
from ..engine.manifest import Manifest
from ..errors import counted
from ..planning.share_documents import manifest_key_of, written_ranks
from ..planning.targets.rank_target import RankTarget
from ..storage import shared_connections
from .nodes import Node


@dataclass(frozen=True, slots=True)
class NodeShare:
    """What one node writes of a conversion: ``ranks`` of a target of ranks, or all of a target, or nothing."""

    resolved: Resolved
    request: Request
    is_empty: bool = False
    ranks: range | None = None
    rank_count: int | None = None

    @classmethod
    def of(
        cls, request: Request, node: Node, resolved: Resolved | None = None, on_event: Listener = ignore
    ) -> NodeShare:
        """Find a node's share; headers are read unless ``resolved`` has them, nothing is written.

        Raise UsageError if the nodes have fewer NPUs than the target has ranks, and whatever
        :func:`reshard.api.resolve.resolve` raises.
        """
        resolved = resolved or resolve(request, on_event)
        target = resolved.conversion.target
        # An iteration has one metadata.json, a full target one index: neither is shared out.
        if not isinstance(target, RankTarget):
            return cls(resolved, request, node.index > 0)
        rank_count = target.strategy.rank_count
        if request.engine == "ray":  # the first node leads the workers of all
            return cls(resolved, request, node.index > 0, rank_count=rank_count)
        if node.count == 1:
            return cls(resolved, request, rank_count=rank_count)
        ranks = node.share(rank_count)
        if not ranks:
            return cls(resolved, request, True, ranks, rank_count)
        target = replace(target, ranks=tuple(ranks))
        conversion = replace(resolved.conversion, target=target, manifest_key=manifest_key_of(target))
        share = replace(resolved, conversion=conversion)
        return cls(share, replace(request, ranks=(ranks,)), False, ranks, rank_count)

    @property
    def described(self) -> str:
        """What this node writes, for the log."""
        what = "a full target" if self.rank_count is None else f"a target of {counted(self.rank_count, 'rank')}"
        if self.is_empty:
            return f"{what}: nothing of it is this node's"
        if self.ranks is None:
            return f"{what}: all of it is this node's"
        noun, verb = ("rank", "is") if len(self.ranks) == 1 else ("ranks", "are")
        return f"{what}: {noun} {written_ranks(self.ranks)} {verb} this node's"

    @shared_connections()
    def write(self, on_event: Listener = ignore) -> Manifest:
        """Write the share, unless an earlier run has."""
        return convert_resolved(self.resolved, self.request, on_event)

    def missing(self) -> tuple[int, ...] | None:
        """Return the ranks that no node has finished; None once the whole is there."""
        return missing_ranks(self.resolved.conversion)
