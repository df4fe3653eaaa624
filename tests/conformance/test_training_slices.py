"""What ranks really hold in training: every slice, byte by byte."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import deserialize

from reshard.formats.mindspore.strategy_merge import parse_strategy_file, to_strategy

CASE = Path(__file__).parent / "mindspore" / "training_slices"
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I32": np.int32, "I8": np.int8}


def read(path):
    return {
        name: np.frombuffer(item["data"], DTYPES[item["dtype"]]).reshape(item["shape"])
        for name, item in deserialize(path.read_bytes())
    }


@pytest.mark.parametrize("setting", ["dev222", "optmix", "optmix2", "optmix4"])
def test_boxes_are_the_slices_of_training(setting):
    strategy = to_strategy([parse_strategy_file((CASE / "strategy" / f"{setting}.ckpt").read_bytes(), setting)])
    full = read(CASE / "in" / f"{setting}.safetensors")
    compared = 0
    for rank in range(strategy.rank_count):
        for name, shard in read(CASE / "expected" / setting / f"rank_{rank}" / "net.safetensors").items():
            layout = strategy.layout(name, rank)
            box = layout.box_of(full[name].shape, rank)
            piece = full[name][tuple(map(slice, box.start, box.stop))]
            assert (box.shape, piece.tobytes()) == (shard.shape, shard.tobytes()), (name, rank)
            assert layout.full_shape(shard.shape) == full[name].shape
            compared += 1
    assert compared >= 112
