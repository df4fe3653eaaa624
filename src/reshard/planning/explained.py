"""How outputs and tensors of a plan are made, as values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from ..tensor import Box, ByteRange

Filled = Literal["copied", "streamed", "literal", "replica"]
"""``copied`` by the store from the source, ``streamed`` through the client, ``literal`` of bytes known beforehand
alone, or a ``replica``'s part: copied by the store from an equal output."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes of one object that something is made of.

    Parameters
    ----------
    object
        Its key, counted from the source's URL (or another of the catalog's bases); of a replica from the target's.
    range
        From the first byte to the last.
    nbytes
        How many of them: of a read all, of a tensor those that belong to it.
    base
        Where the key counts from: 0 is the catalog's URL, the others follow. -1 is the target.
    is_staged
        Whether it is a chunk that the first pass writes.
    is_left_out
        Whether it is a chunk that the source left out: it reads as the fill value.
    """

    object: str
    range: ByteRange
    nbytes: int
    base: int = 0
    is_staged: bool = False
    is_left_out: bool = False


@dataclass(frozen=True, slots=True)
class StagedTensor:
    """A tensor of the source that the first pass writes as chunks, and what of it is taken.

    Parameters
    ----------
    name, shape
        In the source, whole.
    url
        Where the chunks' keys count from.
    chunk_shape
        In elements.
    chunk_count, taken_count
        All its chunks, and those that something takes bytes of.
    sources
        What of the source the chunks that are taken are made of.
    copied_bytes, streamed_bytes
        Of these chunks, by the first pass.
    """

    name: str
    shape: tuple[int, ...]
    url: str
    chunk_shape: tuple[int, ...]
    chunk_count: int
    taken_count: int
    sources: tuple[Taken, ...]
    copied_bytes: int
    streamed_bytes: int


@dataclass(frozen=True, slots=True)
class PartExplanation:
    """One part of an output.

    Parameters
    ----------
    number
        Of the upload part, from 1; a single PUT is part 1.
    range
        In the output.
    filled
        How.
    sources
        What is read, or copied. Reads are shared with other outputs of the group.
    literal_nbytes
        Bytes of the part that were known beforehand: headers and the like.
    kernels
        What computes values for it.
    group, step
        The unit of work; -1 and 0 where it is done beside all groups.
    """

    number: int
    range: ByteRange
    filled: Filled
    sources: tuple[Taken, ...] = ()
    literal_nbytes: int = 0
    kernels: tuple[str, ...] = ()
    group: int = -1
    step: int = 0

    def nbytes_by_way(self) -> dict[str, int]:
        """Its bytes by how they are made."""
        if self.filled in ("copied", "replica"):
            return {"copied": self.range.nbytes}
        return {"streamed": self.range.nbytes - self.literal_nbytes, "literal": self.literal_nbytes}


@dataclass(frozen=True, slots=True)
class ObjectExplanation:
    """One object of the target.

    Parameters
    ----------
    key, keys
        The one asked for, and all that are equal to it.
    nbytes
        Of the object.
    parts
        In order; they cover it without gaps or overlaps.
    copied_bytes, streamed_bytes, literal_bytes
        What of it is made in which way.
    staged
        The tensors whose chunks it is made of.
    is_chunk
        Whether it is itself a chunk that the first pass writes.
    """

    key: str
    keys: tuple[str, ...]
    nbytes: int
    parts: tuple[PartExplanation, ...]
    copied_bytes: int
    streamed_bytes: int
    literal_bytes: int
    staged: tuple[StagedTensor, ...] = ()
    is_chunk: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """What one output holds of a tensor.

    Parameters
    ----------
    keys
        Of the output, replicas included.
    box
        In elements of the whole tensor.
    ranges
        Where its bytes stand in the output.
    parts
        The parts that they are in, whole.
    sources
        What of the source they are made of; block scales and adapters are among it.
    """

    keys: tuple[str, ...]
    box: Box
    ranges: tuple[ByteRange, ...]
    parts: tuple[PartExplanation, ...]
    sources: tuple[Taken, ...]


@dataclass(frozen=True, slots=True)
class TensorExplanation:
    """One tensor of the target.

    Parameters
    ----------
    name, dtype, shape
        In the target, whole.
    made_of
        Names of the source's tensors that it is made of.
    held
        What each distinct output has of it.
    copied_bytes, streamed_bytes
        Of its bytes in these outputs, replicas counted once.
    staged
        The tensors among ``made_of`` that it is made of chunks of.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    made_of: tuple[str, ...]
    held: tuple[Held, ...]
    copied_bytes: int
    streamed_bytes: int
    staged: tuple[StagedTensor, ...] = ()


Explanation = ObjectExplanation | TensorExplanation


def explanation_to_json(explanation: Explanation) -> dict[str, object]:
    """Express an explanation in JSON's types."""
    kind = "object" if isinstance(explanation, ObjectExplanation) else "tensor"
    return {"kind": kind, **asdict(explanation)}
