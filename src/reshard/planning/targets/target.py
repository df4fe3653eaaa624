"""The interface of every kind of target."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ...errors import PlanError
from ..outputs.output import Document, Output, SourceMetadata, TargetTensor

MAX_PAIRS = 1 << 24
"""Most tensors over all outputs of a saved plan that are made one by one."""


class Target(ABC):
    """What a conversion makes of a source's tensors; a pure value."""

    __slots__ = ()

    object_names: ClassVar[re.Pattern[str]] = re.compile("(?!)")
    """Keys that readers take for objects of such a checkpoint; none unless a kind says otherwise."""

    @property
    def scope(self) -> str | None:
        """Start of the keys that belong to this checkpoint alone: readers could not tell other objects there apart.

        Empty for everything below the target's URL, None if every object is independent of its neighbours.
        """
        return ""

    @property
    def whole(self) -> Target:
        """The target that this one is a share of; itself unless it is a share."""
        return self

    @property
    def has_companions(self) -> bool:
        """Whether small objects beside the source's tensors (``config.json``, a tokenizer) belong to the target."""
        return False

    @abstractmethod
    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Distribute whole tensors over the target's objects; objects of equal content are one output.

        Raise PlanError if the target cannot hold these tensors.
        """

    def documents(
        self, outputs: Sequence[Output], tensors: Sequence[TargetTensor], source_metadata: SourceMetadata
    ) -> tuple[Document, ...]:
        """Return the indexes to write after the outputs, in this order."""
        return ()

    def notes(self, tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """Return what a person should know before the conversion starts."""
        return ()

    def check_bounds(self, tensors: Sequence[TargetTensor]) -> int:
        """Return the number of outputs, at most; PlanError if they would take unbounded work or memory.

        Saved plans are checked with it, before any output is made: anyone can write one.
        """
        return len(tensors)


def check_count(what: str, count: int, most: int = MAX_PAIRS) -> None:
    """Raise PlanError for more than ``most`` of something.

    Examples
    --------
    >>> check_count("ranks", 3, most=2)
    Traceback (most recent call last):
    ...
    reshard.errors.PlanError: 3 ranks: at most 2 are supported
    """
    if count > most:
        raise PlanError(f"{count} {what}: at most {most} are supported")
