"""What a patch means, told by numpy."""

from __future__ import annotations

import numpy as np

from reshard.tensor.patch import Patch


def lay(target: np.ndarray, patch: Patch, source: np.ndarray) -> None:
    """Fill the patch's box of the target from the source; both have the shapes that its views say."""
    flat = lambda views: [factor for factors in views for factor in factors]  # noqa: E731
    into = target.reshape(flat(patch.target_views))
    assert into.base is not None or into is target
    out_of = source.reshape(flat(patch.source_views))
    extents = [1] * out_of.ndim
    for extent, factor in zip(patch.shape, patch.along, strict=True):
        if factor >= 0:
            assert extents[factor] == 1
            extents[factor] = extent
        else:
            assert extent == 1
    box = out_of[tuple(slice(a, a + n) for a, n in zip(patch.source_start, extents, strict=True))]
    assert list(box.shape) == extents
    named = [factor for factor in patch.along if factor >= 0]
    rest = [factor for factor in range(box.ndim) if factor not in named]
    box = box.transpose([*named, *rest]).reshape(patch.shape)
    into[tuple(slice(a, a + n) for a, n in zip(patch.target_start, patch.shape, strict=True))] = box
