"""Strategies of a source that the sizes of a parallel job give, without a strategy file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ...models.concatenated_runs import BLOCKS, has_contiguous_runs
from ...models.detecting import detect
from ...models.family_file import FamilyKey
from ...models.full_shapes import solve_full_shapes
from ...models.parallel_config import ParallelConfig
from ...models.parallel_rules import naming_of
from ...models.parallel_strategy import derive_strategy
from ...tensor import Shape, Strategy, TensorSpec
from .strategy_files import StrategySource


@dataclass(frozen=True, slots=True)
class ParallelSizes(StrategySource):
    """The sizes that training had; family and naming are found by names and ``config`` unless they are given."""

    sizes: ParallelConfig = field(default_factory=ParallelConfig)
    family: FamilyKey | None = None
    naming: str | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)

    def strategy(
        self,
        specs: Mapping[str, TensorSpec],
        *,
        local: bool,
        others: Collection[str] = (),  # noqa: ARG002 - no rule is the user's
    ) -> Strategy:
        """Make the strategy of these tensors; see :meth:`StrategySource.strategy`.

        Raise PlanError if the family is not known, UsageError if the naming is not clear, and StrategyError if the
        sizes do not fit the tensors, or leave open what they are pieces of.
        """
        family = self.family or detect(self.config, specs).family.name
        naming = self.naming or naming_of(family, specs)
        options = dict(self.options)
        if BLOCKS not in options and has_contiguous_runs(family, naming, options):
            options[BLOCKS] = self.sizes.mp  # each rank of that job held one run
        known: dict[str, Mapping[str, object]] = {"config": self.config, "options": options}
        shapes: dict[str, Shape] = {name: spec.shape for name, spec in specs.items()}
        if local:
            shapes = solve_full_shapes(family, naming, self.sizes, specs, **known)
        nbytes = {name: TensorSpec(name, specs[name].dtype, shape).nbytes for name, shape in shapes.items()}
        return derive_strategy(family, naming, self.sizes, shapes, nbytes=nbytes, **known)
