"""``meta.json`` beside ranks: where training resumes, and only where the source says that it may."""

import json
import struct
from uuid import uuid4

import pytest
from support.checkpoints import encode, random_model

from reshard import convert, plan, verify
from reshard.errors import FormatError
from reshard.formats.mindspore.rank_names import SavedAt, resumable
from reshard.formats.safetensors import plan_header
from reshard.planning.plan_json import decode_plan, encode_plan
from reshard.storage import Location, MemoryStore, read_object
from reshard.tensor import DType, TensorSpec

MODEL = random_model({"w": ("F32", (8, 6)), "adam_m.w": ("F32", (8, 6)), "b": ("F32", (6,))})
LAYOUT = b"axes: {mp: 2}\nrules: [{match: '*w', split: [mp]}, {match: '*', split: []}]"
NAME = "llama_rank_{rank}-3_20"


@pytest.fixture
def place():
    store = MemoryStore(uuid4().hex)
    store.put("layout.yaml", LAYOUT)
    return Location(store, "")


def put_ranks(place, name, model=MODEL, meta=None):
    for rank in range(2):
        base = name.format(rank=rank)
        place.store.put(f"src/rank_{rank}/{base}.safetensors", encode(model))
        if meta is not None:
            record = {"last_epoch": meta[0], "last_step": meta[1], "last_ckpt_file": f"{base}.safetensors"}
            place.store.put(f"src/rank_{rank}/meta.json", json.dumps(record).encode())


def put_full(place, **counters):
    specs = [TensorSpec("w", DType.F32, (8, 6)), TensorSpec("adam_m.w", DType.F32, (8, 6))]
    values = [bytes(192), bytes(192)]
    for name, value in counters.items():
        specs.append(TensorSpec(name, DType.I32, (1,)))
        values.append(struct.pack("<i", value))
    header = plan_header(specs, {})
    order = dict(zip((spec.name for spec in specs), values, strict=True))
    body = b"".join(order[name] for name in sorted(order, key=lambda n: header_offset(header.data, n)))
    place.store.put("src/model.safetensors", header.data + body)


def header_offset(data, name):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])[name]["data_offsets"][0]


def cut(place, prefix=NAME, *, whole=False, **options):
    source = {} if whole else {"src_layout": f"{place.url}/whole.yaml"}
    place.store.put("whole.yaml", b"axes: {dp: 2}\nrules: [{match: '*', split: []}]")
    dst = f"{place.url}/dst"
    made = convert(f"{place.url}/src", dst, dst_layout=f"{place.url}/layout.yaml", prefix=prefix, **source, **options)
    found = {
        key.removeprefix("dst/"): json.loads(read_object(place.child(key)))
        for key in (info.key for info in place.store.list("dst/"))
        if key.endswith("meta.json")
    }
    return made, found


EXPECTED = {
    f"rank_{rank}/meta.json": {
        "last_epoch": 3,
        "last_step": 20,
        "last_ckpt_file": f"llama_rank_{rank}-3_20.safetensors",
    }
    for rank in range(2)
}


def test_names_that_training_finds():
    assert resumable("a/llama_rank_{rank}-3_20.ckpt") == SavedAt(3, 20)
    assert resumable("llama_rank_{rank}_1-3_20.safetensors") == SavedAt(3, 20)
    for name in ("checkpoint_{rank}.ckpt", "llama_{rank}-3_20.ckpt", "llama_rank_{rank}-network-3_20.ckpt", "x.ckpt"):
        assert resumable(name) is None


def test_names_of_the_source_tell(place):
    put_ranks(place, "CKP_rank_{rank}-3_20")
    made, found = cut(place)
    assert found == EXPECTED
    assert {receipt.key for receipt in made.receipts} >= EXPECTED.keys()
    assert verify(f"{place.url}/dst").is_ok


def test_meta_of_the_source_tells(place):
    put_ranks(place, "net_{rank}", meta=(3, 20))
    assert cut(place)[1] == EXPECTED


@pytest.mark.parametrize("steps", [220, 120, 60])
def test_counters_tell(place, steps):
    put_full(place, epoch_num=3, step_num=steps)
    assert cut(place, whole=True)[1] == EXPECTED


@pytest.mark.parametrize(("epoch", "steps"), [(3, 221), (3, 50), (2, 40), (4, 80)])
def test_counters_that_contradict_the_names(place, epoch, steps):
    put_full(place, epoch_num=epoch, step_num=steps)
    made, found = cut(place, whole=True)
    assert found == {}
    said = f"no meta.json is written, for training to resume at 3_20: the source counts epoch {epoch} and {steps} steps"
    assert any(said in note for note in made.conversion.notes)


def test_a_source_saved_elsewhere(place):
    put_ranks(place, "CKP_rank_{rank}-2_10")
    made, found = cut(place)
    assert found == {}
    assert any("the names of the source's objects say 2_10" in note for note in made.conversion.notes)


@pytest.mark.parametrize("meta", [None, (2, 10)])
def test_a_source_that_tells_nothing_or_something_else(place, meta):
    put_ranks(place, "net_{rank}", meta=meta)
    made, found = cut(place)
    assert found == {}
    reason = "the source's meta.json say 2_10" if meta else "nothing in the source tells epoch and step"
    assert any(reason in note for note in made.conversion.notes)


def test_meta_of_other_objects_tells_nothing(place):
    put_ranks(place, "net_{rank}", meta=(3, 20))
    place.store.put("src/rank_1/meta.json", b"{")
    assert cut(place)[1] == {}


def test_weights_alone_are_nothing_to_resume_from(place):
    put_ranks(place, "CKP_rank_{rank}-3_20")
    assert cut(place, drop=["adam_m.*"])[1] == {}


def test_other_names_are_not_found_and_a_note_says_which_would_be(place):
    put_ranks(place, "CKP_rank_{rank}-3_20")
    made, found = cut(place, prefix="checkpoint_")
    assert found == {}
    assert any("CKP_rank_{rank}-3_20" in note for note in made.conversion.notes)


def test_every_rank_that_is_written_has_one_and_the_plan_lists_them(place):
    put_ranks(place, "CKP_rank_{rank}-3_20")
    place.store.put("whole.yaml", b"axes: {dp: 2}\nrules: [{match: '*', split: []}]")
    made = plan(
        f"{place.url}/src",
        f"{place.url}/dst",
        src_layout=f"{place.url}/whole.yaml",
        dst_layout=f"{place.url}/layout.yaml",
        prefix=NAME,
        ranks="1",
    )
    assert [key for key in made.conversion.keys if key.endswith("meta.json")] == ["rank_1/meta.json"]
    saved = encode_plan(made)
    assert encode_plan(decode_plan(saved, "plan.json")) == saved
    for forged in (b'"saved_at":{"epoch":"x"', b'"saved_at":{"epoch":-3', b'"saved_at":[3', b'"saved_at":{"era":3'):
        with pytest.raises(FormatError):
            decode_plan(saved.replace(b'"saved_at":{"epoch":3', forged), "plan.json")


def test_shares_keep_each_others(place):
    """Also with ``overwrite``: the first share of a new run removes nothing that another one has just written."""
    put_ranks(place, "CKP_rank_{rank}-3_20")
    cut(place)
    assert cut(place, ranks="0", overwrite=True)[1] == EXPECTED
    assert cut(place, ranks="1", overwrite=True)[1] == EXPECTED
    assert verify(f"{place.url}/dst").is_ok
