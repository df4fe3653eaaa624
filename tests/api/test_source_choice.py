"""What a request says about its source: the format where both lie, the network without its training, counters."""

import numpy as np
import pytest
from support.stores import arrays_at, new_place, put, put_model

import reshard
from reshard.errors import CatalogError, UsageError

LAYOUT = b"""
axes: {mp: 2}
rules:
  - {match: "*w.weight", split: [mp]}
  - {match: "*", split: []}
"""


def rng(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHTS = {"w.weight": rng(4, 3), "norm.weight": rng(3, seed=1)}
HEADS = ("adam_m", "adam_v", "moments", "muon_m")
STATES = {f"{head}.w.weight": rng(4, 3, seed=place) for place, head in enumerate(HEADS)}
STATES |= {"accu_grads.w.weight": rng(4, 3, seed=9), "exp_avg_sq_row.w.weight": rng(4, seed=8)}
COUNTERS = {
    "global_step": np.array([20], np.int32),
    "epoch_num": np.array(1, np.int32),
    "step_num": np.array(20, np.int32),
    "loss_scale": np.array([2.0], np.float32),
    "global_batch_size": np.array(8, np.int32),
    "learning_rate": rng(4, seed=7),  # one for each step
}
EVERYTHING = WEIGHTS | STATES | COUNTERS


def put_run(model, suffix=".safetensors", base=None):
    """Two ranks of a training run, as the layout cuts them, and the layout."""
    base = base or new_place()
    put(f"{base}/l.yaml", LAYOUT)
    for rank in range(2):
        held = {name: a[rank * 2 : rank * 2 + 2] if name.endswith("w.weight") else a for name, a in model.items()}
        put_model(f"{base}/run/rank_{rank}/net_rank_{rank}-1_20{suffix}", held)
    return base


def same(found, expected):
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


# load_ckpt_format


@pytest.fixture
def in_place():
    """A run that ckpt_to_safetensors converted in place; both formats differ here, to be told apart."""
    base = put_run(WEIGHTS, ".ckpt")
    return put_run({name: array + 1 for name, array in WEIGHTS.items()}, ".safetensors", base)


def test_a_run_converted_in_place_needs_a_choice(in_place):
    with pytest.raises(CatalogError) as caught:
        reshard.inspect(f"{in_place}/run")
    assert str(caught.value) == (
        f"{in_place}/run: every rank's objects are there as .ckpt and as .safetensors: "
        "choose with load_ckpt_format='safetensors' or load_ckpt_format='ckpt'"
    )


@pytest.mark.parametrize(("form", "added"), [("ckpt", 0), ("safetensors", 1)])
def test_the_format_that_is_chosen_is_read(in_place, form, added):
    asked = {"src_layout": f"{in_place}/l.yaml", "load_ckpt_format": form}
    assert len(reshard.inspect(f"{in_place}/run", **asked).entries) == len(WEIGHTS)
    reshard.convert(f"{in_place}/run", f"{in_place}/{form}", **asked)
    found = arrays_at(f"{in_place}/{form}")
    assert same(found, {name: array + added for name, array in WEIGHTS.items()})


def test_what_is_ignored_is_told(in_place):
    (note,) = reshard.inspect(f"{in_place}/run", load_ckpt_format="ckpt").notes
    names = "net_rank_0-1_20.safetensors, net_rank_1-1_20.safetensors"
    assert note == f"ignored: 2 objects of the format that was not chosen, {names}"


@pytest.mark.parametrize(("form", "added"), [("ckpt", 0), ("safetensors", 1)])
def test_a_flat_prefix_with_both(form, added):
    base = new_place()
    put_model(f"{base}/m/net.ckpt", WEIGHTS)
    put_model(f"{base}/m/net.safetensors", {name: array + 1 for name, array in WEIGHTS.items()})
    with pytest.raises(CatalogError, match=r"every object is there as \.ckpt and as \.safetensors: choose with load"):
        reshard.inspect(f"{base}/m")
    reshard.convert(f"{base}/m", f"{base}/{form}", load_ckpt_format=form)
    assert same(arrays_at(f"{base}/{form}"), {name: array + added for name, array in WEIGHTS.items()})


def test_a_ckpt_of_another_name_is_taken_if_it_is_asked_for():
    base = new_place()
    put_model(f"{base}/m/net.ckpt", WEIGHTS)
    put_model(f"{base}/m/model.safetensors", {"x": rng(2)})
    assert [entry.spec.name for entry in reshard.inspect(f"{base}/m").entries] == ["x"]
    assert len(reshard.inspect(f"{base}/m", load_ckpt_format="ckpt").entries) == len(WEIGHTS)


def test_an_index_does_not_count_for_ckpt():
    base = new_place()
    put_model(f"{base}/m/net.ckpt", WEIGHTS)
    put_model(f"{base}/m/model.safetensors", {"x": rng(2)})
    put(f"{base}/m/model.safetensors.index.json", b'{"metadata": {}, "weight_map": {"x": "model.safetensors"}}')
    assert len(reshard.inspect(f"{base}/m", load_ckpt_format="ckpt").entries) == len(WEIGHTS)


def test_a_format_that_is_not_there():
    base = put_run(WEIGHTS)
    with pytest.raises(CatalogError, match="no checkpoint there") as caught:
        reshard.inspect(f"{base}/run", load_ckpt_format="ckpt")
    assert caught.value.hint == "Check the prefix, and load_ckpt_format='ckpt'."


def test_the_name_of_one_object_says_its_format():
    base = new_place()
    put_model(f"{base}/net.ckpt", WEIGHTS)
    with pytest.raises(UsageError, match="load_ckpt_format='safetensors', but this is one ckpt object"):
        reshard.inspect(f"{base}/net.ckpt", load_ckpt_format="safetensors")


def test_a_zarr_store_has_neither_format():
    base = new_place()
    put_model(f"{base}/m/net.safetensors", WEIGHTS)
    reshard.convert(f"{base}/m", f"{base}/m.zarr")
    with pytest.raises(UsageError, match="but this is zarr store"):
        reshard.inspect(f"{base}/m.zarr", load_ckpt_format="safetensors")


# network_only


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_the_network_alone(suffix):
    base = put_run(EVERYTHING | {"h.0.router.expert_load": rng(4), "h.0.dropout.seed": np.array(3, np.int64)}, suffix)
    asked = {"src_layout": f"{base}/l.yaml", "network_only": True}
    reshard.convert(f"{base}/run", f"{base}/whole", **asked)
    found = arrays_at(f"{base}/whole")
    assert found.keys() == WEIGHTS.keys() | {"h.0.dropout.seed"}
    assert same({name: found[name] for name in WEIGHTS}, WEIGHTS)
    catalog = reshard.inspect(f"{base}/run", **asked)
    assert set(catalog.dropped) == STATES.keys() | COUNTERS.keys() | {"h.0.router.expert_load"}
    assert not [note for note in catalog.notes if "pattern" in note]


def test_the_network_alone_of_ranks_to_ranks():
    base = put_run(EVERYTHING)
    asked = {"src_layout": f"{base}/l.yaml", "dst_layout": f"{base}/l.yaml", "network_only": True}
    reshard.convert(f"{base}/run", f"{base}/ranks", **asked)
    held = arrays_at(f"{base}/ranks", ["rank_1/checkpoint_1.safetensors"])
    assert same(held, {"w.weight": WEIGHTS["w.weight"][2:], "norm.weight": WEIGHTS["norm.weight"]})


def test_the_network_alone_of_an_iteration():
    base = put_run(EVERYTHING)
    asked = {"src_layout": f"{base}/l.yaml", "dst_layout": f"{base}/l.yaml", "form": "iteration"}
    reshard.convert(f"{base}/run", f"{base}/it", **asked)
    assert reshard.inspect(f"{base}/it").training_state["global_step"] == 20
    catalog = reshard.inspect(f"{base}/it", network_only=True)
    assert {entry.spec.name for entry in catalog.entries} == WEIGHTS.keys()
    assert not catalog.training_state


# Training counters, whatever a layout file's last rule says.


def test_counters_are_hyper_parameters():
    base = put_run(EVERYTHING)
    reshard.convert(f"{base}/run", f"{base}/ms", src_layout=f"{base}/l.yaml", form="mindspore")
    assert same(arrays_at(f"{base}/ms", ["hyper_param.safetensors"]), COUNTERS)
    assert same(arrays_at(f"{base}/ms", ["part0.safetensors"]), WEIGHTS | STATES)


def test_counters_of_one_object_are_hyper_parameters():
    base = new_place()
    put_model(f"{base}/m.ckpt", EVERYTHING)
    reshard.convert(f"{base}/m.ckpt", f"{base}/ms", form="mindspore")
    assert same(arrays_at(f"{base}/ms", ["hyper_param.safetensors"]), COUNTERS)


def test_counters_stay_whole_on_every_rank():
    base = put_run(EVERYTHING)
    rules = b'[{match: "norm.weight", split: []}, {match: "*", split: [mp]}]'
    put(f"{base}/cut.yaml", b"axes: {mp: 2}\nrules: " + rules)
    asked = {"src_layout": f"{base}/l.yaml", "dst_layout": f"{base}/cut.yaml"}
    reshard.convert(f"{base}/run", f"{base}/ranks", **asked)
    for rank in range(2):
        held = arrays_at(f"{base}/ranks", [f"rank_{rank}/checkpoint_{rank}.safetensors"])
        assert same({name: held[name] for name in COUNTERS}, COUNTERS)
        assert held["exp_avg_sq_row.w.weight"].shape == (2,)
