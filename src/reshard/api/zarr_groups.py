"""zarr stores as people know them: groups of zarr-python, read through the stores of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UsageError
from ..storage import open_source
from .connecting import connecting
from .request import Request

if TYPE_CHECKING:
    from ..loading.zarr_groups import Group


def open_zarr(url: str, *, give_up_after: str | None = None) -> Group:
    """Open a zarr store of version 3, one that reshard wrote or any other, as a group of zarr-python.

    Credentials and endpoints are those of every statement, ``obs://`` included. Reads are pinned to the etags that the
    objects have now. bfloat16 and FP8 are dtypes of ml_dtypes. Of a chunk of plain bytes only the rows that an index
    asks for are read; a compressed one is read whole. Needs ``reshard[zarr]``.

    Parameters
    ----------
    url
        URL of the prefix that holds ``zarr.json``.
    give_up_after
        How long to wait for a store that does not answer, like ``10min``.

    Raises
    ------
    UsageError
        zarr-python is not installed.
    SourceError
        There is no zarr store of version 3, or a document of it is malformed.
    StorageError
        As for :func:`reshard.inspect`.

    Examples
    --------
    >>> from reshard.formats.safetensors import plan_header
    >>> from reshard.storage import MemoryStore
    >>> from reshard.tensor import DType, TensorSpec
    >>> header = plan_header([TensorSpec("w", DType.BF16, (4, 2))], {}).data
    >>> _ = MemoryStore("doc").put("full/model.safetensors", header + bytes([128, 63] * 8))
    >>> from reshard import convert
    >>> _ = convert("memory://doc/full", "memory://doc/full.zarr")
    >>> rows = open_zarr("memory://doc/full.zarr")["w"][1:3]
    >>> rows.shape, str(rows.dtype), float(rows[0, 0])
    ((2, 2), 'bfloat16', 1.0)
    """
    try:
        from ..loading.zarr_groups import open_group
    except ImportError as error:
        hint = "Install reshard[zarr]."
        raise UsageError(f"open_zarr: zarr-python cannot be imported: {error}", hint=hint) from error
    with connecting(Request.of(("src", "give_up_after"), src=url, give_up_after=give_up_after)):
        return open_group(open_source(url))
