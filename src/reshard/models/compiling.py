"""Applying a family's rules to one checkpoint: every target tensor, and where its elements come from.

Every guard is here, before a byte moves: a source tensor is used, dropped for a stated reason, or a problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import translate

from ..errors import PlanError, UsageError, option, raise_all
from ..tensor import DType, Patch, Shape, TensorSpec, plain_patch
from .block_scales import Scale, find_scales, unpack
from .carried_adapters import UsedWeight, adapters_among, carried_names
from .expansion import Expansion, RowSource, RowTarget, expand, index_values
from .family import Drop, DtypeRule, Family, Naming, OptionValue, Row
from .inferring import ModelSide, keys_to_ask
from .pattern import name_key
from .settings import Settings, affects_elements, find_options, resolve_settings
from .training_names import is_counter, training_state_drops

DIRECTIONS = ("to_ms", "to_hf")

_FLOATS = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16})
_WHOLE_NUMBERS = frozenset({DType.I32, DType.I64})

# A hostile config.json may ask for millions of tensors: beyond this their absence is one problem, not one each.
_MAX_LISTED_COUNT = 1 << 14
_MAX_PROBLEM_COUNT = 1 << 16


@dataclass(frozen=True, slots=True)
class SourcePart:
    """Elements of a source tensor in a target tensor.

    With a scale, values are first multiplied by it in float32. If source and target differ in dtype, values
    are cast, once, rounding to nearest even.
    """

    source: str
    patch: Patch
    scale: Scale | None = None


@dataclass(frozen=True, slots=True)
class CompiledTarget:
    """A tensor to write: parts that cover each element once, or for a few, a copy of another target tensor."""

    spec: TensorSpec
    parts: tuple[SourcePart, ...]
    copy_of: str = ""


@dataclass(frozen=True, slots=True)
class DroppedTensor:
    """A source tensor that is not used, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class CompiledRules:
    """A family's rules, applied to one checkpoint.

    Of every parameter, name, value and origin are kept in words. Dropped is every source tensor that no target uses
    and that holds no scales.
    """

    family: str
    direction: str
    naming: str
    options: tuple[tuple[str, OptionValue], ...]
    parameters: tuple[tuple[str, str, str], ...]
    targets: tuple[CompiledTarget, ...]
    dropped: tuple[DroppedTensor, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def copied(self) -> tuple[tuple[str, str], ...]:
        """Target tensors that repeat another, each with the other."""
        return tuple((target.spec.name, target.copy_of) for target in self.targets if target.copy_of)


def compile_rules(
    family: Family,
    direction: str,
    naming: str,
    options: Mapping[str, object],
    config: Mapping[str, object],
    specs: Mapping[str, TensorSpec],
    dtype: DType | None,
) -> CompiledRules:
    """Compute where every element of every target tensor comes from.

    Options that are not given are detected from the names, or take their default. The ``dtype`` is requested for
    floating-point target tensors, except those that the family fixes; None keeps the source's (BF16 where it is
    quantised).

    Raises
    ------
    UsageError
        The direction, the naming or an option is unknown; or a size is, and rows do not only rename what has it.
    PlanError
        Tensors are unmapped, mapped twice, missing, or of another shape than the rules say; all are listed.

    Examples
    --------
    >>> from reshard.models.family_file import load_family
    >>> config = {"num_hidden_layers": 0, "vocab_size": 8, "hidden_size": 4, "tie_word_embeddings": True}
    >>> shapes = {"model.embed_tokens.weight": (8, 4), "model.norm.weight": (4,)}
    >>> specs = {name: TensorSpec(name, DType.BF16, shape) for name, shape in shapes.items()}
    >>> compiled = compile_rules(load_family("llama"), "to_ms", "legacy", {}, config, specs, DType.F32)
    >>> for target in compiled.targets:
    ...     print(target.spec.name, target.spec.dtype, target.copy_of or target.parts[0].source)
    model.tok_embeddings.embedding_weight F32 model.embed_tokens.weight
    model.norm_out.weight F32 model.norm.weight
    lm_head.weight F32 model.tok_embeddings.embedding_weight
    """
    if direction not in DIRECTIONS:
        raise UsageError(f"Unknown direction {direction!r}.", hint=f"Known: {', '.join(DIRECTIONS)}.")
    namings = {known.name: known for known in family.namings}
    if naming not in namings:
        hint = f"Set {option('naming')} to one of: {', '.join(namings)}."
        raise UsageError(f"The family {family.name} has no naming {naming!r}.", hint=hint)
    source_side = "hf" if direction == "to_ms" else "ms"
    found = {name: value for name, (value, _) in find_options(family, source_side, specs).items()}
    settings = resolve_settings(family, config, {**found, **options})
    compilation = _Compilation(family, namings[naming], direction, settings, config, specs, dtype)
    for choice in family.options:
        shown_by = {value for value, _ in choice.detect}
        is_told_by_absence = bool(shown_by) and choice.default not in shown_by
        known = choice.name in found or choice.name in options or is_told_by_absence
        if choice.is_about(source_side) and not known and affects_elements(choice, family, namings[naming]):
            value = str(choice.default).lower()
            compilation.note(f"{choice.name}: {value}, the default; names do not reveal it: {choice.description}")
    return compilation.run()


class _Compilation:
    """One run over a family's rows; collects problems instead of stopping at the first."""

    def __init__(
        self,
        family: Family,
        naming: Naming,
        direction: str,
        settings: Settings,
        config: Mapping[str, object],
        specs: Mapping[str, TensorSpec],
        dtype: DType | None,
    ) -> None:
        self._family, self._naming, self._direction, self._settings = family, naming, direction, settings
        self._source_side, self._target_side = ("hf", "ms") if direction == "to_ms" else ("ms", "hf")
        self._specs = unpack(family.quantised, specs) if direction == "to_ms" else specs
        self._dtype, self._config = dtype, config
        # Ordered sets: the same problem or note is found once a layer.
        self._problems: dict[str, None] = {}
        self._notes: dict[str, None] = {}
        self._scales, problems = find_scales(family.quantised, config, specs if direction == "to_ms" else {})
        self._problems.update(dict.fromkeys(problems))
        self._adapters = adapters_among(specs)
        self._halves = {name for pair in self._adapters for name in (pair.a, pair.b)}
        self._targets: dict[str, CompiledTarget] = {}
        self._row_of: dict[str, str] = {}
        self._dtype_rules = [
            (re.compile("|".join(map(translate, rule.globs))), rule)
            for rule in naming.dtypes
            if rule.side == self._target_side and settings.holds(rule.when)
        ]

    def note(self, text: str) -> None:
        self._notes[text] = None

    def _report(self, problem: str) -> None:
        self._problems[problem] = None

    def run(self) -> CompiledRules:
        """Expand every row, then account for the source tensors that are left over."""
        lacking: set[str] = set()
        for row in self._naming.rows:
            if len(self._problems) > _MAX_PROBLEM_COUNT:
                break
            needs: set[str] = set()
            try:
                expansion = expand(row, self._direction, self._settings, needs)
            except PlanError as error:
                self._report(f"config: {error.marked_message}")
                continue
            if needs and (not row.optional or self._has_tensors_of(row)):  # what is not there needs no sizes
                lacking |= needs
            if expansion is not None:
                self._add(expansion)
        if lacking:
            self._raise_lacking(frozenset(lacking))
        self._add_adapters()
        self._add_counters()
        self._add_ties()
        dropped = tuple(self._left_over())
        self._raise_problems()
        settings = self._settings
        return CompiledRules(
            family=self._family.name,
            direction=self._direction,
            naming=self._naming.name,
            options=tuple(settings.options.items()),
            parameters=tuple((name, str(settings.values[name]), source) for name, source in settings.sources.items()),
            targets=tuple(self._targets.values()),
            dropped=dropped,
            notes=tuple(self._notes),
        )

    def _has_tensors_of(self, row: Row) -> bool:
        keys = {tensor.name.key for case in row.side(self._source_side) for tensor in case.tensors}
        return any(name_key(name) in keys for name in self._specs)

    def _add(self, expansion: Expansion) -> None:
        if expansion.name_count > max(len(self._specs), _MAX_LISTED_COUNT):
            self._report(f"{expansion.title}: expects {expansion.name_count} tensors, found {len(self._specs)}")
            return
        targets = list(expansion.targets())
        if expansion.row.optional and not any(s.name in self._specs for one in targets for s, _ in one.parts):
            return
        for target in targets:
            if target.name in self._targets:
                self._report(f"{target.name}: made by two rows, {expansion.title} and another")
            for source, _ in target.parts:
                self._check(source, target.name, expansion.title)
            if all(source.name in self._specs for source, _ in target.parts):
                self._targets[target.name] = self._compiled(target)

    def _check(self, source: RowSource, target: str, title: str) -> None:
        """Report a source tensor that is missing, of another shape, or used by another row."""
        name = source.name
        row = self._row_of.get(name)
        if row is not None:
            if row != title:
                self._report(f"{name}: mapped twice, by the rows {row} and {title}")
            return
        self._row_of[name] = title
        spec = self._specs.get(name)
        if spec is None:
            self._report(f"{name}: missing; needed for {target}")
        elif source.shape is not None and spec.shape != source.shape:
            expected = f"{_text_of(source.shape)} = [{source.text}]"
            self._report(f"{name}: shape {_text_of(spec.shape)}, expected {expected}")

    def _compiled(self, target: RowTarget) -> CompiledTarget:
        parts = tuple(
            SourcePart(source.name, patch, self._scales.get(source.name))
            for source, patches in target.parts
            for patch in ((plain_patch(self._specs[source.name].shape),) if patches is None else patches)
        )
        shape = self._specs[parts[0].source].shape if target.shape is None else target.shape
        return CompiledTarget(TensorSpec(target.name, self._dtype_for(target.name, parts), shape), parts)

    def _dtype_for(self, name: str, parts: tuple[SourcePart, ...]) -> DType:
        """Return the requested dtype, or the sources'; what is not floating-point keeps its own."""
        own = {DType.BF16 if part.scale else self._specs[part.source].dtype for part in parts}
        if own.isdisjoint(_FLOATS) and len(own) == 1:
            (only,) = own
            if only in _WHOLE_NUMBERS:
                rule = self._fixed_dtype(name)
                return rule.dtype if rule is not None else only
            if only.value.startswith("F"):
                self._report(f"{parts[0].source}: {only} without a tensor of scales")
            return only
        if not own <= _FLOATS:
            self._report(f"{name}: its sources have dtypes that cannot be combined: {', '.join(sorted(own))}")
        if self._dtype is None:  # F32 holds every value of both half types
            return next(iter(own)) if len(own) == 1 else DType.F64 if DType.F64 in own else DType.F32
        rule = self._fixed_dtype(name)
        if rule is None:
            return self._dtype
        if rule.dtype in _WHOLE_NUMBERS:
            self._report(f"{name}: its sources are {', '.join(sorted(own))}, expected whole numbers")
        if rule.dtype is not self._dtype:
            self.note(f"{', '.join(rule.globs)}: {rule.dtype}; {rule.why}")
        return rule.dtype

    def _fixed_dtype(self, name: str) -> DtypeRule | None:
        return next((rule for pattern, rule in self._dtype_rules if pattern.match(name)), None)

    def _add_adapters(self) -> None:
        """Convert adapters beside weights that are only renamed; with other problems around they are left aside."""
        if not self._adapters or self._problems:
            return
        made_of: dict[str, list[UsedWeight]] = {}
        for target in self._targets.values():
            for part in target.parts:
                used = UsedWeight(target.spec.name, target.spec.shape, part.patch, len(target.parts) == 1)
                made_of.setdefault(part.source, []).append(used)
        names = carried_names(self._adapters, made_of, self._specs, self._direction, self._naming.name)
        for source, name in names.items():
            shape = self._specs[source].shape
            parts = (SourcePart(source, plain_patch(shape)),)
            self._targets[name] = CompiledTarget(TensorSpec(name, self._dtype_for(name, parts), shape), parts)
        self.note(f"{len(self._adapters)} adapters stay adapters, beside their weights")

    def _add_counters(self) -> None:
        """Pass on what counts training; Hugging Face has no place for it."""
        for name, spec in self._specs.items() if self._target_side == "ms" else ():
            if is_counter(name, spec.shape) and name not in self._row_of:
                self._row_of[name] = "counters of training"
                self._targets[name] = CompiledTarget(spec, (SourcePart(name, plain_patch(spec.shape)),))

    def _add_ties(self) -> None:
        settings = self._settings
        for tie in self._naming.ties:
            if tie.side != self._target_side or not (settings.holds(tie.when) and settings.holds(tie.write)):
                continue
            for numbers in index_values(tie.name.names | tie.of.names, settings):
                name, of = tie.name.render(numbers), tie.of.render(numbers)
                if name in self._targets:
                    self._report(f"{name}: made by a row and by a tie to {of}")
                elif of in self._targets:
                    spec, parts = self._targets[of].spec, self._targets[of].parts
                    self._targets[name] = CompiledTarget(TensorSpec(name, spec.dtype, spec.shape), parts, of)

    def _left_over(self) -> Iterator[DroppedTensor]:
        """Yield what is dropped; report what no row, scale, tie or drop accounts for."""
        scales = {scale.tensor for scale in self._scales.values()}
        tied = {
            name: f"a copy of {of}" for name, of in _tied_names(self._naming, self._source_side, self._settings).items()
        }
        drops = [
            (re.compile("|".join(map(translate, _globs_of(drop, self._settings)))), drop.why)
            for drop in (*self._naming.drops, *training_state_drops())
            if drop.side == self._source_side and self._settings.holds(drop.when)
        ]
        for name, spec in self._specs.items():
            if name in self._row_of or name in scales or name in self._halves:
                continue
            why = tied.get(name) or next((why for pattern, why in drops if pattern.match(name)), None)
            if why is None:
                self._report(f"{name}: unmapped, shape {_text_of(spec.shape)}; no row has this name")
            else:
                yield DroppedTensor(name, why)

    def _raise_lacking(self, lacking: frozenset[str]) -> None:
        """Refuse to guess sizes that neither config.json nor the tensors tell."""
        family, side, options = self._family, self._source_side, self._settings.options
        keys = keys_to_ask(ModelSide(family, self._naming.name, side, options, self._config, self._specs), lacking)
        stated = option("config", ",".join(f"{key}=N" for key in keys))
        raise UsageError(
            f"neither config.json nor the tensors tell {' and '.join(keys)}, which the rules of {family.name} need",
            hint=f"Give {option('config', 'URL')}, that of the model's config.json, or the numbers: {stated}.",
        )

    def _raise_problems(self) -> None:
        family, naming = self._family.name, self._naming.name
        known = {name: self._settings.values[name] for name in self._settings.sources}
        sizes = ", ".join(f"{name}={str(value).lower()}" for name, value in known.items())
        names = f"naming {naming}" if self._source_side == "ms" else "Hugging Face"
        hint = (
            f"The rules were read with {sizes}. Check that config.json belongs to this checkpoint, that the model "
            f"is of the family {family}, and that its tensors have the names of {names}."
        )
        message = f"The source does not fit the rules of {family} ({self._direction}, naming {naming})."
        raise_all(PlanError, message, list(self._problems), hint)


def copies_to_drop(
    family: Family, direction: str, naming: str, options: Mapping[str, object], config: Mapping[str, object]
) -> dict[str, str]:
    """Return the tensors of a source that its config says repeat others, with those: they are dropped.

    Nothing in their names or shapes shows it, so their bytes must be compared.

    Examples
    --------
    >>> from reshard.models.family_file import load_family
    >>> copies_to_drop(load_family("llama"), "to_ms", "legacy", {}, {"tie_word_embeddings": True})
    {'lm_head.weight': 'model.embed_tokens.weight'}
    """
    side = "hf" if direction == "to_ms" else "ms"
    return _tied_names(family.naming(naming), side, resolve_settings(family, config, options))


def _tied_names(naming: Naming, side: str, settings: Settings) -> dict[str, str]:
    return {
        tie.name.render(numbers): tie.of.render(numbers)
        for tie in naming.ties
        if tie.side == side and settings.holds(tie.when)
        for numbers in index_values(tie.name.names | tie.of.names, settings)
    }


def _globs_of(drop: Drop, settings: Settings) -> Iterator[str]:
    for glob in drop.globs:
        yield from (glob.render(numbers) for numbers in index_values(glob.names, settings))


def _text_of(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
