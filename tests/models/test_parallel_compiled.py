"""Strategies computed from numbers against the strategy files that MindSpore Transformers compiled with them."""

import json
import math
from pathlib import Path

import pytest
from safetensors import deserialize

from reshard.errors import StrategyError
from reshard.formats.mindspore.strategy_merge import parse_strategy_file, to_strategy
from reshard.models.layer_stages import layer_stages
from reshard.models.parallel_config import ParallelConfig, parse_parallel_yaml
from reshard.models.parallel_rules import load_layouts
from reshard.models.parallel_strategy import derive_strategy
from reshard.tensor import DType

CASES = Path(__file__).parents[1] / "conformance" / "mindformers"
COMPILED = sorted((*CASES.glob("strategy_*"), *CASES.glob("f210_strategy_*")))
FAMILIES = {
    "llama": ("llama", "legacy"),
    "mixtral": ("mixtral", "legacy"),
    "glm": ("glm4", "legacy"),
    "deepseek3": ("deepseek_v3", "legacy"),
    "mcore_qwen3": ("qwen3", "mcore"),
    "mcore_qwen3moe": ("qwen3_moe", "mcore"),
    "mcore_dsv3": ("deepseek_v3", "mcore"),
    "telechat3": ("telechat3", "mcore"),
    "telechat3moe": ("telechat3_moe", "mcore"),
}


def family_of(case):
    matching = [key for key in FAMILIES if case.name.partition("strategy_")[2].startswith(f"{key}_")]
    return FAMILIES[max(matching, key=len)]


def tuples(value):
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def parallel_of(recorded):
    """The parallelism of a case; its generator had no threshold unless one was given."""
    if "layout" in recorded:
        return parallel_of_layout(recorded["layout"])
    args = dict(zip(recorded["args"][::2], recorded["args"][1::2], strict=True))

    def number(key, default=1):
        return int(args.get(f"--{key}", default))

    return ParallelConfig(
        **{key: number(key) for key in ("dp", "mp", "cp", "pp", "ep")},
        vocab_emb_dp=bool(number("vocab_emb_dp")),
        use_seq_parallel=recorded["params"].get("use_seq_parallel", False),
        optimizer_shard=bool(number("po", 0)),
        optimizer_threshold_kib=number("thr", 0),
        pipeline_interleave=number("interleave") > 1,
        pp_interleave_num=number("interleave"),
        offset=tuples(json.loads(args.get("--offset", "0"))),
        param_dtype=DType.F32,
    )


def parallel_of_layout(layout):
    """The parallelism of a case of 2.1, whose networks cut the embedding in any case."""
    return ParallelConfig(
        dp=layout["dp"],
        mp=layout["tp"],
        ep=layout["ep"],
        vocab_emb_dp=False,
        use_seq_parallel=layout["sp"],
        optimizer_shard=layout["optimizer_parallel"],
        optimizer_threshold_kib=layout["threshold_kb"],
        param_dtype=DType.F32,
    )


def read(case):
    recorded = json.loads((case / "case.json").read_text())
    shapes = {name: tuple(shape) for name, shape in recorded["full_param_shapes"].items()}
    made = derive_strategy(*family_of(case), parallel_of(recorded), shapes)
    files = [parse_strategy_file(path.read_bytes(), path.name) for path in sorted((case / "strategy").iterdir())]
    return recorded, shapes, made, to_strategy(files)


def test_cases_are_there():
    assert len(COMPILED) == 36
    assert {family_of(case) for case in COMPILED} == set(FAMILIES.values())


@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_as_compiled(case):
    recorded, shapes, made, truth = read(case)
    assert made.rank_count == truth.rank_count == recorded.get("world_size", 4)
    for ours, theirs in zip(made.stages, truth.stages, strict=True):
        assert ours.keys() == theirs.keys()
        for name, layout in ours.items():
            compiled = theirs[name]
            assert layout.optimizer_shard_size == compiled.optimizer_shard_size, name
            boxes, expected = (
                [one.box_of(shapes[name], rank) for rank in range(made.device_count)] for one in (layout, compiled)
            )
            assert boxes == expected, name


@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_only_what_the_files_lack_is_outside(case):
    _, shapes, made, truth = read(case)
    assert shapes.keys() - made.names == shapes.keys() - truth.names
    assert load_layouts(family_of(case)[0])[family_of(case)[1]].unknown(shapes) == []


YAML = """
use_parallel: True
parallel: {{enable_parallel_optimizer: {optimizer_parallel}, parallel_optimizer_config: {{parallel_optimizer_threshold: {threshold_kb}}}}}
parallel_config: {{data_parallel: {dp}, model_parallel: {tp}, expert_parallel: {ep}, use_seq_parallel: {sp}}}
model: {{model_config: {{params_dtype: float32}}}}
"""  # noqa: E501


@pytest.mark.parametrize("case", sorted(CASES.glob("f210_strategy_*")), ids=lambda case: case.name)
def test_a_training_yaml_says_the_same(case):
    recorded, shapes, made, _ = read(case)
    sizes = parse_parallel_yaml(YAML.format(**recorded["layout"]).encode(), "train.yaml")
    assert derive_strategy(*family_of(case), sizes, shapes) == made


SLICED = [case for case in COMPILED if (case / "full").is_dir()]


@pytest.mark.parametrize("case", SLICED, ids=lambda case: case.name)
def test_slices_are_what_the_tools_cut(case):
    _, shapes, made, _ = read(case)
    full = dict(deserialize((case / "full" / "model.safetensors").read_bytes()))
    compared = 0
    for rank in range(made.rank_count):
        shard = dict(deserialize((case / f"sliced_safetensors/rank_{rank}/net.safetensors").read_bytes()))
        for name, item in shard.items():
            layout = made.layout(name, rank)
            if layout is None:
                assert item["data"] == full[name]["data"]
                continue
            box = layout.box_of(shapes[name], rank % made.device_count)
            assert (box.shape, cut(full[name], box)) == (tuple(item["shape"]), bytes(item["data"])), (name, rank)
            compared += 1
    assert compared >= 36


def cut(item, box):
    """The bytes of a box, row by row of the innermost axis."""
    size = len(item["data"]) // max(1, math.prod(item["shape"]))
    starts = [0]
    for axis, extent in enumerate(item["shape"][:-1]):
        starts = [start * extent + row for start in starts for row in range(box.start[axis], box.stop[axis])]
    width = item["shape"][-1]
    return b"".join(
        bytes(item["data"][(start * width + box.start[-1]) * size : (start * width + box.stop[-1]) * size])
        for start in starts
    )


SETTINGS = [
    (rules, setting)
    for version, rules in (("r1.6.0", "legacy"), ("r1.8.0", "mcore"))
    for setting in json.loads((CASES / "layer_setting" / f"{version}.json").read_text())
]


def stages_of(rules, setting):
    parallel = ParallelConfig(
        pp=setting["pp"],
        pipeline_interleave=setting["vpp"] > 1,
        pp_interleave_num=setting["vpp"],
        offset=tuples(setting["offset"]),
        zero_bubble_v=setting["zero_bubble_v"],
    )
    return layer_stages(setting["num_layers"], parallel, rules)


@pytest.mark.parametrize(("rules", "setting"), [item for item in SETTINGS if "error" not in item[1]])
def test_layers_on_stages(rules, setting):
    assert list(stages_of(rules, setting)) == setting["pipeline_stage_set"]


@pytest.mark.parametrize(("rules", "setting"), [item for item in SETTINGS if "error" in item[1]])
def test_layers_refused(rules, setting):
    with pytest.raises(StrategyError, match=r"offset|middle"):
        stages_of(rules, setting)


def test_settings_are_there():
    assert len(SETTINGS) == 56
    assert sum("error" in setting for _, setting in SETTINGS) == 9
