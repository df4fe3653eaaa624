"""MindSpore's .ckpt from end to end: whole or not at all, every byte verified, and hostile objects refused."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import (
    ckpt_in_pieces,
    ckpt_value,
    contents,
    decode_ckpt,
    encode_ckpt,
    list_ckpt,
    put_full,
    random_model,
    rank_key,
    shards,
    stored,
)
from support.conversions import Known, planned
from support.faulty_store import Fault, FaultyStore

from reshard.engine.execute import execute
from reshard.engine.sources import SourceOptions, read_catalog, read_contents
from reshard.engine.verification import verify_manifest
from reshard.engine.workers import working
from reshard.errors import CatalogError, FormatError, Transient, UsageError
from reshard.formats.containers import Container
from reshard.planning.conversion import MANIFEST_KEY
from reshard.planning.limits import Limits
from reshard.planning.targets.full_target import FullTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.storage import Location, MemoryStore, StoreLimits
from reshard.tensor import Layout, Strategy

PART_BYTES = 300
LIMITS = Limits(concurrency=3, min_part_bytes=PART_BYTES, part_bytes=PART_BYTES, row_bytes=1, read_bytes=200)
MODEL = random_model(
    {"embed": ("F32", (24, 12)), "norm": ("F32", (12,)), "head": ("BF16", (12, 6)), "step": ("I64", ())}
)
STAGES = Strategy(
    2,
    (
        {"embed": Layout((2,), ((), (0,))), "norm": Layout((2,), ((),))},
        {"head": Layout((2,), ((0,), ())), "step": Layout((2,), ())},
    ),
)
RANKS = RankTarget(STAGES, (0, 1, 2, 3), rank_key("{rank}", suffix=".ckpt"), Container.CKPT)
FULL = FullTarget("model.ckpt", "model.ckpt", "", "pt", 10**9, Container.CKPT)
TARGETS = {"ranks": RANKS, "no redundancy": replace(RANKS, remove_redundancy=True), "full": FULL}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(Container.CKPT, "definition", ckpt_in_pieces(250))


def new_place(key="to"):
    return Location(MemoryStore(limits=StoreLimits(min_part_bytes=PART_BYTES)), key)


@pytest.fixture
def source():
    place = new_place("from")
    body = encode_ckpt(MODEL, {"note": "texts \u4e2d"}, piece_elements=50, has_crc=True)
    place.store.put("from/model.ckpt", body)
    return place


def is_untouched(place):
    return not list(place.store.list("")) and not list(place.store.open_uploads(""))


def outputs_of(place):
    return {name: body for name, body in stored(place).items() if name != MANIFEST_KEY}


# Verification.


@pytest.mark.parametrize("kind", TARGETS)
def test_any_flipped_byte_is_found_and_named(source, kind):
    target = new_place()
    plan = planned(source, target, TARGETS[kind], LIMITS)
    manifest = execute(plan, source, target)
    assert verify_manifest(manifest, source, target).is_ok
    for name, body in outputs_of(target).items():
        place = target.child(name)
        owner = {byte: tensor for tensor, _, _, spans in list_ckpt(body)[0] for a, b in spans for byte in range(a, b)}
        assert len(owner) < len(body)
        for byte in range(0, len(body), 11):
            place.store.put(place.key, body[:byte] + bytes([body[byte] ^ 0x10]) + body[byte + 1 :])
            [problem] = verify_manifest(manifest, source, target).problems
            where = "in the header" if byte < min(owner) else "between tensors"
            where = f"in tensor {owner[byte]}, its byte" if byte in owner else where
            assert f"{place.url}: byte {byte} differs ({where}" in problem
        place.store.put(place.key, body)


# All or nothing.


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("verb", ["put", "create_upload", "upload_part", "complete_upload"])
@pytest.mark.parametrize("after", [False, True])
def test_nothing_half_written_stays(source, kind, verb, after):
    plan = planned(source, new_place(), TARGETS[kind], LIMITS)
    clean = Location(FaultyStore(new_place().store), "to")
    execute(plan, source, clean)
    calls = clean.store.calls[verb]
    for call in {1, calls // 2, calls} - {0}:
        target = Location(FaultyStore(new_place().store, Fault(verb, call, after=after)), "to")
        with pytest.raises(Transient, match="made up"):
            execute(plan, source, target)
        assert is_untouched(target), f"{verb} {call}"


@pytest.mark.parametrize("kind", TARGETS)
def test_a_source_that_fails_leaves_nothing(source, kind):
    plan, target = planned(source, new_place(), TARGETS[kind], LIMITS), new_place()
    faulty = Location(FaultyStore(source.store, Fault("read_into", 3)), source.key)
    with pytest.raises(Transient, match="made up"):
        execute(plan, faulty, target)
    assert is_untouched(target)


def test_tensors_and_texts_arrive(source):
    target = new_place()
    execute(planned(source, target, FULL, LIMITS), source, target)
    assert decode_ckpt(stored(target)["model.ckpt"]) == (contents(MODEL), {"note": "texts \u4e2d"})


# Checksums.


def read(place, **wanted):
    with working(2, place.store) as workers:
        return read_catalog(place, SourceOptions(**wanted), workers)


def with_object(body, name="model.ckpt"):
    place = new_place("from")
    place.store.put(f"from/{name}", body)
    return place


def test_a_right_checksum(source):
    assert {entry.spec.name for entry in read(source, check_crc=True).entries} == set(MODEL)


def test_no_checksum_is_none_to_check():
    assert read(with_object(encode_ckpt(MODEL)), check_crc=True).entries


@pytest.mark.parametrize("place", ["tail", "tensor"])
def test_a_wrong_checksum(source, place):
    body = bytearray(stored(source)["model.ckpt"])
    body[-1 if place == "tail" else list_ckpt(bytes(body))[0][0][3][0][0]] ^= 1
    spoilt = with_object(bytes(body))
    assert read(spoilt).entries  # nobody asked
    with pytest.raises(FormatError, match=r"memory://.*/from/model\.ckpt: byte \d+: wrong checksum") as caught:
        read(spoilt, check_crc=True)
    assert "damaged" in caught.value.hint


def test_every_wrong_checksum_of_several_is_told():
    place = new_place("from")
    for rank, held in shards(MODEL, STAGES).items():
        body = encode_ckpt(held, has_crc=True)
        place.store.put(place.child(rank_key(rank, suffix=".ckpt")).key, body[:-1] + bytes([body[-1] ^ (rank > 1)]))
    with pytest.raises(FormatError, match="2 objects cannot be read") as caught:
        read(place, strategy=Known(STAGES), check_crc=True)
    told = zip((2, 3), caught.value.problems, strict=True)
    assert all(rank_key(rank, suffix=".ckpt") in problem for rank, problem in told)


# Whose copy.


OUTSIDE = random_model({"loss": ("F32", (2,))}, 1)["loss"]


def ranks_that_differ():
    place = new_place("from")
    for rank, held in shards({**MODEL, "loss": random_model({"loss": ("F32", (2,))})["loss"]}, STAGES).items():
        held = {**held, "loss": OUTSIDE} if rank == 2 else held
        place.store.put(place.child(rank_key(rank, suffix=".ckpt")).key, encode_ckpt(held))
    return place


def test_bytes_that_differ_between_ranks():
    with pytest.raises(CatalogError, match="differ between ranks") as caught:
        read(ranks_that_differ(), strategy=Known(STAGES))
    [problem] = caught.value.problems
    assert problem.startswith("loss: 2 different contents")
    assert "`keep_rank`" in str(caught.value)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_rank_whose_bytes_are_kept(rank):
    catalog = read(ranks_that_differ(), strategy=Known(STAGES), keep_rank=rank)
    entry = next(entry for entry in catalog.entries if entry.spec.name == "loss")
    [(index, _)] = entry.placements[0].holders
    assert catalog.objects[index].key == rank_key(rank, suffix=".ckpt")
    assert any(f"rank {rank}'s copies of loss are taken" in note for note in catalog.notes)


def test_a_rank_that_is_not_there_decides_nothing():
    with pytest.raises(UsageError, match=r"keep_rank='9', but there are ranks 0\.\."):
        read(ranks_that_differ(), strategy=Known(STAGES), keep_rank=9)


# Objects that are none.


@pytest.mark.parametrize("mark", [0x7F3A5ED8, 0x7F3A5ED9, 0x7F3A5EDA])
def test_encrypted_objects(mark):
    with pytest.raises(FormatError, match="encrypted object") as caught:
        read(with_object(mark.to_bytes(4, "little") + bytes(100)))
    assert "from/model.ckpt" in caught.value.message
    assert "without a key" in caught.value.hint


def test_map_parameters_are_named():
    value = b"\x0a\x05table" + b"\x1a\x02\x0a\x00"
    body = encode_ckpt(MODEL) + b"\x0a" + bytes([len(value)]) + value
    with pytest.raises(FormatError, match="unusable values") as caught:
        read(with_object(body))
    assert "'table'" in caught.value.problems[0]
    assert "map parameter" in caught.value.problems[0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"crc_num" + bytes(10),
        ckpt_value("w", (1 << 62,), "Float32", b""),
        ckpt_value("w", (2,), "Float32", bytes(4)),
        ckpt_value("w", (2,), "Float128", bytes(32)),
        ckpt_value("w", (1,) * 40, "Int8", b"x"),
        ckpt_value("w", (1,), "Int8", b"x") + ckpt_value("v", (1,), "Int8", b"x") + ckpt_value("w", (1,), "Int8", b"x"),
        ckpt_value("n", (0,), "str", b"\x00\x00\x11\x00"),
        ckpt_value("n", (0,), "str", b"abc"),
    ],
    ids=str,
)
def test_hostile_objects_are_refused(body):
    place = with_object(body)
    with working(2, place.store) as workers, pytest.raises(FormatError, match=r"from/model\.ckpt"):
        read_contents(place, SourceOptions(), workers)


VALID = encode_ckpt(MODEL, {"note": "x"}, piece_elements=100, has_crc=True)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(VALID) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_whatever_stands_in_an_object_it_is_read_or_refused(at, data, skipped):
    place = with_object(VALID[:at] + data + VALID[at + skipped :])
    with working(2, place.store) as workers:
        try:
            catalog = read_contents(place, SourceOptions(check_crc=True), workers)
        except FormatError as error:
            told = str(error)
        else:
            told = place.url
            assert sum(entry.spec.nbytes for entry in catalog.entries) <= len(VALID) + 3
    assert "/from" in told


def test_a_safetensors_object_under_the_name_of_a_ckpt():
    place = new_place("from")
    put_full(place, {"model.safetensors": MODEL})
    with pytest.raises(FormatError, match=r"not a value of a \.ckpt"):
        read(with_object(stored(place)["model.safetensors"]))
