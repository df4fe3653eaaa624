"""How MindSpore Transformers counts shards: their numbers, their ids, and the ranks that have them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from ...errors import StrategyError, raise_all
from ...tensor import Box, Layout, Shape, Strategy, TensorSpec
from ..strict_json import shown

_ID = re.compile(
    r"""\( (?: '(?P<single>[^'\\]*(?:\\.[^'\\]*)*)' | "(?P<double>[^"\\]*(?:\\.[^"\\]*)*)" ),[ ]"""
    r"""\( (?P<number>0|[1-9][0-9]{0,17}) ,\)\)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:([\\'\"nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U(000[0-9a-f]{5}|0010[0-9a-f]{4}))")
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Shard:
    """One box of a tensor and the ranks that have it, in order.

    ``spec`` is the whole tensor's; ``number`` is the shard's place when all are counted row-major.
    """

    spec: TensorSpec
    number: int
    box: Box
    ranks: tuple[int, ...]

    @property
    def id(self) -> str:
        """The key of the shard in ``metadata.json``: ``str`` of a Python tuple."""
        return repr((self.spec.name, (self.number,)))

    @property
    def nbytes(self) -> int:
        """Bytes of the box."""
        return self.spec.dtype.nbytes(self.box.element_count)


def parse_shard_id(text: str) -> tuple[str, int] | None:
    """Parse the ``str`` of a Python tuple ``(name, (number,))``; None for any other text.

    Examples
    --------
    >>> parse_shard_id("('a.b', (3,))"), parse_shard_id(str(("it's", (0,)))), parse_shard_id("('a', 3)")
    (('a.b', 3), ("it's", 0), None)
    """
    match = _ID.fullmatch(text)
    if not match:
        return None
    quoted = match["double"] if match["single"] is None else match["single"]
    if "\\" in _ESCAPE.sub("", quoted):
        return None
    return _ESCAPE.sub(_unescaped, quoted), int(match["number"])


def _unescaped(match: re.Match[str]) -> str:
    if match[1]:
        return _LETTERS.get(match[1], match[1])
    return chr(int(match[2] or match[3] or match[4], 16))


def shard_box(shape: Shape, cuts: Shape, number: int) -> Box:
    """Return the box of the shard ``number`` of a tensor with ``cuts`` equal pieces on each axis.

    Examples
    --------
    >>> shard_box((4, 6), (2, 3), 4)
    Box(start=(2, 2), stop=(4, 4))
    """
    start, stop = [], []
    for extent, cut in zip(reversed(shape), reversed(cuts), strict=True):
        number, index = divmod(number, cut)
        start.append(extent // cut * index)
        stop.append(extent // cut * (index + 1))
    return Box(tuple(reversed(start)), tuple(reversed(stop)))


@lru_cache(maxsize=256)
def cut_layout(layout: Layout) -> Layout:
    """Return a layout with the optimizer's pieces as cuts of axis 0, the only form that this format has.

    A dimension of the device matrix that is cut in part becomes two. Raise StrategyError if axis 0 is cut by hand
    into uneven pieces, or the tensor is a scalar.

    Source: mindspore 2.10.0 ``parallel/strategy.py``, ``_get_dev_mat_for_opt_shard``.

    Examples
    --------
    >>> folded = cut_layout(Layout((4, 2), ((0,), ()), optimizer_shard_size=2))
    >>> folded.device_matrix, folded.tensor_map
    ((2, 2, 2), ((0, 1), ()))
    """
    if layout.row_split:
        raise StrategyError("axis 0 is cut by hand: iterations of MindFormers hold equal pieces only")
    matrix, axes = list(layout.device_matrix), [list(axis) for axis in layout.tensor_map]
    pieces = layout.optimizer_pieces
    # The optimizer cuts over the dimensions that the tensor map leaves free, from the right, as Layout does.
    taken: list[int] = []
    entry = 0
    while pieces > 1:
        size = matrix[-1 - entry]
        if size > 1 and not any(entry in axis for axis in axes):
            if size > pieces:  # split it: the optimizer has the faster part, and entries to the left move by one
                matrix[-1 - entry :] = [size // pieces, pieces, *matrix[len(matrix) - entry :]]
                axes = [[e + (e > entry) for e in axis] for axis in axes]
            taken.append(entry)
            pieces //= min(size, pieces)
        entry += 1
    if taken and not axes:
        raise StrategyError("the optimizer cannot cut a scalar")
    if taken:
        axes[0] += reversed(taken)
    return Layout(tuple(matrix), tuple(tuple(axis) for axis in axes))


@lru_cache(maxsize=256)
def shard_numbers(layout: Layout) -> tuple[int, ...]:
    """Return the number of each rank's shard, for the ranks of one stage."""
    cut = cut_layout(layout)
    numbers = []
    for rank in range(cut.device_count):
        number = 0
        # In a tensor with one element a shard, an element's index is the shard's place on each axis.
        for pieces, index in zip(cut.cuts, cut.box_of(cut.cuts, rank).start, strict=True):
            number = number * pieces + index
        numbers.append(number)
    return tuple(numbers)


def list_shards(specs: Iterable[TensorSpec], strategy: Strategy) -> tuple[Shard, ...]:
    """List the shards of whole tensors, each tensor's in the order in which the ranks first hold them.

    A tensor without a layout on any stage is whole on every rank. StrategyError lists all layouts that do not fit
    their tensors, or cut one tensor differently on two stages.

    Examples
    --------
    >>> from reshard.tensor import DType
    >>> spec = TensorSpec("w", DType.F32, (4,))
    >>> [(shard.number, shard.ranks) for shard in list_shards([spec], Strategy(4, ({"w": Layout((2, 2), ((1,),))},)))]
    [(0, (0, 1)), (1, (2, 3))]
    """
    shards: list[Shard] = []
    problems: list[str] = []
    for spec in specs:
        try:
            shards += _shards_of(spec, strategy)
        except StrategyError as error:
            problems.append(f"{shown(spec.name)}: {error.marked_message}")
    raise_all(StrategyError, "an iteration's metadata cannot hold some layouts", problems)
    return tuple(shards)


def _shards_of(spec: TensorSpec, strategy: Strategy) -> list[Shard]:
    held = [(stage, cut_layout(at[spec.name])) for stage, at in enumerate(strategy.stages) if spec.name in at]
    if not held:
        return [Shard(spec, 0, Box.whole(spec.shape), tuple(range(strategy.rank_count)))]
    ranks_of: dict[int, list[int]] = {}
    for stage, layout in held:
        layout.check(spec.shape)
        if layout.cuts != held[0][1].cuts:
            raise StrategyError(
                f"cut into {held[0][1].cuts} on stage {held[0][0]}, into {layout.cuts} on stage {stage}"
            )
        for rank, number in enumerate(shard_numbers(layout), stage * strategy.device_count):
            ranks_of.setdefault(number, []).append(rank)
    cuts = held[0][1].cuts
    return [Shard(spec, n, shard_box(spec.shape, cuts, n), tuple(ranks)) for n, ranks in ranks_of.items()]
