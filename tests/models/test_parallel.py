"""Parallel configurations: parsed, checked, and made layouts for which there is no compiled file."""

import pytest

from reshard.errors import FormatError, StrategyError, UsageError
from reshard.models.layer_stages import layer_stages
from reshard.models.parallel_config import ParallelConfig, parse_parallel, parse_parallel_yaml
from reshard.models.parallel_rules import load_layouts
from reshard.models.parallel_strategy import derive_strategy
from reshard.tensor import DType

WQ, WO = "model.layers.0.attention.wq.weight", "model.layers.0.attention.wo.weight"
EMBED, HEAD = "model.tok_embeddings.embedding_weight", "lm_head.weight"


def layout_of(family, naming, parallel, name, shape, rank=0, **more):
    return derive_strategy(family, naming, parallel, {name: shape}, **more).layout(name, rank)


def boxes(layout, shape):
    return [layout.box_of(shape, rank) for rank in range(layout.device_count)]


def test_short_and_long_keys_are_the_same():
    short = parse_parallel(
        "dp=2, mp=4, pp=2, cp=2, ep=2, sp=true, po=1, vpp=2, offset=[[1,0],[0,1]], zbv=on, use_legacy=no"
    )
    long = parse_parallel(
        "data_parallel=2,model_parallel=4,pipeline_stage=2,context_parallel=2,expert_parallel=2,use_seq_parallel=True,"
        "enable_parallel_optimizer=true,pp_interleave_num=2,pipeline_interleave=true,offset=[[1, 0], [0, 1]],"
        "zero_bubble_v=yes,use_legacy=false"
    )
    assert short == long
    assert parse_parallel("tp=8,po_threshold=10,po_size=2,param_init_type=float32,micro_batch_num=1") == ParallelConfig(
        mp=8, optimizer_threshold_kib=10, optimizer_weight_shard_size=2, param_dtype=DType.F32, micro_batch_num=1
    )
    assert parse_parallel("") == ParallelConfig()


@pytest.mark.parametrize(
    "text",
    ["dp", "dp=", "dp=1.5", "dp=2,dp=2", "tp=2,mp=2", "=", ",", "offset=[1,0", "offset=[[1],2]", "vocab_emb_dp=2",
     "param_dtype=int8", "nothing=1", "vpp=2,pp_interleave_num=2", "dp=9999999999", "offset=[-]"],
)  # fmt: skip
def test_what_cannot_be_parsed_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_parallel(text)
    assert caught.value.problems


def test_all_problems_are_listed():
    with pytest.raises(UsageError) as caught:
        parse_parallel("dp=two,xp=1,sp=maybe")
    assert len(caught.value.problems) == 3
    with pytest.raises(StrategyError) as refused:
        ParallelConfig(dp=2, ep=3, pp=4, micro_batch_num=2, cp=3, ulysses_degree_in_cp=2, zero_bubble_v=True)
    assert len(refused.value.problems) == 4
    with pytest.raises(StrategyError, match="configuration is invalid"):
        ParallelConfig(dp=2**20, mp=2)
    with pytest.raises(StrategyError) as refused:
        ParallelConfig(dp=0, optimizer_weight_shard_size=0, optimizer_threshold_kib=-1)
    assert len(refused.value.problems) == 3


TRAINING = b"""
seed: 0
use_legacy: False
runner_config: &runner
  epochs: 2
  learning_rate: 1.e-6
  init: !!python/object:os.system x
callbacks: *runner
other: {<<: *runner, started: 2024-01-01}
parallel:
  enable_parallel_optimizer: True
  parallel_optimizer_config:
    gradient_accumulation_shard: False
    parallel_optimizer_threshold: 8
    optimizer_weight_shard_size: 2
  pipeline_config:
    pipeline_interleave: True
    pipeline_scheduler: "1f1b"
parallel_config:
  data_parallel: &dp 2
  model_parallel: 4
  context_parallel: 1
  pipeline_stage: 2
  expert_parallel: 2
  micro_batch_num: 4
  vocab_emb_dp: False
  use_seq_parallel: True
  gradient_aggregation_group: 4
model:
  model_config:
    offset: [[1, 0], [0, 1]]
    pp_interleave_num: 2
    rms_norm_eps: 1.0e-6
    params_dtype: "bfloat16"
"""


def test_training_configuration():
    assert parse_parallel_yaml(TRAINING, "train.yaml") == parse_parallel(
        "dp=2,mp=4,pp=2,ep=2,micro_batch_num=4,vocab_emb_dp=false,sp=true,po=true,po_threshold=8,po_size=2,vpp=2,"
        "offset=[[1,0],[0,1]],param_dtype=bf16,use_legacy=false"
    )
    assert parse_parallel_yaml(TRAINING.replace(b"1f1b", b"zero_bubble_v"), "t").zero_bubble_v
    assert parse_parallel_yaml(b"use_parallel: True\nparallel_config:", "t") == ParallelConfig(use_parallel=True)


def test_anchors_aliases_and_merge_keys():
    text = b"a: &a {data_parallel: 2, model_parallel: 8}\nn: &n 4\nparallel_config: {<<: *a, model_parallel: *n}"
    assert parse_parallel_yaml(text, "train.yaml") == ParallelConfig(dp=2, mp=4)
    assert parse_parallel_yaml(b"a: &a {data_parallel: 2}\nparallel_config: *a", "train.yaml").dp == 2


def test_sizes_alone():
    text = b"{data_parallel: 2, tp: 4, vpp: 2, pp: 2, offset: [[1, 0], [0, 1]], sp: true}"
    assert parse_parallel_yaml(text, "sizes.yaml") == parse_parallel(
        "dp=2,mp=4,pp=2,vpp=2,offset=[[1,0],[0,1]],sp=true"
    )
    with pytest.raises(FormatError, match="cannot be parsed") as caught:
        parse_parallel_yaml(b"{dp: x, layers: 2}", "sizes.yaml")
    assert caught.value.problems == ("dp: expected a whole number, found 'x'", "layers: unknown key")


def test_a_layout_file_is_told_from_a_training_configuration():
    with pytest.raises(FormatError) as caught:
        parse_parallel_yaml(b"axes: {mp: 2}\nrules: [{match: '*', split: [mp]}]", "layout.yaml")
    assert str(caught.value) == (
        "layout.yaml: this is a layout file, not the configuration of a training job\n"
        "`src_layout` and `dst_layout` take it: the one for the source's shards, the other for the target's."
    )


@pytest.mark.parametrize("text", [b"", b"[1]", b"a: {b: 1}", b"hello", b"model_type: llama"])
def test_yaml_that_holds_no_sizes(text):
    with pytest.raises(FormatError, match="no parallel configuration: expected the configuration of a training job"):
        parse_parallel_yaml(text, "other.yaml")


def test_sizes_of_a_job_that_is_not_parallel():
    text = b"use_parallel: False\nparallel_config: {data_parallel: 2, model_parallel: 4}"
    sizes = parse_parallel_yaml(text, "train.yaml")
    with pytest.raises(StrategyError, match=r"t\.yaml: use_parallel is False, .* 8 ranks \(dp 2, mp 4\)"):
        sizes.check_used("t.yaml")
    parse_parallel_yaml(text.replace(b"False", b"True"), "t").check_used("t")
    parse_parallel_yaml(b"use_parallel: False\nparallel_config: {data_parallel: 1}", "t").check_used("t")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"parallel_config: 3", "mapping"),
        (b"a: &a {data_parallel: 2}\nparallel_config: {<<: [*a, 3]}", "merge key"),
        (b"parallel_config: &a {data_parallel: *a}", "within itself"),
        (b"parallel_config: {data_parallel: 1.5, model_parallel: x}", "model_parallel"),
        (b"a: &a x\nparallel_config: {data_parallel: *a}", "data_parallel"),
    ],
)
def test_configurations_that_say_nothing_sure(text, found):
    with pytest.raises(FormatError) as caught:
        parse_parallel_yaml(text, "train.yaml")
    assert found in str(caught.value)
    assert "train.yaml" in str(caught.value)


def test_contradictions_of_a_configuration_name_it():
    with pytest.raises(StrategyError, match=r"train\.yaml"):
        parse_parallel_yaml(b"parallel_config: {pipeline_stage: 2, micro_batch_num: 1}", "train.yaml")


@pytest.mark.parametrize("offset", [1, (1, 0, 0), ((1, 0), (0, 0)), (2, -9), ()])
def test_offsets_that_do_not_fit(offset):
    with pytest.raises(StrategyError):
        layer_stages(5, ParallelConfig(pp=2, offset=offset), "legacy")


def test_layers_that_are_left_over_ask_for_an_offset():
    with pytest.raises(StrategyError, match="5 layers cannot be divided by 2 stages: 1 left over") as caught:
        layer_stages(5, ParallelConfig(pp=2), "legacy")
    assert "2 numbers with the sum 1" in caught.value.hint
    with pytest.raises(StrategyError, match="9 layers cannot be divided by 2 stages of 2 chunks: 1 left") as caught:
        layer_stages(9, ParallelConfig(pp=2, pp_interleave_num=2, pipeline_interleave=True), "legacy")
    assert "2 numbers in 2 lists, one for each chunk, with the sum 1" in caught.value.hint


def test_interleave_counts_only_when_switched_on():
    assert layer_stages(8, ParallelConfig(pp=2, pp_interleave_num=2), "legacy") == (0, 0, 0, 0, 1, 1, 1, 1)


def test_embedding_over_context_and_model_parallel():
    parallel = ParallelConfig(dp=2, cp=2, mp=2, vocab_emb_dp=False)
    shape = (64, 8)
    assert {box.shape for box in boxes(layout_of("llama", "legacy", parallel, EMBED, shape), shape)} == {(16, 8)}
    assert {box.shape for box in boxes(layout_of("llama", "legacy", parallel, HEAD, shape), shape)} == {(32, 8)}
    odd = layout_of("llama", "legacy", parallel, EMBED, (66, 8))
    assert {box.shape for box in boxes(odd, (66, 8))} == {(66, 8)}


@pytest.mark.parametrize(
    ("size", "shape", "pieces"),
    [(-1, (64, 8), -1), (2, (64, 8), 2), (8, (64, 8), 4), (3, (64, 8), 0), (-1, (12, 8), 0), (2, (12, 8), 2)],
)
def test_pieces_of_the_optimizer(size, shape, pieces):
    parallel = ParallelConfig(
        dp=4, mp=2, optimizer_shard=True, optimizer_weight_shard_size=size, optimizer_threshold_kib=0
    )
    assert layout_of("llama", "legacy", parallel, WQ, shape).optimizer_shard_size == pieces


def test_threshold_is_of_the_whole_weight_as_training_keeps_it():
    parallel = ParallelConfig(dp=2, optimizer_shard=True, optimizer_threshold_kib=8)
    shapes = {WQ: (64, 64), f"adam_m.{WQ}": (64, 64)}
    for nbytes, pieces in ((8192, -1), (8191, 0)):
        made = derive_strategy("llama", "legacy", parallel, shapes, nbytes={WQ: nbytes, f"adam_m.{WQ}": 16384})
        assert {layout.optimizer_shard_size for layout in made.stages[0].values()} == {pieces}
    with pytest.raises(StrategyError, match="llama") as caught:
        derive_strategy("llama", "legacy", parallel, shapes)
    assert "param_dtype" in str(caught.value)
    typed = parse_parallel("dp=2,po=true,po_threshold=8,param_dtype=bf16")
    assert derive_strategy("llama", "legacy", typed, shapes).layout(WQ, 0).optimizer_shard_size == -1


@pytest.mark.parametrize("leaf", ["mindpet_delta_lora_{}", "tk_delta_lora_{}", "lora_{}"])
def test_adapters_follow_their_weight_and_freeze_the_rest(leaf):
    a, b = (WO.replace("weight", leaf.format(part)) for part in "ab")
    parallel = ParallelConfig(dp=2, mp=2, optimizer_shard=True, optimizer_threshold_kib=0)
    made = derive_strategy("llama", "legacy", parallel, {WO: (8, 16), a: (4, 16), b: (8, 4)}).stages[0]
    assert (made[a].cuts, made[b].cuts, made[WO].cuts) == ((1, 2), (1, 1), (1, 2))
    assert [made[name].optimizer_shard_size for name in (a, b, WO)] == [-1, -1, 0]


def test_tied_embeddings_have_their_states_on_both_ends():
    shapes = {EMBED: (64, 8), f"adam_v.{EMBED}": (64, 8), "model.layers.1.attention_norm.weight": (8,)}
    made = derive_strategy("llama", "legacy", ParallelConfig(pp=2), shapes)
    assert [sorted(stage) for stage in made.stages] == [sorted([EMBED, f"adam_v.{EMBED}"]), sorted([*shapes][1:])]
    untied = derive_strategy("llama", "legacy", ParallelConfig(pp=2), {**shapes, HEAD: (64, 8)})
    assert f"adam_v.{EMBED}" not in untied.stages[1]


def test_predicting_layers_of_the_older_deepseek_count():
    layers = {f"model.layers.{i}.attention_norm.weight": (8,) for i in range(4)}
    shapes = {**layers, "model.mtp_hidden_fusers.0.norm.weight": (8,), "model.mtp_norms.0.weight": (8,)}
    made = derive_strategy("deepseek_v3", "legacy", ParallelConfig(pp=4), shapes, config={"num_hidden_layers": 3})
    assert [[*shapes].index(name) for stage in made.stages for name in stage] == [0, 1, 2, 3, 4, 5]
    assert "model.mtp_hidden_fusers.0.norm.weight" in made.stages[3]


def test_heads_of_zero_bubble_are_on_the_first_stage():
    parallel = ParallelConfig(pp=2, pipeline_interleave=True, pp_interleave_num=2, zero_bubble_v=True)
    shapes = {f"decoder.layers.{i}.input_layernorm.weight": (8,) for i in range(4)} | {"output_layer.weight": (8, 8)}
    made = derive_strategy("qwen3", "mcore", parallel, shapes)
    assert [name.split(".")[2] for name in made.stages[1]] == ["1", "2"]
    assert "output_layer.weight" in made.stages[0]


MOE = {f"decoder.layers.0.mlp.experts.weight{n}": (64, 8) for n in (1, 2)}
OUT = {"output_layer.weight": (8, 8)}
W1 = {"model.layers.0.feed_forward.ffn.w1.weight": (8, 8, 8)}
UP = {"model.layers.0.mlp.experts.0.up_proj.weight": (8, 8)}
GMM = {"expert_layout": "gmm"}
KV = {"num_key_value_heads": 2}
GATE_UP = {"model.layers.0.mlp.gate_up_proj.weight": (8, 8)}


@pytest.mark.parametrize(
    ("family", "naming", "parallel", "shapes", "more", "found"),
    [
        ("llama", "legacy", ParallelConfig(mp=4), {WQ: (64, 8)}, {"config": KV}, "num_key_value_heads"),
        ("llama", "legacy", ParallelConfig(mp=4), {WQ: (66, 8)}, {}, "equal pieces"),
        ("llama", "legacy", ParallelConfig(mp=4), {"model.layers.0.attention.wz.weight": (64, 8)}, {}, "no rule"),
        ("llama", "legacy", ParallelConfig(mp=4), {WO: (64,)}, {}, "axes"),
        ("llama", "legacy", ParallelConfig(use_legacy=False), {WO: (64, 8)}, {}, "use_legacy"),
        ("qwen3_moe", "mcore", ParallelConfig(dp=4, ep=4), MOE, {"config": {"num_experts": 6}}, "6 experts"),
        ("qwen3_moe", "mcore", ParallelConfig(dp=2, mp=2, ep=4), MOE, {}, "use_seq_parallel"),
        ("qwen3", "mcore", ParallelConfig(mp=2), OUT, {"options": {"qkv_layout": "contiguous"}}, "blocks"),
        ("qwen3", "mcore", ParallelConfig(mp=16), OUT, {}, "equal pieces"),
        ("mixtral", "legacy", ParallelConfig(dp=2, mp=2, ep=4, use_seq_parallel=True), W1, {}, "does not divide dp"),
        ("mixtral", "legacy", ParallelConfig(mp=2, use_seq_parallel=True), W1, {"options": GMM}, "grouped product"),
        ("qwen3_moe", "hf", ParallelConfig(dp=2, ep=2), UP, {}, "tensor of its own"),
        ("glm4", "hf", ParallelConfig(mp=2), GATE_UP, {}, "several matrices"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(family, naming, parallel, shapes, more, found):
    with pytest.raises(StrategyError) as caught:
        derive_strategy(family, naming, parallel, shapes, **more)
    assert found in str(caught.value)


def test_contiguous_runs_cut_by_as_many_blocks():
    options = {"qkv_layout": "contiguous", "blocks": 2}
    name = "decoder.layers.0.self_attention.linear_qkv.weight"
    assert layout_of("qwen3", "mcore", ParallelConfig(mp=2), name, (48, 8), options=options).cuts == (2, 1)


def test_unknown_families_and_namings():
    for family in ("gpt", "../llama", ""):
        with pytest.raises(UsageError, match="Unknown family"):
            load_layouts(family)
    with pytest.raises(UsageError, match="no layouts for the naming"):
        derive_strategy("llama", "mcore", ParallelConfig(), {})


K = "model.layers.0.self_attn.k_proj.weight"


def test_few_heads_are_repeated_as_vllm_does():
    layout = layout_of("llama", "hf", ParallelConfig(mp=4, dp=2), K, (32, 8), config={"num_key_value_heads": 2})
    assert [box.start[0] for box in boxes(layout, (32, 8))] == [0, 0, 16, 16] * 2
    plain = layout_of("llama", "hf", ParallelConfig(mp=4), K, (32, 8), config={"num_key_value_heads": 8})
    assert [box.start[0] for box in boxes(plain, (32, 8))] == [0, 8, 16, 24]
    for heads, mp in ((3, 4), (6, 4)):
        with pytest.raises(StrategyError, match="hf") as caught:
            layout_of("llama", "hf", ParallelConfig(mp=mp), K, (48, 8), config={"num_key_value_heads": heads})
        assert "cannot share" in str(caught.value)


def test_names_of_hugging_face():
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (64, 8),
        layer + "self_attn.q_proj.weight": (32, 8),
        layer + "self_attn.q_proj.bias": (32,),
        layer + "self_attn.o_proj.weight": (8, 32),
        layer + "mlp.gate_proj.weight": (16, 8),
        layer + "mlp.down_proj.weight": (8, 16),
        layer + "input_layernorm.weight": (8,),
        "model.norm.weight": (8,),
    }
    made = derive_strategy(
        "llama", "hf", ParallelConfig(mp=2, pp=2), {**shapes, "model.layers.1.input_layernorm.weight": (8,)}
    )
    assert [made.stages[0][name].cuts for name in [*shapes][:-1]] == [
        (2, 1),
        (2, 1),
        (2,),
        (1, 2),
        (2, 1),
        (1, 2),
        (1,),
    ]
    assert "model.embed_tokens.weight" in made.stages[1]  # tied: the head is made of it
    untied = derive_strategy("llama", "hf", ParallelConfig(mp=2, pp=2), {**shapes, "lm_head.weight": (64, 8)})
    assert "model.embed_tokens.weight" not in untied.stages[1]


def test_scales_of_quantised_weights_are_cut_in_whole_blocks():
    name = "model.layers.0.self_attn.q_b_proj.weight"
    shapes = {name: (512, 256), f"{name}_scale_inv": (4, 2)}
    made = derive_strategy("deepseek_v3", "hf", ParallelConfig(mp=2), shapes)
    assert made.stages[0][f"{name}_scale_inv"].cuts == (2, 1)
    with pytest.raises(StrategyError) as caught:
        derive_strategy("deepseek_v3", "hf", ParallelConfig(mp=2), {name: (384, 256), f"{name}_scale_inv": (4, 2)})
    assert "blocks of 128" in str(caught.value)


def test_layers_after_the_last_are_on_the_last_stage():
    shapes = {f"model.layers.{i}.input_layernorm.weight": (8,) for i in range(3)}
    made = derive_strategy("deepseek_v3", "hf", ParallelConfig(pp=2), shapes, config={"num_hidden_layers": 2})
    assert [len(stage) for stage in made.stages] == [1, 2]
