"""Tensors that are stored with their axes in another order come out row-major, however they are cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.checkpoints import decode, stored
from support.planning import plan_for

from reshard.engine.execute import execute
from reshard.errors import FormatError
from reshard.planning.catalog import Catalog, Entry, Placement, SourceObject, SourceSharding
from reshard.planning.limits import Limits
from reshard.planning.plan_json import decode_plan, encode_plan
from reshard.planning.sources.piece_source import HeldPiece
from reshard.planning.targets.full_target import FullTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.storage import Location, MemoryStore, StoreLimits
from reshard.tensor import Box, DType, Layout, Strategy, TensorSpec

TIGHT = Limits(min_part_bytes=64, part_bytes=64, row_bytes=1)
TENSORS = {
    "matrix": ((12, 10), (1, 0), (0, (0, 5, 12))),
    "columns": ((6, 9), (1, 0), (1, (0, 4, 9))),
    "images": ((4, 3, 5, 2), (0, 2, 3, 1), (0, (0, 1, 4))),
    "many": ((24, 3), (1, 0), (0, tuple(range(0, 25, 2)))),
    "plain": ((5, 4), (), (0, (0, 5))),
    "whole": ((7, 8), (1, 0), (0, (0, 7))),
}
WHOLE = FullTarget("m.safetensors", "m.safetensors", "", "pt", 1 << 30)
CUT = RankTarget(
    Strategy(
        2,
        (
            {
                "matrix": Layout((2,), ((), (0,))),
                "columns": Layout((2,), ((0,), ())),
                "images": Layout((2,), ((0,), (), (), ())),
                "many": Layout((2,), ((0,), ())),
                "whole": Layout((2,), ((), (0,))),
            },
        ),
    ),
    (0, 1),
    "rank_{rank}/m.safetensors",
)


def make_source():
    """A catalog of tensors in pieces, the store that has them, and the tensors."""
    place = Location(MemoryStore(limits=StoreLimits(min_part_bytes=64, min_copy_source_bytes=1)), "s")
    body, entries, tensors, numbers = b"#", [], {}, np.random.default_rng(3)
    for name, (shape, axes, (axis, edges)) in TENSORS.items():
        tensors[name] = numbers.integers(0, 1 << 16, shape, np.uint16)
        placements = []
        for start, stop in zip(edges, edges[1:], strict=False):
            first, last = [0] * len(shape), list(shape)
            first[axis], last[axis] = start, stop
            part = tensors[name][tuple(map(slice, first, last))]
            placements.append(Placement(Box(tuple(first), tuple(last)), ((0, len(body)),)))
            body += part.transpose(axes or range(len(shape))).tobytes()
        spec = TensorSpec(name, DType.U16, shape)
        entries.append(Entry(spec, tuple(placements), SourceSharding.WHOLE, axes=axes))
    info = place.store.put(place.child("o").key, body)
    item = SourceObject("o", len(body), info.etag)
    return Catalog(place.url, "k", (item,), tuple(entries)), place, tensors


@pytest.mark.parametrize("limits", [TIGHT, replace(TIGHT, min_part_bytes=500, part_bytes=500), Limits()])
@pytest.mark.parametrize("target", [WHOLE, CUT])
def test_elements_come_in_the_order_of_the_tensor(target, limits):
    catalog, place, tensors = make_source()
    base = Location(place.store, "t")
    plan = decode_plan(encode_plan(plan_for(catalog, target, base.url, limits)), "plan")
    assert [entry.axes for entry in plan.catalog.entries] == [axes for _, axes, _ in TENSORS.values()]
    execute(plan, place, base)
    found = [decode(body)[0] for name, body in sorted(stored(base).items()) if name.endswith(".safetensors")]
    for name, expected in tensors.items():
        parts = [np.frombuffer(data, np.uint16).reshape(shape) for _, shape, data in (each[name] for each in found)]
        cut = next((axis for axis, n in enumerate(expected.shape) if parts[0].shape[axis] != n), None)
        assert np.array_equal(parts[0] if cut is None else np.concatenate(parts, cut), expected), name


def test_a_plan_with_another_order_than_one_of_axes_is_refused():
    catalog, _, _ = make_source()
    data = encode_plan(plan_for(catalog, WHOLE, "memory://t", Limits()))
    assert data.count(b"[1,0]") + data.count(b"[1, 0]") == 4
    with pytest.raises(FormatError, match="an order of 2 axes"):
        decode_plan(data.replace(b"[1,0]", b"[1,1]").replace(b"[1, 0]", b"[1, 1]"), "plan")


def test_pieces_are_in_one_order_if_their_long_axes_are():
    rows, columns = HeldPiece(Box((0, 0), (1, 4)), "o", 0), HeldPiece(Box((1, 0), (3, 4)), "o", 0, (1, 0))
    assert rows.is_in_order((1, 0))
    assert columns.is_in_order((1, 0))
    assert not columns.is_in_order(())
