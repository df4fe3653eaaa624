"""Patterns that select tensors of a source by name, and renames for the target.

A pattern is one of

- ``TEXT`` or ``glob:TEXT``: matches whole names; ``*`` stands for any characters (dots too), ``?``
  for one, ``[ab]``, ``[a-z]`` and ``[!a]`` for one of a set, and letter case counts, as in
  :func:`fnmatch.fnmatchcase`;
- ``prefix:TEXT``: matches names that begin with the text, taken literally;
- ``regex:EXPR``: matches names in which the expression, in Python's syntax, is found *anywhere*, as
  with grep and with MindSpore's ``file_name_regex``: ``^`` and ``$`` tie it to the ends.

Renames are written ``OLD=NEW``, and the *last* ``=`` divides, since expressions hold more of them than
new names do; a new name with a ``=`` goes into a name map. A rename is one of

- ``OLD=NEW``: the tensor of exactly that name;
- ``prefix:OLD=NEW``: the start of names, the rest stays; an empty NEW takes the start away;
- ``regex:EXPR=NEW``: every place in a name where the expression is found, as :func:`re.sub` does, so
  NEW may hold ``\\1`` or ``\\g<word>`` for a group, and ``\\\\`` for a backslash.

Patterns and renames both see the names of the source. Renames happen all at once: ``a=b`` beside ``b=a``
swaps two tensors.

Expressions come from the command line or the caller, never from an object, but the names that they are compared with
do: an expression that takes too long for them ends in an error, see :mod:`.bounded_expression`. A plan holds only the
results, the names that were dropped and the new name of each other, so reading a stranger's plan compiles nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import TypeVar

from ...errors import PlanError, UsageError, raise_all
from ...formats.strict_json import shown
from ...models.training_names import is_of_network
from .bounded_expression import BoundedExpression

_FORMS = ("glob", "prefix", "regex")
_WILDCARD = re.compile(r"[*?\[]")
_SHOWN_NAMES = 8

_Matcher = Callable[[str], object]
_Rename = Callable[[str], str | None]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class NameFilter:
    """Patterns that select names; the module describes them.

    Only names that match a pattern of ``keep`` are taken, or all if it is empty; names that match one of ``drop`` are
    not, whatever ``keep`` says; and with ``network_only`` none of what training keeps beside its network. Raise
    UsageError for patterns that cannot be used; all are listed.

    Examples
    --------
    >>> chosen = NameFilter(keep=("model.*",), drop=("prefix:model.layers.1.", "regex:adam_[mv]"))
    >>> [chosen.is_kept(name) for name in ("model.norm", "model.layers.1.w", "model.adam_m.norm", "lm_head")]
    [True, False, False, False]
    >>> chosen.unmatched_drop(["model.norm", "model.layers.1.w"])
    ('regex:adam_[mv]',)
    """

    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    network_only: bool = False
    _keep: _Patterns = field(init=False, repr=False, compare=False)
    _drop: _Patterns = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems: list[str] = []
        # The dataclass is frozen, and compiling once needs a place.
        object.__setattr__(self, "_keep", _Patterns(self.keep, "keep", problems))
        object.__setattr__(self, "_drop", _Patterns(self.drop, "drop", problems))
        hint = "A pattern is a glob like model.*, or prefix:TEXT, or regex:EXPR."
        raise_all(UsageError, "patterns that cannot be used", problems, hint)

    def is_kept(self, name: str) -> bool:
        """Return whether a name is taken."""
        if self.network_only and not is_of_network(name):
            return False
        return (not self.keep or self._keep.match(name)) and not self._drop.match(name)

    def dropped(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the names that are not taken, in their order."""
        return tuple(name for name in names if not self.is_kept(name))

    def unmatched_keep(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the patterns of ``keep`` that match none of the names: the request cannot be met."""
        return self._keep.unmatched(names)

    def unmatched_drop(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the patterns of ``drop`` that match none of the names: misspelt or not needed."""
        return self._drop.unmatched(names)


@dataclass(frozen=True, slots=True)
class Renames:
    """New names of tensors: a map, then rules; the module describes them.

    The map, old name to new name, takes precedence over all rules. Of these the first that matches a name decides; a
    name that nothing matches stays. Raise UsageError for rules that cannot be used; all are listed.

    Examples
    --------
    >>> renames = Renames({"tok.weight": "embed.weight"}, ("prefix:model.=", r"regex:^layers\\.(\\d+)=h.\\1"))
    >>> renames.apply(["tok.weight", "model.norm", "layers.10.w", "head"])
    {'tok.weight': 'embed.weight', 'model.norm': 'norm', 'layers.10.w': 'h.10.w', 'head': 'head'}
    """

    name_map: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    _rules: tuple[_Rename, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems: list[str] = []
        object.__setattr__(self, "_rules", _parse_all(self.rules, _rename, "rename", problems))
        hint = "A rename is OLD=NEW, or prefix:OLD=NEW, or regex:EXPR=NEW; its last = divides."
        raise_all(UsageError, "renames that cannot be used", problems, hint)

    def apply(self, names: Iterable[str]) -> dict[str, str]:
        """Return the new name of every name, in their order; all new names differ.

        Names are those of the source, without those that are dropped: these cannot collide with anything. Raise
        PlanError for tensors that would share a name, or have an empty one; all are listed.
        """
        renamed = {name: self._find(name)[1] for name in names}
        hint = "Renames see names of the source, all at once; drop tensors that are not needed."
        message = "the renames do not give every tensor a name of its own"
        raise_all(PlanError, message, _clashes(renamed), hint)
        return renamed

    def unmatched_map(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the old names of ``name_map`` that are not among the names."""
        present = frozenset(names)
        return tuple(old for old in self.name_map if old not in present)

    def unmatched_rules(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the rules that decide none of the names: they match nothing, or the map or earlier rules take it all.

        Examples
        --------
        >>> Renames(rules=("prefix:a.=", "a.b=c")).unmatched_rules(["a.b"])
        ('a.b=c',)
        """
        used = {self._find(name)[0] for name in names}
        return tuple(rule for index, rule in enumerate(self.rules) if index not in used)

    def _find(self, name: str) -> tuple[int | None, str]:
        """Return the index of the rule that decides a name, None for the map or nothing, and the new name."""
        if name in self.name_map:
            return None, self.name_map[name]
        for index, rename in enumerate(self._rules):
            new = rename(name)
            if new is not None:
                return index, new
        return None, name


class _Patterns:
    """A list of patterns, compiled; names without wildcards cost one look-up, however many they are."""

    def __init__(self, texts: Sequence[str], role: str, problems: list[str]) -> None:
        self._texts = tuple(texts)
        self._all = _parse_all(texts, _pattern, role, problems)
        self._exact = frozenset(item for item in self._all if isinstance(item, str))
        self._matchers = tuple(item for item in self._all if not isinstance(item, str))

    def match(self, name: str) -> bool:
        return name in self._exact or any(matches(name) for matches in self._matchers)

    def unmatched(self, names: Collection[str]) -> tuple[str, ...]:
        present = frozenset(names)
        return tuple(
            text
            for text, item in zip(self._texts, self._all, strict=True)
            if not (item in present if isinstance(item, str) else any(item(name) for name in names))
        )


def _parse_all(texts: Iterable[str], parse: Callable[[str], _T], role: str, problems: list[str]) -> tuple[_T, ...]:
    """Parse every text, and append those that are malformed to ``problems``."""
    found = []
    for text in texts:
        try:
            found.append(parse(text))
        except UsageError as error:
            problems.append(f"{role} {shown(text)}: {error.marked_message}")
    return tuple(found)


def _pattern(text: str) -> str | _Matcher:
    """Parse a pattern: to a name if it matches one name only, else to a function that matches names."""
    form, body = _form_and_body(text, "glob")
    if not body:
        raise UsageError("expected a text, found none; * matches every name")
    if form == "prefix":
        return lambda name: name.startswith(body)
    if form == "regex":
        return BoundedExpression(body).search
    return re.compile(translate(body)).match if _WILDCARD.search(body) else body


def _rename(text: str) -> _Rename:
    """Parse a rename to a function that returns a name's new name, or None where it does not match."""
    old, divider, new = text.rpartition("=")
    if not divider:
        raise UsageError("expected OLD=NEW, found no =")
    form, body = _form_and_body(old, "name")
    if not body:
        raise UsageError("expected an old name before the =, found none")
    if form == "glob":
        raise UsageError("a glob does not say which part of a name stays; use prefix: or regex:")
    if form == "prefix":
        return lambda name: new + name[len(body) :] if name.startswith(body) else None
    if form == "regex":
        return _substitution(BoundedExpression(body), new)
    if not new:
        raise UsageError("expected a new name after the =, found none")
    return {body: new}.get


def _form_and_body(text: str, default: str) -> tuple[str, str]:
    form, divider, body = text.partition(":")
    return (form, body) if divider and form in _FORMS else (default, text)


def _substitution(expression: BoundedExpression, template: str) -> _Rename:
    expression.check_template(template)
    return lambda name: expression.substitute(template, name)


def _clashes(renamed: Mapping[str, str]) -> list[str]:
    """List the empty new names, and those that several tensors would share."""
    olds: dict[str, list[str]] = {}
    for old, new in renamed.items():
        olds.setdefault(new, []).append(old)
    # A tensor that came without a name may stay so: its format decides whether it can.
    problems = [f"{shown(old)} would have an empty name" for old in olds.pop("", ()) if old]
    for new, several in olds.items():
        if len(several) > 1:
            more = f" and {len(several) - _SHOWN_NAMES} more" if len(several) > _SHOWN_NAMES else ""
            listed = ", ".join(shown(name) for name in several[:_SHOWN_NAMES])
            problems.append(f"{shown(new)} is the new name of {listed}{more}")
    return problems
