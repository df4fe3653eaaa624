"""Telling the family, the direction and the naming from ``config.json`` and from names of tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from ..errors import PlanError, UsageError
from .family import Family, Naming, OptionValue
from .loading import family_names, load_family, training_state
from .pattern import name_key
from .settings import find_options

_MOST_NAMES = 2**21


@dataclass(frozen=True, slots=True)
class Detected:
    """What a checkpoint was found to be.

    Parameters
    ----------
    direction
        ``to_ms`` for a source named as on Hugging Face, else ``to_hf``.
    naming
        That of the MindSpore side: found in a MindSpore source, else the family's default or what was stated.
    options
        Those that names give away.
    reasons
        Why, in words.
    """

    family: Family
    direction: str
    naming: str
    options: tuple[tuple[str, OptionValue], ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A reading of the names: how many kinds of them it knows, and how many of its own are there."""

    family: Family
    side: str
    naming: Naming
    known: int
    present: float
    of: int

    @property
    def rank(self) -> tuple[int, float]:
        return self.known, self.present

    @property
    def words(self) -> str:
        side = "Hugging Face" if self.side == "hf" else f"naming {self.naming.name}"
        return f"{self.family.name}, {side}: {self.known} of {self.of} kinds of names"


def detect(
    config: Mapping[str, object], names: Collection[str], *, family: str | None = None, naming: str | None = None
) -> Detected:
    """Tell what a checkpoint is.

    Parameters
    ----------
    config
        Of ``config.json``; may be empty.
    names
        Of the source's tensors.
    family, naming
        What is stated, and then not looked for.

    Raises
    ------
    UsageError
        A family or naming that there is none of.
    PlanError
        No family has such names, several do, or ``config.json`` names another; says what was seen.

    Examples
    --------
    >>> names = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]
    >>> found = detect({"model_type": "llama"}, names)
    >>> found.family.name, found.direction, found.naming
    ('llama', 'to_ms', 'legacy')
    >>> found.reasons[0]
    "config.json has model_type 'llama'"
    """
    families, reasons = _families(config, family)
    kinds = _kinds(names)
    ranked = sorted(_candidates(families, kinds, naming), key=lambda one: one.rank, reverse=True)
    if not ranked:
        raise UsageError(f"no family has a naming {naming!r}", hint=f"Asked: {', '.join(f.name for f in families)}.")
    best = ranked[0]
    if best.known == 0:
        raise PlanError(_nothing_known(families, kinds), hint=_hint(kinds, naming))
    rivals = [one for one in ranked if one.rank == best.rank and one.family is not best.family]
    if rivals:
        problems = [one.words for one in (best, *rivals)]
        raise PlanError("several families have these names", problems=problems, hint="State the family.")
    options = find_options(best.family, best.side, names)
    reasons += [best.words, *(f"{name} is {str(value).lower()}: {where}" for name, (value, where) in options.items())]
    found = tuple((name, value) for name, (value, _) in options.items())
    direction = "to_ms" if best.side == "hf" else "to_hf"
    return Detected(best.family, direction, best.naming.name, found, tuple(reasons))


def _families(config: Mapping[str, object], stated: str | None) -> tuple[list[Family], list[str]]:
    """Return the families that may be, and why no others."""
    if stated is not None:
        return [load_family(stated)], [f"family {stated} is stated"]
    every = [load_family(name) for name in family_names()]
    for key in ("model_type", "architectures"):
        value = config.get(key)
        called = {item for item in value if isinstance(item, str)} if isinstance(value, list) else {value}
        named = [family for family in every if called & {*family.model_types, *family.architectures}]
        if named:
            return named, [f"config.json has {key} {value!r}"]
    if isinstance(config.get("model_type"), str):
        known = ", ".join(kind for family in every for kind in family.model_types)
        raise PlanError(
            f"config.json has model_type {config['model_type']!r}: no family is called so", hint=f"Known: {known}."
        )
    return every, ["config.json names no family"]


def _kinds(names: Collection[str]) -> frozenset[str]:
    """Names with ``{}`` for numbers, without what training leaves beside weights."""
    kinds = frozenset(map(name_key, names))
    globs = [glob for drop in training_state() for glob in drop.globs]
    return frozenset(kind for kind in kinds if not any(fnmatchcase(kind, glob) for glob in globs))


def _candidates(families: list[Family], kinds: frozenset[str], stated: str | None) -> Iterator[_Candidate]:
    for family in families:
        for naming in family.namings:
            if stated is not None and naming.name != stated:
                continue
            for side in ("hf", "ms"):
                required, known = _keys(family.name, naming.name, side)
                present = len(required & kinds) / max(1, len(required))
                yield _Candidate(family, side, naming, len(kinds & known), round(present, 6), len(kinds))


@cache
def _keys(family: str, naming: str, side: str) -> tuple[frozenset[str], frozenset[str]]:
    """The kinds of names that rows need, and all that a naming knows on one side."""
    data = load_family(family).naming(naming)
    rows = [(row, t.name.key) for row in data.rows for case in row.side(side) for t in case.tensors]
    ties = {tie.name.key for tie in data.ties if tie.side == side}
    return frozenset(key for row, key in rows if not row.optional), frozenset(key for _, key in rows) | ties


def _nothing_known(families: list[Family], kinds: frozenset[str]) -> str:
    shown = ", ".join(sorted(kinds)[:3]) or "none"
    return f"these names are not of {' or '.join(family.name for family in families)}: {shown}"


def _hint(kinds: frozenset[str], naming: str | None) -> str:
    every = [load_family(name) for name in family_names()]
    fitting = [one for one in _candidates(every, kinds, naming) if one.known]
    best = max(fitting, key=lambda one: one.rank, default=None)
    return f"They look like {best.words}." if best else "No family has such names."
