"""Ranks over stages, and layouts that disagree about the devices."""

import pytest

from reshard.errors import StrategyError
from reshard.tensor import Layout, Strategy

COLUMN = Layout((2, 2), ((), (0,)))
WHOLE = Layout((4,), ((),))


def test_stages_are_blocks_of_ranks():
    strategy = Strategy(4, ({"embed": COLUMN, "norm": WHOLE}, {"head": COLUMN, "norm": WHOLE}))
    assert (strategy.stage_count, strategy.rank_count) == (2, 8)
    assert [strategy.stage_of(rank) for rank in range(8)] == [0] * 4 + [1] * 4
    assert strategy.names == {"embed", "head", "norm"}
    assert strategy.layout("embed", 3) is COLUMN
    assert strategy.layout("embed", 4) is None
    assert strategy.layout("norm", 7) is WHOLE


@pytest.mark.parametrize("rank", [-1, 8])
def test_no_such_rank(rank):
    with pytest.raises(StrategyError, match=r"rank .* does not exist: the strategy has ranks 0\.\.7"):
        Strategy(4, ({"a": WHOLE}, {})).stage_of(rank)


def test_layouts_of_other_devices_are_all_listed():
    with pytest.raises(StrategyError, match="expected 4 devices") as caught:
        Strategy(4, ({"a": WHOLE, "b": Layout((2,), ((),))}, {"c": Layout((8,), ((),))}))
    assert caught.value.problems == ("b on stage 0: device matrix [2]", "c on stage 1: device matrix [8]")


def test_no_stages():
    with pytest.raises(StrategyError, match="at least one stage"):
        Strategy(4, ())
