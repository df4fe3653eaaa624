"""Bad input end to end: each a clear error of the right class, before any tensor byte is read, and nothing written."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from oracle.cases import objects_below
from safetensors.numpy import load, save
from support.s3_servers import S3Server

import reshard
from reshard.errors import (
    CatalogError,
    Denied,
    FormatError,
    NotFound,
    OverBudget,
    PlanError,
    ReshardError,
    SourceChanged,
    SourceError,
    StrategyError,
    TargetExists,
    UsageError,
)
from reshard.formats.mindspore.strategy_json import encode_json
from reshard.formats.mindspore.strategy_merge import from_strategy
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.storage import MemoryStore
from reshard.tensor import Layout, Strategy

BASE = "memory://bad"
Objects = Mapping[str, bytes]


def raw(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """An object of any header; JSON text if it is not bytes already."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: Sequence[int], start: int, stop: int, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def whole(**shapes: Sequence[int]) -> bytes:
    """A good object of U8 tensors; dots in names are written as two underscores."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape)
        header[name.replace("__", ".")] = entry(shape, start, end)
    return raw(header, bytes(end))


def strategy(*stages: Mapping[str, Layout]) -> bytes:
    return encode_protobuf(from_strategy(Strategy(next(iter(stages[0].values())).device_count, stages)))


ROWS = Layout((2,), ((0,), ()))
WHOLE = Layout((2,), ((),))


@dataclass(frozen=True)
class Bad:
    """One bad input: what is in the store, what is asked, and what the error must be and say."""

    name: str
    objects: Objects
    error: type[ReshardError]
    says: Sequence[str]
    asks: Mapping[str, object] = field(default_factory=dict)
    src: str = "src"
    dst: str = "out"


HEADERS = [
    Bad("empty object", {"src/m.safetensors": b""}, FormatError, ["src/m.safetensors", "at least 8 bytes", "0 bytes"]),
    Bad("7 bytes", {"src/m.safetensors": b"\2\0\0\0\0\0\0"}, FormatError, ["at least 8 bytes", "found 7 bytes"]),
    Bad(
        "header past the object",
        {"src/m.safetensors": raw({"a": entry((4,), 0, 4)}, bytes(4), length=1000)},
        FormatError,
        ["src/m.safetensors", "invalid header length", "found 1000 bytes"],
    ),
    Bad(
        "header of no bytes",
        {"src/m.safetensors": raw(b"", bytes(9))},
        FormatError,
        ["invalid header length", "found 0"],
    ),
    Bad(
        "length of all ones",
        {"src/m.safetensors": b"\xff" * 64},
        FormatError,
        ["invalid header length", f"found {2**64 - 1} bytes", "100000000"],
    ),
    Bad(
        "cut off",
        {"src/m.safetensors": whole(a=(4,), b=(8, 8))[:-1]},
        FormatError,
        ["src/m.safetensors", "end of the object", "expected byte", "found byte"],
    ),
    Bad(
        "bytes after the last tensor",
        {"src/m.safetensors": whole(a=(4,)) + b"x"},
        FormatError,
        ["end of the object", "where the tensors end"],
    ),
    Bad(
        "overlap",
        {"src/m.safetensors": raw({"a": entry((4,), 0, 4), "b": entry((4,), 2, 6)}, bytes(6))},
        FormatError,
        ["tensor 'b'", "an overlap", "right after tensor 'a'"],
    ),
    Bad(
        "hole",
        {"src/m.safetensors": raw({"a": entry((4,), 0, 4), "b": entry((4,), 6, 10)}, bytes(10))},
        FormatError,
        ["tensor 'b'", "a gap", "right after tensor 'a'"],
    ),
    Bad(
        "hole before the first",
        {"src/m.safetensors": raw({"a": entry((4,), 2, 6)}, bytes(6))},
        FormatError,
        ["tensor 'a'", "a gap", "right after the header"],
    ),
    Bad(
        "name twice",
        {
            "src/m.safetensors": raw(
                b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                b'"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
                bytes(2),
            )
        },
        FormatError,
        ["src/m.safetensors", "repeated keys", "'a'"],
    ),
    Bad(
        "wrong byte count",
        {"src/m.safetensors": raw({"a": entry((3,), 0, 4)}, bytes(4))},
        FormatError,
        ["tensor 'a'", "expected 3 bytes for U8 [3]", "found 4"],
    ),
    Bad("not UTF-8", {"src/m.safetensors": raw(b'{"\xff":1}')}, FormatError, ["not text", "byte 10", "expected UTF-8"]),
    Bad("not JSON", {"src/m.safetensors": raw(b"{'a': 1}")}, FormatError, ["invalid JSON", "byte 9"]),
    Bad("an array", {"src/m.safetensors": raw([])}, FormatError, ["expected '{'"]),
    Bad(
        "HTML",
        {"src/m.safetensors": b"<html><body>404 not found</body></html>"},
        FormatError,
        ["invalid header length"],
    ),
    Bad("nested deeply", {"src/m.safetensors": raw(b'{"a":' * 9000)}, FormatError, ["nested too deeply"]),
    Bad(
        "unknown dtype",
        {"src/m.safetensors": raw({"a": entry((4,), 0, 4, "Q7")}, bytes(4))},
        FormatError,
        ["tensor 'a': dtype", "BF16", "found 'Q7'"],
    ),
    Bad(
        "negative extent",
        {"src/m.safetensors": raw({"a": entry((-4,), 0, 4)}, bytes(4))},
        FormatError,
        ["tensor 'a': shape", "integers >= 0", "[-4]"],
    ),
    Bad(
        "absurd shape",
        {"src/m.safetensors": raw({"a": entry((2**62, 2**62), 0, 4)}, bytes(4))},
        FormatError,
        ["tensor 'a': shape", "2**63"],
    ),
    Bad(
        "offsets backwards",
        {"src/m.safetensors": raw({"a": entry((4,), 4, 0)}, bytes(4))},
        FormatError,
        ["tensor 'a': data_offsets", "[4, 0]"],
    ),
    Bad(
        "metadata that is no text",
        {"src/m.safetensors": raw({"__metadata__": {"a": 1}, "b": entry((1,), 0, 1)}, bytes(1))},
        FormatError,
        ["__metadata__ 'a'", "a string", "a number"],
    ),
    Bad(
        "many things at once",
        {"src/m.safetensors": raw({"a": entry((4,), 0, 4, "Q7"), "b": entry((5,), 4, 8), "c": 7}, bytes(8))},
        FormatError,
        ["found 3 problems", "tensor 'a': dtype", "tensor 'b': data_offsets", "tensor 'c'"],
    ),
    Bad(
        "several objects",
        {
            "src/model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}',
            "src/x.safetensors": b"",
            "src/y.safetensors": raw({"b": entry((3,), 0, 4)}, bytes(4)),
        },
        FormatError,
        ["2 objects", "src/x.safetensors", "src/y.safetensors", "tensor 'b'"],
    ),
]

INDEX = "src/model.safetensors.index.json"
SOURCES = [
    Bad("nothing there", {}, CatalogError, ["bad/src", "no checkpoint there", "found nothing", "Check the prefix."]),
    Bad("no such object", {}, NotFound, ["bad/src/m.safetensors", "does not exist"], src="src/m.safetensors"),
    Bad("other things there", {"src/a.txt": b""}, CatalogError, ["no checkpoint there", "1 other objects (a.txt)"]),
    Bad(
        "no index",
        {"src/a.safetensors": whole(a=(1,)), "src/b.safetensors": whole(b=(1,))},
        CatalogError,
        ["2 safetensors objects and no index", "a.safetensors", "b.safetensors", "or name one object"],
    ),
    Bad(
        "shards that are not there",
        {
            INDEX: b'{"weight_map": {"a": "x.safetensors", "b": "y.safetensors", "c": "z.safetensors"}}',
            "src/y.safetensors": whole(b=(1,)),
        },
        CatalogError,
        ["index names objects that are not there", "src/x.safetensors", "src/z.safetensors"],
    ),
    Bad(
        "tensors that are not there",
        {
            INDEX: b'{"weight_map": {"a": "x.safetensors", "b": "x.safetensors", "c": "x.safetensors"}}',
            "src/x.safetensors": whole(b=(1,)),
        },
        CatalogError,
        ["a: expected in x.safetensors, not there", "c: expected in x.safetensors, not there"],
    ),
    Bad(
        "tensor in another shard than the index says",
        {
            INDEX: b'{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}',
            "src/x.safetensors": whole(b=(1,)),
            "src/y.safetensors": whole(a=(1,)),
        },
        CatalogError,
        ["a: expected in x.safetensors", "b: expected in y.safetensors"],
    ),
    Bad(
        "tensor in two shards",
        {
            INDEX: b'{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}',
            "src/x.safetensors": whole(a=(1,), c=(1,)),
            "src/y.safetensors": whole(b=(1,), c=(1,)),
        },
        CatalogError,
        ["c: in x.safetensors and in y.safetensors"],
    ),
    Bad(
        "index that leads out",
        {INDEX: b'{"weight_map": {"a": "../secret.safetensors"}}'},
        FormatError,
        [INDEX, "a '..' step"],
    ),
    Bad("index of numbers", {INDEX: b'{"weight_map": {"a": 1}}'}, FormatError, [INDEX, "tensor 'a'", "found a number"]),
    Bad("index without map", {INDEX: b'{"metadata": {}}'}, FormatError, [INDEX, "no weight_map"]),
    Bad("index cut off", {INDEX: b'{"weight_map": {"a": '}, FormatError, [INDEX, "invalid JSON"]),
    Bad(
        "name map of MindSpore",
        {"src/param_name_map.json": b'{"a": "part0.safetensors"}'},
        CatalogError,
        ["not there", "src/part0.safetensors"],
    ),
    Bad(
        "shards without a strategy",
        {f"src/rank_{r}/c_{r}.safetensors": whole(a=(4,)) for r in range(2)},
        UsageError,
        ["shards of 2 ranks", "`src_strategy`"],
    ),
    Bad(
        "ranks without a step in common",
        {f"src/rank_{r}/c-1_{e}.safetensors": whole(a=(4,)) for r in range(2) for e in (r, r + 2)}
        | {"s.ckpt": strategy({"a": WHOLE})},
        CatalogError,
        ["the ranks' objects are of different checkpoints", "1_3 on rank 1", "1_2 on rank 0", "No epoch and step"],
        {"src_strategy": "s.ckpt"},
    ),
    Bad(
        "strategy for a full checkpoint",
        {"src/m.safetensors": whole(a=(4,)), "s.ckpt": strategy({"a": WHOLE})},
        UsageError,
        ["this is a full checkpoint", "Omit `src_strategy`"],
        {"src_strategy": "s.ckpt"},
    ),
]

GOOD = {"src/m.safetensors": whole(w=(4, 6), v=(8, 2), norm=(3,))}


def laid(**layouts: Layout) -> bytes:
    return strategy(layouts)


def target(name: str, says: Sequence[str], file: bytes, error: type[ReshardError] = StrategyError) -> Bad:
    return Bad(name, GOOD | {"s.ckpt": file}, error, says, {"dst_strategy": "s.ckpt"})


def yaml(name: str, text: str, says: Sequence[str], error: type[ReshardError] = FormatError) -> Bad:
    return Bad(name, GOOD | {"l.yaml": text.encode()}, error, says, {"dst_layout": "l.yaml"})


STRATEGIES = [
    Bad(
        "no strategy file",
        GOOD,
        NotFound,
        ["bad/s.ckpt", "no strategy there", ".ckpt or .json"],
        {"dst_strategy": "s.ckpt"},
    ),
    Bad(
        "prefix without strategies",
        GOOD | {"s/readme.md": b""},
        NotFound,
        ["bad/s", "no strategy there"],
        {"dst_strategy": "s"},
    ),
    Bad(
        "strategies of both forms",
        GOOD | {"s/a.ckpt": laid(w=ROWS), "s/b.json": b"{}"},
        CatalogError,
        ["both forms", "only .ckpt or only .json"],
        {"dst_strategy": "s"},
    ),
    target("empty strategy", ["s.ckpt", "empty"], b"", SourceError),
    target("strategy that is no protobuf", ["s.ckpt"], b"this is not protobuf at all", FormatError),
    target("strategy cut off", ["s.ckpt"], laid(w=ROWS, v=ROWS)[:-3], FormatError),
    target(
        "maps of another number of axes",
        ["w (stage 0)", "1 axes", "has 2: [4, 6]", "norm (stage 0)", "has 1: [3]"],
        laid(w=Layout((2,), ((0,),)), norm=Layout((2,), ((0,), ())), v=ROWS),
    ),
    target(
        "axes that do not divide",
        ["w (stage 0)", "axis 1 of [4, 6]", "4 equal pieces", "norm (stage 0)"],
        laid(w=Layout((4,), ((), (0,))), norm=Layout((4,), ((0,),)), v=Layout((4,), ((0,), ()))),
    ),
    target(
        "rows too few for the optimizer",
        ["w (stage 0)", "axis 0", "8 equal pieces"],
        laid(w=Layout((8,), ((), ()), -1, 1), v=Layout((8,), ((), ())), norm=Layout((8,), ((),))),
    ),
    target("names of another model", ["no tensor of the source is named", "x", "norm"], laid(x=ROWS)),
    target(
        "names of another naming",
        ["only in the strategy: W", "only in the source: w", "one naming"],
        laid(W=ROWS, v=ROWS),
    ),
    Bad(
        "stage missing",
        GOOD | {"s.json": encode_json(from_strategy(Strategy(2, ({"w": ROWS}, {"v": ROWS})), 1), {})},
        StrategyError,
        ["expected stages 0..1", "1 are missing, found [1]"],
        {"dst_strategy": "s.json"},
    ),
    Bad(
        "JSON strategy that is none",
        GOOD | {"s.json": b'{"parallel_layout_item": []}'},
        FormatError,
        ["s.json"],
        {"dst_strategy": "s.json"},
    ),
    yaml("layout file without rules", "axes: {mp: 2}", ["l.yaml", "rules"]),
    yaml(
        "tensors that no rule matches",
        'axes: {mp: 2}\nrules: [{match: "w", split: [mp, null]}]',
        ["v: no rule matches it", "norm: no rule matches it", '{match: "*", split: []}'],
        StrategyError,
    ),
    yaml("axis of no such name", 'axes: {mp: 2}\nrules: [{match: "*", split: [tp]}]', ["l.yaml", "tp", "mp"]),
    yaml("axis cut twice", 'axes: {mp: 2}\nrules: [{match: "*", split: [mp, mp]}]', ["l.yaml", "mp"]),
    yaml(
        "more axes than the tensor has",
        'axes: {mp: 2}\nrules: [{match: "*", split: [null, mp]}]',
        ["norm: rule 1", "2 entries", "1 axes"],
        StrategyError,
    ),
    yaml(
        "rows that do not divide",
        'axes: {mp: 3}\nrules: [{match: "*", split: [mp]}]',
        ["w (stage 0)", "axis 0 of [4, 6]", "v (stage 0)"],
        StrategyError,
    ),
    yaml("YAML that makes objects", "axes: !!python/object/apply:os.system [echo]\nrules: []", ["l.yaml"]),
    yaml("YAML that is none", "axes: {mp: [", ["l.yaml"]),
    yaml("axes of no size", 'axes: {mp: 0}\nrules: [{match: "*", split: []}]', ["l.yaml", "mp"]),
]

CUT = laid(w=ROWS, norm=WHOLE)


def shards(name: str, says: Sequence[str], *objects: bytes, file: bytes = CUT, error: type[ReshardError]) -> Bad:
    held = {f"src/rank_{rank}/c_{rank}.safetensors": data for rank, data in enumerate(objects) if data}
    return Bad(name, held | {"s.ckpt": file}, error, says, {"src_strategy": "s.ckpt"})


SHARDS = [
    shards(
        "rank directory missing",
        ["no shard holds", "rank 1: 1 tensors, w (no shard of rank 1)"],
        whole(w=(2, 6), norm=(3,)),
        error=CatalogError,
    ),
    shards(
        "tensor missing on one rank",
        ["no shard holds", "rank 1: 1 tensors, w"],
        whole(w=(2, 6), norm=(3,)),
        whole(norm=(3,)),
        error=CatalogError,
    ),
    shards(
        "too many ranks",
        ["only 2 ranks", "rank 2: rank_2/c_2.safetensors"],
        *[whole(w=(2, 6), norm=(3,))] * 3,
        error=StrategyError,
    ),
    shards(
        "fewer rows on one rank",
        ["w: rank 0 has [2, 6]", "the whole is [4, 6]", "rank 1 has U8 [1, 6]"],
        whole(w=(2, 6), norm=(3,)),
        whole(w=(1, 6), norm=(3,)),
        error=StrategyError,
    ),
    shards(
        "other inner extent on one rank",
        ["w: rank 0 has [2, 6]", "rank 1 has U8 [2, 5]"],
        whole(w=(2, 6), norm=(3,)),
        whole(w=(2, 5), norm=(3,)),
        error=StrategyError,
    ),
    shards(
        "other number of axes on all ranks",
        ["w: ", "2 axes", "norm: ", "1 axes"],
        *[whole(w=(12,), norm=(3, 1))] * 2,
        error=StrategyError,
    ),
    shards(
        "other dtype on one rank",
        ["w: dtype differs", "rank 0 has U8 [2, 6]", "rank 1 has I8 [2, 6]"],
        whole(w=(2, 6), norm=(3,)),
        raw({"w": entry((2, 6), 0, 12, "I8"), "norm": entry((3,), 12, 15)}, bytes(15)),
        error=CatalogError,
    ),
    shards(
        "no layout and another shape",
        ["x: is unlisted and differs", "rank 0 has U8 [2]", "rank 1 has U8 [3]"],
        whole(w=(2, 6), norm=(3,), x=(2,)),
        whole(w=(2, 6), norm=(3,), x=(3,)),
        error=CatalogError,
    ),
    shards(
        "on a stage that should not have it",
        ["v: on ranks [1]", "other stages"],
        whole(w=(2, 6), v=(4,)),
        whole(u=(2, 6), v=(4,)),
        file=strategy({"w": Layout((1,), ((), ())), "v": Layout((1,), ((),))}, {"u": Layout((1,), ((), ()))}),
        error=CatalogError,
    ),
]

REQUESTS = [
    Bad("target is the source", GOOD, UsageError, ["`dst` ", "is inside `src` "], dst="src"),
    Bad("target inside the source", GOOD, UsageError, ["`dst` ", "is inside `src` ", "outside"], dst="src/out"),
    Bad(
        "target replaces the source",
        {"src/model.safetensors": GOOD["src/m.safetensors"]},
        PlanError,
        ["outputs would replace objects of the source", "src/model.safetensors", "another destination"],
        {"overwrite": True},
        src="src/model.safetensors",
        dst="src",
    ),
    Bad(
        "outputs exist",
        GOOD | {"out/model.safetensors": b"old"},
        TargetExists,
        ["1 of 2 outputs exist", "model.safetensors", "`overwrite`"],
    ),
    Bad(
        "another checkpoint is there",
        GOOD | {"out/other.safetensors": b"old"},
        TargetExists,
        ["another checkpoint", "other.safetensors"],
    ),
    Bad("too little memory", GOOD, OverBudget, ["at least", "1048576", "memory='11MiB'"], {"memory": "1MiB"}),
]

TABLE = [*HEADERS, *SOURCES, *STRATEGIES, *SHARDS, *REQUESTS]


@pytest.fixture
def store() -> MemoryStore:
    found = MemoryStore("bad")
    found.clear()
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every read of a memory store: the key, and where it ended."""
    found: list[tuple[str, int]] = []
    read_into = MemoryStore.read_into

    def recorded(self, key, span, target, etag=None):
        found.append((key, span.stop))
        return read_into(self, key, span, target, etag)

    monkeypatch.setattr(MemoryStore, "read_into", recorded)
    return found


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_refused(bad, store, reads):
    for key, data in bad.objects.items():
        store.put(key, data)
    before = everything(store)
    asks = {key: f"{BASE}/{value}" if is_url(key) else value for key, value in bad.asks.items()}
    with pytest.raises(ReshardError) as caught:
        reshard.convert(f"{BASE}/{bad.src}", f"{BASE}/{bad.dst}", **asks)
    assert type(caught.value) is bad.error, caught.value
    message = str(caught.value)
    assert not [text for text in bad.says if text not in message], message
    assert everything(store) == before
    assert list(store.open_uploads("")) == []
    for key, stop in reads:
        if key.endswith(".safetensors"):
            assert stop <= header_end(bad.objects[key]), f"tensor bytes of {key} were read"


def is_url(argument: str) -> bool:
    return argument.endswith(("_strategy", "_layout"))


def everything(store: MemoryStore) -> dict[str, str]:
    return {info.key: info.etag for info in store.list("")}


def header_end(data: bytes) -> int:
    length = int.from_bytes(data[:8], "little")
    return 8 + length if len(data) >= 8 and length <= len(data) - 8 else 8


def test_names_are_all_told_apart():
    names = [bad.name for bad in TABLE]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("bad", [*HEADERS, *SOURCES], ids=lambda bad: bad.name)
def test_inspect_refuses_the_same(bad, store):
    for key, data in bad.objects.items():
        store.put(key, data)
    asks = {key: f"{BASE}/{value}" for key, value in bad.asks.items()}
    if bad.name == "shards without a strategy":
        assert len(reshard.inspect(f"{BASE}/{bad.src}").entries) == 2
        return
    with pytest.raises(bad.error) as caught:
        reshard.inspect(f"{BASE}/{bad.src}", **asks)
    assert not [text for text in bad.says if text not in str(caught.value)]


def test_header_of_more_than_100_mb(tmp_path: Path):
    """The object is long enough, and nothing of that length is read or kept."""
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b"{")
        file.truncate(200_000_000)
    with pytest.raises(FormatError, match=r"expected 2 to 100000000 bytes.*found 100000001 bytes"):
        reshard.convert(str(path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_tensors_without_a_layout_that_differ(store):
    """Headers cannot tell: so these few bytes are read before any other, and all that differ are told at once."""
    header = {"w": entry((2, 6), 0, 12), "x": entry((2,), 12, 14), "y": entry((1,), 14, 15)}
    for rank in range(2):
        store.put(f"src/rank_{rank}/c_{rank}.safetensors", raw(header, bytes([0] * 12 + [rank, 0, rank])))
    store.put("s.ckpt", CUT)
    with pytest.raises(CatalogError, match="no layout of the source lists differ") as caught:
        reshard.convert(f"{BASE}/src", f"{BASE}/out", src_strategy=f"{BASE}/s.ckpt")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["x", "y"]
    assert "rank_1/c_1.safetensors" in caught.value.problems[0]
    assert "add their layouts" in caught.value.hint
    assert list(store.list("out")) == []


def test_last_stage_missing(store):
    """Nothing in the files of the other stages tells that there is one more, but the layers that have no layout do."""
    layers = {f"layers__{i}__w": (4, 4) for i in range(4)}
    store.put("src/m.safetensors", whole(**layers, norm=(3,)))
    stage = {f"layers.{i}.w": Layout((2,), ((0,), ())) for i in range(2)}
    store.put("s.ckpt", strategy(stage))
    with pytest.raises(StrategyError, match="layouts for some layers and none for others") as caught:
        reshard.convert(f"{BASE}/src", f"{BASE}/out", dst_strategy=f"{BASE}/s.ckpt")
    assert caught.value.problems == ("layers.2.w: no layout", "layers.3.w: no layout")
    assert "stage" in caught.value.hint
    assert list(store.list("out")) == []


@pytest.mark.parametrize("change", ["other bytes", "shorter", "gone"])
def test_source_that_changes_while_it_is_read(store, monkeypatch, change):
    """Pinned by etag: the first tensor byte asked for after the change ends the run."""
    good = whole(w=(64, 1 << 10), v=(64, 1 << 10))
    store.put("src/model.safetensors", good)
    store.put("l.yaml", b'axes: {mp: 2}\nrules: [{match: "*", split: [null, mp]}]')
    read_into, changed = MemoryStore.read_into, threading.Lock()

    def changing(self, key, span, target, etag=None):
        if span.start >= header_end(good) and changed.acquire(blocking=False):
            store.delete(key)
            if change != "gone":
                store.put(key, good[: len(good) // 2] if change == "shorter" else good[:-1] + b"x")
        read_into(self, key, span, target, etag)

    monkeypatch.setattr(MemoryStore, "read_into", changing)
    with pytest.raises(NotFound if change == "gone" else SourceChanged, match=r"src/model\.safetensors"):
        reshard.convert(f"{BASE}/src", f"{BASE}/out", dst_layout=f"{BASE}/l.yaml")
    assert changed.locked()
    assert list(store.list("out")) == []
    assert list(store.open_uploads("")) == []


def test_missing_bucket(moto_url: S3Server, clean_environ: pytest.MonkeyPatch, store):
    for name, value in moto_url.environ.items():
        clean_environ.setenv(name, value)
    store.put("src/m.safetensors", GOOD["src/m.safetensors"])
    for arguments in (("s3://never-made/src", f"{BASE}/out"), (f"{BASE}/src", "s3://never-made/out")):
        with pytest.raises(NotFound, match=r"never-made.*no such bucket") as caught:
            reshard.convert(*arguments)
        assert "Check the bucket's name" in caught.value.hint
    assert list(store.list("out")) == []


@pytest.mark.server
@pytest.mark.parametrize("side", ["source", "target"])
def test_wrong_credentials(weed_server: S3Server, clean_environ: pytest.MonkeyPatch, store, side):
    bucket = weed_server.make_bucket(f"credentials-{side}")
    for name, value in (weed_server.environ | {"AWS_SECRET_ACCESS_KEY": "not this one"}).items():
        clean_environ.setenv(name, value)
    store.put("src/m.safetensors", GOOD["src/m.safetensors"])
    there, here = f"s3://{bucket}/model", f"{BASE}/{'out' if side == 'source' else 'src'}"
    with pytest.raises(Denied, match="secret key does not belong") as caught:
        reshard.convert(*((there, here) if side == "source" else (here, there)))
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.hint
    assert "not this one" not in str(caught.value)
    assert list(store.list("out")) == []


def test_four_ranks_to_six(store):
    """Any counts, where axes divide."""
    weight = np.arange(24 * 36, dtype=np.int32).reshape(24, 36)
    for rank in range(4):
        store.put(f"src/rank_{rank}/c_{rank}.safetensors", save({"w": weight[:, rank * 9 : rank * 9 + 9].copy()}))
    store.put("four.ckpt", strategy({"w": Layout((4,), ((), (0,)))}))
    store.put("six.ckpt", strategy({"w": Layout((6,), ((), (0,)))}))
    reshard.convert(f"{BASE}/src", f"{BASE}/out", src_strategy=f"{BASE}/four.ckpt", dst_strategy=f"{BASE}/six.ckpt")
    held = [load(data) for key, data in sorted(objects_below(f"{BASE}/out").items()) if "rank_" in key]
    assert [share["w"].shape for share in held] == [(24, 6)] * 6
    assert np.array_equal(np.concatenate([share["w"] for share in held], 1), weight)
