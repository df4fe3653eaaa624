"""The formats in which one object holds tensors, and how each lays an object out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from ..tensor import TensorSpec, extent_of
from .frame import Frame, make_frame
from .mindspore.ckpt_values import INT4
from .mindspore.ckpt_write import plan_ckpt
from .safetensors import plan_header


class Container(StrEnum):
    """A format of objects."""

    SAFETENSORS = "safetensors"
    CKPT = "ckpt"

    @property
    def suffix(self) -> str:
        """The end of an object's name.

        Examples
        --------
        >>> Container.CKPT.suffix
        '.ckpt'
        """
        return f".{self.value}"


def frame_of(
    container: Container, specs: Sequence[TensorSpec], metadata: Mapping[str, str], texts: Mapping[str, str]
) -> Frame:
    """Lay out an object that does not exist yet.

    Parameters
    ----------
    specs
        The tensors in the order of the object: by dtype, widest first, then by name.
    metadata
        Free text; of it ``.ckpt`` can hold only which tensors are packed int4.
    texts
        Values that are text; safetensors can hold none.

    Raises
    ------
    FormatError
        The format cannot hold some of it; all is listed.

    Examples
    --------
    >>> from reshard.tensor import DType
    >>> spec = TensorSpec("w", DType.I8, (2,))
    >>> [frame_of(container, [spec], {}, {}).nbytes for container in Container]
    [66, 19]
    """
    if container is Container.CKPT:
        return _ckpt_frame(specs, metadata, texts)
    header = plan_header(specs, metadata).data
    if not specs:
        return make_frame((), header)
    leads = [header, *[b""] * (len(specs) - 1)]
    return make_frame((slot, lead, 0, *_elements(specs[slot])) for slot, lead in enumerate(leads))


def _elements(spec: TensorSpec) -> tuple[int, int]:
    """Elements and bytes of each, as they are addressed."""
    _, itemsize = extent_of(spec)
    return spec.nbytes // itemsize, itemsize


def _ckpt_frame(specs: Sequence[TensorSpec], metadata: Mapping[str, str], texts: Mapping[str, str]) -> Frame:
    planned = plan_ckpt([(spec, INT4 if metadata.get(spec.name) == INT4 else None) for spec in specs], texts)
    return make_frame(
        (
            (
                piece.tensor_index,
                piece.lead,
                piece.first_element,
                piece.element_count,
                specs[piece.tensor_index].dtype.itemsize,
            )
            for piece in planned.pieces
        ),
        planned.tail,
    )
