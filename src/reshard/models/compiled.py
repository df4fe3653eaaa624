"""What a family's rules come to for one checkpoint: every target tensor, and where its elements come from."""

from __future__ import annotations

from dataclasses import dataclass

from ..tensor import Patch, Shape, TensorSpec
from .family import OptionValue


@dataclass(frozen=True, slots=True)
class Scale:
    """A source is quantised: element (r, c) is to be multiplied by scale (r // block[0], c // block[1]).

    Parameters
    ----------
    tensor
        The source tensor with the scales.
    block
        Extent of a block on every axis; the last of an axis may be shorter.
    """

    tensor: str
    block: Shape


@dataclass(frozen=True, slots=True)
class Part:
    """Elements of a source tensor in a target tensor.

    Values are moved as they are, but: with a scale they are first multiplied by it in float32, and where
    the dtypes of source and target differ they are cast, once, rounding to the nearest even.
    """

    source: str
    patch: Patch
    scale: Scale | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor to write.

    Parameters
    ----------
    spec
        Its name, dtype and shape.
    parts
        They cover it, each element once.
    copy_of
        The target tensor that it repeats; empty for most.
    """

    spec: TensorSpec
    parts: tuple[Part, ...]
    copy_of: str = ""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A source tensor that is not used, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """A family's rules, applied.

    Parameters
    ----------
    direction
        ``to_ms`` or ``to_hf``.
    options
        The value of every option.
    parameters
        Name, value and origin of every parameter, in words.
    targets
        Every target tensor.
    dropped
        Every source tensor that no target uses and that is no scale.
    notes
        What the reader should know, in words.
    """

    family: str
    direction: str
    naming: str
    options: tuple[tuple[str, OptionValue], ...]
    parameters: tuple[tuple[str, str, str], ...]
    targets: tuple[Target, ...]
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def copied(self) -> tuple[tuple[str, str], ...]:
        """Target tensors that repeat another, each with the other."""
        return tuple((target.spec.name, target.copy_of) for target in self.targets if target.copy_of)
