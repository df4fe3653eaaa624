"""torch itself beside reshard: what jobs of torch save is read bit for bit, and torch loads what reshard makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
fsspec = pytest.importorskip("fsspec")
safetensors_torch = pytest.importorskip("safetensors.torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")

import reshard  # noqa: E402 - skipped where torch is not

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
JOB = Path(__file__).with_name("torch_job.py")
TIMEOUT_S = 240


def run_job(what, folder, count):
    """Run every rank of a job to its end; all are stopped if one fails or takes too long."""
    settings = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(JOB), what, str(folder), str(rank), str(count)],
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        said = [rank.communicate(timeout=TIMEOUT_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, signal.SIGKILL)
                rank.wait()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(text[-2000:] for text in said)


@pytest.fixture(scope="module", params=[2, 4, 8])
def saved(request, tmp_path_factory):
    """What a job of so many ranks saved: FSDP2, from 4 on with tensor parallelism too."""
    folder = tmp_path_factory.mktemp(f"job{request.param}")
    run_job("write", folder, request.param)
    return folder


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if bits(found[name]) != bits(expected[name])] == []


@pytest.mark.parametrize("form", ["classic", "hf"])
def test_what_a_job_saved_is_read_bit_for_bit(saved, form):
    expected = safetensors_torch.load_file(saved / f"{form}.safetensors")
    assert len(expected) > 12
    assert any(name.endswith("exp_avg") for name in expected) == (form == "classic")
    with reshard.load(str(saved / form), framework="torch") as shard:
        assert_same(shard.tensors(), expected)


@pytest.mark.parametrize("form", ["classic", "hf"])
def test_each_rank_of_another_cut_has_its_part(saved, form, tmp_path):
    expected = safetensors_torch.load_file(saved / f"{form}.safetensors")
    layout = tmp_path / "l.yaml"
    layout.write_text(
        "axes: {mp: 2}\nrules:\n  - {match: '*up.weight', split: [null, mp]}\n  - {match: '*', split: []}\n"
    )
    for rank in range(2):
        found = reshard.load(str(saved / form), rank=rank, dst_layout=str(layout), framework="torch").tensors()
        cut = {name: each.chunk(2, 1)[rank] if name.endswith("up.weight") else each for name, each in expected.items()}
        assert_same(found, cut)


def test_torch_loads_what_reshard_writes(saved, tmp_path):
    (tmp_path / "l.yaml").write_text(
        "axes: {mp: 2}\nrules:\n  - {match: '*.weight', split: [mp]}\n  - {match: '*', split: []}\n"
    )
    source = str(saved / "hf")
    reshard.convert(source, str(tmp_path / "shards"), dst_layout=str(tmp_path / "l.yaml"), form="dcp", drop="empty")
    expected = safetensors_torch.load_file(saved / "hf.safetensors")
    del expected["empty"]  # torch has no piece to find for it
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    reader = dcp.HuggingFaceStorageReader(path=str(tmp_path / "shards"))
    dcp.load(state, storage_reader=reader, no_dist=True)
    assert_same(state, expected)
    wanted = {name: tensor for name, tensor in expected.items() if tensor.dtype != torch.float8_e4m3fn}
    safetensors_torch.save_file(wanted, tmp_path / "expected.safetensors")
    run_job("read", tmp_path, 2)  # each rank takes other boxes than any shard has


# One process.


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(16, 8)
        self.block = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, tokens):
        return self.block(self.embed(tokens))


@pytest.fixture
def network():
    torch.manual_seed(1)
    return Network().eval()


@pytest.fixture
def stored(network, tmp_path):
    safetensors_torch.save_file(network.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    return str(tmp_path / "model.safetensors")


def test_a_model_takes_what_is_loaded(network, stored):
    tokens = torch.arange(6).reshape(2, 3)
    expected = network(tokens)
    torch.manual_seed(2)
    filled, assigned = Network().eval(), Network().eval()
    assert not torch.equal(filled(tokens), expected)
    shard = reshard.load(stored, framework="torch")
    shard.into(filled.state_dict())
    assert assigned.load_state_dict(shard.tensors()) == ([], [])
    assert torch.equal(filled(tokens), expected)
    assert torch.equal(assigned(tokens), expected)


def test_parameters_of_a_model_are_filled_in_place(network, stored):
    other = Network()
    parameters = dict(other.named_parameters())
    with pytest.raises(reshard.ReshardError, match="steps: no tensor to fill has this name"):
        reshard.load(stored, framework="torch").into(parameters)
    reshard.load(stored, framework="torch", drop="steps").into(parameters)
    assert_same(dict(other.named_parameters()), dict(network.named_parameters()))


def test_safetensors_opens_a_virtual_checkpoint(network, stored, tmp_path):
    (tmp_path / "l.yaml").write_text(
        "axes: {mp: 2}\nrules:\n  - {match: embed.weight, split: [mp]}\n  - {match: '*', split: []}\n"
    )
    key, how = "rank_1/checkpoint_1.safetensors", {"src": stored, "dst_layout": str(tmp_path / "l.yaml")}
    local = fsspec.open_local(f"simplecache::reshard://{key}", reshard=how)
    expected = {name: each[8:] if name == "embed.weight" else each for name, each in network.state_dict().items()}
    assert_same(safetensors_torch.load_file(local), expected)
    with fsspec.open(f"reshard://{key}", **how) as file:
        assert_same(safetensors_torch.load(file.read()), expected)
