"""What a saved plan must keep to: anyone can write one, and its hash is no signature.

Nothing here plans anew. Whatever bounds work or memory is checked before what it bounds.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise, product

from ..formats.containers import Container
from ..formats.mindspore.ckpt import PIECE_BYTES
from ..formats.safetensors import MAX_AXIS_COUNT
from ..formats.strict_json import shown
from ..formats.weight_index import relative_key_problem
from ..tensor import Box, Shape, Strategy, TensorSpec, extent_of
from .catalog import Catalog, Entry
from .conversion import Conversion
from .json_fields import MAX_INTEGER, refused
from .outputs.output import Output, group_by_layout
from .targets.iteration_target import IterationTarget
from .targets.rank_target import RankTarget
from .targets.zarr_target import ChunkOutput, ZarrTarget

MAX_PAIRS = 1 << 24
"""Tensors over all outputs that are made one by one, and whatever else grows with two lists of the plan at once."""
MAX_RANK_COUNT = 1 << 20
MAX_SLICES = 1 << 27
"""Tensors over all ranks where ranks of one stage share a form: none is looked at by itself."""
MAX_HEADER_TEXT = 1 << 31
MAX_PIECES = 1 << 16  # 32 TiB in .ckpt tensors of more than one piece
MAX_ATTACHMENT_BYTES = 64 << 20
_MAX_CORNERS = 1 << 24


# The source.


def check_spec(spec: TensorSpec) -> None:
    """Refuse a tensor that no reader could hold."""
    if len(spec.shape) > MAX_AXIS_COUNT:
        raise refused(f"shape of {shown(spec.name)}", f"at most {MAX_AXIS_COUNT} axes", len(spec.shape))
    if math.prod(extent or 1 for extent in spec.shape) * spec.dtype.bits > MAX_INTEGER:
        raise refused(f"shape of {shown(spec.name)}", "less than 2**63 bits", list(spec.shape))
    if math.prod(spec.shape) * spec.dtype.bits % 8:
        raise refused(f"shape of {shown(spec.name)}", "elements that fill whole bytes", list(spec.shape))


def check_catalog(catalog: Catalog) -> None:
    """Refuse a catalog whose boxes do not tile its tensors, or that lie outside its objects."""
    for base in range(len(catalog.others) + 1):
        _check_keys([item.key for item in catalog.objects if item.base == base], "object of the source")
    if any(item.base > len(catalog.others) for item in catalog.objects):
        raise refused("base of an object", f"at most {len(catalog.others)}")
    _refuse_repeated([entry.spec.name for entry in catalog.entries], "tensor of the source")
    for entry in catalog.entries:
        _check_tiling(entry)
    _check_holders(catalog)


def _check_keys(keys: Sequence[str], what: str) -> None:
    for key in keys:
        if problem := relative_key_problem(key):
            raise refused(f"{what} {shown(key)}", "a plain relative key", problem)
    normal = [unicodedata.normalize("NFC", key) for key in keys]
    _refuse_repeated(normal, what)


def _refuse_repeated(names: Iterable[str], what: str) -> None:
    repeated = [each for each, count in Counter(names).items() if count > 1]
    if repeated:
        raise refused(f"{what} twice", "each once", repeated[0])


def _check_tiling(entry: Entry) -> None:
    extent, _ = extent_of(entry.spec)
    what, whole = f"boxes of {shown(entry.spec.name)}", Box.whole(extent)
    inside = []
    for placement in entry.placements:
        box = placement.box
        if len(box.start) != len(extent) or len(box.stop) != len(extent):
            raise refused(what, f"{len(extent)} axes", [list(box.start), list(box.stop)])
        held = whole.intersect(box)
        # It may hang over the end: where it begins must be inside.
        if min(box.shape, default=0) < 0 or (held is None and not box.is_empty):
            raise refused(what, f"boxes inside {list(extent)}", [list(box.start), list(box.stop)])
        inside += [held] if held else []
    if not whole.is_empty and not _tile(inside, extent):
        raise refused(what, f"to tile {list(extent)}, each element once")


def _tile(boxes: Sequence[Box], extent: Shape) -> bool:
    """Whether boxes cover every element once.

    They do just when their corners, signed by parity, add up to those of the whole: what a sum of
    boxes is everywhere follows from the steps at its corners. Axes that no box cuts need no corners.
    """
    cut = [axis for axis, size in enumerate(extent) if any(b.start[axis] or b.stop[axis] != size for b in boxes)]
    if len(boxes) << len(cut) > _MAX_CORNERS:
        raise refused("boxes of a tensor", f"at most {_MAX_CORNERS} corners", f"{len(boxes)} cut on {len(cut)} axes")
    signed: Counter[Shape] = Counter()
    for box in (*boxes, None):
        sides = [(box.start[axis], box.stop[axis]) if box else (0, extent[axis]) for axis in cut]
        for which in product((0, 1), repeat=len(cut)):
            sign = (-1) ** sum(which) * (1 if box else -1)
            signed[tuple(side[end] for side, end in zip(sides, which, strict=True))] += sign
    return not any(signed.values())


def _check_holders(catalog: Catalog) -> None:
    """Every box is held, inside its object, by bytes that are no other's."""
    taken: list[tuple[int, int, int]] = []
    for entry in catalog.entries:
        itemsize = extent_of(entry.spec)[1]
        for placement in entry.placements:
            nbytes = placement.box.element_count * itemsize
            if not placement.holders:
                raise refused(f"holders of {shown(entry.spec.name)}", "at least one", 0)
            for index, first in placement.holders:
                if index >= len(catalog.objects) or first + nbytes > catalog.objects[index].nbytes:
                    raise refused(
                        f"bytes of {shown(entry.spec.name)}", "inside an object of the source", [index, first]
                    )
                if nbytes:
                    taken.append((index, first, first + nbytes))
    for before, after in pairwise(sorted(taken)):
        if before[0] == after[0] and before[2] > after[1]:
            raise refused(
                "bytes of the source", "to be one tensor's", f"object {after[0]}, byte {after[1]}: two have it"
            )


# The target.


def check_strategy_size(device_count: int, stage_count: int) -> None:
    """Refuse more ranks than there are anywhere."""
    if not 0 < device_count * stage_count <= MAX_RANK_COUNT:
        raise refused("ranks of the strategy", f"1 to {MAX_RANK_COUNT}", device_count * stage_count)


def _check_target(conversion: Conversion) -> None:
    """Refuse what would make outputs without bound, before any is made."""
    target, tensor_count = conversion.target, len(conversion.catalog.entries)
    outputs = tensor_count
    if isinstance(target, RankTarget):
        rest = target.name.replace("{rank}", "")
        if "{" in rest or "}" in rest:
            raise refused("name of the target", "no braces but {rank}", target.name)
        _check_ranks(target.ranks, target.strategy)
    if isinstance(target, RankTarget | IterationTarget):
        ranks = _ranks_looked_at(target)
        outputs = len(ranks)
        is_shared = isinstance(target, RankTarget) and not target.remove_redundancy
        most = MAX_SLICES if is_shared else MAX_PAIRS
        bound("tensors over all ranks", _pair_count(conversion, target.strategy, ranks), most)
        if is_shared:
            bound("tensors over all forms", _form_count(conversion, target.strategy, ranks))
            bound("layouts over all ranks", _layout_count(conversion, target.strategy) * len(ranks))
        bound("tensors times stages", tensor_count * target.strategy.stage_count)
    if isinstance(target, ZarrTarget):
        target.check(conversion.tensors)
    bound("metadata over all outputs", outputs * (len(conversion.catalog.metadata) + len(conversion.catalog.texts)))
    _refuse_repeated(
        [*(tensor.spec.name for tensor in conversion.tensors), *conversion.catalog.texts], "name in the target"
    )


def _check_ranks(ranks: tuple[int, ...], strategy: Strategy) -> None:
    if any(a >= b for a, b in pairwise(ranks)) or (ranks and ranks[-1] >= strategy.rank_count):
        raise refused("ranks of the target", f"ascending, each once, below {strategy.rank_count}", list(ranks))


def _ranks_looked_at(target: RankTarget | IterationTarget) -> Sequence[int]:
    """Those whose boxes must be known to make the outputs."""
    if isinstance(target, IterationTarget) or target.remove_redundancy:
        return range(target.strategy.rank_count)
    return target.ranks


def _pair_count(conversion: Conversion, strategy: Strategy, ranks: Sequence[int]) -> int:
    known = strategy.names
    outside = sum(tensor.spec.name not in known for tensor in conversion.tensors)
    stages = Counter(map(strategy.stage_of, ranks))
    return sum(count * (outside + len(strategy.stages[stage])) for stage, count in stages.items())


def _form_count(conversion: Conversion, strategy: Strategy, ranks: Sequence[int]) -> int:
    """Tensors over all forms, at most: ranks of a stage have forms of their own where rows are split by hand."""
    by_hand = {
        number
        for number, layouts in enumerate(strategy.stages)
        if any(layout.row_split is not None for layout in layouts.values())
    }
    stages = {strategy.stage_of(rank) for rank in ranks}
    one_each = [next(rank for rank in ranks if strategy.stage_of(rank) == stage) for stage in stages - by_hand]
    return _pair_count(
        conversion, strategy, [*one_each, *(rank for rank in ranks if strategy.stage_of(rank) in by_hand)]
    )


def _layout_count(conversion: Conversion, strategy: Strategy) -> int:
    """Ways in which tensors are cut that ranks are told apart by, on all stages, at most."""
    shapes = {tensor.spec.name: tensor.spec.shape for tensor in conversion.tensors}
    found = {
        (number, layout, shapes[name] if layout.row_split else tuple(map(bool, shapes[name])))
        for number, layouts in enumerate(strategy.stages)
        for name, layout in layouts.items()
        if name in shapes
    }
    return len(found)


def _check_headers(outputs: Sequence[Output]) -> None:
    """Bound what stands between tensors, all together, before any is made."""
    nbytes = pieces = 0
    for output in (outputs[positions[0]] for positions in group_by_layout(outputs)):
        nbytes += sum(4 * len(spec.name) + 100 + 20 * len(spec.shape) for spec in output.specs)
        held = (*output.metadata.items(), *output.texts.items())
        nbytes += sum(4 * len(key) + 4 * len(value) for key, value in held)
        bound("bytes of all headers", nbytes, MAX_HEADER_TEXT)
        if output.container is Container.CKPT:
            pieces += sum(spec.nbytes // PIECE_BYTES for spec in output.specs)
            bound("pieces of large tensors", pieces, MAX_PIECES)
        if isinstance(output, ChunkOutput):
            pieces += output.padding_bytes >> 20
            bound("padding of chunks in MiB", pieces, MAX_PIECES)


# The whole.


def check_conversion(conversion: Conversion) -> None:
    """Refuse a conversion whose fields, each right alone, do not make one, or would grow without bound."""
    check_catalog(conversion.catalog)
    _check_attachments(conversion)
    _check_target(conversion)
    _check_keys([key for output in conversion.outputs for key in output.keys], "output")
    _check_headers(conversion.outputs)
    keys = [*conversion.keys, conversion.manifest_key]
    _check_keys(keys, "output")
    _check_parents(keys)


def _check_attachments(conversion: Conversion) -> None:
    """Refuse what is no small object of the source: it is held in memory whole."""
    for each in conversion.attachments:
        found = conversion.catalog.objects[each.index].nbytes if each.index < len(conversion.catalog.objects) else -1
        if found != each.nbytes or found > MAX_ATTACHMENT_BYTES:
            raise refused(f"attachment {shown(each.key)}", f"an object of at most {MAX_ATTACHMENT_BYTES} bytes", found)


def _check_parents(keys: Sequence[str]) -> None:
    """Refuse keys that are the directory of another: file systems cannot hold both."""
    known = set(keys)
    for key in keys:
        end = key.find("/")
        while end >= 0:
            if key[:end] in known:
                raise refused("output", "no key below another", key)
            end = key.find("/", end + 1)


def bound(what: str, count: int, most: int = MAX_PAIRS) -> None:
    """Refuse more than ``most`` of something."""
    if count > most:
        raise refused(what, f"at most {most}", count)
