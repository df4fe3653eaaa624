"""What a family's file does with one checkpoint: which names each row covers, what comes back, what is left open.

It is for authors of such files, so every finding has the line that it is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ..errors import PlanError, ReshardError, UsageError
from ..tensor import DType, TensorSpec
from .compiling import CompiledRules, compile_rules
from .expansion import expand
from .family import Condition, Family, Naming, Row
from .family_file import FamilyKey
from .inferring import ModelSide, infer_sizes
from .parallel_rules import has_layouts, load_layouts
from .pattern import name_key
from .settings import Settings, affects_elements, find_options, resolve_settings

_MOST_NAMES = 1 << 20


@dataclass(frozen=True, slots=True)
class RowCoverage:
    """A row, by its line and its patterns, with the count of source tensors that it covers, or why it covers none."""

    line: int
    hf: str
    ms: str
    tensor_count: int = 0
    why_none: str = ""


@dataclass(frozen=True, slots=True)
class FamilyCoverage:
    """What a family's rules do with the tensors of one side.

    ``problems`` are tensors that no row has, that a row lacks, or that have another shape. ``changed`` are those that
    do not come back as they were, each with what becomes of them; they are not looked for beside problems. ``open`` is
    what neither the file nor the checkpoint decides, with the line.
    """

    direction: str
    naming: str
    options: Mapping[str, object]
    config: Mapping[str, object]
    tensor_count: int
    rows: tuple[RowCoverage, ...]
    problems: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    changed: tuple[str, ...]
    open: tuple[tuple[int, str], ...]

    @property
    def covered_count(self) -> int:
        """Tensors that rows use."""
        return sum(row.tensor_count for row in self.rows)


@dataclass(frozen=True, slots=True)
class FamilyFile:
    """A family with the text of its file, which findings point into."""

    key: FamilyKey
    family: Family
    text: str

    def line_of(self, pattern: str, naming: str) -> int:
        """Return the line of a naming that has a pattern of a name, whole or behind a place; 0 if none has it.

        Examples
        --------
        >>> row = "  - {hf: 'u.{i}.w [h]'}"
        >>> lines = ["namings:", "  a:", row, "  b:", row, "  - {hf: '<at>.v [h]'}"]
        >>> file = FamilyFile("x", None, "\\n".join(lines))
        >>> file.line_of("u.{i}.w", "b"), file.line_of("layers.{i}.v", "b"), file.line_of("u", "b")
        (5, 6, 0)
        """
        name = pattern.removesuffix(".bias")
        start = self.text.find(f"\n  {naming}:", max(0, self.text.find("namings:")))
        for text in (name, *(f">{name[first:]}" for first in range(1, len(name)))):
            found = re.compile(rf"{re.escape(text)}(?![\w{{]|\.[\w{{])").search(self.text, max(0, start))
            if not found and pattern.endswith(".bias"):
                found = re.compile(re.escape(f"{text}.weight")).search(self.text, max(0, start))
            if found:
                return self.text.count("\n", 0, found.start()) + 1
        return 0

    def line_of_key(self, name: str) -> int:
        """Return the line where a parameter or an option is declared; 0 if it is not."""
        at = re.search(rf"^ +{re.escape(name)}:", self.text, re.MULTILINE)
        return self.text.count("\n", 0, at.start()) + 1 if at else 0


def cover(
    file: FamilyFile,
    direction: str,
    naming: str,
    options: Mapping[str, object],
    config: Mapping[str, object],
    specs: Mapping[str, TensorSpec] | None = None,
) -> FamilyCoverage:
    """Apply a family's rules to a checkpoint there and back, and say what they cover.

    Without ``specs`` the checkpoint is one that has every tensor that the rows expect of a model of ``config``.

    Raises
    ------
    UsageError
        An option is unknown, or config.json lacks sizes without which nothing can be said.
    """
    family, side = file.family, "hf" if direction == "to_ms" else "ms"
    rules = family.naming(naming)
    if specs is None:
        specs = _expected(family, rules, direction, resolve_settings(family, config, options))
    found = {name: value for name, (value, _) in find_options(family, side, specs).items()}
    chosen = {**found, **options}
    sizes = infer_sizes(ModelSide(family, naming, side, chosen, config, specs))
    settings = resolve_settings(family, sizes, chosen)
    problems: tuple[str, ...] = ()
    there = None
    try:
        there = compile_rules(family, direction, naming, chosen, sizes, specs, None)
    except PlanError as error:
        problems = tuple(_with_lines(file, rules, direction, settings, error.problems or [error.marked_message]))
    return FamilyCoverage(
        direction=direction,
        naming=naming,
        options=settings.options,
        config=sizes,
        tensor_count=len(specs),
        rows=tuple(_row(file, naming, row, direction, settings, specs) for row in rules.rows),
        problems=problems,
        dropped=tuple((each.name, each.why) for each in there.dropped) if there else (),
        changed=tuple(_changed(family, there, settings, sizes, specs)) if there else (),
        open=tuple(_left_open(file, rules, settings, {*found, *options}, there)),
    )


def _expected(family: Family, rules: Naming, direction: str, settings: Settings) -> dict[str, TensorSpec]:
    """Make the tensors that the rows expect, optional ones too; of any shape where rows do not say."""
    specs: dict[str, TensorSpec] = {}
    for row in rules.rows:
        try:
            expansion = expand(row, direction, settings)
        except PlanError as error:
            raise UsageError(error.marked_message, hint=f"The rules of {family.name} need it.") from error
        if expansion is None:
            continue
        if len(specs) + expansion.name_count > _MOST_NAMES:
            raise UsageError(f"{expansion.title}: expects {expansion.name_count} tensors, more than any model has")
        for target in expansion.targets():
            for source, _ in target.parts:
                specs[source.name] = TensorSpec(source.name, DType.BF16, source.shape or (1,))
    return specs


def _with_lines(
    file: FamilyFile, rules: Naming, direction: str, settings: Settings, problems: Sequence[str]
) -> Iterator[str]:
    """Put the line of its row behind every problem with a tensor that a row names."""
    lines: dict[str, int] = {}
    for row in rules.rows:
        line = file.line_of(str(row.hf[0].tensors[0].name), rules.name)
        with suppress(PlanError):  # its message is among the problems
            expansion = expand(row, direction, settings)
            for target in expansion.targets() if expansion and expansion.name_count <= _MOST_NAMES else ():
                lines |= {source.name: line for source, _ in target.parts}
    for problem in problems:
        line = lines.get(problem.partition(": ")[0], 0)
        yield f"{problem} (line {line})" if line else problem


def _row(
    file: FamilyFile, naming: str, row: Row, direction: str, settings: Settings, specs: Mapping[str, TensorSpec]
) -> RowCoverage:
    hf, ms = (
        ", ".join(dict.fromkeys(str(t.name) for case in side for t in case.tensors if settings.holds(case.when)))
        for side in (row.hf, row.ms)
    )
    shown = RowCoverage(file.line_of(str(row.hf[0].tensors[0].name), naming), hf, ms)
    try:
        expansion = expand(row, direction, settings)
    except PlanError as error:
        return replace(shown, why_none=error.marked_message)
    if expansion is None:
        return replace(shown, why_none=_why_not(row, settings))
    if expansion.name_count > _MOST_NAMES:
        return replace(shown, why_none=f"expects {expansion.name_count} tensors, more than any model has")
    names = {source.name for target in expansion.targets() for source, _ in target.parts}
    count = len(names & specs.keys())
    if count == len(names):
        return replace(shown, tensor_count=count)
    absent = "optional, and none is there" if row.optional and not count else f"{len(names) - count} are missing"
    return replace(shown, tensor_count=count, why_none=absent)


def _why_not(row: Row, settings: Settings) -> str:
    """Say which condition does not hold; without one, an index runs through nothing."""
    conditions = (row.when, *(case.when for case in (*row.hf, *row.ms)))
    unmet = dict.fromkeys(_text(when) for when in conditions if when and not settings.holds(when))
    return f"only for {' or '.join(unmet)}" if unmet else "an index of its names runs through nothing"


def _text(when: Condition) -> str:
    return " and ".join(f"{name} {str(value).lower()}" for name, value in when)


def _changed(
    family: Family,
    there: CompiledRules,
    settings: Settings,
    config: Mapping[str, object],
    specs: Mapping[str, TensorSpec],
) -> Iterator[str]:
    """Convert back, and yield what is not what it was."""
    made = {target.spec.name: target.spec for target in there.targets}
    direction = "to_hf" if there.direction == "to_ms" else "to_ms"
    try:
        back = compile_rules(family, direction, there.naming, settings.options, config, made, None)
    except ReshardError as error:
        yield from error.problems or [error.marked_message]
        return
    again = {target.spec.name: target.spec for target in back.targets}
    dropped = {each.name for each in there.dropped}
    for name, spec in specs.items():
        after = again.get(name)
        if after is None:
            if name not in dropped and not (family.quantised and name.endswith(family.quantised.suffix)):
                yield f"{name}: does not come back"
        elif (after.dtype, after.shape) != (spec.dtype, spec.shape):
            yield f"{name}: {spec.dtype} {list(spec.shape)} comes back as {after.dtype} {list(after.shape)}"
    copies = {name for name, _ in back.copied}
    yield from (f"{name}: comes back, but was not there" for name in again.keys() - specs.keys() - copies)


def _left_open(
    file: FamilyFile, rules: Naming, settings: Settings, decided: set[str], there: CompiledRules | None
) -> Iterator[tuple[int, str]]:
    """Yield what takes a default, has no value, or has no parallel rule."""
    family = file.family
    for choice in family.options:
        if choice.name not in decided and affects_elements(choice, family, rules):
            told = "names do not reveal it" if not choice.detect else "no name reveals it here"
            value = str(settings.options[choice.name]).lower()
            yield file.line_of_key(choice.name), f"option {choice.name}: {value}, the default; {told}"
    for name, why in settings.unknown.items():
        yield file.line_of_key(name), f"parameter {name}: no value; {why}"
    layouts = load_layouts(file.key) if has_layouts(file.key) else {}
    if rules.name not in layouts:
        yield file.line_of_key("layouts"), f"no parallel rules for the naming {rules.name}: --parallel is refused"
    elif there is not None and there.direction == "to_ms":
        unknown = layouts[rules.name].unknown(target.spec.name for target in there.targets)
        for name in dict.fromkeys(map(name_key, unknown)):
            yield file.line_of_key("layouts"), f"{name}: no parallel rule of the naming {rules.name} has this name"
