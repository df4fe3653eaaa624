"""Whole tensors found from pieces: what the compiler cut is put together by the sizes alone."""

import json
from uuid import uuid4

import pytest
from models.test_parallel_compiled import COMPILED, SLICED, family_of, parallel_of, read
from safetensors import deserialize

from reshard import convert
from reshard.errors import StrategyError
from reshard.models.full_shapes import solve_full_shapes
from reshard.models.parallel_config import parse_parallel
from reshard.storage import open_location, read_object
from reshard.tensor import DType, TensorSpec

WO = "model.layers.0.attention.wo.weight"
HEAD = "lm_head.weight"


def pieces_of(shapes, strategy, dtype=DType.F32):
    """What the first rank that holds each tensor has of it."""
    pieces = {}
    for name, shape in shapes.items():
        stage = next((stage for stage in strategy.stages if name in stage), {})
        held = stage[name].box_of(shape, 0).shape if stage else shape
        pieces[name] = TensorSpec(name, dtype, held)
    return pieces


def config_of(shapes):
    """The numbers that a config.json of these tensors would have."""
    rows, columns = next((shape for name, shape in shapes.items() if "embed" in name and len(shape) == 2), (0, 0))
    keys = next((shape[0] for name, shape in shapes.items() if name.endswith("wk.weight")), 0)
    rope = next((shape[0] for name, shape in shapes.items() if name.endswith("kv2l_k_pe.weight")), 0)
    return {
        "vocab_size": rows,
        "hidden_size": columns,
        "head_dim": 8,
        "num_key_value_heads": keys // 8,
        "qk_rope_head_dim": rope,
    }


@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_what_the_compiler_cut_is_put_together(case):
    recorded, shapes, made, _ = read(case)
    pieces = pieces_of(shapes, made)
    question = *family_of(case), parallel_of(recorded), pieces
    assert solve_full_shapes(*question, config=config_of(shapes)) == shapes


def text_of(sizes):
    """The sizes as people write them."""
    degrees = ",".join(f"{name}={getattr(sizes, name)}" for name in ("dp", "mp", "cp", "pp", "ep"))
    vpp = f",vpp={sizes.pp_interleave_num}" if sizes.pipeline_interleave else ""
    return (
        f"{degrees}{vpp},vocab_emb_dp={sizes.vocab_emb_dp},sp={sizes.use_seq_parallel},po={sizes.optimizer_shard},"
        f"po_threshold={sizes.optimizer_threshold_kib},offset={json.dumps(sizes.offset)},param_dtype=fp32"
    )


@pytest.mark.parametrize("case", SLICED, ids=lambda case: case.name)
def test_genuine_slices_are_joined_to_the_genuine_whole(case):
    recorded, shapes, _, _ = read(case)
    family, naming = family_of(case)
    url = f"memory://{uuid4().hex}/full"
    convert(
        str(case / "sliced_safetensors"),
        url,
        src_parallel=text_of(parallel_of(recorded)),
        family=family,
        naming=naming,
        config=config_of(shapes),
    )
    ours, theirs = (
        {name: (item["shape"], bytes(item["data"])) for name, item in deserialize(body)}
        for body in (
            read_object(open_location(f"{url}/model.safetensors")),
            (case / "full" / "model.safetensors").read_bytes(),
        )
    )
    assert ours == theirs


def pieces(**shapes):
    names = {"wo": WO, "head": HEAD}
    return {names[key]: TensorSpec(names[key], DType.BF16, shape) for key, shape in shapes.items()}


def solved(text, held, **config):
    return solve_full_shapes("llama", "legacy", parse_parallel(text), held, config=config)


def test_a_head_that_does_not_divide_stays_whole():
    """With mp=2 a rank's 50 rows are half of 100; its 51 rows are half of 102, or a whole that does not divide."""
    assert solved("mp=2,vocab_emb_dp=false", pieces(head=(50, 8))) == {HEAD: (100, 8)}
    with pytest.raises(StrategyError, match="do not say what the shards are pieces of") as caught:
        solved("mp=2,vocab_emb_dp=false", pieces(head=(51, 8)))
    assert caught.value.problems == (f"{HEAD}: a rank's [51, 8] may be its piece of [51, 8] or of [102, 8]",)
    assert "`src_strategy` or `src_layout`" in str(caught.value)
    assert solved("mp=2,vocab_emb_dp=false", pieces(head=(51, 8)), vocab_size=51) == {HEAD: (51, 8)}
    assert solved("mp=2,vocab_emb_dp=false", pieces(head=(51, 8)), vocab_size=102) == {HEAD: (102, 8)}
    with pytest.raises(StrategyError):
        solved("mp=2,vocab_emb_dp=false", pieces(head=(51, 8)), vocab_size=204)


def test_the_threshold_of_the_parallel_optimizer():
    """8 rows of 512 elements of BF16 are 8 KiB, below the threshold of 64; eight times as many are not."""
    assert solved("dp=8,po=true", pieces(wo=(512, 4096))) == {WO: (4096, 4096)}
    assert solved("dp=8,po=true", pieces(wo=(4, 512))) == {WO: (4, 512)}  # not even eight times are
    with pytest.raises(StrategyError) as caught:
        solved("dp=8,po=true", pieces(wo=(8, 512)))
    assert caught.value.problems == (f"{WO}: a rank's [8, 512] may be its piece of [8, 512] or of [64, 512]",)
    assert solved("dp=8,po=true", pieces(wo=(8, 512)), hidden_size=64) == {WO: (64, 512)}
    assert solved("dp=8,po=true,po_threshold=0", pieces(wo=(8, 512))) == {WO: (64, 512)}
    # A piece that does not divide again may be a whole that was not cut.
    assert solved("dp=8,po=true,po_threshold=0", pieces(wo=(7, 8)), hidden_size=7) == {WO: (7, 8)}


def test_states_are_cut_as_their_weights():
    held = pieces(wo=(8, 512)) | {f"adam_m.{WO}": TensorSpec(f"adam_m.{WO}", DType.F32, (8, 512))}
    for rows in (8, 64):
        assert solved("dp=8,po=true", held, hidden_size=rows) == dict.fromkeys(held, (rows, 512))
    # By itself, 4 bytes an element, it would have been cut.
    alone = {f"adam_m.{WO}": TensorSpec(f"adam_m.{WO}", DType.F32, (4, 512))}
    with pytest.raises(StrategyError):
        solved("dp=8,po=true", alone)


def test_names_and_sizes_that_do_not_fit():
    with pytest.raises(StrategyError) as caught:
        solved("mp=2", pieces(wo=(8,)) | {"odd": TensorSpec("odd", DType.BF16, (2,))})
    assert caught.value.problems == (
        f"{WO}: expected at least 2 axes, found [8]",
        "odd: no rule matches this name",
    )
