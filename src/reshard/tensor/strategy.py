"""All of a model's layouts, stage by stage, and the numbering of ranks over stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import StrategyError
from .layout import Layout


@dataclass(frozen=True, slots=True)
class Strategy:
    """Layouts of every tensor on every pipeline stage.

    Stages are contiguous blocks of ranks: ``stage = rank // device_count``.

    Parameters
    ----------
    device_count
        Devices in one stage; the product of every layout's device matrix.
    stages
        For each stage, the layout of each tensor it holds. A tensor may be on several stages.

    Raises
    ------
    StrategyError
        A layout counts other devices.

    Examples
    --------
    >>> column = Layout((2,), ((), (0,)))
    >>> strategy = Strategy(2, ({"embed": column}, {"head": column}))
    >>> strategy.rank_count, strategy.layout("head", rank=3) is column, strategy.layout("head", rank=0)
    (4, True, None)
    """

    device_count: int
    stages: tuple[Mapping[str, Layout], ...]

    def __post_init__(self) -> None:
        wrong = [
            f"{name} on stage {stage}: device matrix {list(layout.device_matrix)}"
            for stage, layouts in enumerate(self.stages)
            for name, layout in layouts.items()
            if layout.device_count != self.device_count
        ]
        if wrong:
            raise StrategyError(f"expected {self.device_count} devices in every layout of the strategy", problems=wrong)
        if not self.stages:
            raise StrategyError("a strategy needs at least one stage")

    @property
    def stage_count(self) -> int:
        """Pipeline stages."""
        return len(self.stages)

    @property
    def rank_count(self) -> int:
        """Ranks over all stages."""
        return self.device_count * len(self.stages)

    @property
    def names(self) -> frozenset[str]:
        """Every tensor that some stage holds by a layout."""
        return frozenset().union(*self.stages)

    def stage_of(self, rank: int) -> int:
        """The pipeline stage of a rank.

        Raises
        ------
        StrategyError
            The strategy has no such rank.
        """
        if not 0 <= rank < self.rank_count:
            raise StrategyError(f"rank {rank} does not exist: the strategy has ranks 0..{self.rank_count - 1}")
        return rank // self.device_count

    def layout(self, name: str, rank: int) -> Layout | None:
        """The layout of a tensor on the stage of ``rank``, or None when that stage has none for it."""
        return self.stages[self.stage_of(rank)].get(name)
