"""From a place to a catalog: what kinds of checkpoint there are, and what headers and indices can show to be wrong."""

import json

import pytest
from support.checkpoints import encode, put_full, put_ranks, random_model, rank_key, shards, stored
from support.conversions import Known, catalog_at
from support.recording_store import RecordingStore

from reshard.engine.sources import SourceOptions, read_catalog, read_contents
from reshard.engine.sources.strategy_files import StrategySource, read_layout_file, read_strategy_files
from reshard.engine.workers import working
from reshard.errors import CatalogError, FormatError, NotFound, SourceChanged, SourceError, StrategyError, UsageError
from reshard.formats.mindspore.strategy_json import encode_json
from reshard.formats.mindspore.strategy_merge import from_strategy
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.planning.sources.selection import NameFilter
from reshard.storage import Location, MemoryStore, read_object
from reshard.tensor import Layout, Strategy

MODEL = random_model({"embed": ("F32", (8, 6)), "norm": ("F32", (6,)), "head": ("BF16", (4, 6))})
ROWS, COLUMNS, NORM = Layout((2,), ((0,), ())), Layout((2,), ((), (0,))), Layout((2,), ((),))
ONE_STAGE = Strategy(2, ({"embed": ROWS, "norm": NORM, "head": COLUMNS},))
TWO_STAGES = Strategy(2, ({"embed": ROWS, "norm": NORM}, {"head": COLUMNS, "norm": NORM}))


@pytest.fixture
def place():
    return Location(RecordingStore(MemoryStore()), "models/m")


def put(place, name, body):
    place.store.put(place.child(name).key, body)


def only(*names):
    return {name: MODEL[name] for name in names}


def names_of(catalog):
    return {entry.spec.name for entry in catalog.entries}


def index(weight_map):
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()


def read(place, strategy=None):
    with working(2, place.store) as workers:
        return read_catalog(place, SourceOptions(strategy), workers)


# Kinds.


def test_one_object_by_name(place):
    put_full(place, {"a.safetensors": only("embed"), "b.safetensors": only("norm")})
    catalog = catalog_at(place.child("b.safetensors"))
    assert names_of(catalog) == {"norm"}
    assert (catalog.url, [item.key for item in catalog.objects]) == (place.url, ["b.safetensors"])
    assert catalog.kind == "one safetensors object"


def test_one_object_below_a_prefix(place):
    put_full(place, {"whatever.safetensors": MODEL})
    put(place, "config.json", b"{}")
    put(place, "deeper/other.safetensors", encode(only("embed")))
    catalog = catalog_at(place)
    assert names_of(catalog) == set(MODEL)
    assert [item.key for item in catalog.objects] == ["whatever.safetensors"]


def test_a_hugging_face_index(place):
    put_full(place, {"model-1.safetensors": only("embed", "norm"), "model-2.safetensors": only("head")})
    catalog = catalog_at(place)
    assert names_of(catalog) == set(MODEL)
    assert catalog.kind == "Hugging Face checkpoint"
    assert [item.key for item in catalog.objects] == ["model-1.safetensors", "model-2.safetensors"]


def test_objects_that_the_index_does_not_name_are_left_aside_and_told(place):
    put_full(place, {"model-1.safetensors": only("embed", "norm"), "model-2.safetensors": only("head")})
    put(place, "old.safetensors", encode(only("norm")))
    catalog = catalog_at(place)
    assert names_of(catalog) == set(MODEL)
    assert catalog.notes == ("1 objects that the index does not name are ignored: old.safetensors",)


@pytest.mark.parametrize("is_nested", [False, True])
def test_mindspores_name_map(place, is_nested):
    put(place, "part0.safetensors", encode(only("embed", "norm")))
    put(place, "part1.safetensors", encode(only("head")))
    flat = {"embed": "part0.safetensors", "norm": "part0.safetensors", "head": "part1.safetensors"}
    put(place, "param_name_map.json", json.dumps({"weight_map": flat} if is_nested else flat).encode())
    catalog = catalog_at(place)
    assert names_of(catalog) == set(MODEL)
    assert catalog.kind == "MindSpore full checkpoint"


def test_hyper_parameters_beside_a_name_map_are_part_of_it(place):
    """MindSpore keeps scalars such as the step beside the parts, and out of the map."""
    hyper = random_model({"global_step": ("I64", ()), "epoch": ("I64", (1,))})
    put(place, "part0.safetensors", encode(MODEL))
    put(place, "hyper_param.safetensors", encode(hyper))
    put(place, "param_name_map.json", json.dumps(dict.fromkeys(MODEL, "part0.safetensors")).encode())
    catalog = catalog_at(place)
    assert names_of(catalog) == {*MODEL, *hyper}
    assert catalog.notes == ()


def test_one_rank_is_a_full_checkpoint(place):
    put_ranks(place, {0: MODEL})
    catalog = catalog_at(place)
    assert names_of(catalog) == set(MODEL)
    assert [item.key for item in catalog.objects] == [rank_key(0)]


@pytest.mark.parametrize("strategy", [ONE_STAGE, TWO_STAGES], ids=["one stage", "two stages"])
def test_rank_shards(place, strategy):
    put_ranks(place, shards(MODEL, strategy))
    catalog = catalog_at(place, strategy)
    assert {entry.spec.name: entry.spec.shape for entry in catalog.entries} == {
        name: shape for name, (_, shape, _) in MODEL.items()
    }
    ranks, stages = strategy.rank_count, strategy.stage_count
    assert catalog.kind == f"rank shards ({ranks} of {ranks} ranks, {stages} stages)"


def test_ranks_are_numbers_not_texts(place):
    """rank_10 comes after rank_9, and the keys' order means nothing."""
    strategy = Strategy(12, ({"embed": Layout((12,), ((), ()))},))
    put_ranks(place, shards(only("embed"), strategy))
    catalog = catalog_at(place, strategy)
    assert [item.key for item in catalog.objects] == [rank_key(rank) for rank in range(12)]


def test_rank_shards_without_a_strategy_are_listed_but_not_joined(place):
    put_ranks(place, shards(MODEL, ONE_STAGE))
    with working(2, place.store) as workers:
        catalog = read_contents(place, SourceOptions(), workers)
    assert names_of(catalog) == {f"rank_{rank}/{name}" for rank in range(2) for name in MODEL}
    with pytest.raises(UsageError, match="shards of 2 ranks") as caught:
        read(place)
    assert "`src_strategy`" in str(caught.value)


def test_shards_that_are_not_joined_are_selected_by_their_own_names(place):
    put_ranks(place, shards(MODEL, ONE_STAGE))
    with working(2, place.store) as workers:
        catalog = read_contents(place, SourceOptions(names=NameFilter(keep=("embed",), drop=("gone",))), workers)
        assert names_of(catalog) == {"rank_0/embed", "rank_1/embed"}
        assert set(catalog.dropped) == {"head", "norm"}
        assert catalog.notes[-1] == "drop pattern gone matches no tensor"
        with pytest.raises(UsageError, match="`keep` matches no tensor"):
            read_contents(place, SourceOptions(names=NameFilter(keep=("rank_0/embed",))), workers)


def test_a_strategy_for_a_full_checkpoint(place):
    put_full(place, {"model.safetensors": MODEL})
    with pytest.raises(UsageError, match="this is a full checkpoint"):
        read(place, Known(ONE_STAGE))


def test_headers_are_all_that_is_read(place):
    put_full(place, {"model-1.safetensors": only("embed", "norm"), "model-2.safetensors": only("head")})
    before = place.store.figures
    catalog = catalog_at(place)
    after = place.store.figures
    assert after.read_bytes - before.read_bytes == catalog.header_bytes
    tensors = sum(array.size for _, _, array in MODEL.values())
    assert catalog.header_bytes == sum(len(body) for body in stored(place).values()) - tensors


# Strategies from files.


FORMS = {
    "merged protobuf": lambda s: {"s.ckpt": encode_protobuf(from_strategy(s))},
    "protobuf a stage": lambda s: {
        f"ckpt_strategy_rank_{stage * 2}.ckpt": encode_protobuf(from_strategy(s, stage))
        for stage in range(s.stage_count)
    },
    "json a stage": lambda s: {
        f"strategy_rank_{stage * 2}.json": encode_json(
            from_strategy(s, stage), {name: MODEL[name][1] for name in s.stages[stage]}
        )
        for stage in range(s.stage_count)
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strategy", [ONE_STAGE, TWO_STAGES], ids=["one stage", "two stages"])
def test_strategy_files(place, form, strategy):
    put_ranks(place, shards(MODEL, strategy))
    files, made = Location(place.store, "strategy"), FORMS[form](strategy)
    for name, body in made.items():
        put(files, name, body)
    at = files.child(next(iter(made))) if len(made) == 1 else files
    catalog = read(place, read_strategy_files(at, 2))
    assert {entry.spec.name: entry.spec.shape for entry in catalog.entries} == {
        name: shape for name, (_, shape, _) in MODEL.items()
    }


def test_a_layout_file(place):
    put_ranks(place, shards(MODEL, ONE_STAGE))
    text = b"""
    axes: {mp: 2}
    rules:
      - {match: embed, split: [mp, null]}
      - {match: head, split: [null, mp]}
      - {match: "*", split: []}
    """
    put(place, "layout.yaml", text)
    catalog = read(place, read_layout_file(place.child("layout.yaml")))
    assert {entry.spec.name: entry.spec.shape for entry in catalog.entries} == {
        name: shape for name, (_, shape, _) in MODEL.items()
    }


def test_no_strategy_there(place):
    put(place, "other.txt", b"x")
    with pytest.raises(NotFound, match="no strategy there"):
        read_strategy_files(place, 2)


def test_strategies_of_both_forms(place):
    put(place, "a.ckpt", b"x")
    put(place, "a.json", b"x")
    with pytest.raises(CatalogError, match="strategy files of both forms"):
        read_strategy_files(place, 2)


def test_an_empty_strategy_file(place):
    put(place, "a.ckpt", b"")
    with pytest.raises(SourceError, match="empty"):
        read_strategy_files(place.child("a.ckpt"), 2)


def test_a_strategy_of_other_tensors(place):
    put_ranks(place, shards(MODEL, ONE_STAGE))
    with pytest.raises(StrategyError, match="do not fit the source strategy"):
        read(place, Known(Strategy(2, ({"embed": NORM, "norm": NORM, "head": COLUMNS},))))


def test_no_rule_for_a_tensor(place):
    put_ranks(place, shards(MODEL, ONE_STAGE))
    put(place, "layout.yaml", b"axes: {mp: 2}\nrules: [{match: embed, split: [mp, null]}]")
    with pytest.raises(StrategyError, match="does not fit the tensors") as caught:
        read(place, read_layout_file(place.child("layout.yaml")))
    assert len(caught.value.problems) == 2


def test_documents_have_a_length_limit(place):
    put(place, "a.json", bytes(101))
    with pytest.raises(FormatError, match="too long for a document"):
        read_object(place.child("a.json"), max_nbytes=100)
    assert read_object(place.child("a.json"), max_nbytes=101) == bytes(101)


def test_a_source_without_files_or_rules():
    with pytest.raises(StrategyError):
        StrategySource().strategy({}, local=False)


# What is wrong.


def test_nothing_there(place):
    with pytest.raises(CatalogError, match=r"no checkpoint there.*found nothing"):
        read(place)
    with pytest.raises(NotFound):
        read(place.child("m.safetensors"))


def test_nothing_that_is_a_checkpoint(place):
    put(place, "readme.md", b"x")
    with pytest.raises(CatalogError, match=r"found 1 other objects \(readme\.md\)"):
        read(place)


def test_several_objects_without_an_index(place):
    put(place, "a.safetensors", encode(only("embed")))
    put(place, "b.safetensors", encode(only("head")))
    with pytest.raises(CatalogError, match="no index") as caught:
        read(place)
    assert caught.value.problems == ("a.safetensors", "b.safetensors")


def test_two_objects_in_one_ranks_prefix(place):
    put(place, "rank_0/a.safetensors", encode(only("embed")))
    put(place, "rank_0/b.safetensors", encode(only("embed")))
    put(place, "rank_1/a.safetensors", encode(only("embed")))
    with pytest.raises(CatalogError, match="objects are of different checkpoints") as caught:
        read(place, Known(ONE_STAGE))
    assert caught.value.problems == ("b.safetensors on rank 0", "a.safetensors on rank 1")


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "param_name_map.json"])
def test_an_index_that_names_missing_objects(place, name):
    put(place, "a.safetensors", encode(only("embed")))
    put(place, name, index({"embed": "a.safetensors", "norm": "b.safetensors", "head": "c.safetensors"}))
    with pytest.raises(CatalogError, match="objects that are not there") as caught:
        read(place)
    assert [problem.rsplit("/", 1)[1] for problem in caught.value.problems] == ["b.safetensors", "c.safetensors"]


def test_an_index_that_names_missing_tensors(place):
    put(place, "a.safetensors", encode(only("embed")))
    put(place, "model.safetensors.index.json", index({"embed": "a.safetensors", "norm": "a.safetensors"}))
    with pytest.raises(CatalogError, match="do not make one checkpoint") as caught:
        read(place)
    assert caught.value.problems == ("norm: expected in a.safetensors, not there",)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"weight_map": 3}', b'{"weight_map": {"a": 3}}', b'{"weight_map": {"a": "../x.safetensors"}}'],
)
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "param_name_map.json"])
def test_a_broken_index(place, name, body):
    put(place, "a.safetensors", encode(only("embed")))
    put(place, name, body)
    with pytest.raises(FormatError) as caught:
        read(place)
    assert place.child(name).url in str(caught.value)


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BROKEN = {
    "empty object": b"",
    "shorter than a length": b"\x00" * 7,
    "length past the object": (1000).to_bytes(8, "little") + b"{}",
    "length over 100 MB": (100_000_001).to_bytes(8, "little") + b"{}",
    "length of 2**64 - 1": b"\xff" * 8 + b"{}",
    "not UTF-8": raw(b'{"\xff": 1}'),
    "not JSON": raw(b"{nonsense}"),
    "truncated": encode(only("embed"))[:-1],
    "a byte more": encode(only("embed")) + b"x",
    "overlap": raw({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)),
    "hole": raw({"a": entry(), "b": entry(offsets=(5, 9))}, bytes(9)),
    "duplicate names": raw(
        b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", bytes(4)
    ),
    "wrong byte count": raw({"a": entry(shape=(5,))}, bytes(4)),
    "unknown dtype": raw({"a": entry(dtype="F12")}, bytes(4)),
    "negative shape": raw({"a": entry(shape=(-4,))}, bytes(4)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_header(place, kind):
    put(place, "m.safetensors", BROKEN[kind])
    with pytest.raises(FormatError) as caught:
        read(place)
    assert place.child("m.safetensors").url in str(caught.value)


def test_all_broken_headers_are_told_together(place):
    weight_map = {}
    for number, body in enumerate(BROKEN.values()):
        put(place, f"{number:02}.safetensors", body)
        weight_map[f"t{number}"] = f"{number:02}.safetensors"
    put(place, "good.safetensors", encode(MODEL))
    put(place, "model.safetensors.index.json", index({**weight_map, **dict.fromkeys(MODEL, "good.safetensors")}))
    with pytest.raises(FormatError, match=f"{len(BROKEN)} objects cannot be read") as caught:
        read(place)
    assert len(caught.value.problems) == len(BROKEN)
    assert all(f"{n:02}.safetensors" in problem for n, problem in enumerate(caught.value.problems))


def test_one_tensor_in_two_objects_of_an_index_is_taken_from_where_it_says(place):
    put(place, "a.safetensors", encode(MODEL))
    put(place, "b.safetensors", encode(only("norm")))
    put(
        place, "model.safetensors.index.json", index({**dict.fromkeys(MODEL, "a.safetensors"), "norm": "b.safetensors"})
    )
    catalog = read(place)
    [norm] = [entry for entry in catalog.entries if entry.spec.name == "norm"]
    assert catalog.objects[norm.placements[0].holders[0][0]].key == "b.safetensors"


def test_copies_without_a_layout_must_be_the_same_everywhere(place):
    strategy = Strategy(2, ({"embed": ROWS, "head": COLUMNS},))
    held = shards(MODEL, strategy)
    put_ranks(place, held)
    assert names_of(read(place, Known(strategy))) == set(MODEL)
    changed = held[1]["norm"][2].copy()
    changed[-1, -1] ^= 1
    held[1] = {**held[1], "norm": (*held[1]["norm"][:2], changed)}
    put_ranks(place, held)
    with pytest.raises(CatalogError, match="differ between ranks") as caught:
        read(place, Known(strategy))
    [problem] = caught.value.problems
    assert "norm: 2 different contents" in problem


def test_an_object_that_changes_while_headers_are_read():
    """The length read first belongs to another object than the rest of the header."""

    class Changing(MemoryStore):
        def read(self, key, span, etag=None):
            body = super().read(key, span, etag)
            if span.start == 0:
                self.put(key, encode(only("norm")))
            return body

    place = Location(Changing(), "m")
    put(place, "m.safetensors", encode(MODEL))
    with pytest.raises(SourceChanged):
        read(place)
