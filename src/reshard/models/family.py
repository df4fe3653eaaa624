"""The rules of one family of models, as values that :mod:`.family_file` parses from its data file.

Most fields are the keys of that file, which ``docs/families/adding.md`` explains.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..tensor import DType
from .pattern import Expression, NamePattern, TensorPattern

SIDES = ("hf", "ms")
"""Hugging Face, MindSpore."""

OptionValue = bool | int | str
Condition = tuple[tuple[str, OptionValue], ...]
"""Values that options and parameters must have, all of them."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number, a flag or a list that shapes depend on; with ``by``, one of ``choices`` for each value of an option."""

    name: str
    config: tuple[str, ...] = ()
    default: Expression | bool | tuple[int, ...] | None = None
    by: str = ""
    choices: tuple[tuple[str, Expression], ...] = ()
    description: str = ""

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """Every expression that the value may be computed by."""
        fallback = (self.default,) if isinstance(self.default, Expression) else ()
        return (*(expression for _, expression in self.choices), *fallback)


@dataclass(frozen=True, slots=True)
class Index:
    """Numbers that occur in names: ``start``, ``start + step``, ... below ``stop``, except those of ``excluded``.

    With ``listed`` only those at which the list of this name has the value ``wanted``.
    """

    name: str
    start: Expression
    stop: Expression
    step: Expression
    excluded: str = ""
    description: str = ""
    listed: str = ""
    wanted: int = 0

    @property
    def names(self) -> frozenset[str]:
        """Parameters and indices that the numbers depend on."""
        return self.start.names | self.stop.names | self.step.names | ({self.excluded, self.listed} - {""})


@dataclass(frozen=True, slots=True)
class Option:
    """A choice about one side, or both, that shapes or names depend on.

    The default is the first of its values; without values it is any count from 1 on, with 1 as the default. ``detect``
    are values, each with a glob over that side's names, or the source's, that reveals it.
    """

    name: str
    values: tuple[OptionValue, ...]
    side: str
    detect: tuple[tuple[OptionValue, str], ...]
    description: str

    def is_about(self, side: str) -> bool:
        """Whether the choice is about a side."""
        return self.side in (side, "both")

    @property
    def default(self) -> OptionValue:
        """The value of an option that is neither given nor detected."""
        return self.values[0] if self.values else 1


def is_same_option(given: object, value: object) -> bool:
    """Whether an option has a value; both may be written as text, in any case.

    Examples
    --------
    >>> is_same_option("True", True), is_same_option(None, False)
    (True, False)
    """
    return given is not None and str(given).lower() == str(value).lower()


@dataclass(frozen=True, slots=True)
class Case:
    """One side of a row, for when a condition holds."""

    when: Condition
    tensors: tuple[TensorPattern, ...]

    def completed(self, other: Case) -> Case:
        """Give tensors without axes those of their counterparts in ``other``."""
        axes = {tensor.label: (tensor.axes, tensor.text) for tensor in reversed(other.tensors)}
        shaped = (
            tensor if tensor.text else TensorPattern(tensor.label, tensor.name, *axes.get(tensor.label, (None, "")))
            for tensor in self.tensors
        )
        return Case(self.when, tuple(shaped))


@dataclass(frozen=True, slots=True)
class Row:
    """The same elements in the forms of two sides, of which at most one each holds; read in either direction."""

    hf: tuple[Case, ...]
    ms: tuple[Case, ...]
    when: Condition = ()
    optional: bool = False

    def side(self, side: str) -> tuple[Case, ...]:
        """Return the forms of one side."""
        return self.hf if side == "hf" else self.ms

    @property
    def forms(self) -> tuple[tuple[Case, Case], ...]:
        """Every pair of a Hugging Face and a MindSpore form, each completed by the other."""
        return tuple((hf.completed(ms), ms.completed(hf)) for hf in self.hf for ms in self.ms)


@dataclass(frozen=True, slots=True)
class Tie:
    """A tensor of one side that repeats another: dropped when read, written as a copy if ``write`` holds as well."""

    side: str
    name: NamePattern
    of: NamePattern
    when: Condition = ()
    write: Condition = ()


@dataclass(frozen=True, slots=True)
class Drop:
    """Names, as globs with indices, without a counterpart on the other side, and why they have none."""

    side: str
    globs: tuple[NamePattern, ...]
    why: str
    when: Condition = ()


@dataclass(frozen=True, slots=True)
class DtypeRule:
    """Names, as globs, whose dtype is fixed whatever dtype is requested, and why."""

    side: str
    globs: tuple[str, ...]
    dtype: DType
    when: Condition
    why: str


@dataclass(frozen=True, slots=True)
class Naming:
    """One MindSpore naming of a family's tensors, with all of its rows."""

    name: str
    description: str
    rows: tuple[Row, ...]
    ties: tuple[Tie, ...] = ()
    drops: tuple[Drop, ...] = ()
    dtypes: tuple[DtypeRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Quantised:
    """How blocks of quantised weights are scaled.

    ``suffix`` is what the name of the tensor of scales has after the weight's name, or instead of ``of`` at its end,
    ``block`` the key of ``config.json`` with the extents of a block, and ``default`` those extents if the key is
    absent. Weights of whole numbers are FP4, two a byte, if ``packed`` has the extents of their blocks.
    """

    suffix: str
    block: str
    default: tuple[int, ...]
    of: str = ""
    packed: tuple[int, ...] = ()

    def scale_of(self, name: str) -> str:
        """Return the name of a weight's scales."""
        return name.removesuffix(self.of) + self.suffix


@dataclass(frozen=True, slots=True)
class Family:
    """The rules of one data file; the default naming is the first.

    ``names_of`` is the family whose tensors have the same names: what nothing tells apart is taken for that one.
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
    names_of: str = ""

    def naming(self, name: str) -> Naming:
        """Return the naming of this name; StopIteration if there is none."""
        return next(naming for naming in self.namings if naming.name == name)
