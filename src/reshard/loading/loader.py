"""The tensors that one rank would hold, or a whole checkpoint: read when they are asked for."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any

import numpy as np

from ..errors import UsageError, raise_all
from ..figures import in_bytes
from ..notebook import Picture, Shown, Table
from ..planning.outputs.output import local_spec
from ..tensor import Box, Shape, TensorSpec, extent_of
from .boxes import WantedBox
from .frameworks import Bytes, Framework
from .reading import BoxReader

Index = int | slice | EllipsisType
"""One axis of an index, as numpy takes them; slices have step 1."""


_LARGE_BYTES = 1 << 20


class Loader(Shown):
    """Tensors of a target by name, each read when it is asked for and then owned by whoever asked.

    Loaders are made by :func:`reshard.load`. Iterating reads every tensor, many at once, and yields names with tensors
    as they are complete. It holds no tensors; after :meth:`close` it refuses to read. Reads raise SourceChanged if
    an object of the source is no longer the one that was planned, and StorageError as the tree in
    :mod:`reshard.errors` says.

    Parameters
    ----------
    held
        The tensors by index, each with the box of it that is loaded.
    names
        Other names for some of them, by those that they have in the conversion.
    """

    def __init__(
        self,
        reader: BoxReader,
        held: Sequence[WantedBox],
        framework: Framework,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._reader = reader
        self._framework = framework
        self._held: dict[str, WantedBox] = {}
        self._specs: dict[str, TensorSpec] = {}
        for index, box in held:
            spec = local_spec(reader.conversion.tensors[index].spec, box)
            name = (names or {}).get(spec.name, spec.name)
            self._held[name], self._specs[name] = (index, box), replace(spec, name=name)
        self._is_closed = False

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Refuse to read from now on."""
        self._is_closed = True

    def __len__(self) -> int:
        return len(self._specs)

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def keys(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._specs)

    def spec(self, name: str) -> TensorSpec:
        """Return name, dtype and shape of a tensor, in elements; UsageError for an unknown name."""
        if name not in self._specs:
            hint = f"There are {len(self)} tensors; keys() names them."
            raise UsageError(f"{name!r}: there is no such tensor to load", hint=hint)
        return self._specs[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(spec.nbytes for spec in self._specs.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for people: names that were dropped, values that are computed."""
        return self._reader.conversion.notes

    @property
    def training_state(self) -> Mapping[str, object]:
        """Counters of training that the source keeps apart from its tensors (``global_step``)."""
        return self._reader.conversion.catalog.training_state

    def picture(self) -> Picture:
        """Return what a notebook shows of it."""
        specs = self._specs.values()
        rows = ((spec.name, spec.dtype.value, list(spec.shape), in_bytes(spec.nbytes)) for spec in specs)
        tensors = Table("tensors", ("name", "dtype", "shape", "size"), rows, len(specs))
        url = self._reader.conversion.catalog.url
        return Picture(f"{url}: {len(specs)} tensors, {in_bytes(self.nbytes)}", (tensors,), self.notes)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._check_open()
        for name, data in self._read(self.keys()):
            yield name, self._framework.make(self._specs[name], data)
            self._check_open()

    def tensors(self) -> dict[str, Any]:
        """Read every tensor, many at once, into a dictionary by name."""
        found = dict(iter(self))
        return {name: found[name] for name in self._specs}

    def __getitem__(self, name: str) -> Any:
        return self.get_slice(name)[...]

    def get_slice(self, name: str) -> TensorSlice:
        """Return a tensor that reads only what it is indexed with; UsageError for an unknown name."""
        return TensorSlice(self, self.spec(name))

    def into(self, state: Mapping[str, Any]) -> None:
        """Read every tensor into one that exists, by name: arrays of numpy, or tensors of the loader's framework.

        Nothing is read if anything does not fit. After an error while reading, some tensors are filled.

        Raises
        ------
        UsageError
            Names that are missing, on either side, or tensors of another shape or dtype; all of them are listed.
        """
        self._check_open()
        problems = [f"{name}: no tensor to fill has this name" for name in self._specs if name not in state]
        problems += [f"{name}: nothing is loaded into it" for name in state if name not in self._specs]
        misfits = (self._misfit(spec, state[name]) for name, spec in self._specs.items() if name in state)
        problems += filter(None, misfits)
        raise_all(UsageError, "the tensors to fill are not those that are loaded", problems)
        for name, data in self._read(self.keys()):
            self._framework.fill(state[name], self._framework.make(self._specs[name], data))

    def _misfit(self, spec: TensorSpec, tensor: Any) -> str:
        expected = extent_of(spec)[0]
        found = self._framework.shape_of(tensor)
        if found != expected:
            return f"{spec.name}: expected shape {list(expected)}, found {list(found)}"
        if not self._framework.has_dtype(tensor, spec.dtype):
            return f"{spec.name}: expected {spec.dtype}, found {tensor.dtype}"
        return ""

    def _read(self, names: Sequence[str]) -> Iterator[tuple[str, Bytes]]:
        """Read whole tensors, and yield each as it is complete."""
        wanted = [(name, self._held[name]) for name in names]
        yield from ((name, np.empty(0, np.uint8)) for name, (_, box) in wanted if box.is_empty)
        wanted = [(name, held) for name, held in wanted if not held[1].is_empty]
        arrays: dict[int, Bytes] = {}

        def allocate(position: int) -> memoryview:
            arrays[position] = _new_bytes(self._specs[wanted[position][0]].nbytes)
            return arrays[position].data

        for position in self._reader.read([held for _, held in wanted], allocate):
            yield wanted[position][0], arrays.pop(position)

    def read_box(self, name: str, start: Shape, stop: Shape, shape: Shape) -> Any:
        """Read a box of a tensor, which may be empty, counted in the loaded tensor; it gets a shape of its own."""
        self._check_open()
        (index, held), spec = self._held[name], self._specs[name]
        box = Box(start, stop).shifted(held.start)
        data = np.empty(spec.dtype.nbytes(box.element_count), np.uint8)
        if data.nbytes:
            for _ in self._reader.read([(index, box)], lambda _: data.data):
                pass
        return self._framework.make(TensorSpec(name, spec.dtype, shape), data)

    def read_whole(self, name: str) -> Any:
        """Read one tensor."""
        self._check_open()
        [(_, data)] = self._read([name])
        return self._framework.make(self._specs[name], data)

    def _check_open(self) -> None:
        if self._is_closed:
            raise UsageError("the loader is closed", hint="Read within its with block, or load again.")


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """A tensor that is read where it is indexed, as that of safetensors' ``get_slice``.

    Indices are integers, slices with step 1 and ``...``, one an axis at most.
    """

    loader: Loader
    spec: TensorSpec

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor, in elements."""
        return list(self.spec.shape)

    def get_dtype(self) -> str:
        """Return the dtype by its name in safetensors."""
        return self.spec.dtype.value

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Any:
        spec, given = self.spec, index if isinstance(index, tuple) else (index,)
        if all(each is ... or each == slice(None) for each in given) and len(given) <= max(1, len(spec.shape)):
            return self.loader.read_whole(spec.name)
        if spec.dtype.is_sub_byte:
            raise UsageError(
                f"{spec.name}: elements of {spec.dtype.bits} bits are read together", hint="Index with [...]."
            )
        start, stop, shape = [], [], []
        for axis, (one, size) in enumerate(zip(_for_all_axes(spec, given), spec.shape, strict=True)):
            first, last = _bounds(spec, axis, one, size)
            start.append(first)
            stop.append(last)
            if isinstance(one, slice):
                shape.append(last - first)
        return self.loader.read_box(spec.name, tuple(start), tuple(stop), tuple(shape))


def _new_bytes(nbytes: int) -> Bytes:
    """Return memory for one tensor; that of a large one goes back to the system as soon as the tensor does.

    What a worker's thread takes from the heap stays with the thread, so tensors that are dropped one by one would
    pile up.
    """
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8) if nbytes >= _LARGE_BYTES else np.empty(nbytes, np.uint8)


def _for_all_axes(spec: TensorSpec, given: tuple[Index, ...]) -> Iterator[int | slice]:
    """Yield the index of every axis."""
    left = len(spec.shape) - sum(each is not ... for each in given)
    if left < 0 or sum(each is ... for each in given) > 1:
        raise UsageError(f"{spec.name}: {len(given)} indices for shape {list(spec.shape)}")
    for each in given if ... in given else (*given, ...):
        if isinstance(each, EllipsisType):
            yield from [slice(None)] * left
        else:
            yield each


def _bounds(spec: TensorSpec, axis: int, index: int | slice, size: int) -> tuple[int, int]:
    """Return the first element and one past the last of an axis."""
    if isinstance(index, slice):
        first, last, step = index.indices(size)
        if step != 1:
            raise UsageError(f"{spec.name}: axis {axis} has step {step}; only consecutive elements are read at once")
        return first, max(first, last)
    if not -size <= index < size:
        raise UsageError(f"{spec.name}: index {index} is outside axis {axis} of {list(spec.shape)}")
    return index % size, index % size + 1
