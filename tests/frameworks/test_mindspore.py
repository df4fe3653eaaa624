"""MindSpore itself beside reshard: networks take what is loaded, and compute as after MindSpore's own load."""

from __future__ import annotations

import numpy as np
import pytest

mindspore = pytest.importorskip("mindspore")

import reshard  # noqa: E402 - skipped where MindSpore is not

pytestmark = [pytest.mark.mindspore, pytest.mark.filterwarnings("ignore")]
LAYOUT = """
axes: {mp: 2}
rules:
  - {match: up.weight, split: [mp]}
  - {match: up.bias, split: [mp]}
  - {match: down.weight, split: [null, mp]}
  - {match: "*", split: []}
"""


class Network(mindspore.nn.Cell):
    """Embedding, two layers and a norm; ``share`` is that of a rank that has a part of the inner layer."""

    def __init__(self, share: int = 1) -> None:
        super().__init__()
        self.embed = mindspore.nn.Embedding(16, 8)
        self.up = mindspore.nn.Dense(8, 12 // share, activation="relu")
        self.down = mindspore.nn.Dense(12 // share, 8, has_bias=False)
        self.norm = mindspore.nn.LayerNorm((8,))
        self.steps = mindspore.Parameter(mindspore.Tensor(3, mindspore.int32), name="steps", requires_grad=False)

    def construct(self, tokens):
        """Return the norm of two layers."""
        return self.norm(self.down(self.up(self.embed(tokens))))


TOKENS = mindspore.Tensor(np.arange(6).reshape(2, 3), mindspore.int32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A network's checkpoint, as MindSpore writes it, and the layout of two ranks beside it."""
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    folder = tmp_path_factory.mktemp("mindspore")
    mindspore.set_seed(1)
    mindspore.save_checkpoint(Network(), str(folder / "model"), format="safetensors")
    (folder / "l.yaml").write_text(LAYOUT)
    return folder


def outputs_after(parameters, share=1):
    """What a network computes with parameters, all of which it must take."""
    mindspore.set_seed(2)
    network = Network(share)
    assert mindspore.load_param_into_net(network, parameters) == ([], [])
    return network(TOKENS).asnumpy()


def test_outputs_are_those_after_mindspores_own_load(source, tmp_path):
    model = str(source / "model.safetensors")
    loaded = outputs_after(reshard.load(model, framework="mindspore").tensors())
    assert np.array_equal(loaded, outputs_after(mindspore.load_checkpoint(model, format="safetensors")))
    reshard.convert(model, str(tmp_path / "model.ckpt"))
    assert np.array_equal(loaded, outputs_after(mindspore.load_checkpoint(str(tmp_path / "model.ckpt"))))


@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
def test_each_rank_has_what_its_converted_file_has(source, tmp_path, form):
    how = {"dst_layout": str(source / "l.yaml")}
    reshard.convert(str(source / "model.safetensors"), str(tmp_path / "ranks"), format=form, **how)
    for rank in range(2):
        found = reshard.load(str(source / "model.safetensors"), rank=rank, framework="mindspore", **how).tensors()
        path = str(tmp_path / "ranks" / f"rank_{rank}" / f"checkpoint_{rank}.{form}")
        own = mindspore.load_checkpoint(path, format=form)
        assert found.keys() == own.keys()
        for name, parameter in own.items():
            assert (found[name].dtype, found[name].shape) == (parameter.dtype, parameter.shape)
            assert np.array_equal(found[name].asnumpy(), parameter.asnumpy())
        assert np.array_equal(outputs_after(found, share=2), outputs_after(own, share=2))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_parameters_have_the_dtype_that_is_asked_for(source, tmp_path, dtype):
    reshard.convert(str(source / "model.safetensors"), str(tmp_path / "model.ckpt"), dtype=dtype)
    own = mindspore.load_checkpoint(str(tmp_path / "model.ckpt"))
    found = reshard.load(str(source / "model.safetensors"), framework="mindspore", dtype=dtype).tensors()
    assert {name: each.dtype for name, each in found.items()} == {name: each.dtype for name, each in own.items()}
    for name, parameter in own.items():
        wide = [each.astype(mindspore.float32).asnumpy() for each in (found[name], parameter)]
        assert np.array_equal(*wide)


def test_parameters_of_a_network_are_filled_in_place(source):
    network = Network()
    state = network.parameters_dict()
    reshard.load(str(source / "model.safetensors"), framework="mindspore").into(state)
    expected = outputs_after(mindspore.load_checkpoint(str(source / "model.safetensors"), format="safetensors"))
    assert np.array_equal(network(TOKENS).asnumpy(), expected)


def test_a_job_on_one_card_gets_its_parameters(source):
    config = {
        "load_checkpoint": str(source / "model.safetensors"),
        "load_ckpt_format": "safetensors",
        "auto_trans_ckpt": True,
        "use_parallel": False,
    }
    with reshard.load_for(config) as shard:
        assert np.array_equal(
            outputs_after(shard.tensors()),
            outputs_after(mindspore.load_checkpoint(str(source / "model.safetensors"), format="safetensors")),
        )
