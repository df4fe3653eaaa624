"""Which parts of a tensor are compared with the one that it is said to repeat."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.small_llama import small_llama
from support.stores import new_place, put_model

import reshard
from reshard.engine.sources import tied_copies
from reshard.engine.sources.tied_copies import sample_boxes
from reshard.errors import CatalogError
from reshard.planning.catalog import Entry
from reshard.tensor import DType, TensorSpec, extent_of


@given(st.integers(1, 300_000), st.integers(1, 20_000))
def test_the_ends_are_compared_and_the_bytes_are_bounded(rows, columns):
    boxes = sample_boxes(Entry(TensorSpec("w", DType.BF16, (rows, columns)), ()))
    assert boxes[0].start[0] == 0
    assert max(box.stop[0] for box in boxes) == rows
    assert all(box.start[1:] == (0,) and box.stop[1:] == (columns,) for box in boxes)
    row_bytes = columns * 2
    read = sum(box.shape[0] for box in boxes) * row_bytes
    assert read <= max(tied_copies._MOST_BYTES, 2 * row_bytes)
    if rows * row_bytes <= tied_copies._MOST_BYTES:  # all of it, each row once
        assert [box.start[0] for box in boxes[1:]] == [box.stop[0] for box in boxes[:-1]]
    else:
        assert len(boxes) > 1


@pytest.mark.parametrize("shape", [(), (0, 4), (3,)])
def test_small_shapes(shape):
    spec = TensorSpec("w", DType.F32, shape)
    count = sum(box.element_count for box in sample_boxes(Entry(spec, ())))
    assert count == np.prod(extent_of(spec)[0], dtype=int)


def test_tensors_that_are_too_long_are_compared_in_places(monkeypatch):
    monkeypatch.setattr(tied_copies, "_MOST_BYTES", 2048)
    monkeypatch.setattr(tied_copies, "_SPAN_COUNT", 4)
    base = new_place()
    tensors, config = small_llama()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    put_model(f"{base}/m", tensors, config | {"tie_word_embeddings": True})
    notes = reshard.plan(f"{base}/m", f"{base}/o", to="ms").notes
    assert any("in 4 places: a copy there" in note for note in notes)
    tensors["lm_head.weight"] += 1
    put_model(f"{base}/m", tensors, config | {"tie_word_embeddings": True})
    with pytest.raises(CatalogError, match=r"differs from model.embed_tokens.weight in rows"):
        reshard.plan(f"{base}/m", f"{base}/o", to="ms")
