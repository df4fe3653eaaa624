"""What proves that the bytes of a source arrived as its store has them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import Damaged, option
from ..storage import KeptChecksum
from ..storage.checksums import crc_of, joined_crc
from ..tensor import ByteRange

ReadRanges = dict[int, dict[int, tuple[int, int]]]
"""Of objects, by their position in the catalog: where ranges begin, where they stop, and their CRC."""

_GAP_BYTES = 16 << 20
"""Most bytes of an object to read for nothing but its checksum: its header, and what lies between tensors."""


@dataclass(frozen=True, slots=True)
class ReadProof:
    """What a run knows of the bytes that it read.

    Parameters
    ----------
    read_count
        How often each range was read, until two reads agreed.
    object_count, proven_count
        Objects of the source that a run reads, and those of them whose store keeps a checksum that their ranges have.
    """

    read_count: int = 1
    object_count: int = 0
    proven_count: int = 0

    @classmethod
    def joined(cls, proofs: Iterable[ReadProof]) -> ReadProof:
        """Return what several runs know together."""
        found = list(proofs)
        return cls(
            min((proof.read_count for proof in found), default=1),
            sum(proof.object_count for proof in found),
            sum(proof.proven_count for proof in found),
        )


@dataclass(slots=True)
class ReadLedger:
    """Collects the CRC of every range that is read, from any thread, and compares them with what stores keep.

    ``kept`` are the checksums of objects, by their position in the catalog; of others nothing is collected.
    """

    kept: Mapping[int, KeptChecksum]
    _read: ReadRanges = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self._read = {index: {} for index in self.kept}

    def add(self, index: int, span: ByteRange, data: memoryview) -> None:
        """Record a range of an object that has arrived."""
        if index not in self.kept or not span.nbytes:
            return
        crc = crc_of(data, self.kept[index].algorithm)
        with self._lock:
            self._keep_longer(index, span.start, span.stop, crc)

    def take(self) -> ReadRanges:
        """Return what was recorded since the last call, and forget it."""
        with self._lock:
            taken = {index: ranges for index, ranges in self._read.items() if ranges}
            self._read = {index: {} for index in self.kept}
        return taken

    def add_all(self, taken: ReadRanges) -> None:
        """Record what another process has read."""
        with self._lock:
            for index, ranges in taken.items():
                for start, (stop, crc) in ranges.items():
                    self._keep_longer(index, start, stop, crc)

    def _keep_longer(self, index: int, start: int, stop: int, crc: int) -> None:
        # Of two ranges that begin together either would do; the longer one leaves less to be read.
        ranges = self._read[index]
        if ranges.get(start, (0, 0))[0] < stop:
            ranges[start] = stop, crc

    def settle(self, index: int, nbytes: int, read: Callable[[ByteRange], bytes]) -> bool | None:
        """Compare an object's checksum with those of its ranges joined; None if too few of its bytes were read.

        What is missing, a header, is read by ``read``.
        """
        pieces, at = list[tuple[int, int, int]](), 0
        for start, (stop, crc) in sorted(self._read[index].items()):
            if start >= at:  # others overlap one that is taken
                pieces.append((start, stop, crc))
                at = stop
        if not pieces or nbytes - sum(stop - start for start, stop, _ in pieces) > _GAP_BYTES:
            return None
        kept, parts, at = self.kept[index], list[tuple[int, int]](), 0
        for start, stop, crc in [*pieces, (nbytes, nbytes, 0)]:
            if at < start:
                parts.append((crc_of(read(ByteRange(at, start)), kept.algorithm), start - at))
            if start < stop:
                parts.append((crc, stop - start))
            at = stop
        return joined_crc(parts, kept.algorithm) == kept.value


def damaged(urls: Iterable[str]) -> Damaged:
    """Make the error for objects whose bytes did not arrive as they are stored."""
    return Damaged(
        "bytes that were read are not those that the store has",
        problems=[f"{url}: its checksum is not that of the bytes read" for url in sorted(urls)],
        hint=f"Run again; {option('verify')} reads every range until it comes twice the same.",
    )
