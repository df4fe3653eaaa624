"""What a conversion writes: tensors made of pieces of the source, and the objects that hold them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from ...errors import FormatError, PlanError, option, raise_all
from ...formats.containers import Container, frame_of
from ...formats.frame import Frame
from ...tensor import Box, DType, Patch, Shape, TensorSpec, extent_of, plain_patch
from ..catalog import Catalog, SourceSharding
from .layouts import OutputLayout

BOOKKEEPING = frozenset({"format", "crc_num", "remove_redundancy"})
MAX_NAME_LENGTH = 4096
"""Longest name of a tensor that a plan can say, in characters."""

_FEW = 8  # pieces that are looked through faster than looked up


@dataclass(frozen=True, slots=True)
class Computation:
    """How values of a source tensor are computed before they are laid into a target.

    Parameters
    ----------
    kernel
        ``cast``, ``dequantise`` or ``merge_lora``.
    dtype
        Of the result, which has the source's shape.
    extras
        Other entries of the catalog that the kernel needs: block scales; or A and B.
    blocks
        Elements that one scale is for, on each axis.
    scaling, rank, working, transposed
        Of a LoRA: what the product is multiplied by, the axis that A and B share, the type it is computed in,
        and whether the weight is stored turned over.
    """

    kernel: str
    dtype: DType
    extras: tuple[int, ...] = ()
    blocks: Shape = ()
    scaling: float = 0.0
    rank: int = 0
    working: DType | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """One box of a target tensor and the source tensor that fills it.

    ``source`` indexes the catalog's entries; without ``making`` its bytes are taken as they are.
    """

    patch: Patch
    source: int
    computation: Computation | None = None


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """One tensor of the target, whole; its pieces tile it exactly.

    Parameters
    ----------
    sharding
        How the source held it.
    tile_itemsize
        Bytes that are held besides for each element while it is computed; 0 where nothing is.
    unit
        What is best filled at one stroke: an axis, and consecutive indices along it.
    """

    spec: TensorSpec
    pieces: tuple[Piece, ...]
    sharding: SourceSharding = SourceSharding.WHOLE
    tile_itemsize: int = 0
    unit: tuple[int, int] = (0, 1)
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        """Stacked tensors have hundreds of pieces one after the other: remember where each ends on axis 0."""
        if len(self.pieces) > _FEW and self.spec.shape:
            hulls = [piece.patch.target_hull for piece in self.pieces]
            spans = [(hull.start[0], hull.stop[0]) for hull in hulls]
            if all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(spans)):
                object.__setattr__(self, "_ends", tuple(stop for _, stop in spans))

    def pieces_near(self, box: Box) -> Sequence[Piece]:
        """The pieces that may fill some of a box, in their order."""
        if not self._ends:
            return self.pieces
        first = bisect_right(self._ends, box.start[0])
        last = bisect_left(self._ends, box.stop[0])
        # Those that end beyond the box begin before its end only if they are side by side with the first such.
        while last < len(self.pieces) and self.pieces[last].patch.target_hull.start[0] < box.stop[0]:
            last += 1
        return self.pieces[first:last]


@dataclass(frozen=True)
class Output:
    """One distinct object of the target, under one key or, for replicas, several.

    Parameters
    ----------
    keys
        Counted from the target's URL, at least one.
    tensors
        Indices into the target's tensors, in the order of the object.
    boxes
        What of each tensor this object holds.
    specs
        The same as the object itself tells it.
    metadata, texts
        What else the object holds, as far as its format can.
    container
        Its format.
    layout
        What it shares with other outputs, if it does; boxes are then derived when they are asked for.
    """

    keys: tuple[str, ...]
    tensors: tuple[int, ...]
    boxes: Sequence[Box]
    specs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    container: Container = Container.SAFETENSORS
    texts: Mapping[str, str] = field(default_factory=dict)
    layout: OutputLayout | None = field(default=None, repr=False, compare=False)

    @cached_property
    def frame(self) -> Frame:
        """Everything of the object but its tensors' elements."""
        if self.layout is not None:
            return self.layout.frame
        return frame_of(self.container, self.specs, self.metadata, self.texts)

    @property
    def nbytes(self) -> int:
        """Bytes of the object."""
        return self.frame.nbytes


@dataclass(frozen=True, slots=True)
class Document:
    """A small object whose bytes are known while planning (an index, say)."""

    key: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Attachment:
    """A small object of the source that is copied as it is (a tokenizer, say): the catalog's ``index``-th."""

    key: str
    index: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SourceMetadata:
    """What outputs hold besides tensors, and what was left out.

    Parameters
    ----------
    metadata
        The source's, by its own names of tensors.
    texts
        Values that are text.
    notes_of
        What the source's metadata says of a tensor, by the tensor's name in the target: MindSpore notes
        packed int4 there, and such a note goes where its tensor goes.
    dropped
        Names of tensors that were asked to be left out.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    notes_of: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    @classmethod
    def of(cls, catalog: Catalog, renamed: Mapping[str, str]) -> SourceMetadata:
        """Sort a source's metadata into what speaks of tensors and what does not."""
        dropped = frozenset(catalog.dropped)
        if not catalog.metadata:
            return cls(texts=catalog.texts, dropped=dropped)
        names = {*(entry.spec.name for entry in catalog.entries), *dropped}
        general = {k: v for k, v in catalog.metadata.items() if k not in BOOKKEEPING and k not in names}
        notes = {renamed.get(k, k): v for k, v in catalog.metadata.items() if k in names}
        return cls(general, catalog.texts, notes, dropped)

    def metadata_for(self, names: Collection[str], **own: str) -> dict[str, str]:
        """Metadata of an object that holds some tensors; ``own`` is its format's bookkeeping."""
        notes = {name: self.notes_of[name] for name in names if name in self.notes_of} if self.notes_of else {}
        return {**self.metadata, **notes, **own}


def tensors_of(catalog: Catalog, renamed: Mapping[str, str]) -> tuple[TargetTensor, ...]:
    """Take every tensor of a source as it is, one piece each, under its new name if it has one."""
    tensors = []
    for index, entry in enumerate(catalog.entries):
        spec, (extent, _) = entry.spec, extent_of(entry.spec)
        if spec.name in renamed:
            spec = TensorSpec(renamed[spec.name], spec.dtype, spec.shape)
        tensors.append(TargetTensor(spec, (Piece(plain_patch(extent), index),), entry.sharding))
    return tuple(tensors)


def file_order(tensors: Sequence[TargetTensor]) -> list[int]:
    """Order in a file, as the safetensors library writes it: widest dtype first, then by name."""
    return sorted(range(len(tensors)), key=lambda i: (-tensors[i].spec.dtype.order, tensors[i].spec.name))


def make_output(
    keys: Sequence[str],
    held: Sequence[tuple[int, Box]],
    tensors: Sequence[TargetTensor],
    metadata: Mapping[str, str],
    container: Container = Container.SAFETENSORS,
    texts: Mapping[str, str] | None = None,
) -> Output:
    """Make an output of some boxes of tensors, in file order."""
    specs = tuple(local_spec(tensors[index].spec, box) for index, box in held)
    indices, boxes = tuple(i for i, _ in held), tuple(box for _, box in held)
    return Output(tuple(keys), indices, boxes, specs, metadata, container, texts or {})


def group_by_layout(outputs: Sequence[Output]) -> Iterator[list[int]]:
    """Positions of outputs that share a form, those of each form together and in order."""
    found: dict[int, list[int]] = {}
    for position, output in enumerate(outputs):
        found.setdefault(id(output.layout or output), []).append(position)
    yield from found.values()


def whole_box(tensor: TargetTensor) -> Box:
    """All of a tensor."""
    return Box.whole(extent_of(tensor.spec)[0])


def local_spec(spec: TensorSpec, box: Box) -> TensorSpec:
    """A tensor as an object tells it that holds a box of it."""
    return spec if spec.dtype.is_sub_byte else TensorSpec(spec.name, spec.dtype, box.shape)


def sample(names: Sequence[str], shown: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def check_outputs(outputs: Sequence[Output], others: Sequence[Document | Attachment], max_object_bytes: int) -> None:
    """Raise PlanError when two outputs would have one key, or one cannot hold what it should or is too large."""
    distinct = [outputs[positions[0]] for positions in group_by_layout(outputs)]
    for output in distinct:
        try:
            _ = output.frame
        except FormatError as error:
            message = f"{output.keys[0]} cannot be written: {error.message}"
            raise PlanError(message, problems=error.problems, hint=error.hint) from error
    lost = {name for output in distinct if output.container is Container.SAFETENSORS for name in output.texts}
    raise_all(
        PlanError,
        "safetensors cannot hold text values",
        sorted(lost),
        hint=f"Leave them out with {option('drop')}, or write .ckpt with {option('format', 'ckpt')}.",
    )
    names = {spec.name for output in distinct for spec in output.specs}
    long = [f"{name[:80]}...: {len(name)}" for name in sorted(names) if len(name) > MAX_NAME_LENGTH]
    raise_all(PlanError, f"names of more than {MAX_NAME_LENGTH} characters", long, hint="--rename shortens them.")
    large = [f"{output.keys[0]}: {output.nbytes} bytes" for output in outputs if output.nbytes > max_object_bytes]
    raise_all(PlanError, f"outputs are larger than the store takes, {max_object_bytes} bytes", large)
    keys = [key for output in outputs for key in output.keys] + [other.key for other in others]
    twice = sorted(key for key, count in Counter(keys).items() if count > 1)
    raise_all(PlanError, "several outputs would have one key", twice, hint="Use {rank} in the name.")
