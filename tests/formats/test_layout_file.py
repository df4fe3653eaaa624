"""Layout files: what people write, what they get told, and that strategies survive being written as one."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reshard.errors import FormatError, StrategyError
from reshard.formats.layout_file import encode_layout_file, parse_layout_file
from reshard.formats.layout_rules import LayoutRule, LayoutRules, StageRule, layer_number
from reshard.tensor import Box, Layout, RowSplit, Strategy

EXAMPLE = b"""
axes: {dp: 2, mp: 3}            # slowest first: rank = dp * 3 + mp
rules:
  - {match: "*.o_proj.weight", split: [null, mp]}
  - {match: "*.gate_proj.weight", split: [mp, null]}
  - {match: "*", split: []}
"""
STAGES = b"""
axes: {pp: 2, mp: 2}
rules:
  - {match: [embed.weight, lm_head.weight], split: [mp]}
  - {match: "*", split: []}
stages:
  - {match: "embed.*", layers: 0-1}
  - {match: [lm_head.weight, "embed.*"], layers: [2, 3-4]}
"""


def parse(text):
    return parse_layout_file(text if isinstance(text, bytes) else text.encode(), "layout.yaml")


def rule(text, axes="{dp: 2, mp: 4}"):
    return parse(f"axes: {axes}\nrules: [{{match: '*', {text}}}]")


def layout(text, axes="{dp: 2, mp: 4}", axis_count=2):
    return rule(text, axes).strategy({"w": (1,) * axis_count}).stages[0]["w"]


def test_example():
    strategy = parse(EXAMPLE).strategy({"a.o_proj.weight": (6, 6), "a.gate_proj.weight": (6, 6), "norm": (6,)})
    assert strategy.rank_count == 6
    layouts = strategy.stages[0]
    assert layouts["a.o_proj.weight"].box_of((6, 6), 5) == Box((0, 4), (6, 6))
    assert layouts["a.gate_proj.weight"].box_of((6, 6), 1) == Box((2, 0), (4, 6))
    assert layouts["norm"].box_of((6,), 3) == Box((0,), (6,))


def test_the_first_match_wins():
    rules = parse("axes: {mp: 2}\nrules:\n- {match: 'a*', split: [mp]}\n- {match: [ab, b], split: []}")
    layouts = rules.strategy({"ab": (2,), "b": (2,)}).stages[0]
    assert (layouts["ab"].cuts, layouts["b"].cuts) == ((2,), (1,))


def test_several_axes_on_one():
    assert layout("split: [[dp, mp]]").tensor_map == ((1, 0), ())
    assert layout("split: [[mp, dp], []]").tensor_map == ((0, 1), ())


def test_optimizer_shards():
    assert layout("split: [mp], optimizer_shard: true").optimizer_pieces == 2
    assert layout("split: [null, dp], optimizer_shard: 2").optimizer_pieces == 2
    assert layout("split: [mp], optimizer_shard: false").optimizer_pieces == 1
    assert layout("split: [[dp, mp]], optimizer_shard: true").optimizer_shard_size == 0  # nothing repeats
    assert layout("split: [], optimizer_shard: true", axis_count=0).optimizer_shard_size == 0  # nothing to cut


@pytest.mark.parametrize("axes", ["{}", "{mp: 1}", "{pp: 1, mp: 1}"])
def test_a_single_device(axes):
    strategy = rule("split: []", axes).strategy({"w": (3,)})
    assert (strategy.rank_count, strategy.stages[0]["w"].box_of((3,), 0)) == (1, Box((0,), (3,)))


def test_stages():
    shapes = {"embed.weight": (4, 4), "lm_head.weight": (4, 4), **{f"layers.{n}.w": (4,) for n in range(5)}}
    strategy = parse(STAGES).strategy(shapes)
    assert (strategy.device_count, strategy.stage_count) == (2, 2)
    assert set(strategy.stages[0]) == {"embed.weight", "layers.0.w", "layers.1.w"}
    assert set(strategy.stages[1]) == {"embed.weight", "lm_head.weight", "layers.2.w", "layers.3.w", "layers.4.w"}


def test_tensors_that_do_not_fit_are_all_listed():
    rules = parse(STAGES.replace(b'"*", split: []', b'"layers.*", split: [null, mp]'))
    shapes = {"embed.weight": (4, 4), "norm": (4,), "layers.0.w": (4,), "layers.9.w": (4, 4)}
    with pytest.raises(StrategyError, match="does not fit the tensors") as caught:
        rules.strategy(shapes)
    assert caught.value.problems == (
        "norm: no stage holds it",
        "norm: no rule matches it",
        "layers.0.w: rule 2: split has 2 entries, the tensor has 1 axes",
        "layers.9.w: no stage holds it",
    )


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("model.layers.12.mlp.weight", 12),
        ("transformer.h.3.attn.weight", 3),
        ("encoder.layer.0.output", 0),
        ("adam_m.blocks.7", 7),
        ("layers.2.experts.layers.9.w", 2),
        ("model.layers.norm.layers.4.w", 4),
        ("layers_1.w", None),
        ("mtp.12.w", None),
        ("layers.-1.w", None),
        ("layers.\u0663.w", None),
        ("layers." + "9" * 99, None),
    ],
)
def test_layer_number(name, number):
    assert layer_number(name) == number


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file: expected a mapping with axes, rules, stages, found None"),
        ("axes: {mp: 2}", "the file: rules is missing"),
        ("rules: []", "the file: axes is missing"),
        ("axes: {mp: 2}\nrules: []\nrule: []", "the file: unknown key 'rule': expected axes, rules, stages"),
        ("axes: [mp]\nrules: []", "axes: expected a mapping"),
        ("axes: {mp: 0}\nrules: []", "axes: mp: expected a number of at least 1, found 0"),
        ("axes: {mp: true}\nrules: []", "axes: mp: expected a number"),
        ("axes: {a: 99999, b: 99999}\nrules: []", "axes: expected at most 64 axes, 131072 ranks"),
        ("axes: {mp: 2, pp: 2}\nrules: []\nstages: [{layers: 0}, {layers: 1}]", "pp must be the first"),
        ("axes: {pp: 2}\nrules: []", "needs stages, a list of 2 entries"),
        ("axes: {pp: 2}\nrules: []\nstages: [{layers: 0}]", "expected 2 entries, like pp in axes, found 1"),
        ("axes: {mp: 2}\nrules: []\nstages: [{layers: 0}]", "axes has no pp"),
        ("axes: {pp: 1}\nrules: []\nstages: [{}]", "stage 0: expected match, layers or both"),
        ("axes: {pp: 1}\nrules: []\nstages: [{layer: 0}]", "stage 0: unknown key 'layer'"),
        ("axes: {pp: 1}\nrules: []\nstages: [{layers: 5-3}]", "stage 0: layers: expected numbers and ranges"),
        ("axes: {pp: 1}\nrules: []\nstages: [{layers: [true]}]", "found True"),
        ("axes: {pp: 1}\nrules: []\nstages: [{layers: [0-1-2]}]", "found '0-1-2'"),
        ("axes: {mp: 2}\nrules: {}", "rules: expected a list"),
        ("axes: {mp: 2}\nrules: [x]", "rule 1: expected a mapping with match, split, optimizer_shard"),
        ("axes: {mp: 2}\nrules: [{match: '*'}]", "rule 1: split is missing"),
        ("axes: {mp: 2}\nrules: [{split: []}]", "rule 1: match is missing"),
        ("axes: {mp: 2}\nrules: [{match: 1, split: []}]", "rule 1: match: expected a glob"),
        ("axes: {mp: 2}\nrules: [{match: a, split: mp}]", "rule 1: expected a list, found 'mp'"),
        ("axes: {mp: 2}\nrules: [{match: a, split: [tp]}]", "rule 1: split 1: expected null or one of the axes mp"),
        ("axes: {}\nrules: [{match: a, split: [tp]}]", "(there are none)"),
        ("axes: {mp: 2}\nrules: [{match: a, split: [mp, mp]}]", "rule 1: axis mp is used twice"),
        ("axes: {mp: 2}\nrules: [{match: a, split: [[mp, mp]]}]", "rule 1: axis mp is used twice"),
        ("axes: {mp: 2}\nrules: [{match: a, split: [[[mp]]]}]", "found ['mp']"),
        ("axes: {pp: 1, mp: 2}\nrules: [{match: a, split: [pp]}]", "pp cuts the model into stages"),
        ("axes: {mp: 2}\nrules: [{match: a, split: [], optimizer_shard: 1}]", "at least 2, found 1"),
        ("axes: {mp: 2}\nrules: [{match: a, split: [], optimizer_shard: x}]", "optimizer_shard: expected a number"),
        (
            "axes: {mp: 4}\nrules: [{match: a, split: [], optimizer_shard: 3}]",
            "rule 1: optimizer shard size 3 does not",
        ),
    ],
)
def test_what_people_get_wrong(text, problem):
    with pytest.raises(FormatError, match="not a layout file") as caught:
        parse(text)
    assert any(problem in found for found in caught.value.problems)


@pytest.mark.parametrize(
    "text",
    ["run_mode: train\nmodel: {model_config: {eps: 1.e-6}}", "parallel_config: &p {data_parallel: 2}\nother: *p"],
)
def test_the_configuration_of_a_training_job_is_called_that(text):
    with pytest.raises(FormatError) as caught:
        parse(text)
    assert str(caught.value) == (
        "layout.yaml: this is the configuration of a training job, not a layout file\n"
        "`src_parallel` and `parallel` take its sizes: the one for the source's shards, the other for the target's."
    )


def test_every_problem_is_listed():
    with pytest.raises(FormatError) as caught:
        parse("axes: {mp: 2, pp: 2}\nrules: [{match: a, split: [x]}, {match: b, split: [mp, y], extra: 1}]")
    assert len(caught.value.problems) == 5


# --- writing


def test_one_grid_for_all_matrices():
    layouts = {
        "a": Layout((2, 4), ((), (0,))),
        "b": Layout((8,), ((0,),)),
        "c": Layout((2, 2, 2), ((0,), (2,))),
        "d": Layout((4, 2), ((),), optimizer_shard_size=-1),
        "e": Layout((1, 8), ((1,), ())),
    }
    rules = parse(encode_layout_file(Strategy(8, (layouts,))))
    assert rules.axes == (("d0", 2), ("d1", 2), ("d2", 2))
    splits = {name: rule.split for rule in rules.rules for name in rule.match}
    assert splits == {"a": ((), ("d1", "d2")), "b": (("d0", "d1", "d2"),), "c": (("d2",), ("d0",)), "d": (), "e": ()}


def test_as_many_pieces_as_replicas_are_all_replicas():
    stages = [{"a": Layout((4, 2), ((0,),), optimizer_shard_size=size)} for size in (4, -1)]
    assert [rule.optimizer_shard for rule in parse(encode_layout_file(Strategy(8, tuple(stages)))).rules] == [-1]


def test_the_grid_is_no_finer_than_needed():
    layouts = {"a": Layout((2, 2, 2), ((2, 1), (0,))), "b": Layout((2, 2, 2), ((0,), ())), "c": Layout((4, 2), ((),))}
    assert parse(encode_layout_file(Strategy(8, (layouts,)))).axes == (("d0", 4), ("d1", 2))


def test_names_become_globs_only_where_that_is_safe():
    row, whole = Layout((2,), ((0,),)), Layout((2,), ((),))
    layouts = {
        **{f"layers.{n}.w": row for n in range(3)},
        **{f"h.{n}.w": row if n else whole for n in range(3)},
        **{f"{n}.w": whole for n in range(3)},
        "[x]*": whole,
    }
    rules = parse(encode_layout_file(Strategy(2, (layouts,))))
    globs = {glob for rule in rules.rules for glob in rule.match}
    assert globs == {"layers.*.w", "h.0.w", "h.1.w", "h.2.w", "0.w", "1.w", "2.w", "[[]x][*]"}
    assert rules.strategy(dict.fromkeys(layouts, (2,))).stages == (layouts,)


def test_whole_layers_are_written_by_number():
    whole = Layout((1,), ((),))
    stages = (
        {"embed": whole, **{f"layers.{n}.{w}": whole for n in range(3) for w in "ab"}, "layers.3.a": whole},
        {"norm": whole, "layers.3.b": whole, "layers.5.a": whole, "embed": whole},
    )
    rules = parse(encode_layout_file(Strategy(1, stages)))
    assert rules.stages == (
        StageRule(("embed", "layers.3.a"), ((0, 2),)),
        StageRule(("embed", "layers.3.b", "norm"), ((5, 5),)),
    )
    assert rules.axes == (("pp", 2),)


@pytest.mark.parametrize(
    ("stages", "problem", "listed"),
    [
        ([{"a": Layout((2,), ((0,),), row_split=RowSplit((1, 2), (0, 1)))}], "by hand or by fields", "a"),
        ([{"a": Layout((2,), ((0,),), field_size=3)}], "by hand or by fields", "a"),
        ([{"a": Layout((2,), ((0,),))}, {"a": Layout((2,), ((),))}], "cannot express", "a: cut differently"),
        (
            [{"a": Layout((2, 3), ((0,),)), "b": Layout((3, 2), ((0,),))}],
            "no common grid",
            "b groups ranks by 2, a by 3: neither divides the other",
        ),
        (
            [{"a": Layout((12,), ((),), 6), "b": Layout((3, 4), ((0,),))}],
            "cannot express",
            "a: optimizer shard size 6 does not fit",
        ),
    ],
)
def test_strategies_that_cannot_be_written(stages, problem, listed):
    layouts = next(iter(stages[0].values()))
    with pytest.raises(StrategyError, match=problem) as caught:
        encode_layout_file(Strategy(layouts.device_count, tuple(stages)))
    assert listed in caught.value.problems[0]


NAMES = st.lists(
    st.sampled_from(["layers", "h", "w", "0", "1", "12", "*", "[a]", "é", "null", "x y"]), min_size=1, max_size=4
)


@st.composite
def layouts(draw):
    matrix = draw(st.sampled_from([(8,), (2, 4), (4, 2), (2, 2, 2), (1, 8)]))
    axes = [[] for _ in range(draw(st.integers(1, 3)))]
    for entry in draw(st.permutations(range(len(matrix)))):
        if draw(st.booleans()):
            draw(st.sampled_from(axes)).append(entry)
    plain = Layout(matrix, tuple(map(tuple, axes)))
    size = draw(st.sampled_from([0, 0, -1, *([2] if plain.replica_count % 2 == 0 else [])]))
    return Layout(matrix, plain.tensor_map, size)


@given(
    st.dictionaries(NAMES.map(".".join), layouts(), max_size=8),
    st.integers(1, 3),
    st.data(),
)
def test_round_trip(tensors, stage_count, data):
    holders = st.sets(st.integers(0, stage_count - 1), min_size=1)
    places = {name: data.draw(holders) for name in tensors}
    stages = tuple({name: tensors[name] for name in tensors if stage in places[name]} for stage in range(stage_count))
    strategy = Strategy(8, stages)
    rules = parse(encode_layout_file(strategy))
    again = rules.strategy({name: (1,) * len(layout.tensor_map) for name, layout in tensors.items()})
    if not tensors:
        return
    assert boxes(again) == boxes(strategy)


def boxes(strategy):
    return {
        (rank, name): layout.box_of((64,) * len(layout.tensor_map), rank % 8)
        for rank in range(strategy.rank_count)
        for name, layout in strategy.stages[strategy.stage_of(rank)].items()
    }


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_rules_give_what_they_say(sizes, data):
    """Against the definition: each axis of the grid that cuts a tensor axis adds a digit to the index of the slice."""
    names = [f"a{n}" for n in range(len(sizes))]
    used = data.draw(st.permutations(names))[: data.draw(st.integers(0, len(names)))]
    at = data.draw(st.integers(0, len(used)))
    rules = LayoutRules(
        tuple(zip(names, sizes, strict=True)), (LayoutRule(("*",), (tuple(used[:at]), tuple(used[at:]))),)
    )
    layout = rules.strategy({"w": (1, 1)}).stages[0]["w"]
    rank = data.draw(st.integers(0, layout.device_count - 1))
    digits, rest = {}, rank
    for name, size in reversed(rules.axes):
        rest, digits[name] = divmod(rest, size)
    index = [0, 0]
    for axis, cuts in enumerate((used[:at], used[at:])):
        for name in cuts:
            index[axis] = index[axis] * dict(rules.axes)[name] + digits[name]
    assert layout.box_of(layout.cuts, rank).start == tuple(index)


@settings(max_examples=200)
@given(st.text("axesrulmtchpig:-[]{}*'0123,. \n", max_size=80))
def test_any_text(text):
    with contextlib.suppress(FormatError):
        parse(text).strategy({})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | st.sampled_from(["*", "[", "mp", "pp", "dp", "0-3", "9-", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["match", "split", "layers", "mp"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(VALUES, VALUES, VALUES, VALUES)
def test_any_values(axes, split, shard, stages):
    import json

    rules = [{"match": "*", "split": split, "optimizer_shard": shard}]
    for top in ({"axes": {"mp": 2, "dp": 4}, "rules": rules}, {"axes": axes, "rules": split, "stages": stages}):
        with contextlib.suppress(FormatError, StrategyError):
            parse(json.dumps(top)).strategy({"w": (4, 4), "layers.0.b": (4,), "s": ()})


def test_rules_that_match_nothing():
    rules = b"[{match: [a.*, b.*], split: [mp]}, {match: c.*, split: [mp]%s}, {match: '*', split: []}]"
    text = b"axes: {mp: 2}\nrules: " + rules
    shapes = {"a.w": (4,), "z": (4,)}
    with pytest.raises(StrategyError) as caught:
        parse(text % b"").strategy(shapes)
    assert caught.value.problems == ("rule 2 (c.*): it matches no tensor; add optional: true if it need not",)
    for rules in (parse(text % b", optional: true"), parse(text % b"")):
        others = () if rules.rules[1].optional else ("c.left_out",)
        assert rules.strategy(shapes, others).names == shapes.keys()
    with pytest.raises(FormatError, match="optional: expected true or false"):
        parse(text % b", optional: 1")


def test_stages_that_hold_nothing():
    text = b"axes: {pp: 2}\nrules: [{match: '*', split: []}]\nstages: [{layers: 0-3}, {layers: 4-7}]"
    shapes = {f"layers.{i}.w": (4,) for i in range(4)}
    with pytest.raises(StrategyError, match="stage 1: it holds no tensor"):
        parse(text).strategy(shapes)
    assert parse(text).strategy(shapes, ["layers.5.w"]).stage_count == 2
