"""The shapes of whole tensors, found from the pieces that ranks hold and the sizes of a parallel job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import StrategyError, option, raise_all
from ..tensor import Shape, TensorSpec
from .family_file import FamilyKey
from .parallel_config import ParallelConfig
from .parallel_strategy import StrategyCompiler, compiler_for
from .training_names import weight_of

_EXTENT_KEYS = (
    "hidden_size", "vocab_size", "intermediate_size", "ffn_hidden_size", "moe_intermediate_size",
    "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank", "head_dim", "n_routed_experts", "num_experts",
)  # fmt: skip


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
    compared with the piece. Where two would give the same piece, the extents in ``config.json`` and those of tensors
    that are certain decide, if they know only one of them.

    Parameters
    ----------
    pieces
        What a rank holds of every tensor, by name; shapes in elements.

    Raises
    ------
    UsageError
        There is no such family or naming.
    StrategyError
        No whole tensor, or several, would be cut so; all are listed.

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
    solver = _Solver(compiler, pieces, shapes, nbytes, _configured(config or {}))
    # Optimizer states are cut as their weights are, and block scales must fit theirs: weights come first.
    weights = [name for name in pieces if weight_of(name) == name and not name.endswith("_scale_inv")]
    solver.solve(weights)
    solver.solve(pieces.keys() - {*weights})
    hint = f"Give what the sizes leave open: {option('src_strategy')} or {option('src_layout')}."
    message = f"the parallel sizes do not say what the shards are pieces of ({family}, naming {naming})"
    raise_all(StrategyError, message, sorted(solver.problems), hint)
    return shapes


@dataclass
class _Solver:
    """Replaces the shapes of pieces by those of wholes; ``known`` are extents that axes of this model have."""

    compiler: StrategyCompiler
    pieces: Mapping[str, TensorSpec]
    shapes: dict[str, Shape]
    nbytes: dict[str, int]
    known: set[int]
    problems: list[str] = field(default_factory=list)

    def solve(self, names: Iterable[str]) -> None:
        unsure: dict[str, list[Shape]] = {}
        for name in names:
            try:
                found = self._candidates(name)
            except StrategyError as error:
                self.problems.append(f"{name}: {error.marked_message}")
                continue
            if len(found) > 1:
                unsure[name] = found
            else:
                self._take(name, found[0])
                self.known.update(found[0])
        for name, found in unsure.items():
            fitting = [shape for shape in found if self._is_known(shape, found)]
            if len(fitting) == 1:
                self._take(name, fitting[0])
                continue
            wholes = " or of ".join(str(list(shape)) for shape in found)
            self.problems.append(f"{name}: a rank's {list(self.pieces[name].shape)} may be its piece of {wholes}")

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

    def _is_known(self, shape: Shape, others: Sequence[Shape]) -> bool:
        """Whether all extents are known by which this candidate differs from another."""
        return all(n in self.known for axis, n in enumerate(shape) if any(other[axis] != n for other in others))

    def _take(self, name: str, whole: Shape) -> None:
        self.shapes[name] = whole
        self.nbytes[name] = replace(self.pieces[name], shape=whole).nbytes


def _configured(config: Mapping[str, object]) -> set[int]:
    """Return the extents that ``config.json`` gives axes."""
    values = {key: value for key in _EXTENT_KEYS if type(value := config.get(key)) is int}
    heads = [v for key in ("num_attention_heads", "num_key_value_heads") if type(v := config.get(key)) is int]
    size = values.get("head_dim") or (values.get("hidden_size", 0) // heads[0] if heads and heads[0] else 0)
    return {*values.values(), *(count * size for count in heads)} - {0}
