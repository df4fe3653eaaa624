"""Strategy files that MindSpore wrote: read as it reads them, merged as it merges them, written back unchanged."""

import json
import math
from pathlib import Path

import pytest

from reshard.errors import StrategyError
from reshard.formats.mindspore.strategy_json import encode_json
from reshard.formats.mindspore.strategy_merge import (
    from_strategy,
    merge_strategy_files,
    parse_strategy_file,
    to_strategy,
)
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.tensor import Layout

HERE = Path(__file__).parent
CASES = HERE / "mindspore"
FILES = sorted((HERE / "strategies").glob("*/*/strategy_rank_*"))
SETTINGS = sorted(path.parent for path in (HERE / "strategies").glob("*/spec.json"))
DECODED = {
    Path(name): file["json"]
    for name, file in json.loads((CASES / "strategies_decoded" / "case.json").read_text())["files"].items()
}
NESTED = {"layout222", "layout1d", "opt_layout"}  # JSON cannot hold these


def name_of(path):
    return "-".join(path.parts[-3:])


def parse(path):
    return parse_strategy_file(path.read_bytes(), str(path))


def parse_all(folder):
    return [parse(path) for path in sorted(folder.iterdir())]


def axes_of(decoded):
    """The map as MindSpore's own readers understand it: several messages are one axis each, empty ones do not count."""
    messages = decoded["tensor_map"]
    axes = [axis for axis in messages if axis] if len(messages) > 1 else [[entry] for entry in messages[0]]
    return tuple(tuple(entry for entry in axis if entry != -1) for axis in axes)


@pytest.mark.parametrize("path", DECODED, ids=name_of)
def test_decoded_as_mindspore_decodes(path):
    expected = DECODED[path]
    form = "json" if path.name.endswith(".json.decoded.json") else "ckpt"
    source = HERE / "strategies" / path.parent.name / form / path.name.removesuffix(".decoded.json")
    layouts = parse(source).layouts
    assert layouts.keys() == expected.keys()
    for name, item in expected.items():
        layout = layouts[name]
        assert list(layout.device_matrix) == item["dev_matrix"][0]
        assert layout.tensor_map == axes_of(item)
        assert layout.field_size == item["field"]
        assert layout.optimizer_shard_size == item["opt_weight_shard_size"]
        assert layout.optimizer_shard_step == item["opt_weight_shard_step"]
        split = layout.row_split
        assert [list(split.counts) if split else []] == item["param_split_shape"]
        assert [list(split.offsets) if split else []] == item["indices_offset"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_written_back_unchanged(path):
    file = parse(path)
    assert parse_strategy_file(encode_protobuf(file), "s.ckpt").layouts == file.layouts
    assert parse_strategy_file(encode_protobuf(file), "s.ckpt").operators == file.operators
    if path.suffix == ".ckpt":
        assert parse_strategy_file(encode_protobuf(file), "s.ckpt") == file
        assert encode_protobuf(file) == path.read_bytes()  # the very bytes that MindSpore wrote
    if path.suffix == ".json" or path.parts[-3] not in NESTED:
        again = parse_strategy_file(encode_json(file), "s.json")
        assert (again.layouts, set(again.operators)) == (file.layouts, set(file.operators))
        assert again.expanded_shapes == file.expanded_shapes
        assert again.current_stage == file.current_stage


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.name in NESTED], ids=lambda path: path.name)
def test_json_of_nested_layouts_is_refused(setting):
    with pytest.raises(StrategyError, match="JSON form") as caught:
        encode_json(parse(setting / "ckpt" / "strategy_rank_0.ckpt"))
    assert caught.value.problems


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda path: path.name)
def test_both_forms_make_one_strategy(setting):
    truth = to_strategy(parse_all(setting / "ckpt"))
    files = parse_all(setting / "json")
    shapes = real_shapes(files, truth)
    assert to_strategy(files, shapes) == truth
    local = {name: layout.box_of(shapes[name], 0).shape for stage in truth.stages for name, layout in stage.items()}
    assert to_strategy(files, local, local=True) == truth


def real_shapes(files, truth):
    """Full shapes: what the JSON form says, its expanded axes put together by the layouts of the protobuf form."""
    shapes = {}
    for file, stage in zip(sorted(files, key=lambda file: file.stage), truth.stages, strict=True):
        for name, layout in stage.items():
            expanded = iter(file.expanded_shapes.get(name, (40, 16)))  # `manual` has a wrong one
            shapes[name] = tuple(math.prod(next(expanded) for _ in axis or (0,)) for axis in layout.tensor_map)
    return shapes


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda path: path.name)
def test_strategy_there_and_back(setting):
    strategy = to_strategy(parse_all(setting / "ckpt"))
    whole = from_strategy(strategy)
    assert whole.operator_stages == frozenset(range(strategy.stage_count))
    stages = [from_strategy(strategy, stage) for stage in range(strategy.stage_count)]
    for again in (to_strategy([parse_strategy_file(encode_protobuf(whole), "merged.ckpt")]), to_strategy(stages)):
        assert boxes(again) == boxes(strategy)
        assert setting.name in {"layout222", "layout1d"} or again == strategy  # these have needless nesting


def boxes(strategy):
    return {
        (rank, name): layout.box_of(tuple(48 * cut for cut in layout.cuts), rank % strategy.device_count)
        if layout.row_split is None
        else layout.row_split
        for rank in range(strategy.rank_count)
        for name, layout in strategy.stages[strategy.stage_of(rank)].items()
    }


@pytest.mark.parametrize("form", ["ckpt", "json"])
def test_merged_as_mindspore_merges(form):
    case = CASES / "merge_strategies"
    merged = merge_strategy_files(parse_all(case / "in" / form))
    expected = parse(case / "expected" / f"merged.{form}")
    assert expected.is_merged
    assert (merged.layouts, merged.expanded_shapes) == (expected.layouts, expected.expanded_shapes)
    assert set(merged.operators) == set(expected.operators)
    assert merged.current_stage == expected.current_stage
    assert to_strategy([merged]) == to_strategy(parse_all(case / "in" / form))


RANK_LISTS = json.loads((CASES / "rank_lists" / "expected" / "rank_lists.json").read_text())


@pytest.mark.parametrize("case", RANK_LISTS, ids=lambda case: f"{case['src']}-{case['dst']}")
def test_listed_ranks_are_enough(case):
    """What a target rank needs lies on the ranks that MindSpore would read."""
    source, target = (
        to_strategy([parse(CASES / "rank_lists" / case[side])]) if case[side] else None for side in ("src", "dst")
    )
    for rank, listed in case["ranks"].items():
        stage = target.stages[target.stage_of(int(rank))] if target else {}
        for name in stage.keys() or source.names:
            assert_listed_cover(name, source, target, int(rank), listed)


def assert_listed_cover(name, source, target, rank, listed):
    holders = [r for r in listed if source is None or source.layout(name, r)]
    if source is not None and name not in source.names:
        return
    layouts = [source.layout(name, holders[0]) if source else None, target.layout(name, rank) if target else None]
    layouts = [layout or Layout((1,), ((),) * len(next(filter(None, layouts)).tensor_map)) for layout in layouts]
    if len(layouts[0].tensor_map) != len(layouts[1].tensor_map):
        return  # dev222 and layout222 give one name to different tensors
    pieces = math.prod(layout.optimizer_pieces for layout in layouts)
    shape = tuple(
        a * b * (1 if axis else pieces) for axis, (a, b) in enumerate(zip(*(x.cuts for x in layouts), strict=True))
    )
    wanted = layouts[1].box_of(shape, rank % layouts[1].device_count)
    found = {layouts[0].box_of(shape, r % layouts[0].device_count).intersect(wanted) for r in holders} - {None}
    assert sum(box.element_count for box in found) == wanted.element_count
