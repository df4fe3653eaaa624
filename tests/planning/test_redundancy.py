"""Every box is written once: by the rank that MindSpore chooses, or by an owner where its groups are wrong."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.formats.mindspore.strategy_merge import parse_strategy_file
from reshard.planning.targets.rank_target import assign_writers
from reshard.tensor import Layout

CONFORMANCE = Path(__file__).parent.parent / "conformance"
MINDSPORE = json.loads((CONFORMANCE / "mindspore/redundancy_maps/expected/redundancy.json").read_text())
STAGES = [(setting, rank) for setting, stages in MINDSPORE.items() for rank in stages]

# Settings whose groups MindSpore gets wrong, and the tensors concerned.
NESTED = {"layout222": {"params.0.weight", "params.1.weight", "params.6.weight"}}  # it reads the first map message only
ALL_WRONG = "opt_layout"  # nested, and cut by the optimizer
EMPTY = "optmix"  # size -1 where the free device dimensions are not the leftmost: groups come out empty


def owners_of(layouts, first_rank=0):
    """The ranks that own each box, of tensors just large enough to be cut."""
    owners = {}
    for name, layout in layouts.items():
        boxes = {}
        for rank in range(layout.device_count):
            boxes.setdefault(layout.box_of(shape_for(layout), rank), []).append(first_rank + rank)
        owners[name] = list(map(tuple, boxes.values()))
    return owners


def shape_for(layout):
    shape = list(layout.cuts)
    if layout.row_split:
        shape[0] = sum(layout.row_split.counts)
    elif shape:
        shape[0] *= layout.optimizer_pieces
    return tuple(shape)


def owners_in(setting, stage):
    """What the ranks of one stage own by MindSpore's strategy file."""
    path = CONFORMANCE / "strategies" / setting / "ckpt" / f"strategy_{stage}.ckpt"
    return owners_of(parse_strategy_file(path.read_bytes(), path.name).layouts, int(stage.removeprefix("rank_")))


def kept(writers):
    """By rank, the names it writes, in MindSpore's form."""
    names = {}
    for name, ranks in writers.items():
        for rank in ranks:
            names.setdefault(str(rank), set()).add(name)
    return {rank: sorted(names[rank]) for rank in sorted(names, key=int)}


def wrong_groups(setting, stage):
    """Names whose groups of ranks differ from MindSpore's."""
    theirs = MINDSPORE[setting][stage]["redundancy"]
    owners = owners_in(setting, stage)
    assert owners.keys() == theirs.keys()
    return {name for name, groups in owners.items() if sorted(groups) != sorted(map(tuple, theirs[name]))}


def check_shares(owners, writers):
    """Every box has one writer that owns it, and ranks of one group write equally many, dealt out in name order."""
    assert writers.keys() == owners.keys()
    turns = {}
    for name in sorted(owners):
        for ranks, writer in zip(owners[name], writers[name], strict=True):
            turns.setdefault(ranks, []).append(writer)
    for group, order in turns.items():
        assert order == [group[turn % len(group)] for turn in range(len(order))]
        counts = Counter(order)
        fair = len(order) / len(group)
        assert all(int(fair) <= counts[rank] <= -int(-fair // 1) for rank in group)


@pytest.mark.parametrize(
    ("setting", "stage"), [case for case in STAGES if case[0] not in {*NESTED, ALL_WRONG, EMPTY}], ids="-".join
)
def test_same_ranks_as_mindspore(setting, stage):
    assert wrong_groups(setting, stage) == set()
    writers = assign_writers(owners_in(setting, stage))
    assert kept(writers) == {rank: names for rank, names in MINDSPORE[setting][stage]["keep"].items() if names}


def test_where_mindspore_is_wrong():
    assert wrong_groups("layout222", "rank_0") == NESTED["layout222"]
    assert wrong_groups(ALL_WRONG, "rank_0") == MINDSPORE[ALL_WRONG]["rank_0"]["redundancy"].keys()
    empty = {name for name, groups in MINDSPORE[EMPTY]["rank_0"]["redundancy"].items() if not groups}
    assert wrong_groups(EMPTY, "rank_0") == empty
    assert len(empty) == 15


@pytest.mark.parametrize(("setting", "stage"), STAGES, ids="-".join)
def test_every_box_once(setting, stage):
    owners = owners_in(setting, stage)
    check_shares(owners, assign_writers(owners))


def test_tensors_that_mindspore_leaves_out_are_written():
    owners = owners_in(EMPTY, "rank_0")
    named = {name for names in MINDSPORE[EMPTY]["rank_0"]["keep"].values() for name in names}
    written = {name for name, ranks in assign_writers(owners).items() if ranks}
    assert len(written - named) == 15
    assert written == owners.keys()


def test_nested_map():
    # Rows over the first and last grid dimension: ranks r and r + 2 share a box.
    owners = owners_of({name: Layout((2, 2, 2), ((2, 0), ())) for name in "ab"})
    writers = assign_writers(owners)
    assert sorted(owners["a"]) == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert kept(writers) == {rank: ["a"] for rank in "0145"} | {rank: ["b"] for rank in "2367"}


def test_optimizer_shard_over_dimensions_on_the_right():
    # Columns over the left dimension, rows by the optimizer over the right one: nothing is left to share.
    layout = Layout((2, 4), ((), (1,)), optimizer_shard_size=-1, optimizer_shard_step=1)
    assert kept(assign_writers(owners_of({"w": layout}))) == {str(rank): ["w"] for rank in range(8)}


def test_names_decide_not_their_order():
    forward = assign_writers({name: [(4, 6)] for name in ("p.1", "p.10", "p.2")})
    backward = assign_writers({name: [(4, 6)] for name in ("p.2", "p.10", "p.1")})
    assert forward == backward == {"p.1": [4], "p.10": [6], "p.2": [4]}


def test_nothing_to_write():
    assert assign_writers({}) == {}


@st.composite
def layouts(draw, device_matrix):
    """Any cut over a grid: each dimension free, or on some axis, in any order."""
    axis_count = draw(st.integers(1, 3))
    axes = [[] for _ in range(axis_count)]
    for entry in draw(st.permutations(range(len(device_matrix)))):
        axis = draw(st.integers(-1, axis_count - 1))
        if axis >= 0:
            axes[axis].append(entry)
    size = draw(st.sampled_from((0, -1)))
    return Layout(device_matrix, tuple(map(tuple, axes)), optimizer_shard_size=size)


@given(st.data(), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_properties(data, device_matrix):
    names = data.draw(st.lists(st.text("abc.", max_size=3), unique=True, max_size=12))
    owners = owners_of({name: data.draw(layouts(tuple(device_matrix))) for name in names}, first_rank=16)
    check_shares(owners, assign_writers(owners))
