"""The target of a conversion: tensors made of pieces of the source, and the objects that hold them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from ...errors import FormatError, PlanError, option, raise_all
from ...formats.containers import Container
from ...formats.frame import Frame
from ...tensor import Box, DType, Patch, Shape, TensorSpec, extent_of
from ..catalog import Catalog, SourceSharding
from .layouts import OutputLayout

BOOKKEEPING = frozenset({"format", "crc_num", "remove_redundancy"})
MAX_NAME_LENGTH = 4096
"""Longest name of a tensor, in characters."""

_FEW_PIECES = 8  # quicker to search one by one than by bisection


@dataclass(frozen=True, slots=True)
class Computation:
    """The computation of a target's values from a source tensor.

    Parameters
    ----------
    kernel, dtype
        ``cast``, ``dequantise`` or ``merge_lora``, and the dtype of the result, which has the source's shape.
    extras, blocks, packed
        Other entries of the catalog that the kernel takes: block scales, or the adapters A and B; the shape of
        the block that one scale applies to, in elements; and how many elements each of the source's own holds, side
        by side on the last axis. Patches count those.
    scaling, rank, working, transposed
        Of a LoRA: the factor of the product, the length of the axis that A and B share, the dtype of the
        computation, and whether the weight is stored transposed.
    on_overflow
        What becomes of finite values that the dtype cannot hold: ``inf``, ``saturate`` or ``refuse``.
    """

    kernel: str
    dtype: DType
    extras: tuple[int, ...] = ()
    blocks: Shape = ()
    packed: int = 1
    scaling: float = 0.0
    rank: int = 0
    working: DType | None = None
    transposed: bool = False
    on_overflow: str = "inf"


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a target tensor and the source tensor that fills it.

    ``source`` indexes the catalog's entries; without ``computation`` its bytes are moved unchanged.
    """

    patch: Patch
    source: int
    computation: Computation | None = None


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """One tensor of the target, whole; its pieces tile it exactly.

    ``tile_itemsize`` are the bytes of buffers for each element while it is computed, besides the part; 0 if nothing is.
    ``unit`` is best kept in one step: an axis, and a number of consecutive indices along it.
    """

    spec: TensorSpec
    pieces: tuple[Piece, ...]
    sharding: SourceSharding = SourceSharding.WHOLE
    tile_itemsize: int = 0
    unit: tuple[int, int] = (0, 1)
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        """Note where pieces end on axis 0, if they follow each other: stacked tensors have hundreds of them."""
        if len(self.pieces) > _FEW_PIECES and self.spec.shape:
            hulls = [piece.patch.target_hull for piece in self.pieces]
            spans = [(hull.start[0], hull.stop[0]) for hull in hulls]
            if all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(spans)):
                object.__setattr__(self, "_ends", tuple(stop for _, stop in spans))

    def pieces_near(self, box: Box) -> Sequence[Piece]:
        """Return the pieces that may fill some of a box, in their order."""
        if not self._ends:
            return self.pieces
        first = bisect_right(self._ends, box.start[0])
        last = bisect_left(self._ends, box.stop[0])
        # Pieces beyond the first that ends after the box still overlap it if they are beside that one on other axes.
        while last < len(self.pieces) and self.pieces[last].patch.target_hull.start[0] < box.stop[0]:
            last += 1
        return self.pieces[first:last]


@dataclass(frozen=True)
class Output:
    """One distinct object of the target, under one key or, for replicas, several.

    Parameters
    ----------
    keys
        Relative to the target's URL, at least one.
    tensors, boxes, specs
        Indices into the target's tensors, in the order of the object; the box that it holds of each; and the
        tensors as its header lists them.
    metadata, texts
        Other content of the object, as far as its format has a place for it.
    layout
        What it shares with other outputs, if anything; boxes are then derived on demand.
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
        """Everything of the object except its tensors' elements."""
        if self.layout is not None:
            return self.layout.frame
        return self.container.definition.make_frame(self.specs, self.metadata, self.texts)

    @property
    def nbytes(self) -> int:
        """Bytes of the object."""
        return self.frame.nbytes


@dataclass(frozen=True, slots=True)
class Document:
    """A small object whose bytes planning knows (an index, say)."""

    key: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Attachment:
    """A small object of the source that is written unchanged (a tokenizer, say): the catalog's ``index``-th."""

    key: str
    index: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SourceMetadata:
    """Content of the source besides tensors, and the names of tensors that were dropped.

    ``metadata`` is about the checkpoint as a whole, ``notes_of`` about one tensor, by the tensor's name in the target:
    MindSpore marks packed int4 there, and the mark goes with its tensor.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    notes_of: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    @classmethod
    def of(cls, catalog: Catalog, renamed: Mapping[str, str]) -> SourceMetadata:
        """Divide a source's metadata into notes about tensors and the rest."""
        dropped = frozenset(catalog.dropped)
        if not catalog.metadata:
            return cls(texts=catalog.texts, dropped=dropped)
        names = {*(entry.spec.name for entry in catalog.entries), *dropped}
        general = {k: v for k, v in catalog.metadata.items() if k not in BOOKKEEPING and k not in names}
        notes = {renamed.get(k, k): v for k, v in catalog.metadata.items() if k in names}
        return cls(general, catalog.texts, notes, dropped)

    def metadata_for(self, names: Collection[str], **own: str) -> dict[str, str]:
        """Return the metadata of an object that holds some tensors; ``own`` is its format's bookkeeping."""
        notes = {name: self.notes_of[name] for name in names if name in self.notes_of} if self.notes_of else {}
        return {**self.metadata, **notes, **own}


def file_order(tensors: Sequence[TargetTensor]) -> list[int]:
    """Return the order of tensors in an object: widest dtype first, then by name, as the safetensors library does."""
    return sorted(range(len(tensors)), key=lambda i: (-tensors[i].spec.dtype.order, tensors[i].spec.name))


def make_output(
    keys: Sequence[str],
    held: Sequence[tuple[int, Box]],
    tensors: Sequence[TargetTensor],
    metadata: Mapping[str, str],
    container: Container = Container.SAFETENSORS,
    texts: Mapping[str, str] | None = None,
) -> Output:
    """Make an output of some boxes of tensors, given in file order."""
    specs = tuple(local_spec(tensors[index].spec, box) for index, box in held)
    indices, boxes = tuple(i for i, _ in held), tuple(box for _, box in held)
    return Output(tuple(keys), indices, boxes, specs, metadata, container, texts or {})


def group_by_layout(outputs: Sequence[Output]) -> Iterator[list[int]]:
    """Yield the positions of the outputs of each layout, ascending; an output without a layout is alone."""
    found: dict[int, list[int]] = {}
    for position, output in enumerate(outputs):
        found.setdefault(id(output.layout or output), []).append(position)
    yield from found.values()


def whole_box(tensor: TargetTensor) -> Box:
    """Return the box of a whole tensor."""
    return Box.whole(extent_of(tensor.spec)[0])


def local_spec(spec: TensorSpec, box: Box) -> TensorSpec:
    """Return a tensor's spec in an object that holds a box of it."""
    if spec.dtype.is_sub_byte or (shape := box.shape) == spec.shape:
        return spec
    return TensorSpec(spec.name, spec.dtype, shape)


def sample(names: Sequence[str], shown: int = 3) -> str:
    """Return the first few of many names, as text."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def check_outputs(outputs: Sequence[Output], others: Sequence[Document | Attachment], max_object_bytes: int) -> None:
    """Raise PlanError if outputs have equal keys, cannot hold their content or are too large."""
    distinct = [outputs[positions[0]] for positions in group_by_layout(outputs)]
    for output in distinct:
        try:
            _ = output.frame
        except FormatError as error:
            message = f"{output.keys[0]} cannot be written: {error.marked_message}"
            raise PlanError(message, problems=error.marked_problems, hint=error.marked_hint) from error
    losing = [output for output in distinct if output.texts and not output.container.definition.has_texts]
    formats = " and ".join(sorted({output.container.value for output in losing}))
    raise_all(
        PlanError,
        f"{formats} cannot hold text values",
        sorted({name for output in losing for name in output.texts}),
        hint=f"Drop them with {option('drop')}, or write .ckpt with {option('format', 'ckpt')}.",
    )
    names = {spec.name for output in distinct for spec in output.specs}
    long = [f"{name[:80]}...: {len(name)}" for name in sorted(names) if len(name) > MAX_NAME_LENGTH]
    hint = f"Shorten them with {option('rename')}."
    raise_all(PlanError, f"names of more than {MAX_NAME_LENGTH} characters", long, hint=hint)
    large = [f"{output.keys[0]}: {output.nbytes} bytes" for output in outputs if output.nbytes > max_object_bytes]
    raise_all(PlanError, f"outputs are larger than the store accepts ({max_object_bytes} bytes)", large)
    keys = [key for output in outputs for key in output.keys] + [other.key for other in others]
    twice = sorted(key for key, count in Counter(keys).items() if count > 1)
    raise_all(PlanError, "several outputs would have the same key", twice, hint="Use {rank} in the name.")
