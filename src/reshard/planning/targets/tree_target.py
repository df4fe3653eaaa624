"""Every object of a source on its own, in another format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...formats.containers import Container
from ..outputs.output import Document, Output, SourceMetadata, TargetTensor, file_order, make_output, whole_box

_SEPARATOR = "\n"  # in no key and no name that people give


def tree_name(key: str, name: str) -> str:
    """What a catalog calls a tensor of one of several objects that are not joined."""
    return f"{key}{_SEPARATOR}{name}"


@dataclass(frozen=True, slots=True)
class TreeTarget:
    """One object for each of the source, with the same tensors.

    Tensors are those of a catalog whose objects are not joined: each is called after its object, see
    :func:`tree_name`.

    Parameters
    ----------
    container
        Format of the objects; it is the end of their keys too.
    """

    container: Container

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Put every tensor back to those of its object."""
        shares: dict[str, list[int]] = {}
        for index in file_order(tensors):
            shares.setdefault(tensors[index].spec.name.split(_SEPARATOR)[0], []).append(index)
        return tuple(self._output(key, share, tensors, source_metadata) for key, share in sorted(shares.items()))

    def _output(
        self, key: str, share: Sequence[int], tensors: Sequence[TargetTensor], source_metadata: SourceMetadata
    ) -> Output:
        names = [tensors[index].spec.name for index in share]
        notes = {_plain(name): source_metadata.notes_of[name] for name in names if name in source_metadata.notes_of}
        held = [(index, whole_box(tensors[index])) for index in share]
        renamed = f"{key.rsplit('.', 1)[0]}{self.container.suffix}"
        metadata = {**source_metadata.metadata, **notes, "format": "ms"}
        made = make_output([renamed], held, tensors, metadata, self.container, source_metadata.texts)
        specs = tuple(replace(spec, name=_plain(spec.name)) for spec in made.specs)
        return replace(made, specs=specs)

    def documents(
        self, _outputs: Sequence[Output], _tensors: Sequence[TargetTensor], _carried: SourceMetadata
    ) -> tuple[Document, ...]:
        """An index of the source is about other objects."""
        return ()

    def notes(self, _tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """Nothing is on one side only."""
        return ()


def _plain(name: str) -> str:
    return name.split(_SEPARATOR, 1)[1]
