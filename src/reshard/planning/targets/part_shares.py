"""Which part object holds which whole tensor, when a checkpoint is shared out over parts of equal size."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def share_out(sizes: Sequence[int], part_bytes: int) -> tuple[tuple[int, ...], ...]:
    """Deal whole tensors out over parts as MindSpore's ``unified_safetensors`` does.

    There are as many parts as the total needs at ``part_bytes`` each. The largest tensor comes
    first, tensors of one size in the order given; each goes to the part with the fewest bytes so
    far, the first of those. A tensor is never cut, so a part may hold more than ``part_bytes``.

    Parameters
    ----------
    sizes
        Of each tensor, in bytes, at least 0.
    part_bytes
        What a part should hold, at least 1.

    Returns
    -------
    tuple
        Of each part, the positions of its tensors in ``sizes``, ascending. At least one part, and
        none without tensors unless there are no tensors at all.

    Examples
    --------
    >>> share_out([4, 9, 4, 5], part_bytes=12)
    ((1, 2), (0, 3))
    >>> share_out([], part_bytes=12)
    ((),)

    Source: mindspore 2.10.0, ``parallel/transform_safetensors.py``: ``split_num`` in
    ``unified_safetensors``, ``_split_weight_dict``. It lets tensors without bytes leave a part
    empty; here they ask for no part of their own.
    """
    parts: list[list[int]] = [[] for _ in range(_part_count(sizes, part_bytes))]
    loads = [(0, part) for part in range(len(parts))]  # the smallest is on top: fewest bytes, then the first part
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        held_bytes, part = loads[0]
        parts[part].append(index)
        heapq.heapreplace(loads, (held_bytes + sizes[index], part))
    return tuple(tuple(sorted(part)) for part in parts)


def _part_count(sizes: Sequence[int], part_bytes: int) -> int:
    wanted = -(-sum(sizes) // part_bytes)
    return max(1, min(wanted, sum(size > 0 for size in sizes)))
