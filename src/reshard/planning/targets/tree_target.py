"""Every object of a source on its own, in another format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...formats.containers import Container
from ..outputs.output import Output, SourceMetadata, TargetTensor, file_order, make_output, whole_box
from .target import Target

_SEPARATOR = "\n"  # in no key and no name that people choose


def tree_name(key: str, name: str) -> str:
    """Return a catalog's name for a tensor of one of several objects that are not joined."""
    return f"{key}{_SEPARATOR}{name}"


@dataclass(frozen=True, slots=True)
class TreeTarget(Target):
    """One object for each object of the source, with the same tensors; keys end in the container's suffix.

    The catalog names every tensor after its object, see :func:`tree_name`.
    """

    container: Container

    @property
    def scope(self) -> None:
        """Each object is independent: it may be beside its source, and among any others."""
        return None

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Put every tensor into the object that corresponds to its own."""
        held: dict[str, list[int]] = {}
        for index in file_order(tensors):
            held.setdefault(tensors[index].spec.name.split(_SEPARATOR)[0], []).append(index)
        return tuple(self._output(key, indices, tensors, source_metadata) for key, indices in sorted(held.items()))

    def _output(
        self, key: str, indices: Sequence[int], tensors: Sequence[TargetTensor], source_metadata: SourceMetadata
    ) -> Output:
        names = [tensors[index].spec.name for index in indices]
        notes = {_plain(name): source_metadata.notes_of[name] for name in names if name in source_metadata.notes_of}
        boxes = [(index, whole_box(tensors[index])) for index in indices]
        converted = f"{key.rsplit('.', 1)[0]}{self.container.suffix}"
        metadata = {**source_metadata.metadata, **notes, "format": "ms"}
        output = make_output([converted], boxes, tensors, metadata, self.container, source_metadata.texts)
        return replace(output, specs=tuple(replace(spec, name=_plain(spec.name)) for spec in output.specs))


def _plain(name: str) -> str:
    return name.split(_SEPARATOR, 1)[1]
