"""Conversions of any kind that were carried out, to compare with what is read without them."""

from hypothesis import reject
from hypothesis import strategies as st
from support.checkpoints import put_full, put_ranks, shards, stored
from support.conversions import convert
from support.random_plans import cases, full_targets, rank_targets

from reshard.errors import PlanError
from reshard.planning.limits import Limits
from reshard.storage import Location, MemoryStore, StoreLimits

SMALL = Limits(concurrency=2, min_part_bytes=300, part_bytes=300, read_bytes=200)


@st.composite
def conversions(draw):
    """The plan of a conversion, and every object that it wrote but manifests."""
    case = draw(cases())
    before, after = case.strategies
    store = MemoryStore(limits=StoreLimits(min_part_bytes=300))
    source, target = Location(store, "from"), Location(store, "to")
    if draw(st.booleans()):
        put_full(source, {"model.safetensors": case.model})
        before = None
    else:
        put_ranks(source, shards(case.model, before))
    try:
        plan, _ = convert(source, target, draw(st.one_of(rank_targets(after), full_targets())), SMALL, before)
    except PlanError:  # tensors that the target does not name are cut
        reject()
    return plan, objects_at(target)


def objects_at(place):
    """Every object below a place but manifests."""
    return {key: data for key, data in stored(place).items() if not key.startswith("reshard-manifest")}
