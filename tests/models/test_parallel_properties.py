"""Whatever the numbers: strategies tile every tensor, and MindSpore's files hold them."""

import math
from collections import Counter

from hypothesis import assume, given
from hypothesis import strategies as st

from reshard.errors import StrategyError
from reshard.formats.mindspore.strategy_json import encode_json
from reshard.formats.mindspore.strategy_merge import from_strategy, parse_strategy_file, to_strategy
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.models.parallel_config import ParallelConfig
from reshard.models.parallel_rules import load_layouts
from reshard.models.parallel_strategy import derive_strategy
from reshard.tensor import DType

POWERS = st.sampled_from([1, 2, 4])
H = 64


def llama(layers):
    layer = {
        "attention.wq.weight": (H, H), "attention.wk.weight": (32, H), "attention.wq.bias": (H,),
        "attention.wo.weight": (H, H), "feed_forward.w1.weight": (160, H), "feed_forward.w2.weight": (H, 160),
        "attention_norm.weight": (H,),
    }  # fmt: skip
    ends = {"model.tok_embeddings.embedding_weight": (96, H), "model.norm_out.weight": (H,), "lm_head.weight": (96, H)}
    return ends | {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}


def mcore(layers):
    layer = {
        "self_attention.linear_qkv.weight": (2 * H, H), "self_attention.linear_proj.weight": (H, H),
        "input_layernorm.weight": (H,), "mlp.router.weight": (16, H), "mlp.experts.weight1": (16 * H, 32),
        "mlp.experts.weight2": (16 * H, H),
    }  # fmt: skip
    ends = {"embedding.word_embeddings.weight": (96, H), "decoder.final_layernorm.weight": (H,)}
    return ends | {f"decoder.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}


def hugging_face(layers):
    layer = {"self_attn.q_proj.weight": (H, H), "self_attn.k_proj.weight": (16, H), "self_attn.o_proj.weight": (H, H)}
    ends = {"model.embed_tokens.weight": (96, H), "model.norm.weight": (H,), "lm_head.weight": (96, H)}
    return ends | {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}


MODELS = [("llama", "legacy", llama), ("qwen3_moe", "mcore", mcore), ("llama", "hf", hugging_face)]


@st.composite
def jobs(draw):
    family, naming, model = draw(st.sampled_from(MODELS))
    layers = draw(st.integers(1, 6))
    pp = draw(st.sampled_from([p for p in (1, 2, 3) if naming == "hf" or layers % p == 0]))
    try:
        parallel = ParallelConfig(
            **{key: draw(POWERS) for key in ("dp", "mp", "cp", "ep")},
            pp=pp,
            vocab_emb_dp=draw(st.booleans()),
            use_seq_parallel=True,
            optimizer_shard=draw(st.booleans()),
            optimizer_weight_shard_size=draw(st.sampled_from([-1, 1, 2, 3, 4])),
            optimizer_threshold_kib=draw(st.sampled_from([0, 4, 20])),
            param_dtype=DType.F32,
        )
    except StrategyError:
        assume(False)
    weights = model(layers)
    states = draw(st.sampled_from([(), ("adam_m.", "adam_v."), ("accu_grads.",)])) if naming != "hf" else ()
    shapes = weights | {prefix + name: shape for prefix in states for name, shape in weights.items()}
    assume(naming != "hf" or parallel.ep == 1)
    config = {"num_key_value_heads": 2} if naming == "hf" else {}
    return shapes, derive_strategy(family, naming, parallel, shapes, config=config)


@given(jobs())
def test_every_tensor_is_tiled(job):
    shapes, strategy = job
    assert strategy.names == shapes.keys()
    for stage in strategy.stages:
        for name, layout in stage.items():
            counts = Counter(layout.box_of(shapes[name], rank) for rank in range(strategy.device_count))
            assert len(set(counts.values())) == 1  # every piece as often as any other
            assert sum(math.prod(box.shape) for box in counts) == math.prod(shapes[name])
            assert all(not one.intersect(other) for one in counts for other in counts if one != other)


@given(jobs())
def test_states_follow_their_weights(job):
    _, strategy = job
    for stage in strategy.stages:
        for name, layout in stage.items():
            weight = stage.get(name.removeprefix("adam_m.").removeprefix("adam_v.").removeprefix("accu_grads."))
            assert weight is None or weight == layout


@given(jobs())
def test_files_of_mindspore_hold_it(job):
    shapes, strategy = job
    file = from_strategy(strategy)
    named = {name: shapes[name.partition("-")[2] if name not in shapes else name] for name in file.layouts}
    for data, name in ((encode_protobuf(file), "s.ckpt"), (encode_json(file, named), "s.json")):
        again = to_strategy([parse_strategy_file(data, name)], shapes)
        assert [stage.keys() for stage in again.stages] == [stage.keys() for stage in strategy.stages]
        for ours, theirs in zip(strategy.stages, again.stages, strict=True):
            for tensor, layout in ours.items():
                for rank in range(strategy.device_count):
                    assert layout.box_of(shapes[tensor], rank) == theirs[tensor].box_of(shapes[tensor], rank)


@given(st.sampled_from(MODELS), st.integers(1, 6))
def test_namings_know_their_own_names_only(model, layers):
    family, naming, shapes = model
    for name, rules in load_layouts(family).items():
        assert (not rules.unknown(shapes(layers))) == (name == naming)
