"""Everything that a source can be made into."""

from __future__ import annotations

from .full_target import FullTarget, PartsTarget
from .rank_target import RankTarget
from .tree_target import TreeTarget

__all__ = ["FullTarget", "PartsTarget", "RankTarget", "Target", "TreeTarget"]

Target = RankTarget | FullTarget | PartsTarget | TreeTarget
