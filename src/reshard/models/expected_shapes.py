"""The shapes that ``config.json`` gives the tensors of a model, to be compared with those of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..tensor import Shape
from .detecting import Detection
from .expansion import shape_of
from .pattern import name_key
from .settings import resolve_settings
from .training_names import weight_of


def expected_shapes(found: Detection, config: Mapping[str, object]) -> dict[str, Shape]:
    """Return shapes by the keys of names, for the side and the naming that a checkpoint was detected to have.

    Tensors whose sizes ``config.json`` does not state are left out.
    """
    side = "hf" if found.direction == "to_ms" else "ms"
    settings = resolve_settings(found.family, config, dict(found.options))
    sizes = dict(settings.numbers)
    for name, index in settings.indices.items():
        if not index.names & settings.unknown.keys():
            sizes[name] = len(settings.positions(name))
    shapes: dict[str, Shape] = {}
    for row in found.family.naming(found.naming).rows:
        for hf, ms in row.forms if settings.holds(row.when) else ():
            if not (settings.holds(hf.when) and settings.holds(ms.when)):
                continue
            for tensor in (hf if side == "hf" else ms).tensors:
                if tensor.axes is not None and tensor.factors <= sizes.keys():
                    shapes[tensor.name.key] = shape_of(tensor, sizes)
    return shapes


def multiplied_shapes(shapes: Mapping[str, Shape], expected: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
    """Yield tensors that are a whole number of times as large on some axis as they should be, or as small.

    That is what a wrong number of cuts makes of the pieces of ranks; other differences may be of a model that its
    config does not describe exactly, such as a padded vocabulary.

    Examples
    --------
    >>> list(multiplied_shapes({"a": (8, 4), "b": (9, 4), "c": (2, 4)}, {"a": (4, 4), "b": (8, 4), "c": (4, 4)}))
    [('a', (4, 4)), ('c', (4, 4))]
    """
    for name, shape in shapes.items():
        wanted = expected.get(name_key(weight_of(name)))
        if wanted is None or wanted == shape or len(wanted) != len(shape) or 0 in shape or 0 in wanted:
            continue
        if all(a % b == 0 or b % a == 0 for a, b in zip(shape, wanted, strict=True)):
            yield name, wanted
