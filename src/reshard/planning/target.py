"""What a conversion makes: tensors out of pieces of the source, shared out over outputs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

from ..errors import PlanError, StrategyError, raise_all
from ..formats.safetensors import plan_header
from ..formats.weight_index import encode_weight_index
from ..tensor import Box, Shape, Strategy, TensorSpec
from .catalog import Catalog, extent_of

__all__ = [
    "Document",
    "FullTarget",
    "Output",
    "Piece",
    "RankTarget",
    "Target",
    "TargetTensor",
    "check_outputs",
    "tensors_of",
]

_NUMBER = re.compile("[0-9]+")
_BOOKKEEPING = frozenset({"format", "crc_num", "remove_redundancy"})


@dataclass(frozen=True, slots=True)
class Piece:
    """One box of a target tensor and the source tensor that fills it.

    ``source`` indexes the catalog's entries; the box begins at ``source_start`` there.
    """

    target_box: Box
    source: int
    source_start: Shape


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """One tensor of the target, whole; its pieces tile it exactly."""

    spec: TensorSpec
    pieces: tuple[Piece, ...]


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
        The same as the object's header tells it.
    metadata
        Of the header.
    """

    keys: tuple[str, ...]
    tensors: tuple[int, ...]
    boxes: tuple[Box, ...]
    specs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]

    @cached_property
    def header(self) -> bytes:
        """Everything that stands before the first tensor's bytes."""
        return plan_header(self.specs, self.metadata).data

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First byte of each tensor in the object, and one past the last."""
        starts = [len(self.header)]
        for spec in self.specs:
            starts.append(starts[-1] + spec.nbytes)
        return tuple(starts)

    @property
    def nbytes(self) -> int:
        """Bytes of the object."""
        return self.starts[-1]


@dataclass(frozen=True, slots=True)
class Document:
    """A small object whose bytes are known while planning (an index, say)."""

    key: str
    data: bytes


def tensors_of(catalog: Catalog) -> tuple[TargetTensor, ...]:
    """Take every tensor of a source as it is, one piece each."""
    return tuple(
        TargetTensor(entry.spec, (Piece(Box.whole(extent), index, (0,) * len(extent)),))
        for index, entry in enumerate(catalog.entries)
        for extent, _ in [extent_of(entry.spec)]
    )


@dataclass(frozen=True, slots=True)
class RankTarget:
    """One object a rank, cut as a strategy says.

    Tensors without a layout in the strategy are whole on every rank, as MindSpore keeps them.

    Parameters
    ----------
    strategy
        Layouts of the target.
    ranks
        Those to write, ascending.
    name
        Key of a rank's object; ``{rank}`` stands for its number.
    """

    strategy: Strategy
    ranks: tuple[int, ...]
    name: str

    def outputs(self, tensors: Sequence[TargetTensor], metadata: Mapping[str, str]) -> tuple[Output, ...]:
        """Share the tensors out over the ranks; ranks with equal content become one output.

        Raises
        ------
        StrategyError
            Layouts that do not fit their tensors, all of them listed.
        """
        order = _file_order(tensors)
        self._check(tensors)
        distinct: dict[tuple[object, ...], tuple[list[str], list[tuple[int, Box]]]] = {}
        for rank in self.ranks:
            held = [(index, box) for index in order for box in self._box(tensors[index], rank)]
            keys, _ = distinct.setdefault(tuple(held), ([], held))
            keys.append(self.name.replace("{rank}", str(rank)))
        names = {tensor.spec.name for tensor in tensors}
        return tuple(
            _output(tuple(keys), held, tensors, _carried(metadata, names, "ms", held, tensors))
            for keys, held in distinct.values()
        )

    def documents(self, _outputs: Sequence[Output], _tensors: Sequence[TargetTensor]) -> tuple[Document, ...]:
        """Rank shards need no index."""
        return ()

    def notes(self, tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """What a person should know about names on one side only."""
        names, held = {tensor.spec.name for tensor in tensors}, self.strategy.names
        return (
            *_named(sorted(names - held), "have no layout in the target strategy: whole on every rank"),
            *_named(sorted(held - names), "of the target strategy are not in the source: not written"),
            *_named(sorted((names & held) - self._written), "are on ranks that were not asked for: not written"),
        )

    @property
    def _written(self) -> frozenset[str]:
        """Names with a layout on the stage of some rank to write."""
        stages = {self.strategy.stage_of(rank) for rank in self.ranks}
        return frozenset().union(*(self.strategy.stages[stage] for stage in stages))

    def _box(self, tensor: TargetTensor, rank: int) -> tuple[Box, ...]:
        """What a rank holds of a tensor: one box, or none on another stage."""
        extent, _ = extent_of(tensor.spec)
        layout = self.strategy.layout(tensor.spec.name, rank)
        if layout is not None:
            if tensor.spec.dtype.is_sub_byte:
                return (Box.whole(extent),)  # checked to be uncut
            return (layout.box_of(extent, rank % self.strategy.device_count),)
        return () if tensor.spec.name in self.strategy.names else (Box.whole(extent),)

    def _check(self, tensors: Sequence[TargetTensor]) -> None:
        self._check_names(tensors)
        problems = []
        for tensor in tensors:
            for stage, layouts in enumerate(self.strategy.stages):
                layout = layouts.get(tensor.spec.name)
                if layout is None:
                    continue
                try:
                    layout.check(tensor.spec.shape)
                    if tensor.spec.dtype.is_sub_byte and {*layout.cuts, layout.optimizer_pieces} - {1}:
                        raise StrategyError(f"{tensor.spec.dtype} has no whole bytes to cut between")
                except StrategyError as error:
                    problems.append(f"{tensor.spec.name} (stage {stage}): {error.message}")
        hint = "Is this the strategy of this very model? Axes must be as many as it maps, and divide by its cuts."
        raise_all(StrategyError, "the target strategy does not fit the tensors", problems, hint)

    def _check_names(self, tensors: Sequence[TargetTensor]) -> None:
        """Refuse a strategy of another model or another naming: its weights would be left whole on every rank."""
        known, names = self.strategy.names, {tensor.spec.name for tensor in tensors}
        if tensors and not known & names:
            raise StrategyError(
                f"no tensor of the source is named in the target strategy: expected names like "
                f"{_sample(sorted(known))}, found {_sample([t.spec.name for t in tensors])}",
                hint="Is this the strategy of another model, or of another naming of this one?",
            )
        strange, kinds = sorted(names - known), {_kind(name) for name in known}
        raise_all(
            StrategyError,
            "the target strategy has layouts for some layers and none for others",
            [f"{name}: no layout" for name in strange if _kind(name) in kinds],
            hint="A pipeline stage is missing, or this is the strategy of a smaller model: "
            "name the merged strategy, or the prefix that holds the files of all stages.",
        )
        unmet = sorted(name for name in known - names if not _is_state(name, names))
        if unmet and any(len(t.spec.shape) > 1 and t.spec.name not in known for t in tensors):
            sides = zip_longest(
                (f"only in the strategy: {name}" for name in unmet), (f"only in the source: {name}" for name in strange)
            )
            raise StrategyError(
                f"the target strategy and the source name tensors differently: {len(unmet)} names of the strategy are "
                f"not in the source, {len(strange)} tensors of the source are not in the strategy",
                problems=[problem for pair in sides for problem in pair if problem],
                hint="Bring both to one naming. To leave tensors whole on every rank, say so: a layout file's rule "
                '{match: "*", split: []} does.',
            )


@dataclass(frozen=True, slots=True)
class FullTarget:
    """Whole tensors in one object, or in several with an index.

    Parameters
    ----------
    name
        Key of the object; with ``{part}`` and ``{parts}`` in it there may be several, numbered from 1.
    single_name
        Key to use instead when one object is enough.
    index_name
        Key of the index that is written when there are several; empty for none.
    format
        The header's ``format``: ``pt`` opens in Hugging Face's tools, ``ms`` is MindSpore's.
    object_bytes
        Tensor bytes in one object, at most, unless a single tensor is larger.
    """

    name: str
    single_name: str
    index_name: str
    format: str
    object_bytes: int

    def outputs(self, tensors: Sequence[TargetTensor], metadata: Mapping[str, str]) -> tuple[Output, ...]:
        """Fill one object after the other, in the order of the source."""
        shares: list[list[int]] = [[]]
        filled = 0
        for index, tensor in enumerate(tensors):
            if shares[-1] and "{part" in self.name and filled + tensor.spec.nbytes > self.object_bytes:
                shares.append([])
                filled = 0
            shares[-1].append(index)
            filled += tensor.spec.nbytes
        order = {index: position for position, index in enumerate(_file_order(tensors))}
        names = {tensor.spec.name for tensor in tensors}
        outputs = []
        for part, share in enumerate(shares, start=1):
            held = [(i, Box.whole(extent_of(tensors[i].spec)[0])) for i in sorted(share, key=order.__getitem__)]
            carried = _carried(metadata, names, self.format, held, tensors)
            outputs.append(_output((self._key(part, len(shares)),), held, tensors, carried))
        return tuple(outputs)

    def documents(self, outputs: Sequence[Output], _tensors: Sequence[TargetTensor]) -> tuple[Document, ...]:
        """The index of several objects."""
        if len(outputs) < 2 or not self.index_name:
            return ()
        weight_map = {spec.name: output.keys[0] for output in outputs for spec in output.specs}
        total_bytes = sum(spec.nbytes for output in outputs for spec in output.specs)
        return (Document(self.index_name, encode_weight_index(weight_map, total_bytes)),)

    def notes(self, _tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """Nothing is on one side only."""
        return ()

    def _key(self, part: int, parts: int) -> str:
        if parts == 1:
            return self.single_name
        key = self.name
        for field, number in (("part", part), ("parts", parts)):
            key = key.replace(f"{{{field}:05d}}", f"{number:05d}").replace(f"{{{field}}}", str(number))
        return key


Target = RankTarget | FullTarget


def _file_order(tensors: Sequence[TargetTensor]) -> list[int]:
    """Order in a file, as the safetensors library writes it: widest dtype first, then by name."""
    return sorted(range(len(tensors)), key=lambda i: (-tensors[i].spec.dtype.order, tensors[i].spec.name))


def _output(
    keys: tuple[str, ...], held: Sequence[tuple[int, Box]], tensors: Sequence[TargetTensor], metadata: Mapping[str, str]
) -> Output:
    specs = tuple(_local_spec(tensors[index].spec, box) for index, box in held)
    return Output(keys, tuple(i for i, _ in held), tuple(box for _, box in held), specs, metadata)


def _carried(
    metadata: Mapping[str, str],
    names: Collection[str],
    form: str,
    held: Sequence[tuple[int, Box]],
    tensors: Sequence[TargetTensor],
) -> dict[str, str]:
    """Metadata for an object that holds some of the tensors.

    MindSpore notes packed int4 under the tensor's own name: such a note goes where its tensor goes.
    """
    kept = {key: value for key, value in metadata.items() if key not in _BOOKKEEPING}
    if kept:
        here = {tensors[index].spec.name for index, _ in held}
        kept = {key: value for key, value in kept.items() if key in here or key not in names}
    return kept | {"format": form}


def _local_spec(spec: TensorSpec, box: Box) -> TensorSpec:
    return spec if spec.dtype.is_sub_byte else TensorSpec(spec.name, spec.dtype, box.shape)


def _is_state(name: str, names: Collection[str]) -> bool:
    """Whether a name is of an optimizer state: one of ``names`` behind a prefix and a dot."""
    return any(name[at + 1 :] in names for at, character in enumerate(name) if character == ".")


def _kind(name: str) -> str:
    """A name without its numbers: what is the same in every layer."""
    return _NUMBER.sub("#", name)


def _sample(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def _named(names: Sequence[str], what: str) -> tuple[str, ...]:
    return (f"{len(names)} tensors {what}: {_sample(names, 5)}",) if names else ()


def check_outputs(outputs: Sequence[Output], documents: Sequence[Document], max_object_bytes: int) -> None:
    """Raise PlanError when two outputs would have one key, or one is larger than the store takes."""
    large = [f"{output.keys[0]}: {output.nbytes} bytes" for output in outputs if output.nbytes > max_object_bytes]
    raise_all(PlanError, f"outputs are larger than the store takes, {max_object_bytes} bytes", large)
    keys = [key for output in outputs for key in output.keys] + [document.key for document in documents]
    twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
    raise_all(PlanError, "several outputs would have one key", twice, hint="Use {rank} in the name.")
