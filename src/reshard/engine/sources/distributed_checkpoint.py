"""Distributed checkpoints: ``.metadata`` and the objects that it names, by torch, Megatron Core or HyperParallel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from ...errors import CatalogError, FormatError, option, raise_all
from ...formats.containers import Container, read_header
from ...formats.dcp_metadata import (
    DcpMetadata,
    DcpPiece,
    boxes_of_range,
    flattened_block,
    join_metadata,
    parse_dcp_metadata,
)
from ...formats.strict_json import parse_json_object, shown
from ...formats.torch_zip import ZIP_START, StoredTensor, scan_torch_zip
from ...planning.catalog import Catalog, SourceObject
from ...planning.outputs.output import sample
from ...planning.sources.piece_source import HeldPiece, PieceSource, piece_catalog
from ...planning.sources.source_headers import with_selection_notes
from ...storage import Location, ObjectInfo, read_object
from ...tensor import ByteRange, TensorSpec
from ..workers import Workers
from .headers import raise_together, range_reader
from .item_reader import ItemReader
from .replica_check import compare_pieces
from .source_format import Listing, SourceFormat, SourceOptions, refuse_other_format, refuse_rank_options

METADATA = ".metadata"
_OF_RANK = re.compile(r"__(\d{1,6})\.metadata|\.rank(\d{1,6})_metadata|(\d{1,6})\.metadata")
_ITEMS = re.compile(r"[^/]+\.distcp|_rank\d+_\.safetensors")
_MEGATRON = "metadata.json"
_MAX_METADATA_BYTES = 512 << 20
_SHOWN = 5

_Job = tuple[TensorSpec, DcpPiece]


@dataclass(frozen=True, slots=True)
class DistributedCheckpoint(SourceFormat):
    """What the metadata says, and all objects by their names relative to ``base``."""

    expected: ClassVar[str] = METADATA

    base: Location
    kind: str
    objects: Mapping[str, ObjectInfo]
    metadata: DcpMetadata
    notes: tuple[str, ...]
    index_bytes: int

    @classmethod
    def detect(cls, listing: Listing, _options: SourceOptions, _workers: Workers) -> Self | None:
        """Take the metadata of all ranks, or else that of each."""
        location, infos = listing.location, listing.objects
        has_items = any(_ITEMS.fullmatch(name) for name in infos)
        of_ranks = {int(next(filter(None, m.groups()))): name for name in infos if (m := _OF_RANK.fullmatch(name))}
        names = [METADATA] if METADATA in infos else [of_ranks[rank] for rank in sorted(of_ranks)]
        if not has_items and (listing.tensor_names or names != [METADATA]):
            return None
        if not names:
            raise CatalogError(
                f"{location.url}: expected {METADATA} beside .distcp objects, found none: it is written last",
                hint="The save did not finish, or the object was not copied: names that begin with a dot are easily "
                "left behind.",
            )
        if METADATA not in infos and sorted(of_ranks) != list(range(len(of_ranks))):
            found = ", ".join(names[:_SHOWN])
            raise CatalogError(
                f"{location.url}: the metadata of ranks is missing: expected ranks from 0 on, found {found}"
            )
        documents, nbytes = {}, 0
        for name in names:
            place = location.child(name)
            data = read_object(place, _MAX_METADATA_BYTES)
            documents[place.url] = parse_dcp_metadata(data, place.url)
            nbytes += len(data)
        kind = "distributed checkpoint"
        if _MEGATRON in infos:
            kind = _megatron_kind(location.child(_MEGATRON)) or kind
        metadata = next(iter(documents.values())) if len(documents) == 1 else join_metadata(documents)
        notes = [f"{len(names)} documents of ranks are joined"] if METADATA not in infos else []
        return cls(location, kind, infos, metadata, (*notes, *_notes(metadata, infos)), nbytes)

    def read(self, options: SourceOptions, workers: Workers) -> Catalog:
        """Join the pieces, and compare those that are stored several times."""
        catalog = compare_pieces(self._catalog(options, workers), self.base, workers)
        return with_selection_notes(catalog, options.names)

    def contents(self, options: SourceOptions, workers: Workers) -> Catalog:
        """Join the pieces without comparing copies."""
        return with_selection_notes(self._catalog(options, workers), options.names)

    def _catalog(self, options: SourceOptions, workers: Workers) -> Catalog:
        url = self.base.url
        refuse_rank_options(url, self.kind, options)
        refuse_other_format(url, self.kind, None, options)
        jobs = self._jobs(options)
        located: dict[TensorSpec, list[HeldPiece]] = {
            self._whole(tensor.spec): []
            for name, tensor in self.metadata.tensors.items()
            if options.names.is_kept(name)
        }
        problems: dict[str, FormatError] = {}
        found: dict[str, list[HeldPiece]] = {}
        read_bytes: dict[str, int] = {}

        def read(key: str) -> None:
            place, info = self.base.child(key), self.objects[key]
            read_range = range_reader(place, options)
            reader = ItemReader(lambda span: read_range(place, span, info.etag))
            try:
                found[key] = list(_located(reader, key, info.nbytes, jobs[key]))
            except FormatError as error:
                problems[key] = error.at(place.url)
            read_bytes[key] = reader.read_bytes

        workers.map(read, jobs)
        raise_together(problems, f"{url}: {len(problems)} objects cannot be read")
        for key, some in jobs.items():
            for (spec, _), piece in zip(some, found[key], strict=True):
                located[self._whole(spec)] += self._unflattened(spec, piece)
        objects = {key: SourceObject(key, info.nbytes, info.etag) for key, info in self.objects.items()}
        present = [*self.metadata.tensors, *self.metadata.values]
        nbytes = self.index_bytes + sum(read_bytes.values())
        source = PieceSource(url, self.kind, objects, present, options.names, self.notes, nbytes)
        return piece_catalog(source, located)

    def _whole(self, spec: TensorSpec) -> TensorSpec:
        """Return a tensor as it was before its blocks were flattened."""
        return replace(spec, shape=self.metadata.flattened.get(spec.name, spec.shape))

    def _unflattened(self, spec: TensorSpec, piece: HeldPiece) -> Iterator[HeldPiece]:
        """Yield the boxes that a piece has of the tensor as it was."""
        original = self.metadata.flattened.get(spec.name)
        block = None if original is None else flattened_block(spec.shape, original)
        if block is None:
            yield piece
            return
        for box, before in boxes_of_range(piece.box, block):
            yield HeldPiece(box, piece.key, piece.start + spec.dtype.nbytes(before))

    def _jobs(self, options: SourceOptions) -> dict[str, list[_Job]]:
        """Return what to look up in each object; CatalogError for pieces that cannot be there."""
        jobs: dict[str, list[_Job]] = {}
        problems: list[str] = []
        taken: dict[tuple[str, str], DcpPiece] = {}
        for name, tensor in self.metadata.tensors.items():
            if not options.names.is_kept(name):
                continue
            original = self.metadata.flattened.get(name)
            if original is not None and flattened_block(tensor.spec.shape, original) is None:
                found = list(tensor.spec.shape)
                problems.append(f"{name}: expected flattened blocks of {list(original)}, found the shape {found}")
                continue
            for piece in tensor.pieces:
                problem = self._problem(piece)
                if piece.nbytes < 0 and taken.setdefault((piece.path, piece.key), piece) is not piece:
                    problem = (
                        f"{piece.path} holds one tensor {shown(piece.key)}, and two pieces should be it: one is lost"
                    )
                if original is not None and any(extent != 1 for extent in piece.box.shape[:-1]):
                    problem = "expected a range of one flattened block"
                if problem:
                    problems.append(f"{name} {piece.box.text}: {problem}")
                else:
                    jobs.setdefault(piece.path, []).append((tensor.spec, piece))
        hint = f"Was the checkpoint copied whole? Tensors can be left out with {option('drop')}."
        raise_all(CatalogError, f"{self.base.url}: pieces that cannot be read", problems, hint)
        return {key: sorted(some, key=lambda job: job[1].start) for key, some in sorted(jobs.items())}

    def _problem(self, piece: DcpPiece) -> str:
        info = self.objects.get(piece.path)
        if piece.transforms:
            return f"its bytes are transformed by {piece.transforms}; only plain ones can be read in part"
        if info is None:
            return f"expected in {shown(piece.path)}, which is not there"
        if piece.nbytes >= 0 and piece.start + piece.nbytes > info.nbytes:
            place = f"{piece.start}..{piece.start + piece.nbytes} of {piece.path}"
            return f"expected at {place}, which has {info.nbytes} bytes"
        return ""


def _megatron_kind(place: Location) -> str:
    """Return the kind of a checkpoint of Megatron Core; CatalogError for another format than this one."""
    backend = parse_json_object(read_object(place), place.url).get("sharded_backend")
    if backend not in (None, "torch_dist"):
        raise CatalogError(
            f"{place.url}: expected sharded_backend torch_dist, found {shown(backend)}",
            hint="Save it with --dist-ckpt-format torch_dist, or convert it with Megatron Core.",
        )
    return "torch_dist checkpoint of Megatron Core" if backend else ""


def _notes(metadata: DcpMetadata, infos: Mapping[str, ObjectInfo]) -> Iterator[str]:
    nested = (path for name in metadata.tensors if len(path := metadata.paths.get(name, ())) > 1)
    parts = Counter(str(path[0]) for path in nested)
    if parts:
        yield f"tensors by their first key: {', '.join(f'{part} {n}' for part, n in parts.most_common(_SHOWN))}"
    if metadata.inferred:
        some = sample(metadata.inferred, _SHOWN)
        yield f"ranks disagree on the size of {some}: their pieces are joined in the order of the ranks"
    if metadata.flattened:
        some = sample(sorted(metadata.flattened), _SHOWN)
        yield f"{len(metadata.flattened)} tensors are stored as ranges of flattened blocks, and get their shape: {some}"
    if metadata.values:
        some = sample(sorted(metadata.values), _SHOWN)
        yield f"{len(metadata.values)} values that are no tensors are not read: {some}"
    named = {piece.path for tensor in metadata.tensors.values() for piece in tensor.pieces}
    aside = sorted(name for name in infos if _ITEMS.fullmatch(name) and name not in named)
    if aside and not metadata.values:  # values are in such objects too
        yield f"{len(aside)} objects that the metadata does not name are ignored: {', '.join(aside[:_SHOWN])}"


def _located(reader: ItemReader, key: str, nbytes: int, jobs: Sequence[_Job]) -> Iterator[HeldPiece]:
    """Find each piece in its object, and compare it with the metadata."""
    reader.read_ahead(ByteRange(p.start, p.start + p.nbytes) for _, p in jobs if p.nbytes >= 0)
    whole: Mapping[str, StoredTensor] | None = None
    for spec, piece in jobs:
        place = f"tensor {shown(spec.name)} {piece.box.text}"
        try:
            if piece.nbytes < 0:
                whole = _tensors_of(reader, nbytes) if whole is None else whole
                stored = whole.get(piece.key)
            else:
                stored = reader.scan(scan_torch_zip(piece.nbytes), piece.start).get("")
        except FormatError as error:
            raise error.at(place if piece.nbytes >= 0 else "") from None
        expected = f"{spec.dtype} {list(piece.box.shape)}"
        if stored is None:
            raise FormatError("piece not there", where=place, expected=expected, found=f"no {shown(piece.key)}")
        if (stored.dtype, stored.shape) != (spec.dtype, piece.box.shape):
            found = f"{stored.dtype} {list(stored.shape)}"
            raise FormatError("piece differs from the metadata", where=place, expected=expected, found=found)
        axes = stored.axes
        if axes is None:
            found = f"strides {list(stored.strides)}"
            raise FormatError("gaps between elements", where=place, expected="elements side by side", found=found)
        start = piece.start + stored.start if piece.nbytes >= 0 else stored.start
        yield HeldPiece(piece.box, key, start, () if axes == tuple(range(len(axes))) else axes)


def _tensors_of(reader: ItemReader, nbytes: int) -> Mapping[str, StoredTensor]:
    """Return the tensors of an object that is safetensors, or an archive of torch under its name."""
    if reader.read(ByteRange(0, min(nbytes, len(ZIP_START)))) == ZIP_START:
        return reader.scan(scan_torch_zip(nbytes), 0)
    header = read_header(Container.SAFETENSORS, nbytes, reader.read)
    tensors: dict[str, StoredTensor] = {}
    for tensor in header.tensors:
        shape, first = tensor.spec.shape, tensor.boxes[0][1] if tensor.boxes else 0
        strides, step = list[int](), 1
        for extent in reversed(shape):
            strides.insert(0, step)
            step *= extent
        tensors[tensor.spec.name] = StoredTensor(tensor.spec.dtype, shape, tuple(strides), first)
    return tensors
