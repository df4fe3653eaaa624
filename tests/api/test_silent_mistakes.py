"""What names and shapes suggest is confirmed, or refused in words: nothing wrong passes in silence."""

import ml_dtypes
import numpy as np
import pytest
from support.small_llama import layout_of, small_llama
from support.stores import arrays_at, new_place, objects_at, put, put_model

import reshard
from reshard.engine.events import Noted
from reshard.errors import CatalogError, PlanError, StrategyError, UsageError
from reshard.models.parallel_config import ParallelConfig
from reshard.models.parallel_strategy import derive_strategy
from reshard.storage import MemoryStore, open_location
from reshard.storage.stopping import never

CONTIGUOUS = {"qkv_layout": "contiguous", "mlp_layout": "contiguous"}
FC1 = "decoder.layers.0.mlp.linear_fc1.weight"
QKV = "decoder.layers.0.self_attention.linear_qkv.weight"
MS_LAYOUT = b"""
axes: {mp: %d}
rules:
- {match: "*linear_qkv.weight", split: [mp]}
- {match: "*linear_fc1.weight", split: [%s]}
- {match: "*", split: []}
"""


@pytest.fixture
def base():
    return new_place()


def llama_at(base, **more):
    tensors, config = small_llama(**more)
    put_model(f"{base}/hf", tensors, config)
    return tensors, config


def notes_of(plan):
    return "\n".join(plan.notes)


def rank(base, number):
    return arrays_at(base, [f"rank_{number}/checkpoint_{number}.safetensors"])


# Runs of several parts.


@pytest.mark.parametrize("cut", ["layout", "numbers"])
@pytest.mark.parametrize("ways", [2, 4])
def test_the_target_decides_how_many_runs_there_are(base, cut, ways):
    tensors, config = llama_at(base, family="qwen3", heads=8, groups=4)
    how = {"parallel": f"mp={ways}"} if cut == "numbers" else {"dst_layout": f"{base}/l.yaml"}
    put(f"{base}/l.yaml", MS_LAYOUT % (ways, b"mp"))
    asked = {"to": "ms", "option": CONTIGUOUS, **how}
    assert f"blocks is {ways}" in notes_of(reshard.plan(f"{base}/hf", f"{base}/ranks", **asked))
    reshard.convert(f"{base}/hf", f"{base}/ranks", **asked)
    at = "model.layers.0."
    for number in range(ways):
        held = rank(f"{base}/ranks", number)
        own = [np.split(tensors[f"{at}mlp.{name}_proj.weight"], ways)[number] for name in ("gate", "up")]
        assert np.array_equal(held[FC1], np.concatenate(own))
        own = [np.split(tensors[f"{at}self_attn.{name}_proj.weight"], ways)[number] for name in "qkv"]
        assert np.array_equal(held[QKV], np.concatenate(own))
    # And back: the source's layouts decide, whatever says them.
    back = {"to": "hf", "config": config, "option": CONTIGUOUS}
    reshard.convert(f"{base}/ranks", f"{base}/by-manifest", **back)
    open_location(f"{base}/ranks").store.delete("ranks/reshard-manifest.json")
    said = {"src_parallel": f"mp={ways}"} if cut == "numbers" else {"src_layout": f"{base}/l.yaml"}
    reshard.convert(f"{base}/ranks", f"{base}/again", **said, **back)
    for made in (arrays_at(f"{base}/by-manifest"), arrays_at(f"{base}/again")):
        assert all(np.array_equal(made[name], array) for name, array in tensors.items())


def test_another_number_of_runs_is_refused_both_ways(base):
    _, config = llama_at(base, family="qwen3", heads=8, groups=4)
    put(f"{base}/l.yaml", MS_LAYOUT % (2, b"mp"))
    asked = {"dst_layout": f"{base}/l.yaml", "option": CONTIGUOUS | {"blocks": 4}}
    with pytest.raises(UsageError, match=r"blocks=4.*cuts the tensors that hold runs of several parts into 2 pieces"):
        reshard.plan(f"{base}/hf", f"{base}/ranks", to="ms", **asked)
    asked["option"] = CONTIGUOUS
    reshard.convert(f"{base}/hf", f"{base}/ranks", to="ms", **asked)
    for blocks in (1, 4):
        with pytest.raises(UsageError, match="the source strategy cuts the tensors"):
            reshard.plan(f"{base}/ranks", f"{base}/o", to="hf", config=config, option=CONTIGUOUS | {"blocks": blocks})


def test_runs_that_are_cut_differently_are_refused(base):
    llama_at(base, family="qwen3", heads=8, groups=4)
    put(f"{base}/l.yaml", MS_LAYOUT % (2, b"null"))
    with pytest.raises(StrategyError) as caught:
        reshard.plan(f"{base}/hf", f"{base}/o", to="ms", dst_layout=f"{base}/l.yaml", option=CONTIGUOUS)
    assert len(caught.value.problems) == 2


def test_interleaved_tensors_are_cut_as_they_are(base):
    llama_at(base, family="qwen3", heads=8, groups=4)
    put(f"{base}/l.yaml", MS_LAYOUT % (2, b"null"))
    plan = reshard.plan(f"{base}/hf", f"{base}/o", to="ms", dst_layout=f"{base}/l.yaml")
    assert "blocks is" not in notes_of(plan)


def test_an_iteration_does_not_tell_runs_from_pieces_of_the_optimizer(base):
    _, config = llama_at(base, family="qwen3", heads=8, groups=4)
    asked = {"to": "ms", "option": CONTIGUOUS, "parallel": "mp=2", "form": "iteration", "iteration": 1}
    reshard.convert(f"{base}/hf", f"{base}/it", **asked)
    with pytest.raises(UsageError, match="does not tell how many runs"):
        reshard.plan(f"{base}/it", f"{base}/o", to="hf", config=config, option=CONTIGUOUS)
    plan = reshard.plan(f"{base}/it", f"{base}/o", to="hf", config=config, option=CONTIGUOUS | {"blocks": 2})
    assert plan.outputs


# Heads, embeddings and counters.


@pytest.mark.parametrize("to", [None, "ms"])
def test_ranks_hold_whole_heads(base, to):
    llama_at(base, heads=9, groups=3, hidden=36, words=72)
    with pytest.raises(StrategyError, match="num_attention_heads = 9"):
        reshard.plan(f"{base}/hf", f"{base}/o", parallel="dp=2,mp=2", **({"to": to} if to else {}))
    assert reshard.plan(f"{base}/hf", f"{base}/o", parallel="mp=3", **({"to": to} if to else {})).outputs


def test_fewer_key_heads_than_ranks_are_repeated_where_names_are_hugging_faces(base):
    llama_at(base, heads=8, groups=2)
    assert reshard.plan(f"{base}/hf", f"{base}/o", parallel="mp=4").outputs
    with pytest.raises(StrategyError, match="num_key_value_heads = 2"):
        reshard.plan(f"{base}/hf", f"{base}/o", parallel="mp=4", to="ms")


def test_heads_that_nothing_counts_are_noted(base):
    tensors, _ = small_llama()
    put_model(f"{base}/hf", tensors)
    assert "does not say num_attention_heads" in notes_of(reshard.plan(f"{base}/hf", f"{base}/o", parallel="mp=2"))
    told = reshard.plan(f"{base}/hf", f"{base}/o", parallel="mp=2", config="num_attention_heads=4")
    assert "does not say" not in notes_of(told)
    with pytest.raises(StrategyError, match="num_attention_heads = 5"):
        reshard.plan(f"{base}/hf", f"{base}/o", parallel="mp=2", config="num_attention_heads=5")


@pytest.mark.parametrize(
    ("asked", "is_whole"),
    [({}, False), ({"to": "ms"}, True), ({"to": "ms", "parallel": "dp=2,mp=2,vocab_emb_dp=false"}, False)],
)
def test_the_note_on_embeddings_says_how_they_are_cut(base, asked, is_whole):
    tensors, _ = llama_at(base)
    plan = reshard.plan(f"{base}/hf", f"{base}/o", **({"parallel": "dp=2,mp=2"} | asked))
    assert ("whole on every rank; vocab_emb_dp=false cuts them" in notes_of(plan)) is is_whole
    shapes = {spec.name: spec.shape for spec in plan.outputs[0].specs}
    name = "model.tok_embeddings.embedding_weight" if asked else "model.embed_tokens.weight"
    assert (shapes[name] == tensors["model.embed_tokens.weight"].shape) is is_whole


def test_an_embedding_of_an_odd_length_is_noted(base):
    llama_at(base, words=63)
    plan = reshard.plan(f"{base}/hf", f"{base}/o", to="ms", parallel="mp=2,vocab_emb_dp=false")
    assert "model.tok_embeddings.embedding_weight are whole on every rank: the number of rows" in notes_of(plan)


@pytest.mark.parametrize(("groups", "ways", "fits"), [(2, 4, True), (2, 8, False), (4, 8, True), (8, 8, True)])
def test_ranks_hold_whole_heads_of_grouped_tensors(base, groups, ways, fits):
    """Eight heads of q with their k and v in one tensor; a rank may hold a part of a group, but no part of a head."""
    llama_at(base, family="qwen3", heads=8, groups=groups)
    if fits:
        assert reshard.plan(f"{base}/hf", f"{base}/o", to="ms", parallel=f"mp={ways}").outputs
        return
    with pytest.raises(StrategyError, match="8 does not divide qkv_heads = 12"):
        reshard.plan(f"{base}/hf", f"{base}/o", to="ms", parallel=f"mp={ways}")


COUNTERS = {"global_step": np.array([7], np.int32), "loss_scale": np.array([65536.0], np.float32)}


@pytest.mark.parametrize(
    "asked", [{}, {"parallel": "mp=2"}, {"to": "ms"}, {"to": "ms", "parallel": "mp=2"}, {"dtype": "fp16"}]
)
def test_counters_pass_through(base, asked):
    tensors, config = small_llama()
    put_model(f"{base}/hf", tensors | COUNTERS, config)
    reshard.convert(f"{base}/hf", f"{base}/o", **asked)
    for key in objects_at(f"{base}/o"):
        made = arrays_at(f"{base}/o", [key])
        for name, array in COUNTERS.items():
            assert np.array_equal(made[name], array)
            assert made[name].dtype == array.dtype


# Hints and copies.


def test_a_hint_to_drop_never_loses_the_model(base):
    tensors, config = small_llama()
    extra = {f"model.layers.{i}.extra": np.arange(32, dtype=np.float32).reshape(8, 4) for i in range(2)}
    put_model(f"{base}/hf", tensors | extra, config)
    put(f"{base}/all.yaml", layout_of("mp: 2", "{match: '*.extra', split: [mp]}"))
    reshard.convert(f"{base}/hf", f"{base}/ranks", dst_layout=f"{base}/all.yaml")
    made = (
        reshard.api.make_strategy(f"{base}/s.ckpt", checkpoint=f"{base}/hf2", parallel="mp=2")
        if put_model(f"{base}/hf2", tensors, config)
        else None
    )
    assert made is not None
    with pytest.raises(PlanError, match="have no layout in the target strategy") as caught:
        reshard.plan(f"{base}/ranks", f"{base}/o", dst_strategy=f"{base}/s.ckpt")
    assert "drop='model.layers.*.extra'" in caught.value.hint
    reshard.convert(f"{base}/ranks", f"{base}/o", dst_strategy=f"{base}/s.ckpt", drop="model.layers.*.extra")
    assert rank(f"{base}/o", 0).keys() == tensors.keys()


def tied(base, change=lambda head: head):
    tensors, config = small_llama()
    head = change(tensors["model.embed_tokens.weight"].copy())
    put_model(f"{base}/hf", tensors | {"lm_head.weight": head}, config | {"tie_word_embeddings": True})
    return tensors, config


def test_copies_are_dropped_once_they_have_been_compared(base):
    tied(base)
    assert "was compared with model.embed_tokens.weight, byte by byte" in notes_of(
        reshard.plan(f"{base}/hf", f"{base}/o", to="ms")
    )


def _one_value(head):
    head[-1, -1] += 1
    return head


@pytest.mark.parametrize("change", [_one_value, lambda head: head.astype(np.float16), lambda head: head[:32]])
def test_what_is_no_copy_is_neither_dropped_nor_guessed(base, change):
    tensors, config = tied(base, change)
    with pytest.raises(CatalogError, match=r"says that tensors repeat others, and they do not") as caught:
        reshard.plan(f"{base}/hf", f"{base}/o", to="ms")
    assert "drop='lm_head.weight'" in caught.value.hint
    reshard.convert(f"{base}/hf", f"{base}/kept", to="ms", config=config) if change is _one_value else None
    reshard.convert(f"{base}/hf", f"{base}/left-out", to="ms", drop="lm_head.weight")
    made = arrays_at(f"{base}/left-out")
    assert np.array_equal(made["lm_head.weight"], tensors["model.embed_tokens.weight"])
    if change is _one_value:
        assert arrays_at(f"{base}/kept")["lm_head.weight"][-1, -1] == tensors["model.embed_tokens.weight"][-1, -1] + 1


def test_copies_in_pieces_of_ranks_are_compared_too(base):
    tensors, config = llama_at(base)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    put_model(f"{base}/hf", tensors, config)
    # A strategy that cuts the one by rows and the other by columns.
    rule = "{match: 'lm_head.weight', split: [null, mp]}"
    put(f"{base}/l.yaml", layout_of("mp: 2", rule))
    reshard.convert(f"{base}/hf", f"{base}/ranks", dst_layout=f"{base}/l.yaml")
    plan = reshard.plan(f"{base}/ranks", f"{base}/o", to="ms", config=config | {"tie_word_embeddings": True})
    assert "byte by byte: a copy" in notes_of(plan)


# Layout files and whole sizes.


def test_a_rule_that_matches_nothing_is_an_error_unless_it_may(base):
    tensors, _ = llama_at(base)
    put(f"{base}/l.yaml", layout_of("mp: 2", "{match: '*q_porj.weight', split: [mp]}"))
    with pytest.raises(StrategyError, match=r"rule 1 \(\*q_porj.weight\): it matches no tensor; add optional: true"):
        reshard.plan(f"{base}/hf", f"{base}/o", dst_layout=f"{base}/l.yaml")
    put(f"{base}/l.yaml", layout_of("mp: 2", "{match: '*q_porj.weight', split: [mp], optional: true}"))
    plan = reshard.plan(f"{base}/hf", f"{base}/o", dst_layout=f"{base}/l.yaml")
    assert {spec.name for spec in plan.outputs[0].specs} == tensors.keys()


def test_a_rule_for_what_is_left_out_is_no_mistake(base):
    llama_at(base)
    put(f"{base}/l.yaml", layout_of("mp: 2", "{match: 'lm_head.weight', split: [mp]}"))
    assert reshard.plan(f"{base}/hf", f"{base}/o", dst_layout=f"{base}/l.yaml", drop="lm_head.weight").outputs


def test_a_stage_that_holds_nothing_is_an_error(base):
    llama_at(base)
    stages = b"\nstages:\n- {match: '*', layers: 0-1}\n- {layers: 2-3}\n"
    put(f"{base}/l.yaml", layout_of("pp: 2, mp: 2") + stages)
    with pytest.raises(StrategyError, match="stage 1: it holds no tensor"):
        reshard.plan(f"{base}/hf", f"{base}/o", dst_layout=f"{base}/l.yaml")


@pytest.fixture(params=["dp: 2, mp: 2", "mp: 2, dp: 2"])
def copies(request, base):
    """Two copies of two pieces, without the manifest that says so."""
    _, config = llama_at(base, hidden=64, inner=96, words=128)
    put(f"{base}/right.yaml", layout_of(request.param))
    put(f"{base}/wrong.yaml", layout_of("mp: 4"))
    reshard.convert(f"{base}/hf", f"{base}/ranks", dst_layout=f"{base}/right.yaml")
    open_location(f"{base}/ranks").store.delete("ranks/reshard-manifest.json")
    return base, config


@pytest.mark.parametrize("wrong", [{"src_layout": "wrong.yaml"}, {"src_parallel": "mp=4"}])
def test_copies_that_are_taken_for_pieces_are_found(copies, wrong):
    base, config = copies
    urls = {name: f"{base}/{value}" if name == "src_layout" else value for name, value in wrong.items()}
    asked = {"config": config, **urls}
    with pytest.raises(
        CatalogError, match=r"are equal, and by the source strategy they are different parts|ranks hold different bytes"
    ):
        reshard.plan(f"{base}/ranks", f"{base}/o", **asked)
    assert reshard.plan(f"{base}/ranks", f"{base}/o", src_layout=f"{base}/right.yaml").outputs


def test_whole_sizes_must_be_those_of_the_config(base):
    """Pieces that differ, so that only the model's own sizes show that there are too many of them."""
    tensors, config = llama_at(base, hidden=64, inner=96, words=128)
    put(f"{base}/l.yaml", layout_of("mp: 2"))
    put(f"{base}/wrong.yaml", layout_of("mp: 4"))
    numbers = np.random.default_rng(0)
    for part, start in (("a", 0), ("b", 2)):
        noise = {n: array + numbers.standard_normal(array.shape).astype(np.float32) for n, array in tensors.items()}
        noise |= {name: array for name, array in tensors.items() if array.ndim == 1}
        put_model(f"{base}/{part}", noise, config)
        reshard.convert(f"{base}/{part}", f"{base}/{part}2", dst_layout=f"{base}/l.yaml")
        for number in range(2):
            data = objects_at(f"{base}/{part}2")[f"rank_{number}/checkpoint_{number}.safetensors"]
            put(f"{base}/ranks/rank_{start + number}/checkpoint_{start + number}.safetensors", data)
    with pytest.raises(StrategyError, match=r"other sizes than config\.json gives this model") as caught:
        reshard.plan(f"{base}/ranks", f"{base}/o", src_layout=f"{base}/wrong.yaml", config=config)
    assert "lm_head.weight: [256, 64], expected [128, 64]" in caught.value.problems
    # What no rank cuts shows that a config is of another model.
    other = config | {"hidden_size": 128, "head_dim": 32}
    plan = reshard.plan(f"{base}/ranks", f"{base}/o", src_layout=f"{base}/wrong.yaml", config=other)
    assert "config.json is not of this model" in notes_of(plan)
    # Nothing else contradicts it: what the ranks hold differs, and fits together.
    assert reshard.plan(f"{base}/ranks", f"{base}/o", src_layout=f"{base}/wrong.yaml").outputs


def test_pieces_of_one_value_are_no_copies(base):
    tensors, config = small_llama(hidden=64, inner=96, words=128)
    put_model(f"{base}/hf", {name: np.zeros_like(array) for name, array in tensors.items()}, config)
    put(f"{base}/l.yaml", layout_of("mp: 4"))
    reshard.convert(f"{base}/hf", f"{base}/ranks", dst_layout=f"{base}/l.yaml")
    open_location(f"{base}/ranks").store.delete("ranks/reshard-manifest.json")
    assert reshard.plan(f"{base}/ranks", f"{base}/o", src_layout=f"{base}/l.yaml", config=config).outputs


# Overflow.


@pytest.fixture
def large(base):
    tensors, config = small_llama()
    tensors["model.norm.weight"][:4] = 70_000, -1e9, 65_510, np.inf
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7] = 1e30
    put_model(f"{base}/hf", tensors, config)
    return base


COUNTS = {"model.layers.1.mlp.up_proj.weight": 1, "model.norm.weight": 2}


@pytest.mark.parametrize(
    ("asked", "values"),
    [({}, [np.inf, -np.inf, 65504, np.inf]), ({"on_overflow": "saturate"}, [65504, -65504, 65504, np.inf])],
)
@pytest.mark.parametrize("target", [{}, {"to": "ms"}, {"parallel": "dp=2,mp=2"}, {"to": "ms", "parallel": "mp=2"}])
def test_values_that_do_not_fit_are_counted_and_told(large, asked, values, target):
    told = []
    manifest = reshard.convert(
        f"{large}/hf", f"{large}/o", dtype="fp16", on_event=told.append, memory="64MiB", **asked, **target
    )
    assert manifest.overflows == COUNTS
    [note] = [event.text for event in told if isinstance(event, Noted)]
    assert note.startswith("3 values are larger than F16 holds (65504), and were made")
    name = "model.norm_out.weight" if "to" in target else "model.norm.weight"
    key = next(iter(objects_at(f"{large}/o")))
    assert arrays_at(f"{large}/o", [key])[name][:4].tolist() == values
    assert reshard.verify(f"{large}/o").is_ok


def test_values_that_do_not_fit_are_refused_where_they_must_fit(large):
    with pytest.raises(PlanError, match="larger than F16 holds"):
        reshard.convert(f"{large}/hf", f"{large}/o", dtype="fp16", on_overflow="refuse")
    assert not objects_at(f"{large}/o")
    for dtype in ("fp32", "bf16"):
        told = []
        asked = {"dtype": dtype, "on_overflow": "refuse", "on_event": told.append}
        assert reshard.convert(f"{large}/hf", f"{large}/{dtype}", **asked).overflows == {}
        assert not [event for event in told if isinstance(event, Noted)]


def test_what_becomes_of_large_values_needs_a_dtype(base):
    with pytest.raises(UsageError, match="on_overflow"):
        reshard.plan(f"{base}/hf", f"{base}/o", on_overflow="saturate")


# Names that say more than they should.


def test_a_matrix_with_the_name_of_a_counter_is_a_matrix(base):
    matrix = np.ones((8, 4), np.float32)
    put_model(f"{base}/m", {"momentum": matrix, "w": matrix, "loss_scale": np.ones(1, np.float32)})
    put(f"{base}/l.yaml", b"axes: {mp: 2}\nrules: [{match: '*', split: [mp]}]")
    reshard.convert(f"{base}/m", f"{base}/o", dst_layout=f"{base}/l.yaml", dtype="bf16")
    shapes = {name: (str(array.dtype), array.shape) for name, array in rank(f"{base}/o", 1).items()}
    assert shapes == {"momentum": ("bfloat16", (4, 4)), "w": ("bfloat16", (4, 4)), "loss_scale": ("float32", (1,))}


def test_quantised_tensors_without_scales_stay_and_are_named(base):
    fp8 = np.ones((8, 4), ml_dtypes.float8_e4m3fn)
    put_model(f"{base}/m", {"w": fp8, "w_scale": np.ones(1, np.float32)})
    plan = reshard.plan(f"{base}/m", f"{base}/o", dtype="bf16")
    assert "1 tensors stay F8_E4M3: no scales NAME_scale_inv are beside them: w" in notes_of(plan)


@pytest.mark.parametrize(("says", "stages"), [(None, {0, 1}), (True, {0, 1}), (False, {0})])
def test_a_model_without_a_head_is_tied_unless_its_config_denies_it(says, stages):
    name = "model.embed_tokens.weight"
    config = {} if says is None else {"tie_word_embeddings": says}
    shapes = {name: (64, 8), "model.layers.1.input_layernorm.weight": (8,)}
    made = derive_strategy("llama", "hf", ParallelConfig(mp=2, pp=2), shapes, config=config)
    assert {number for number, stage in enumerate(made.stages) if name in stage} == stages


# Stopping.


def test_stopping_reaches_the_adapters_store_too(base, monkeypatch):
    weight = np.ones((8, 8), np.float32)
    apart = new_place()
    put_model(f"{base}/m", {"model.w.weight": weight})
    halves = {"lora_A": np.ones((2, 8), np.float32), "lora_B": np.ones((8, 2), np.float32)}
    put_model(f"{apart}/a", {f"base_model.model.model.w.{half}.weight": array for half, array in halves.items()})
    seen: dict[tuple[str, bool], set[bool]] = {}
    phase: list[str] = []
    read = MemoryStore.read

    def recorded(store, key, *rest):
        if key.endswith(".safetensors"):
            seen.setdefault((key, "transfer" in phase), set()).add(store.should_stop is not never)
        return read(store, key, *rest)

    monkeypatch.setattr(MemoryStore, "read", recorded)
    note = lambda event: phase.append(getattr(event, "name", ""))  # noqa: E731
    reshard.convert(f"{base}/m", f"{base}/o", lora=f"{apart}/a", lora_scaling=1.0, on_event=note)
    assert {key for key, _ in seen} == {"m/model.safetensors", "a/model.safetensors"}
    assert all(stoppable == {True} for stoppable in seen.values())
