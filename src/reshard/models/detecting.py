"""Detecting the family, the direction and the naming of a checkpoint from ``config.json`` and tensor names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from ..errors import PlanError, UsageError, option
from ..formats.strict_json import shown
from .family import Family, Naming, OptionValue
from .family_file import FamilyKey, family_names, load_config_names, load_family
from .pattern import name_key
from .settings import find_options
from .training_names import training_state_drops


@dataclass(frozen=True, slots=True)
class Detection:
    """What a checkpoint was detected to be, with the options that names reveal and the reasons in words.

    The direction is ``to_ms`` for a source with the names of Hugging Face, else ``to_hf``. The naming is that of the
    MindSpore side: detected in a MindSpore source, else given or the family's default.
    """

    family: Family
    direction: str
    naming: str
    options: tuple[tuple[str, OptionValue], ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One reading of the names, ranked by how many it matches and how many of its own are present."""

    family: Family
    side: str
    naming: Naming
    matched: int
    present: float
    total: int

    @property
    def rank(self) -> tuple[int, float]:
        return self.matched, self.present

    def __str__(self) -> str:
        side = "Hugging Face" if self.side == "hf" else f"naming {self.naming.name}"
        return f"{self.family.name}, {side}: {self.matched} of {self.total} name patterns"


def detect(
    config: Mapping[str, object], names: Collection[str], *, family: FamilyKey | None = None, naming: str | None = None
) -> Detection:
    """Detect what a checkpoint is, from the contents of ``config.json`` (may be empty) and its tensors' names.

    A family or a naming that the user gives is not detected.

    Raises
    ------
    UsageError
        A family or naming that does not exist.
    PlanError
        The names match no family or several, or ``config.json`` names an unknown one.

    Examples
    --------
    >>> names = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]
    >>> found = detect({"model_type": "llama"}, names)
    >>> found.family.name, found.direction, found.naming
    ('llama', 'to_ms', 'legacy')
    >>> found.reasons[0]
    "config.json has model_type 'llama'"
    """
    families: Sequence[FamilyKey]
    families, reason = ([family], f"the family {family} was given") if family is not None else _families(config)
    patterns = _patterns(names)
    ranked = sorted(_leading(_candidates(families, patterns, naming)), key=lambda one: one.rank, reverse=True)
    if not ranked:
        raise UsageError(
            f"No naming {naming!r} exists.", hint=f"The families searched: {', '.join(map(str, families))}."
        )
    best = ranked[0]
    if best.matched == 0:
        some = ", ".join(sorted(patterns)[:3]) or "none"
        likely = max(_candidates(family_names(), patterns, naming), key=lambda one: one.rank, default=best)
        hint = f"They look like {likely}." if likely.matched else "They match no family."
        hint += " Rules for another model are one data file: docs/families/adding.md." * (not likely.matched)
        raise PlanError(f"The tensor names are not those of {' or '.join(map(str, families))}: {some}", hint=hint)
    rivals = [one for one in ranked if one.rank == best.rank and one.family is not best.family]
    if rivals:
        problems = [str(one) for one in (best, *rivals)]
        raise PlanError("The tensor names match several families.", problems=problems, hint=f"Set {option('family')}.")
    options = find_options(best.family, best.side, names)
    revealed = [f"{name} is {str(value).lower()}: {example}" for name, (value, example) in options.items()]
    return Detection(
        family=best.family,
        direction="to_ms" if best.side == "hf" else "to_hf",
        naming=best.naming.name,
        options=tuple((name, value) for name, (value, _) in options.items()),
        reasons=(reason, str(best), *revealed),
    )


def detect_side(names: Collection[str]) -> str | None:
    """Return the side whose names these are, of whatever family: ``hf`` or ``ms``; None if they could be of either.

    Examples
    --------
    >>> detect_side(["model.norm.weight", "lm_head.weight"]), detect_side(["model.norm_out.weight"]), detect_side(["w"])
    ('hf', 'ms', None)
    """
    patterns = _patterns(names)
    ranked = [one for one in _candidates(family_names(), patterns, None) if one.matched]
    best = max((one.rank for one in ranked), default=None)
    sides = {one.side for one in ranked if one.rank == best}
    return sides.pop() if len(sides) == 1 else None


def _patterns(names: Iterable[str]) -> frozenset[str]:
    """Return the patterns of names; training state is of no family."""
    globs = [str(glob) for drop in training_state_drops() for glob in drop.globs]
    keys = set(map(name_key, names))
    return frozenset(key for key in keys if not any(fnmatchcase(key, glob) for glob in globs))


def _families(config: Mapping[str, object]) -> tuple[list[FamilyKey], str]:
    """Return the families that ``config.json`` allows, and why no others."""
    for key in ("model_type", "architectures"):
        value = config.get(key)
        given = {item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)}
        named = [name for name in family_names() if any(given & {*kind} for kind in load_config_names(name))]
        if named:
            return [*named], f"config.json has {key} {shown(value)}"
    model_type = config.get("model_type")
    if isinstance(model_type, str):
        known = ", ".join(name for family in family_names() for name in load_config_names(family)[0])
        message = f"Nobody has written rules for model_type {shown(model_type)}: a family is one data file"
        raise PlanError(f"{message}, as docs/families/adding.md explains.", hint=f"There are rules for: {known}.")
    return [*family_names()], "config.json names no family"


def _candidates(families: Iterable[FamilyKey], patterns: frozenset[str], naming: str | None) -> Iterator[_Candidate]:
    for key in families:
        family = load_family(key)
        for one in family.namings:
            for side in ("hf", "ms") if naming in (None, one.name) else ():
                required, known = _keys(key, one.name, side)
                present = len(required & patterns) / max(1, len(required))
                yield _Candidate(family, side, one, len(patterns & known), round(present, 6), len(patterns))


def _leading(candidates: Iterable[_Candidate]) -> list[_Candidate]:
    """Leave out families with the names of another that matches as many: nothing here tells the two apart."""
    every = list(candidates)
    most = {(one.family.name, one.side, one.matched) for one in every}
    return [one for one in every if (one.family.names_of, one.side, one.matched) not in most]


@cache
def _keys(family: FamilyKey, naming: str, side: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the name patterns that rows require, and all that a naming knows on one side."""
    rules = load_family(family).naming(naming)
    rows = [(row, t.name.key) for row in rules.rows for case in row.side(side) for t in case.tensors]
    ties = {tie.name.key for tie in rules.ties if tie.side == side}
    return frozenset(key for row, key in rows if not row.optional), frozenset(key for _, key in rows) | ties
