"""What a format of single objects must provide, and what the header of any such object holds."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

from ..tensor import Box, ByteRange, TensorSpec
from .frame import Frame


@dataclass(frozen=True, slots=True)
class HeaderTensor:
    """A tensor as an object records it, and where the object holds its bytes.

    ``boxes`` tile ``extent_of(spec)``, in order, each with the first byte of its row-major elements; an empty tensor
    may have none.
    """

    spec: TensorSpec
    boxes: tuple[tuple[Box, int], ...]


@dataclass(frozen=True, slots=True)
class Checksum:
    """A CRC-32 that an object records of its own first ``nbytes`` bytes; reading the header does not check it."""

    crc32: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ContainerHeader:
    """The contents of one object, whatever its format, and the bytes that were read to learn them.

    The tensors are in the order of their bytes. Metadata is the writer's free text; packed int4 is noted in it as
    ``{name: "Int4"}``. Texts are values that are text.
    """

    tensors: tuple[HeaderTensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    read_bytes: int = 0
    checksum: Checksum | None = None


HeaderScan = Generator[ByteRange, bytes, ContainerHeader]
"""Yields the ranges to read next, none of them empty, takes exactly their bytes, and returns the header."""


@dataclass(frozen=True, slots=True)
class ContainerFormat:
    """A format in which one object holds tensors.

    ``make_frame`` lays out a new object from its tensors in their order in the object (widest dtype first, then by
    name), its metadata and its texts. It raises FormatError listing every tensor or text that the format cannot hold.
    ``scan`` reads the header of an object from its length in bytes; FormatError if the object breaks the format.
    Without ``has_metadata`` only notes of packed int4 are stored, without ``has_texts`` text values are left out.
    """

    make_frame: Callable[[Sequence[TensorSpec], Mapping[str, str], Mapping[str, str]], Frame]
    scan: Callable[[int], HeaderScan]
    has_metadata: bool
    has_texts: bool
