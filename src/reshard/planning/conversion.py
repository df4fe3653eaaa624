"""What a conversion makes of a source, whatever memory, processes and stores make it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..formats.containers import Container
from ..formats.mindspore.ckpt import INT4
from ..notebook import Picture, Shown, Table
from .catalog import Catalog
from .change import NO_CHANGE, Change, ChangedTensors, make_tensors
from .outputs.output import (
    BOOKKEEPING,
    Attachment,
    Document,
    Output,
    SourceMetadata,
    TargetTensor,
    group_by_layout,
)
from .targets import Target

MANIFEST_KEY = "reshard-manifest.json"
MAX_ATTACHMENT_BYTES = 64 << 20
"""Most bytes of an attachment: it is held in memory whole."""


@dataclass(frozen=True, repr=False)
class Conversion(Shown):
    """A source, a target, and the changes of tensors in between.

    Keys of outputs, and that of the manifest, are relative to ``target_url``. ``renamed`` has new names of tensors by
    their names in the source; rules, casts and adapters of ``change`` see the new ones. ``attachments`` are small
    objects of the source to copy unchanged.
    """

    catalog: Catalog
    target: Target
    target_url: str
    manifest_key: str = MANIFEST_KEY
    renamed: Mapping[str, str] = field(default_factory=dict)
    change: Change = NO_CHANGE
    attachments: tuple[Attachment, ...] = ()

    def __post_init__(self) -> None:
        # Conversions that make the same have equal ids, whether or not they list names that stay.
        object.__setattr__(self, "renamed", {old: new for old, new in self.renamed.items() if old != new})

    @property
    def urls(self) -> tuple[str, ...]:
        """Every place that is read from or written to."""
        return (self.catalog.url, *self.catalog.others, self.target_url)

    @property
    def whole(self) -> Conversion:
        """The conversion that this one is a share of: that of all ranks. It is itself unless it is a share."""
        target = self.target.whole
        return self if target is self.target else replace(self, target=target, manifest_key=MANIFEST_KEY)

    def for_target(self, target: Target) -> Conversion:
        """Return the conversion of the same source, with the same changes, to another target; without attachments."""
        other = replace(self, target=target, attachments=())
        if "_made" in vars(self):  # the same tensors
            vars(other)["_made"] = self._made
        return other

    @cached_property
    def _made(self) -> ChangedTensors:
        return make_tensors(self.catalog, self.renamed, self.change)

    @property
    def tensors(self) -> tuple[TargetTensor, ...]:
        """Every tensor of the target, whole; PlanError as :func:`reshard.planning.change.make_tensors` raises it."""
        return self._made.tensors

    @cached_property
    def source_metadata(self) -> SourceMetadata:
        """The content of the target besides tensors."""
        return SourceMetadata.of(self.catalog, self.renamed)

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """Every distinct object of the target."""
        return self.target.outputs(self.tensors, self.source_metadata)

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """Indexes to write after the outputs, in this order."""
        return self.target.documents(self.outputs, self.tensors, self.source_metadata)

    @property
    def keys(self) -> tuple[str, ...]:
        """Key of every object that will be written, except the manifest."""
        others = (*(document.key for document in self.documents), *(each.key for each in self.attachments))
        return (*(key for output in self.outputs for key in output.keys), *others)

    def picture(self) -> Picture:
        """Return what a notebook shows of it."""
        line = f"{self.catalog.url} -> {self.target_url}: {len(self.catalog.entries)} tensors"
        renamed = Table("renamed", ("from", "to"), self.renamed.items(), len(self.renamed))
        return Picture(line, (renamed,))

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Remarks for people, to read before the conversion starts."""
        distinct = [self.outputs[positions[0]] for positions in group_by_layout(self.outputs)]
        notes = (*self.catalog.notes, *self._made.notes, *self.target.notes(self.tensors))
        return (*notes, *_names_mindspore_refuses(distinct), *_dropped_metadata(distinct))


def _names_mindspore_refuses(outputs: list[Output]) -> tuple[str, ...]:
    """Note tensors named like MindSpore's own metadata: its ``load_checkpoint`` raises KeyError for them."""
    ours = [o for o in outputs if o.container is Container.SAFETENSORS and o.metadata.get("format") == "ms"]
    names = sorted({spec.name for output in ours for spec in output.specs} & BOOKKEEPING)
    return (f"MindSpore cannot load tensors of these names from safetensors: {', '.join(names)}",) if names else ()


def _dropped_metadata(outputs: list[Output]) -> tuple[str, ...]:
    """Note metadata that the outputs' format cannot hold."""
    ours = [output for output in outputs if not output.container.definition.has_metadata]
    keys = {key for output in ours for key, value in output.metadata.items() if value != INT4} - BOOKKEEPING
    formats = " and ".join(sorted({output.container.suffix for output in ours}))
    return (f"{formats} cannot hold this metadata; it is not written: {', '.join(sorted(keys))}",) if keys else ()
