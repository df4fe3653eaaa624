"""One tensor of a checkpoint, or a piece of it, with what its values are like."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.events import Listener, ignore
from ..errors import UsageError, counted
from ..tensor import DType
from .connecting import connecting
from .contents import inspect
from .loads import READING_OPTIONS, Reading, as_stored, whole_tensors
from .request import SOURCE_OPTIONS, Request

_INDEXED = re.compile(r"(?P<name>.+)\[(?P<index>[^\[\]]*)\]", re.DOTALL)
_AXIS = re.compile(r"\s*(?P<first>-?\d{1,18})?\s*(?P<colon>:)?\s*(?P<last>-?\d{1,18})?\s*")
_BLOCK = 1 << 20
"""Elements that are widened at a time."""


@dataclass(frozen=True, slots=True)
class TensorContent:
    """Values of a tensor or a piece of it; numbers about them are None where there is nothing to count.

    ``minimum``, ``maximum`` and ``mean`` are of the values that are numbers, ``nan_count`` is how many are not.
    Elements of less than a byte are packed: their ``values`` are bytes.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    values: npt.NDArray[Any]
    minimum: float | int | None = None
    maximum: float | int | None = None
    mean: float | None = None
    nan_count: int | None = None

    def encode_npy(self) -> bytes:
        """Write the values as numpy's ``.npy``; bfloat16 and FP8, which it does not know, as float32 of equal value."""
        body = io.BytesIO()
        np.save(body, _widened(self.values), allow_pickle=False)
        return body.getvalue()

    def text(self) -> str:
        """Write the values for people, the middle of many left out."""
        return str(np.array2string(_widened(self.values), max_line_width=110))

    def nested_values(self, most: int) -> Any:
        """Return the values as nested lists, None for more than ``most``; what is no finite number is text."""
        return None if self.values.size > most else _jsonable(_widened(self.values).tolist())


def read_tensor(url: str, wanted: str, *, on_event: Listener = ignore, **options: Any) -> TensorContent:
    """Read one tensor of the checkpoint at a URL, by the name that :func:`reshard.inspect` lists, and nothing else.

    Parameters
    ----------
    wanted
        The name, or the name with an index as numpy has it: ``NAME[0:4, :]``.
    options
        Those of :func:`reshard.inspect`, ``memory`` and ``verify``.

    Raises
    ------
    UsageError
        There is no such tensor, or the index does not fit it.
    SourceError, StorageError
        As for :func:`reshard.inspect`.
    """
    request = Request.of((*SOURCE_OPTIONS, *READING_OPTIONS), **options)
    with connecting(request, on_event):
        catalog = inspect(url, **{name: value for name, value in options.items() if name in SOURCE_OPTIONS})
        names = {entry.spec.name for entry in catalog.entries}
        name, index = _name_and_index(wanted, names)
        if name not in names:
            near = " or ".join(get_close_matches(name, names, n=2))
            hint = f"Did you mean {near}? " * bool(near) + "Run reshard inspect to list the names."
            raise UsageError(f"{catalog.url} has no tensor {name!r} among {counted(len(names), 'tensor')}", hint=hint)
        conversion = as_stored(catalog)
        loader = Reading(request, "numpy", on_event=on_event).loader(conversion, whole_tensors(conversion))
        values = loader.get_slice(name)[index]
    spec = loader.spec(name)
    shape = spec.shape if index is ... else values.shape
    return TensorContent(name, spec.dtype, shape, values, **_counted(spec.dtype, values))


def _name_and_index(wanted: str, names: Collection[str]) -> tuple[str, Any]:
    """Divide what is wanted; a name may have brackets of its own."""
    match = _INDEXED.fullmatch(wanted)
    if wanted in names or match is None:
        return wanted, ...
    return match["name"], _index(wanted, match["index"])


def _index(wanted: str, text: str) -> tuple[int | slice, ...] | Any:
    """Read an index such as ``0:4, :``."""
    found: list[int | slice | Any] = []
    for part in text.split(","):
        match = _AXIS.fullmatch(part)
        if part.strip() == "...":
            found.append(...)
        elif match and match["colon"]:
            found.append(slice(*(None if match[end] is None else int(match[end]) for end in ("first", "last"))))
        elif match and match["first"]:
            found.append(int(match["first"]))
        else:
            raise UsageError(f"{wanted}: the index cannot be read", hint="Write it like NAME[0:4, :] or NAME[3].")
    return tuple(found)


def _counted(dtype: DType, values: npt.NDArray[Any]) -> dict[str, Any]:
    """Count the smallest, the largest and the mean value, and how many are no numbers."""
    if dtype.is_sub_byte or dtype is DType.C64:
        return {}
    flat, lows, highs, sums, count = values.reshape(-1), [], [], list[float](), 0
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        if dtype is DType.BOOL:
            block = block.astype(np.int64)
        elif block.dtype.kind not in "iu":
            block = block.astype(np.float64)
            block = block[~np.isnan(block)]
        if len(block):
            lows.append(block.min().item())
            highs.append(block.max().item())
            with np.errstate(invalid="ignore", over="ignore"):  # infinite values of both signs
                sums.append(block.sum(dtype=np.float64).item())
            count += len(block)
    nan_count = len(flat) - count
    if not count:
        return {"nan_count": nan_count}
    return {"minimum": min(lows), "maximum": max(highs), "mean": sum(sums) / count, "nan_count": nan_count}


def _widened(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values in a dtype that numpy itself has."""
    return values if values.dtype.isbuiltin == 1 else values.astype(np.float32)


def _jsonable(value: Any) -> Any:
    if isinstance(value, list):
        return [_jsonable(each) for each in value]
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_number else str(value)
