"""The shapes of whole tensors, found from the pieces that ranks hold and the sizes of a parallel job."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from ..errors import StrategyError, option, raise_all
from ..tensor import Shape, TensorSpec
from .family_file import FamilyKey, load_family
from .inferring import ModelSide, axis_sums, keys_to_ask, stated_sizes
from .parallel_config import ParallelConfig
from .parallel_strategy import StrategyCompiler, compiler_for
from .pattern import name_key
from .settings import find_options
from .size_equations import Product, Sum, solve_products, value_of
from .training_names import weight_of

_ADAPTER = re.compile(r"(?:base_model\.model\.)?(.+)\.(?:mindpet_delta_|tk_delta_)?lora_([abAB])(?:\.weight)?")


def solve_full_shapes(
    family: FamilyKey,
    naming: str,
    parallel: ParallelConfig,
    pieces: Mapping[str, TensorSpec],
    *,
    config: Mapping[str, object] | None = None,
    options: Mapping[str, object] | None = None,
) -> dict[str, Shape]:
    """Find the whole tensors that training with a parallel configuration would cut into these pieces.

    How a tensor is cut depends on the whole: whether it divides, how large it is. So each candidate is cut, and
    compared with the piece. Where two would give the same piece, ``config.json`` and the family's rows decide, which
    say of which sizes an axis is the product: nothing else is evidence.

    Parameters
    ----------
    pieces
        What a rank holds of every tensor, by name; shapes in elements.

    Raises
    ------
    UsageError
        There is no such family or naming.
    StrategyError
        No whole tensor, or several, would be cut so; all are listed, with what would decide.

    Examples
    --------
    >>> from reshard.tensor import DType
    >>> pieces = {"model.layers.0.attention.wo.weight": TensorSpec("wo", DType.F32, (64, 16))}
    >>> solve_full_shapes("llama", "legacy", ParallelConfig(dp=2, mp=4), pieces)
    {'model.layers.0.attention.wo.weight': (64, 64)}
    """
    shapes: dict[str, Shape] = {name: spec.shape for name, spec in pieces.items()}
    nbytes = {name: spec.nbytes for name, spec in pieces.items()}
    compiler = compiler_for(family, naming, parallel, shapes, nbytes=nbytes, config=config, options=options)
    solver = _Solver(compiler, pieces, shapes, nbytes, _model_side(family, naming, pieces, config or {}, options or {}))
    # Optimizer states are cut as their weights are, and block scales must fit theirs: weights come first.
    is_weight = {name: weight_of(name) == name and not name.endswith("_scale_inv") for name in pieces}
    for chosen in (True, False):
        solver.solve(name for name, each in is_weight.items() if each is chosen)
    message = f"the parallel sizes do not say what the shards are pieces of ({family}, naming {naming})"
    raise_all(StrategyError, message, sorted(solver.problems), solver.hint())
    return shapes


def _model_side(
    family: FamilyKey,
    naming: str,
    pieces: Mapping[str, TensorSpec],
    config: Mapping[str, object],
    options: Mapping[str, object],
) -> ModelSide | None:
    """Return the rows that these tensors are of; None if the family has no rows for the naming."""
    rules, side = load_family(family), "hf" if naming == "hf" else "ms"
    rows = rules.namings[0].name if side == "hf" else naming
    if rows not in {known.name for known in rules.namings}:
        return None
    known = {choice.name for choice in rules.options}
    told: dict[str, object] = {name: value for name, (value, _) in find_options(rules, side, pieces).items()}
    told |= {name: value for name, value in options.items() if name in known}
    return ModelSide(rules, rows, side, told, config, pieces)


@dataclass
class _Solver:
    """Replaces the shapes of pieces by those of wholes."""

    compiler: StrategyCompiler
    pieces: Mapping[str, TensorSpec]
    shapes: dict[str, Shape]
    nbytes: dict[str, int]
    model: ModelSide | None
    problems: list[str] = field(default_factory=list)
    _rows: Mapping[str, tuple[Sum | None, ...]] = field(init=False)
    _stated: Mapping[str, int] = field(init=False)
    _solved: dict[str, None] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)
    _needed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._rows = axis_sums(self.model) if self.model else {}
        self._stated = stated_sizes(self.model) if self.model else {}

    def solve(self, names: Iterable[str]) -> None:
        """Find the wholes of some tensors; what cannot be found is among ``problems``."""
        unsure: dict[str, list[Shape]] = {}
        for name in names:
            if lacking := self.compiler.lacking_key(name):
                self.problems.append(f"{name}: how ranks share it depends on {lacking}")
                self._asked.add(lacking)
                continue
            try:
                found = self._candidates(name)
            except StrategyError as error:
                self.problems.append(f"{name}: {error.marked_message}")
                continue
            if len(found) > 1:
                unsure[name] = found
            else:
                self._decide(name, found[0])
        while unsure and self._narrow(unsure):
            pass
        self._report(unsure)

    def _narrow(self, unsure: dict[str, list[Shape]]) -> bool:
        """Rule out candidates by what is certain by now; whether any was."""
        extents, products = self._evidence()
        has_changed = False
        for name, found in list(unsure.items()):
            left = self._fitting(name, found, extents, products)
            if len(left) == 1:
                self._decide(name, left[0])
                del unsure[name]
            # Where nothing fits, evidence contradicts itself: then it decides nothing.
            elif left and len(left) < len(found):
                unsure[name] = left
            else:
                continue
            has_changed = True
        return has_changed

    def hint(self) -> str:
        """Say what would decide."""
        keys = {*self._asked}
        needed = frozenset(self._needed - self._stated.keys())
        if self.model is not None and needed:
            certain = {name: replace(self.pieces[name], shape=self.shapes[name]) for name in self._solved}
            keys |= {*keys_to_ask(replace(self.model, specs=certain), needed)}
        ways = f"{option('src_strategy')} or {option('src_layout')}"
        if not keys:
            return f"Give what the sizes leave open: {ways}."
        return (
            f"Give the model's config.json with {option('config')}: {' and '.join(sorted(keys))} would tell. Or give "
            f"{ways}."
        )

    def _candidates(self, name: str) -> list[Shape]:
        """Return the wholes that would be cut into the piece; StrategyError if there is none."""
        piece = self.pieces[name].shape
        found: list[Shape] = []
        problem = ""
        for whole in self.compiler.wholes(name, piece):
            self._take(name, whole)
            try:
                layout, _ = self.compiler.compile(name)
                held = layout.box_of(whole, 0).shape if layout.tensor_map else whole
            except StrategyError as error:
                problem = problem or error.marked_message
                continue
            if held == piece:
                found.append(whole)
            else:
                problem = problem or f"a rank of {list(whole)} would hold {list(held)}, found {list(piece)}"
        self._take(name, piece)
        if not found:
            raise StrategyError(problem)
        return found

    # Evidence.

    def _evidence(self) -> tuple[dict[Hashable, set[int]], dict[Product, Fraction]]:
        """Return the extents of all axes of certain tensors, by what their axes are, and the products that follow."""
        extents: dict[Hashable, set[int]] = {}
        equations: dict[tuple[Hashable, int], tuple[Sum, int]] = {}
        for name in self._solved:
            shape = self.shapes[name]
            for kind, total, extent in zip(self._kinds(name), self._sums(name), shape, strict=True):
                extents.setdefault(kind, set()).add(extent)
                if total is not None:
                    equations[kind, extent] = total, extent
        return extents, solve_products(equations.values(), self._stated)

    def _sums(self, name: str) -> tuple[Sum | None, ...]:
        """Return each axis as the rows give it; None where they do not."""
        axes = len(self.pieces[name].shape)
        found = self._rows.get(name_key(weight_of(name)), ())
        return found if len(found) == axes else (None,) * axes

    def _kinds(self, name: str) -> tuple[Hashable, ...]:
        """Return what each axis is: axes of one kind have one extent, whichever tensors they are of.

        States are shaped as their weights; an adapter has its weight's columns or rows, and a rank of its own.
        """
        weight, shape = weight_of(name), self.pieces[name].shape
        if len(shape) == 2 and (adapter := _ADAPTER.fullmatch(weight)):
            base, is_a = f"{adapter[1]}.weight", adapter[2] in "aA"
            rank = "rank", base
            rows, columns = self._weight_kinds(base, 2)
            return (rank, columns) if is_a else (rows, rank)
        return self._weight_kinds(weight, len(shape))

    def _weight_kinds(self, weight: str, axes: int) -> tuple[Hashable, ...]:
        sums = self._rows.get(name_key(weight), ())
        if len(sums) != axes:
            sums = (None,) * axes
        return tuple(
            (weight, axes, axis) if total is None else tuple(sorted(total.items())) for axis, total in enumerate(sums)
        )

    def _fitting(
        self,
        name: str,
        found: list[Shape],
        extents: Mapping[Hashable, set[int]],
        products: Mapping[Product, Fraction],
    ) -> list[Shape]:
        """Return the candidates that no axis rules out."""
        for axis, (kind, total) in enumerate(zip(self._kinds(name), self._sums(name), strict=True)):
            known = extents.get(kind, set())
            value = value_of(total, products) if total is not None else None
            told = {*known, *([value] if value is not None else [])}
            if told:
                found = [shape for shape in found if {shape[axis]} == told]
        return found

    def _report(self, unsure: Mapping[str, list[Shape]]) -> None:
        for name, found in unsure.items():
            wholes = " or of ".join(str(list(shape)) for shape in found)
            self.problems.append(f"{name}: a rank's {list(self.pieces[name].shape)} may be its piece of {wholes}")
            for axis, total in enumerate(self._sums(name)):
                if total is not None and len({shape[axis] for shape in found}) > 1:
                    self._needed |= {size for product in total for size, _ in product}

    def _decide(self, name: str, whole: Shape) -> None:
        self._take(name, whole)
        self._solved[name] = None

    def _take(self, name: str, whole: Shape) -> None:
        self.shapes[name] = whole
        self.nbytes[name] = replace(self.pieces[name], shape=whole).nbytes
