"""Where MindSpore's own answer is wrong: that it is, why, and that ours is the right one."""

from __future__ import annotations

import json
import re

import ml_dtypes
import numpy as np
import pytest
from oracle.cases import MADE_WRONG, Case, check, memory_url, objects_below, outputs_of
from safetensors import deserialize
from support.checkpoints import owned

import reshard
from reshard.api.strategies import read_strategy
from reshard.errors import CatalogError
from reshard.storage import MemoryStore

SWAPPED = {"params.9.weight", "moments.params.9.weight"}
EXCHANGED = ((1, 2), (5, 6))
NUMPY = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "I32": np.int32, "I8": np.int8}

Arrays = dict[str, np.ndarray]


def load(data: bytes) -> Arrays:
    """The tensors of an object."""
    return {
        name: np.frombuffer(item["data"], NUMPY[item["dtype"]]).reshape(item["shape"])
        for name, item in deserialize(data)
    }


def differing(found: Arrays, expected: Arrays) -> set[str]:
    """Names of tensors that are not the same to the bit."""
    return {
        name
        for name, array in found.items()
        if (array.dtype, array.shape) != (expected[name].dtype, expected[name].shape)
        or array.tobytes() != expected[name].tobytes()
    }


@pytest.mark.parametrize("name", ["split_optmix", "split_optmix4"])
def test_pieces_of_the_optimizer_in_another_order(name):
    """The tool exchanges what ranks 1 and 2, and 5 and 6, hold of one weight; elsewhere it agrees with training."""
    case = Case.named(name)
    wrong = {
        (tensor, key)
        for key in case.below("expected")
        for tensor, truth in case.truth_of(key).items()
        if case.content(key).tensors[tensor] != truth
    }
    assert {tensor for tensor, _ in wrong} == SWAPPED
    assert {key.split("/")[1] for _, key in wrong} == {f"rank_{rank}" for pair in EXCHANGED for rank in pair}
    source = case.content("in/full/rank_0/full.safetensors")
    trained = Case.named("training_slices").content(f"in/{name.removeprefix('split_')}.safetensors")
    assert trained.tensors.items() <= source.tensors.items()


@pytest.mark.parametrize("name", MADE_WRONG)
def test_shards_that_the_tool_made_in_another_order(name):
    """The tool merges its own shards in its own order. By the order of training they are of another tensor.

    What numpy cuts of our answer in the order of training is what each rank had; and of shards with the
    tool's exchange undone we make the very tensors that it cut.
    """
    case = Case.named(name)
    base = case.upload(memory_url(f"oracle-made-{name}"))
    (request,) = case.requests(base)
    whole = load(case.read("in/full/rank_0/full.safetensors"))
    assert differing(load(case.read("expected/part0.safetensors")), whole) == set()
    answer = merged(request.arguments, request.dst)
    assert differing(answer, whole) == SWAPPED
    layouts = read_strategy(request.arguments["src_strategy"]).stages[0]
    for rank in range(8):
        held = load(case.read(shard_of(rank)))
        cut = {tensor: owned(array, layouts[tensor], rank) for tensor, array in answer.items()}
        assert differing(cut, held) == set()
    undo_exchange(case, MemoryStore(base.removeprefix("memory://")))
    assert differing(merged(request.arguments, f"{base}/again"), whole) == set()


def shard_of(rank: int) -> str:
    return f"in/shards/rank_{rank}/net_rank_{rank}.safetensors"


def merged(arguments: dict, dst: str) -> Arrays:
    """The only part that is made."""
    reshard.convert(**arguments | {"dst": dst})
    assert reshard.verify(dst).is_ok
    return load(objects_below(dst)["part0.safetensors"])


def undo_exchange(case: Case, store: MemoryStore) -> None:
    """Let ranks have of the tensors concerned what training gives them."""
    for pair in EXCHANGED:
        shards = [case.read(shard_of(rank)) for rank in pair]
        swapped = [bytearray(shard) for shard in shards]
        for name in SWAPPED:
            (a, b), (c, d) = (span_of(name, shard) for shard in shards)
            assert (a, b) == (c, d)
            swapped[0][a:b], swapped[1][a:b] = shards[1][a:b], shards[0][a:b]
        for rank, data in zip(pair, swapped, strict=True):
            store.put(shard_of(rank), bytes(data))


def span_of(name: str, data: bytes) -> tuple[int, int]:
    """Where a tensor's bytes are in an object."""
    length = int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    return 8 + length + start, 8 + length + stop


def test_bytes_of_a_writer_that_ignores_strides():
    """safetensors 0.8.0 under the same call as ``split_mp4``: column slices are wrong, row slices are not."""
    wrong, right = Case.named("st080_noncontiguous"), Case.named("split_mp4")
    for name in (*right.below("in"), *right.below("strategy")):
        assert wrong.read(name) == right.read(name)
    check(right, memory_url("oracle-st080"))
    whole = load(right.read("in/full/rank_0/full.safetensors"))
    count = 0
    for key, content in outputs_of("memory://oracle-st080/out/expected").items():
        other = wrong.content(f"expected/wrong_bytes/{key}")
        assert other.order == content.order
        bad = {name for name, tensor in other.tensors.items() if tensor != content.tensors[name]}
        for name in bad:  # the same dtype and shape, cut on an inner axis
            ours, theirs = content.tensors[name], other.tensors[name]
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert ours.shape[0] == whole[name].shape[0]
            assert ours.shape[1] < whole[name].shape[1]
        count += len(bad)
    assert count == 16


def test_redundancy_removed_by_wrong_groups():
    """MindSpore's groups of nested layouts are wrong, so slices are lost; it merges what is left to wrong tensors.

    Here the ranks that had them are named. What was whole before is merged, and deduplicated without a loss.
    """
    case = Case.named("unify_dedup_nested_wrong")
    base = case.upload(memory_url("oracle-nested"))
    (request,) = case.requests(base)
    with pytest.raises(CatalogError, match="no shard holds these parts") as caught:
        reshard.convert(**request.arguments)
    lost = lost_slices(case)
    told = [re.fullmatch(r"rank (\d): (\d) tensors, (.+)", problem) for problem in caught.value.problems]
    assert {int(line[1]): sorted(line[3].split(", ")) for line in told} == lost
    assert all(int(line[2]) == len(lost[int(line[1])]) for line in told)
    whole = load(case.read("in/full/rank_0/full.safetensors"))
    theirs = differing(load(case.read("expected/wrong/part0.safetensors")), whole)
    assert theirs == {name for names in lost.values() for name in names}
    assert differing(merged(request.arguments | {"src": f"{base}/in/with_redundancy"}, f"{base}/all"), whole) == set()
    strategy = request.arguments["src_strategy"]
    reshard.convert(f"{base}/in/full", f"{base}/ours", dst_strategy=strategy, remove_redundancy=True)
    assert differing(merged(request.arguments | {"src": f"{base}/ours"}, f"{base}/again"), whole) == set()


def lost_slices(case: Case) -> dict[int, list[str]]:
    """By rank, what it had and no rank has any more."""
    left: dict[str, set[str]] = {}
    for name in case.below("in/shards"):
        for tensor, held in case.content(name).tensors.items():
            left.setdefault(tensor, set()).add(held.sha256)
    lost: dict[int, list[str]] = {}
    for name in case.below("in/with_redundancy"):
        for tensor, held in case.content(name).tensors.items():
            if held.sha256 not in left.get(tensor, ()):
                lost.setdefault(int(name.split("/")[2].removeprefix("rank_")), []).append(tensor)
    return lost


def test_rows_cut_by_hand_were_cut_evenly():
    """What the strategy says of them is in ``test_errors.py``, with our answer."""
    case = Case.named("errors")
    (name,) = case.below("in/man")
    rows = load(case.read(name))["params.0.weight"]
    pieces = [load(case.read(name))["params.0.weight"] for name in case.below("expected/manual_split")]
    assert all(np.array_equal(*pair) for pair in zip(pieces, np.split(rows, 4), strict=True))
