"""From one open file to another, where the kernel can do it without showing us the bytes."""

from __future__ import annotations

import os

from .stopping import ShouldStop, check

_BLOCK_BYTES = 8 << 20
"""Copied between two looks at ``should_stop``."""


class FileCopy:
    """Copies ranges between two files: shared blocks where the file system has them, else inside the kernel.

    Parameters
    ----------
    source, target
        Descriptors, open for reading and for writing; their positions are not used.
    should_stop
        Asked before each block.
    """

    def __init__(self, source: int, target: int, should_stop: ShouldStop) -> None:
        self._source = source
        self._target = target
        self._should_stop = should_stop
        self._in_kernel = hasattr(os, "copy_file_range")

    def run(self, start: int, offset: int, nbytes: int) -> int:
        """Copy ``nbytes`` from ``start`` of one file to ``offset`` of the other; return how many there were.

        Raises
        ------
        OSError
            A file cannot be read or written.
        Interrupted
            The copy is to be broken off.
        """
        done = 0
        while done < nbytes:
            check(self._should_stop)
            moved = self._block(start + done, offset + done, min(nbytes - done, _BLOCK_BYTES))
            if not moved:
                break
            done += moved
        return done

    def _block(self, start: int, offset: int, nbytes: int) -> int:
        moved = self._block_in_kernel(start, offset, nbytes) if self._in_kernel else 0
        return moved or self._block_by_hand(start, offset, nbytes)

    def _block_in_kernel(self, start: int, offset: int, nbytes: int) -> int:
        try:
            return os.copy_file_range(self._source, self._target, nbytes, start, offset)
        except OSError:
            # EXDEV, EINVAL, ENOSYS, EOPNOTSUPP, and EPERM in old containers: file systems refuse in many ways. What is
            # truly wrong (a full disk, say) goes wrong by hand too.
            self._in_kernel = False
            return 0

    def _block_by_hand(self, start: int, offset: int, nbytes: int) -> int:
        block = memoryview(os.pread(self._source, nbytes, start))
        done = 0
        while done < block.nbytes:
            done += os.pwrite(self._target, block[done:], offset + done)
        return done
