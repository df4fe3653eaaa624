"""What a data file says about a family, as values."""

from __future__ import annotations

from dataclasses import dataclass

from ..formats.strict_yaml import PlainValue
from ..tensor import DType
from .expression import Expression
from .pattern import NamePattern, TensorPattern

SIDES = ("hf", "ms")
"""Hugging Face, MindSpore."""

OptionValue = bool | int | str
Condition = tuple[tuple[str, OptionValue], ...]
"""Values that options and parameters must have, all of them."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number, a flag or a list that shapes depend on.

    Parameters
    ----------
    config
        Where ``config.json`` may have it, dots between levels; the first that is there counts.
    otherwise
        Its value where none is there.
    by, choices
        An option, and the value for each of its values.
    says
        What it is, where the key does not say.
    """

    name: str
    config: tuple[str, ...] = ()
    otherwise: Expression | bool | tuple[int, ...] | None = None
    by: str = ""
    choices: tuple[tuple[str, Expression], ...] = ()
    says: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """Numbers that occur in names: ``start``, ``start + step``, ... below ``stop``, without those of ``excluded``."""

    name: str
    start: Expression
    stop: Expression
    step: Expression
    excluded: str = ""
    says: str = ""


@dataclass(frozen=True, slots=True)
class Option:
    """A choice about one side that shapes or names depend on.

    Parameters
    ----------
    values
        What it may be, the default first; empty for any count from 1 on, with 1 as the default.
    side
        The side whose tensors it is about.
    found
        Values, and a glob over names of that side that gives them away.
    """

    name: str
    values: tuple[OptionValue, ...]
    side: str
    found: tuple[tuple[OptionValue, str], ...]
    says: str

    @property
    def default(self) -> OptionValue:
        """What it is when nothing else is said."""
        return self.values[0] if self.values else 1


@dataclass(frozen=True, slots=True)
class Case:
    """One side of a row, where a condition holds."""

    when: Condition
    tensors: tuple[TensorPattern, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """The same elements in two forms, read in either direction.

    Parameters
    ----------
    hf, ms
        The forms of either side; at most one of each holds at a time.
    when
        Condition on the whole row.
    optional
        Whether all of its tensors may be absent.
    """

    hf: tuple[Case, ...]
    ms: tuple[Case, ...]
    when: Condition = ()
    optional: bool = False

    def side(self, side: str) -> tuple[Case, ...]:
        """The forms of one side."""
        return self.hf if side == "hf" else self.ms


@dataclass(frozen=True, slots=True)
class Tie:
    """A tensor of one side that repeats another: written as a copy, dropped when read.

    Parameters
    ----------
    when
        Where it holds.
    write
        Where the copy is written, too.
    """

    side: str
    name: NamePattern
    of: NamePattern
    when: Condition = ()
    write: Condition = ()


@dataclass(frozen=True, slots=True)
class Drop:
    """Names, as globs, that have no counterpart on the other side, and why."""

    side: str
    globs: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class DtypeRule:
    """Names, as globs, that keep to a dtype of their own when one is stated for the rest."""

    side: str
    globs: tuple[str, ...]
    dtype: DType
    when: Condition
    why: str


@dataclass(frozen=True, slots=True)
class Naming:
    """How MindSpore calls the tensors of a family, and every row of it."""

    name: str
    says: str
    rows: tuple[Row, ...]
    ties: tuple[Tie, ...] = ()
    drops: tuple[Drop, ...] = ()
    dtypes: tuple[DtypeRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Quantised:
    """How blocks of one-byte weights are scaled.

    Parameters
    ----------
    suffix
        Of the tensor with the scales, after the weight's name.
    block
        Where ``config.json`` has the extents of a block.
    otherwise
        Those extents, where it has none.
    """

    suffix: str
    block: str
    otherwise: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """One data file.

    Parameters
    ----------
    model_types, architectures
        What ``config.json`` calls it.
    namings
        The first is the default.
    layouts, stages
        How its tensors are cut over devices; not read here.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    indices: tuple[Index, ...]
    options: tuple[Option, ...]
    namings: tuple[Naming, ...]
    quantised: Quantised | None = None
    layouts: PlainValue = None
    stages: PlainValue = None

    def naming(self, name: str) -> Naming:
        """The naming of this name; StopIteration where there is none."""
        return next(naming for naming in self.namings if naming.name == name)
