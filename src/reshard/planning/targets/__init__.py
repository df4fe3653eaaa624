"""Define what a conversion writes: one module per kind of target, and one line in the table.

A new kind is a frozen dataclass that derives from :class:`Target`. Its fields are saved with a plan as their type
hints say, see :mod:`reshard.planning.codec`.
"""

from .full_target import FullTarget, PartsTarget
from .iteration_target import IterationTarget
from .rank_target import RankTarget
from .serving_target import ServingTarget
from .sharded_target import ShardedTarget
from .target import Target
from .tree_target import TreeTarget
from .zarr_target import ZarrTarget

__all__ = ["TARGETS", "Target", "is_checkpoint_object"]

TARGETS: dict[str, type[Target]] = {
    "full": FullTarget,
    "iteration": IterationTarget,
    "parts": PartsTarget,
    "ranks": RankTarget,
    "serving": ServingTarget,
    "sharded": ShardedTarget,
    "tree": TreeTarget,
    "zarr": ZarrTarget,
}
"""Every kind of target, by its ``kind`` in JSON."""


def is_checkpoint_object(key: str) -> bool:
    """Return whether a reader would take an object for part of a checkpoint of any kind.

    Examples
    --------
    >>> [is_checkpoint_object(key) for key in ("rank_3/a.ckpt", "model.safetensors", "w/zarr.json", "notes.txt")]
    [True, True, True, False]
    """
    return any(target.object_names.fullmatch(key) for target in TARGETS.values())
