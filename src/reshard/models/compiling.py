"""Applying a family's rules to a checkpoint, with every guard before a byte moves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase, translate

from ..errors import PlanError, UsageError, raise_all
from ..tensor import DType, Patch, Shape, TensorSpec, plain_patch
from .compiled import Compiled, Dropped, Part, Target
from .expanding import Expansion, Expected, SourceOptions, expand, name_values
from .family import Drop, Family, Naming
from .loading import training_state
from .scales import find_scales
from .settings import Settings, find_options, is_layout, settle

DIRECTIONS = ("to_ms", "to_hf")

_FLOATS = (DType.F64, DType.F32, DType.F16, DType.BF16)
_MOST_MISSING = 1 << 14


def compile_rules(
    family: Family,
    direction: str,
    naming: str,
    options: Mapping[str, object],
    config: Mapping[str, object],
    specs: Mapping[str, TensorSpec],
    dtype: DType | None,
) -> Compiled:
    """Tell where every element of every target tensor comes from.

    Parameters
    ----------
    direction
        ``to_ms`` or ``to_hf``.
    naming
        One of the family's.
    options
        Those that are stated. Others are taken from the names found, where names tell, or are the default.
    config
        Of ``config.json``.
    specs
        The source's tensors by name.
    dtype
        Of every floating-point target tensor, except those that the family keeps to their own; None to
        keep what the source has (BF16 where that is quantised).

    Raises
    ------
    UsageError
        The direction, the naming or an option is not known.
    PlanError
        Tensors do not fit the rules: unmapped, doubly mapped, missing, or of another shape. One error lists all.

    Examples
    --------
    >>> from reshard.models.loading import load_family
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
        raise UsageError(f"direction {direction!r}", hint=f"Known: {', '.join(DIRECTIONS)}.")
    if naming not in {known.name for known in family.namings}:
        known_names = ", ".join(known.name for known in family.namings)
        raise UsageError(f"{family.name} has no naming {naming!r}", hint=f"Known: {known_names}.")
    source_side = "hf" if direction == "to_ms" else "ms"
    found = {name: value for name, (value, _) in find_options(family, source_side, specs).items()}
    settings = settle(family, config, {**found, **options})
    compilation = _Compilation(family, family.naming(naming), direction, settings, config, specs, dtype)
    for option in family.options:
        if option.side == source_side and option.name not in {*found, *options} and is_layout(option, family):
            compilation.note(
                f"{option.name}: {str(option.default).lower()} by default; names do not tell: {option.says}"
            )
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
        self._specs, self._dtype = specs, dtype
        self._problems: dict[str, None] = {}
        self._notes: dict[str, None] = {}
        self._scales, scale_problems = find_scales(family.quantised, config, specs if direction == "to_ms" else {})
        self._problems.update(dict.fromkeys(scale_problems))
        self._targets: dict[str, Target] = {}
        self._row_of: dict[str, str] = {}
        self._checked: set[str] = set()
        self._dtype_rules = [
            (re.compile("|".join(map(translate, rule.globs))), rule)
            for rule in naming.dtypes
            if rule.side == self._target_side and settings.holds(rule.when)
        ]

    def note(self, text: str) -> None:
        """Say something, once."""
        self._notes[text] = None

    def run(self) -> Compiled:
        """Expand every row, then see what is left over."""
        for row in self._naming.rows:
            try:
                expansion = expand(row, self._direction, self._settings)
            except PlanError as error:
                self._problems[f"config: {error.message}"] = None
                continue
            if expansion is not None:
                self._take(expansion)
        self._write_ties()
        dropped = tuple(self._left_over())
        settings = self._settings
        self._raise()
        values = {name: str(settings.values[name]) for name in settings.sources}
        return Compiled(
            family=self._family.name,
            direction=self._direction,
            naming=self._naming.name,
            options=tuple(settings.options.items()),
            parameters=tuple((name, values[name], source) for name, source in settings.sources.items()),
            targets=tuple(self._targets.values()),
            dropped=dropped,
            notes=tuple(self._notes),
        )

    def _take(self, expansion: Expansion) -> None:
        if expansion.name_count > max(len(self._specs), _MOST_MISSING):  # and no list of all that is missing
            self._problems[f"{expansion.title}: {expansion.name_count} tensors, the source has {len(self._specs)}"] = (
                None
            )
            return
        wanted = list(expansion.targets())
        if expansion.row.optional and not any(e.name in self._specs for one in wanted for e, _ in one.parts):
            return
        for one in wanted:
            if one.name in self._targets:
                self._problems[f"{one.name}: made by two rows, of {expansion.title} and another"] = None
            for expected, _ in one.parts:
                self._check(expected, one.name, expansion.title)
            if all(expected.name in self._specs for expected, _ in one.parts):
                self._targets[one.name] = self._target(one)

    def _check(self, expected: Expected, target: str, title: str) -> None:
        """Note a source tensor that is missing, of another shape, or used by another row."""
        name = expected.name
        if self._row_of.setdefault(name, title) != title:
            self._problems[f"{name}: doubly mapped, by the rows of {self._row_of[name]} and {title}"] = None
        if name in self._checked:
            return
        self._checked.add(name)
        spec = self._specs.get(name)
        if spec is None:
            self._problems[f"{name}: missing; {target} needs it"] = None
        elif expected.shape is not None and spec.shape != expected.shape:
            said = f"shape {_shown(spec.shape)}, expected {_shown(expected.shape)} = [{expected.text}]"
            self._problems[f"{name}: {said}"] = None

    def _target(self, wanted: SourceOptions) -> Target:
        parts = [
            Part(expected.name, patch, self._scales.get(expected.name))
            for expected, patches in wanted.parts
            for patch in (self._as_it_is(expected) if patches is None else patches)
        ]
        shape = self._specs[parts[0].source].shape if wanted.shape is None else wanted.shape
        return Target(TensorSpec(wanted.name, self._dtype_for(wanted.name, parts), shape), tuple(parts))

    def _as_it_is(self, expected: Expected) -> tuple[Patch, ...]:
        return (plain_patch(self._specs[expected.name].shape),)

    def _dtype_for(self, name: str, parts: list[Part]) -> DType:
        """The stated dtype, or the one of the sources; what is no floating-point tensor keeps its own."""
        own = {DType.BF16 if part.scale else self._specs[part.source].dtype for part in parts}
        if own.isdisjoint(_FLOATS) and len(own) == 1:
            (only,) = own
            if only.value.startswith("F"):
                self._problems[f"{parts[0].source}: {only} without a tensor of scales"] = None
            return only
        if not own <= set(_FLOATS):
            self._problems[f"{name}: its sources have dtypes that do not mix: {', '.join(sorted(own))}"] = None
        if self._dtype is not None:
            return self._ruled(name, self._dtype)
        return _widest(own)

    def _ruled(self, name: str, stated: DType) -> DType:
        for pattern, rule in self._dtype_rules:
            if pattern.match(name):
                if rule.dtype is not stated:
                    self._notes[f"{', '.join(rule.globs)}: {rule.dtype}; {rule.why}"] = None
                return rule.dtype
        return stated

    def _write_ties(self) -> None:
        settings = self._settings
        for tie in self._naming.ties:
            if tie.side != self._target_side or not (settings.holds(tie.when) and settings.holds(tie.write)):
                continue
            for numbers in name_values(tie.name.names | tie.of.names, settings):
                name, of = tie.name.render(numbers), tie.of.render(numbers)
                if name in self._targets:
                    self._problems[f"{name}: made by a row and by a tie to {of}"] = None
                elif of in self._targets:
                    spec = self._targets[of].spec
                    self._targets[name] = Target(TensorSpec(name, spec.dtype, spec.shape), self._targets[of].parts, of)

    def _left_over(self) -> Iterator[Dropped]:
        """Yield what is dropped; whatever no row, scale, tie or drop knows is a problem."""
        scales = {scale.tensor for scale in self._scales.values()}
        tied = dict(self._tied())
        drops = [drop for drop in (*self._naming.drops, *training_state()) if drop.side == self._source_side]
        for name, spec in self._specs.items():
            if name in self._checked or name in scales:
                continue
            why = tied.get(name) or _why(name, drops)
            if why is None:
                self._problems[f"{name}: unmapped, shape {_shown(spec.shape)}; no row knows it"] = None
            else:
                yield Dropped(name, why)

    def _tied(self) -> Iterator[tuple[str, str]]:
        for tie in self._naming.ties:
            if tie.side == self._source_side and self._settings.holds(tie.when):
                for numbers in name_values(tie.name.names | tie.of.names, self._settings):
                    yield tie.name.render(numbers), f"a copy of {tie.of.render(numbers)}"

    def _raise(self) -> None:
        known = {name: self._settings.values[name] for name in self._settings.sources}
        sizes = ", ".join(f"{name}={str(value).lower()}" for name, value in known.items())
        hint = (
            f"Read with {sizes}. Is config.json the one of this checkpoint, is it {self._family.name}, "
            f"and are its tensors named as {self._naming.name if self._source_side == 'ms' else 'on Hugging Face'}?"
        )
        message = (
            f"{len(self._problems)} findings: the source is not what {self._family.name} "
            f"({self._direction}, naming {self._naming.name}) expects"
        )
        raise_all(PlanError, message, list(self._problems), hint)


def _why(name: str, drops: list[Drop]) -> str | None:
    return next((drop.why for drop in drops for glob in drop.globs if fnmatchcase(name, glob)), None)


def _widest(dtypes: set[DType]) -> DType:
    """The dtype that holds every value of all of them."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return DType.F64 if DType.F64 in dtypes else DType.F32


def _shown(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
