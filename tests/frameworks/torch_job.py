"""One process of a job of torch on the CPU: trains a little, saves in every form, or loads what is given to it.

Arguments: ``write`` or ``read``, a folder, the rank and the number of ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


class Network(nn.Module):
    """Two layers, a norm and buffers of integers; sizes that no mesh divides evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(10, 12)
        self.down = nn.Linear(12, 10, bias=False)
        self.norm = nn.LayerNorm(10)
        self.register_buffer("seen", torch.arange(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the norm of two layers."""
        return self.norm(self.down(torch.relu(self.up(x))))


def trained(mesh) -> dict[str, object]:
    """State of a network and its optimizer after a step, and tensors of other kinds."""
    torch.manual_seed(7)
    network = Network()
    if mesh.ndim == 2:
        parallelize_module(network, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(network, mesh=mesh["dp"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    network(torch.ones(3, 10) * torch.arange(10)).square().sum().backward()
    optimizer.step()
    model, optim = get_state_dict(network, optimizer)
    return {
        "model": model,
        "optim": optim,
        "extra": {**others(mesh), "lr": 0.01, "schedule": [1, {"w": torch.ones(2)}]},
    }


def others(mesh) -> dict[str, torch.Tensor]:
    """Integers, bfloat16, FP8 and scalars, cut on either axis or on none."""
    numbers = torch.arange(77).reshape(7, 11)
    cut = [Shard(0), Shard(1)][: mesh.ndim]
    rows, columns = [Shard(0), Replicate()][: mesh.ndim], [Replicate(), Shard(1)][-mesh.ndim :]
    return {
        "integers": distribute_tensor(numbers, mesh, cut),
        "bf16": distribute_tensor(numbers.to(torch.bfloat16), mesh, columns),
        "bytes": distribute_tensor(numbers.to(torch.uint8), mesh, rows),
        "fp8": numbers.to(torch.float8_e4m3fn),
        "turned": numbers.to(torch.float64).t(),
        "mask": numbers % 3 == 0,
        "scalar": torch.tensor(3.5),
        "steps": torch.tensor(12, dtype=torch.int32),
        "empty": torch.empty(0, 4),
    }


def flat(state: object, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested state, whole, by its path."""
    if isinstance(state, torch.Tensor):
        whole = state.full_tensor() if isinstance(state, DTensor) else state
        return {name: whole.detach().contiguous().clone()}
    if isinstance(state, dict | list):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {
            path: tensor
            for key, value in items
            for path, tensor in flat(value, f"{name}.{key}" if name else str(key)).items()
        }
    return {}


def write(folder: Path, mesh) -> None:
    """Save in every form, and every tensor whole."""
    state = trained(mesh)
    whole = flat(state)
    dcp.save(state, checkpoint_id=str(folder / "classic"))
    tensors = {**state["model"], **others(mesh)}
    tensors["turned"] = tensors["turned"].contiguous()  # safetensors takes no other
    dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(path=str(folder / "hf"), save_distributed=True))
    parts = flat(tensors)
    if dist.get_rank() == 0:
        save_file(whole, folder / "classic.safetensors")
        save_file(parts, folder / "hf.safetensors")


def read(folder: Path, mesh) -> None:
    """Load shards into tensors that are cut another way, and compare them with the whole ones."""
    expected = load_file(folder / "expected.safetensors")

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        placements = [Shard(tensor.dim() - 1) if tensor.dim() else Replicate()] + [Replicate()] * (mesh.ndim - 1)
        return distribute_tensor(torch.zeros_like(tensor), mesh, placements)

    state = {name: cut(tensor) for name, tensor in expected.items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(path=str(folder / "shards")))
    for name, tensor in flat(state).items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), expected[name].reshape(-1).view(torch.uint8)), name


def main() -> None:
    """Run one rank."""
    what, folder, rank, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{what}.rendezvous", rank=rank, world_size=count)
    shape, names = ((count,), ("dp",)) if count < 4 else ((count // 2, 2), ("dp", "tp"))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    {"write": write, "read": read}[what](folder, mesh)
    dist.barrier()
    dist.destroy_process_group()


main()
