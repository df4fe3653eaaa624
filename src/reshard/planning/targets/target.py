"""Everything that a source can be made into."""

from __future__ import annotations

from .full_target import FullTarget, PartsTarget
from .iteration_target import IterationTarget
from .rank_target import RankTarget
from .tree_target import TreeTarget
from .zarr_target import ZarrTarget

Target = RankTarget | IterationTarget | FullTarget | PartsTarget | TreeTarget | ZarrTarget
