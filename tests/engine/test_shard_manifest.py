"""What reshard wrote, it reads without a strategy: the manifest beside the shards says how they are cut."""

import json
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import encode, random_model

from reshard import convert, inspect
from reshard.errors import CatalogError, PlanError, StrategyError, UsageError
from reshard.formats.mindspore.strategy_merge import from_strategy
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.planning.conversion import MANIFEST_KEY
from reshard.storage import Location, MemoryStore, read_object
from reshard.tensor import Layout, Strategy

MODEL = random_model(
    {
        "embed": ("F32", (8, 6)),
        "layers.0.w": ("BF16", (4, 6)),
        "layers.1.w": ("BF16", (4, 6)),
        "norm": ("F32", (6,)),
        "step": ("I64", ()),
    }
)
STAGES = b"""
axes: {pp: 2, dp: 2, mp: 2}
rules:
  - {match: embed, split: [mp]}
  - {match: "layers.*", split: [null, mp], optimizer_shard: true}
  - {match: "*", split: []}
stages: [{match: [embed, step], layers: 0}, {match: [norm, step], layers: 1}]
"""
ONE = b"axes: {dp: 2, mp: 2}\nrules: [{match: 'layers.*', split: [null, mp]}, {match: '*', split: []}]"
ROWS = STAGES.replace(b"[null, mp], optimizer_shard: true", b"[mp]")


@pytest.fixture
def place():
    store = MemoryStore(uuid4().hex)
    store.put("full/model.safetensors", encode(MODEL))
    for name, text in (("stages", STAGES), ("one", ONE), ("rows", ROWS)):
        store.put(f"{name}.yaml", text)
    return Location(store, "")


def cut(place, name="stages", dst="ranks", **options):
    url = place.child(dst).url
    convert(place.child("full").url, url, dst_layout=place.child(f"{name}.yaml").url, **options)
    return url


def joined(place, url, dst="again", **options):
    """The object that comes of joining ranks; equal to the source's but for its metadata."""
    done = convert(url, place.child(dst).url, **options)
    return done, read_object(place.child(f"{dst}/model.safetensors"))


def tensors(body):
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    header.pop("__metadata__", None)
    data = body[8 + length :]
    return {name: (item["dtype"], item["shape"], data[slice(*item["data_offsets"])]) for name, item in header.items()}


@pytest.mark.parametrize("name", ["stages", "one"])
@pytest.mark.parametrize("options", [{}, {"remove_redundancy": True}, {"prefix": "net_", "format": "ckpt"}])
def test_ranks_are_joined_without_a_strategy(place, name, options):
    url = cut(place, name, **options)
    done, body = joined(place, url)
    assert tensors(body) == tensors(read_object(place.child("full/model.safetensors")))
    assert f"{MANIFEST_KEY} says how the shards are cut" in done.conversion.notes


def test_inspect_joins_them_too(place):
    catalog = inspect(cut(place))
    assert {entry.spec.name: entry.spec.shape for entry in catalog.entries} == {
        name: shape for name, (_, shape, _) in MODEL.items()
    }
    assert catalog.kind == "rank shards (8 of 8 ranks, 2 stages)"


def test_ranks_to_other_ranks(place):
    again = place.child("others").url
    convert(cut(place), again, dst_layout=place.child("one.yaml").url)
    assert tensors(joined(place, again)[1]) == tensors(read_object(place.child("full/model.safetensors")))


def test_renamed_tensors_have_the_names_in_the_shards(place):
    place.store.put(
        "layout.yaml", b"axes: {mp: 2}\nrules: [{match: 'model.embed', split: [mp]}, {match: '*', split: []}]"
    )
    catalog = inspect(cut(place, "layout", rename="embed=model.embed"))
    assert "model.embed" in {entry.spec.name for entry in catalog.entries}


def test_below_the_prefix_of_a_training_output(place):
    cut(place, dst="output/checkpoint")
    catalog = inspect(place.child("output").url)
    assert f"checkpoint/{MANIFEST_KEY} says how the shards are cut" in catalog.notes
    assert len(catalog.entries) == len(MODEL)


@pytest.mark.parametrize("text", [STAGES, STAGES.replace(b"[null, mp]", b"[null, [mp]]")])
def test_a_given_strategy_that_agrees(place, text):
    url = cut(place)
    place.store.put("same.yaml", text)
    done, body = joined(place, url, src_layout=place.child("same.yaml").url)
    assert tensors(body) == tensors(read_object(place.child("full/model.safetensors")))
    assert not any("says how the shards are cut" in note for note in done.conversion.notes)


def test_the_same_slices_by_other_stages_agree(place):
    """One stage of 4 devices, and two of 2 that hold the same: which it is called does not matter."""
    whole = Layout((2,), ((), ()))
    place.store.put("full/model.safetensors", encode({"w": MODEL["embed"]}))
    place.store.put("one.yaml", b"axes: {dp: 4}\nrules: [{match: w, split: []}]")
    strategy = Strategy(2, ({"w": whole}, {"w": whole}))
    place.store.put("two.ckpt", encode_protobuf(from_strategy(strategy)))
    url = cut(place, "one")
    assert len(inspect(url, src_strategy=place.child("two.ckpt").url).entries) == 1


def test_other_slices_are_refused_and_folded(place):
    url = cut(place)
    with pytest.raises(StrategyError, match=f"contradicts {MANIFEST_KEY}") as caught:
        inspect(url, src_layout=place.child("rows.yaml").url)
    assert caught.value.problems == (
        "layers.*.w (2 tensors): rank 0 holds [0:2, 0:3] of [4, 6], by the given strategy [0:2, 0:6]",
    )
    assert "Omit `src_strategy`, `src_layout` and `src_parallel`" in str(caught.value)
    with pytest.raises(StrategyError, match="contradicts"):
        convert(url, place.child("x").url, src_layout=place.child("rows.yaml").url)


def test_slices_that_do_not_exist_are_refused(place):
    text = STAGES.replace(b"dp: 2, mp: 2", b"dp: 1, mp: 4")
    place.store.put("four.yaml", text)
    with pytest.raises(StrategyError, match="contradicts") as caught:
        inspect(cut(place), src_layout=place.child("four.yaml").url)
    assert caught.value.problems[-1] == (
        "layers.*.w (2 tensors): by the given strategy, axis 1 of [4, 6] cannot be cut into 4 equal pieces"
    )


def test_another_number_of_ranks_is_refused(place):
    url = cut(place)
    with pytest.raises(StrategyError) as caught:
        inspect(url, src_layout=place.child("one.yaml").url)
    assert caught.value.problems == ("8 ranks in the manifest, 4 in the given strategy",)


def put_again(place, src, dst, change=bytes):
    """Put the objects of one place to another, or to itself: they have other etags there."""
    for key in [info.key for info in place.store.list(f"{src}/")]:
        body = read_object(place.child(key))
        place.store.put(f"{dst}/{key.removeprefix(f'{src}/')}", change(body) if "/rank_" in key else body)
    return place.child(dst).url


def with_last_byte_changed(body):
    return body[:-1] + bytes([body[-1] ^ 1])


def test_a_copied_folder_is_compared_with_its_checksums(place):
    cut(place)
    url = put_again(place, "ranks", "copy")
    done, body = joined(place, url)
    assert tensors(body) == tensors(read_object(place.child("full/model.safetensors")))
    note = "8 of 8 have other etags than the manifest records, as copies may: "
    assert f"{note}the CRC-32C of 8 was compared and is the same" in done.conversion.notes
    assert any("as copies may: converting compares bytes" in note for note in inspect(url).notes)


def test_exchanged_objects_in_a_copied_folder(place):
    """Another run's shards of the same shapes, beside the manifest of the first."""
    cut(place)
    url = put_again(place, "ranks", "copy", with_last_byte_changed)
    with pytest.raises(UsageError, match="no strategy says how they are cut") as caught:
        convert(url, place.child("x").url)
    [problem] = caught.value.problems
    assert problem.startswith(f"{MANIFEST_KEY} is not used: rank_")
    assert " has the CRC-32C " in problem
    done = convert(url, place.child("x").url, src_layout=place.child("stages.yaml").url)
    assert not any("CRC-32C" in note for note in done.conversion.notes)


def test_a_manifest_without_checksums_proves_nothing_of_a_copy(place):
    """Where the store copied parts, no checksum of the whole is known."""
    cut(place)
    manifest = place.child(f"ranks/{MANIFEST_KEY}")
    body = json.loads(read_object(manifest))
    for output in body["outputs"]:
        output["crc32c"] = None
    place.store.put(manifest.key, json.dumps(body, separators=(",", ":")).encode())
    assert joined(place, place.child("ranks").url)  # etags suffice where they are equal
    with pytest.raises(UsageError) as caught:
        convert(put_again(place, "ranks", "copy"), place.child("x").url)
    assert "has another etag than it records, and it records no CRC-32C of any such" in caught.value.problems[0]


@pytest.mark.parametrize("change", [bytes, with_last_byte_changed])
def test_objects_replaced_where_they_were_written(place, change):
    url = cut(place)
    put_again(place, "ranks", "ranks", change)
    with pytest.raises(UsageError, match="no strategy says how they are cut") as caught:
        convert(url, place.child("x").url)
    assert caught.value.problems == (
        f"{MANIFEST_KEY} is not used: rank_0/checkpoint_0.safetensors has another etag than it records, so 8 of 8 "
        "objects were replaced since",
    )
    assert caught.value.problems[0] in inspect(url).notes
    convert(url, place.child("x").url, src_layout=place.child("stages.yaml").url)


def test_objects_of_another_length_are_not_described(place):
    url = cut(place)
    place.store.put("ranks/rank_1/checkpoint_1.safetensors", encode({"other": MODEL["norm"]}))
    with pytest.raises(UsageError, match="no strategy says how they are cut") as caught:
        convert(url, place.child("x").url)
    [problem] = caught.value.problems
    assert problem.startswith(f"{MANIFEST_KEY} is not used: rank_1/checkpoint_1.safetensors has ")
    assert any(problem in note for note in inspect(url).notes)


def test_objects_that_the_manifest_does_not_name(place):
    url = cut(place)
    place.store.put("ranks/rank_8/checkpoint_8.safetensors", encode({"other": MODEL["norm"]}))
    with pytest.raises(UsageError) as caught:
        convert(url, place.child("x").url)
    assert caught.value.problems == (f"{MANIFEST_KEY} is not used: it does not name rank_8/checkpoint_8.safetensors",)


@pytest.mark.parametrize("change", [b"{", b'{"format": "reshard-manifest/1"}', b"", None])
def test_a_manifest_that_cannot_be_read(place, change):
    url = cut(place)
    body = read_object(place.child(f"ranks/{MANIFEST_KEY}"))
    place.store.put(f"ranks/{MANIFEST_KEY}", body.replace(b'"embed"', b'"embec"') if change is None else change)
    with pytest.raises(UsageError) as caught:
        convert(url, place.child("x").url)
    assert f"{MANIFEST_KEY} is not used: " in caught.value.problems[0]
    # A strategy that is given does without it.
    assert len(inspect(url, src_layout=place.child("stages.yaml").url).entries) == len(MODEL)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_to_a_manifest(data):
    """A manifest is anyone's: whatever it says, ranks are joined as it was or with a given strategy, or refused."""
    store = MemoryStore(uuid4().hex)
    place = Location(store, "")
    store.put("full/model.safetensors", encode(MODEL))
    store.put("one.yaml", ONE)
    url = cut(place, "one")
    body = bytearray(read_object(place.child(f"ranks/{MANIFEST_KEY}")))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    store.put(f"ranks/{MANIFEST_KEY}", bytes(body))
    shapes = {entry.spec.name: entry.spec.shape for entry in inspect(url).entries}
    whole = {name: shape for name, (_, shape, _) in MODEL.items()}
    assert shapes == whole or all(name.startswith("rank_") for name in shapes)


def test_nothing_that_a_manifest_names_is_opened(place):
    """Where the conversion read and wrote is its own affair: the shards here are read, and nothing else."""
    url = cut(place)
    for key in [info.key for info in place.store.list("full/")]:
        place.store.delete(key)
    joined(place, url)


def test_a_share_of_the_ranks(place):
    url = cut(place)
    for rank in (1, 2, 3):
        place.store.delete(f"ranks/rank_{rank}/checkpoint_{rank}.safetensors")
    catalog = inspect(url)
    assert catalog.kind == "rank shards (5 ranks), not joined: parts are missing"
    assert any("no shard holds these parts of tensors" in note for note in catalog.notes)
    assert any("rank 1, 3: 1 tensors, embed" in note for note in catalog.notes)
    with pytest.raises(CatalogError, match="no shard holds these parts"):
        convert(url, place.child("x").url)


def test_shares_of_several_runs(place):
    """Two runs of three are done: what they wrote is read, and what is missing is told."""
    url = cut(place, "one", ranks="0")
    cut(place, "one", ranks="3")
    catalog = inspect(url)
    assert any(note.startswith("reshard-manifest-ranks_0.json and 1 more say how") for note in catalog.notes)
    assert any("2 of 4 ranks have no shard (rank 1, 2)" in note for note in catalog.notes)
    assert len(catalog.entries) == len(MODEL)
    cut(place, "one", ranks="1-2")
    done, body = joined(place, url)
    assert tensors(body) == tensors(read_object(place.child("full/model.safetensors")))
    assert f"{MANIFEST_KEY} says how the shards are cut" in done.conversion.notes


def test_a_share_of_which_a_part_is_missing(place):
    url = cut(place, ranks="0")
    catalog = inspect(url)
    assert catalog.kind == "rank shards (1 ranks), not joined: parts are missing"
    with pytest.raises(CatalogError, match="no shard holds these parts"):
        convert(url, place.child("x").url)


def test_shares_of_different_conversions(place):
    url = cut(place, ranks="0-3")
    cut(place, "rows", dst="other", ranks="4-7")
    for name in ("reshard-manifest-ranks_4-7.json", *(f"rank_{r}/checkpoint_{r}.safetensors" for r in range(4, 8))):
        place.store.put(f"ranks/{name}", read_object(place.child(f"other/{name}")))
    with pytest.raises(UsageError) as caught:
        convert(url, place.child("x").url)
    assert caught.value.problems == (
        "reshard-manifest-ranks_0-3.json and 1 more are not used: they are not shares of one conversion",
    )


def test_one_rank_of_several_is_no_full_checkpoint(place):
    url = cut(place)
    for rank in range(1, 8):
        place.store.delete(f"ranks/rank_{rank}/checkpoint_{rank}.safetensors")
    with pytest.raises(CatalogError, match="no shard holds these parts"):
        convert(url, place.child("x").url)


def test_a_share_that_holds_all_it_needs_says_which_ranks_are_missing(place):
    url = cut(place, "one")
    place.store.delete("ranks/rank_2/checkpoint_2.safetensors")
    assert any("1 of 4 ranks have no shard (rank 2)" in note for note in inspect(url).notes)


def test_a_target_of_its_own_kind_is_not_one(place):
    """A full checkpoint under a rank's name has a manifest as well, which says nothing of cuts."""
    convert(place.child("full").url, place.child("single").url, prefix="net_")
    assert len(inspect(place.child("single").url).entries) == len(MODEL)


def test_shards_are_unified_without_a_strategy(place):
    from reshard.compat.unification import unified_safetensors

    url = cut(place)
    unified_safetensors(url, None, place.child("unified").url)
    assert len(inspect(place.child("unified").url).entries) == len(MODEL)
    place.store.delete(f"ranks/{MANIFEST_KEY}")
    with pytest.raises(UsageError, match="no strategy says how they are cut") as caught:
        unified_safetensors(url, None, place.child("x").url)
    assert "`src_strategy_dirs`" in str(caught.value)


def test_the_original_command_takes_them_too(place):
    from reshard.compat.checkpoints import transform_checkpoint

    strategy = Strategy(2, ({"embed": Layout((2,), ((0,), ()))},))
    place.store.put("mp2.ckpt", encode_protobuf(from_strategy(strategy)))
    place.store.put("full/model.safetensors", encode({"embed": MODEL["embed"]}))
    place.store.put("embed.yaml", b"axes: {mp: 4}\nrules: [{match: embed, split: [mp]}]")
    url = cut(place, "embed")
    transform_checkpoint(url, place.child("out").url, dst_strategy=place.child("mp2.ckpt").url)
    assert tensors(joined(place, place.child("out").url)[1])["embed"][1] == [8, 6]
    with pytest.raises(PlanError, match="contradicts"):
        transform_checkpoint(
            url,
            place.child("x").url,
            src_strategy=place.child("mp2.ckpt").url,
            dst_strategy=place.child("mp2.ckpt").url,
        )
