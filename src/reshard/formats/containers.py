"""The table of container formats: those in which one object holds tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from ..tensor import ByteRange
from .container_format import ContainerFormat, ContainerHeader
from .mindspore.ckpt import plan_ckpt
from .mindspore.ckpt_read import scan_ckpt
from .safetensors import plan_safetensors, scan_safetensors


class Container(StrEnum):
    """A container format: its name, which is also the suffix of object names, and what it can do.

    A new format is one module that lays out and scans its objects, and one line here.

    Examples
    --------
    >>> [container.suffix for container in Container]
    ['.safetensors', '.ckpt']
    >>> from reshard.tensor import DType, TensorSpec
    >>> spec = TensorSpec("w", DType.I8, (2,))
    >>> [container.definition.make_frame([spec], {}, {}).nbytes for container in Container]
    [66, 19]
    """

    definition: ContainerFormat

    SAFETENSORS = "safetensors", ContainerFormat(plan_safetensors, scan_safetensors, has_metadata=True, has_texts=False)
    CKPT = "ckpt", ContainerFormat(plan_ckpt, scan_ckpt, has_metadata=False, has_texts=True)

    def __new__(cls, name: str, *definition: ContainerFormat) -> Container:
        """Make a member that is its name and carries its definition."""
        # A star only for type checkers: they take Container("ckpt"), which looks a member up, for a call of this.
        member = str.__new__(cls, name)
        member._value_ = name
        (member.definition,) = definition
        return member

    @property
    def suffix(self) -> str:
        """The end of an object's name."""
        return f".{self.value}"


def container_of(name: str) -> Container | None:
    """Return the format of an object by its name; None if it is no container.

    Examples
    --------
    >>> container_of("rank_0/a.ckpt"), container_of("config.json")
    (<Container.CKPT: 'ckpt'>, None)
    """
    return next((container for container in Container if name.endswith(container.suffix)), None)


def read_header(container: Container, object_nbytes: int, read: Callable[[ByteRange], bytes]) -> ContainerHeader:
    """Read an object's header with a function that reads one range of it; FormatError if it breaks its format.

    Examples
    --------
    >>> data = bytes.fromhex("0a 11 0a 01 77 12 0c 08 02 12 04 49 6e 74 38 1a 02 ff fe")
    >>> header = read_header(Container.CKPT, len(data), lambda span: data[span.start : span.stop])
    >>> [(tensor.spec.name, tensor.boxes) for tensor in header.tensors]
    [('w', ((Box(start=(0,), stop=(2,)), 17),))]
    """
    scan = container.definition.scan(object_nbytes)
    read_bytes = 0
    try:
        wanted = next(scan)
        while True:
            read_bytes += wanted.nbytes
            wanted = scan.send(read(wanted))
    except StopIteration as finished:
        header: ContainerHeader = finished.value
        return replace(header, read_bytes=read_bytes)
