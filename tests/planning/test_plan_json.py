"""Saved plans: the same plan comes back, and anything else is refused."""

import json
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import catalog_of_objects, catalog_of_ranks, encode, held_by, random_model, shards
from support.planning import plan_for

from reshard.errors import FormatError
from reshard.formats.containers import Container
from reshard.planning.catalog import Catalog, Entry, Placement, SourceObject
from reshard.planning.change import Change
from reshard.planning.limits import Limits
from reshard.planning.outputs.output import Attachment
from reshard.planning.plan import Plan
from reshard.planning.plan_check import check_catalog
from reshard.planning.plan_json import decode_plan, encode_plan, plan_id_of, plan_to_json
from reshard.planning.sources.full_source import tree_catalog, with_adapters
from reshard.planning.steps.copies import REPLICAS
from reshard.planning.steps.cuts import Cut
from reshard.planning.steps.draft import Group
from reshard.planning.targets.full_target import FullTarget, PartsTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.planning.targets.tree_target import TreeTarget, tree_name
from reshard.tensor import Box, DType, Layout, RowSplit, Strategy, TensorSpec

MODEL = random_model({'é.\u4e2d"\\\n': ("F32", (8, 6)), "norm": ("F4", (6,)), "step": ("I64", ())})
FIRST = next(iter(MODEL))
UNEVEN = Layout((2,), ((0,), ()), row_split=RowSplit((5, 3), (0, 5)))
SHARDED = Layout((2,), ((), ()), optimizer_shard_size=-1, optimizer_shard_step=1)
SOURCE = Strategy(2, ({FIRST: UNEVEN, "norm": Layout((2,), ((),)), "step": Layout((2,), ())},))
TARGET = Strategy(2, ({FIRST: SHARDED}, {"norm": Layout((1, 2), ((),), field_size=3), "step": Layout((2,), ())}))
FULL = FullTarget("m-{part}.safetensors", "m.safetensors", "i.json", "pt", 10)
SMALL = Limits(min_part_bytes=20, part_bytes=20, row_bytes=1)


def a_plan(target=None):
    catalog = catalog_of_ranks(shards(MODEL, SOURCE), SOURCE)
    catalog = replace(catalog, metadata={"a": "ü"}, notes=("n",), header_bytes=7)
    return plan_for(catalog, target or RankTarget(TARGET, (0, 1, 3), "r{rank}"), "memory://t", SMALL, "manifest.json")


@pytest.mark.parametrize("target", [None, FULL], ids=["ranks", "full"])
def test_there_and_back(target):
    plan = a_plan(target)
    again = decode_plan(encode_plan(plan), "plan")
    assert again == plan
    assert encode_plan(again) == encode_plan(plan)
    assert plan_id_of(again) == plan_id_of(plan)
    assert [list(again.steps(i)) for i in range(len(again.groups))] == [
        list(plan.steps(i)) for i in range(len(plan.groups))
    ]


def test_the_order_of_keys_means_nothing():
    body = json.loads(encode_plan(a_plan()))
    mixed = json.dumps(dict(reversed(body.items())), indent=2).encode()
    assert decode_plan(mixed, "plan") == a_plan()


CHANGES = {
    "catalog": lambda plan: replace(plan.catalog, url="memory://other"),
    "target": lambda plan: replace(plan.conversion.target, ranks=(0, 1)),
    "target_url": lambda plan: "memory://other",
    "limits": lambda plan: replace(plan.limits, row_bytes=2),
    "groups": lambda plan: (Group((0,), (Cut(0, 1),)), *plan.groups[1:]),
    "cost": lambda plan: replace(plan.cost, get_count=0),
    "notes": lambda plan: ("other",),
    "manifest_key": lambda plan: "other",
    "renamed": lambda plan: {plan.catalog.entries[0].spec.name: "other"},
    "change": lambda plan: Change(transposed=True),
    "attachments": lambda plan: (Attachment("config.json", 0, plan.catalog.objects[0].nbytes),),
    "copied_from": lambda plan: (REPLICAS, 0),
    "staging": lambda plan: plan,
}


@pytest.mark.parametrize("name", [each.name for each in fields(Plan)])
def test_everything_that_a_plan_says_is_in_its_id(name):
    plan = a_plan()
    changed = replace(plan, **{name: CHANGES[name](plan)})
    assert plan_id_of(changed) != plan_id_of(plan)
    if name in ("target_url", "notes", "manifest_key"):
        assert decode_plan(encode_plan(changed), "plan") == changed


@pytest.mark.parametrize(
    "change",
    [
        lambda catalog: replace(catalog, objects=(replace(catalog.objects[0], etag="x"), *catalog.objects[1:])),
        lambda catalog: replace(catalog, objects=(replace(catalog.objects[0], nbytes=1), *catalog.objects[1:])),
        lambda catalog: replace(catalog, entries=catalog.entries[:-1]),
        lambda catalog: replace(catalog, metadata={}),
        lambda catalog: replace(catalog, notes=()),
        lambda catalog: replace(catalog, header_bytes=0),
    ],
)
def test_everything_that_a_catalog_says_is_in_the_id(change):
    plan = a_plan()
    assert plan_id_of(replace(plan, catalog=change(plan.catalog))) != plan_id_of(plan)


IN_A_FRESH_PROCESS = """
from support.checkpoints import catalog_of_ranks, random_model, shards
from reshard.planning.limits import Limits
from support.planning import plan_for

from reshard.planning.plan_json import plan_id_of
from reshard.planning.targets.target import RankTarget
from reshard.tensor import Layout, Strategy
model = random_model({name: ("U8", (12, 12)) for name in "abcdef"})
source = Strategy(4, ({name: Layout((2, 2), ((0,), ())) for name in model},))
target = Strategy(6, ({name: Layout((6,), ((), (0,))) for name in model},))
catalog = catalog_of_ranks(shards(model, source), source)
limits = Limits(min_part_bytes=50, part_bytes=50, row_bytes=1)
plan = plan_for(catalog, RankTarget(target, tuple(range(6)), "r{rank}"), "memory://t", limits)
print(plan_id_of(plan), hash(tuple(step for i in range(len(plan.groups)) for step in plan.steps(i))))
"""


def test_ids_and_steps_are_the_same_in_every_process():
    """Whatever depended on the order of a set of texts would differ."""
    tests = Path(__file__).parents[1]
    told = set()
    for seed in ("0", "1"):
        environ = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(tests)}
        command = [sys.executable, "-c", IN_A_FRESH_PROCESS]
        told.add(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "plan"),
        (b"\xff", "plan"),
        (b"[]", "plan"),
        (b"{}", "not a saved plan"),
        (b'{"format": "reshard-plan/2"}', "expected reshard-plan/1, found 'reshard-plan/2'"),
        (b'{"format": ["reshard-plan/1"]}', "not a saved plan"),
        (b'{"format": "reshard-plan/1"}', "altered"),
        (b'{"format": "reshard-plan/1", "plan_id": null}', "altered"),
        (b'{"format": "reshard-plan/1", "format": "reshard-plan/1"}', "plan"),
    ],
)
def test_what_is_no_plan(data, problem):
    with pytest.raises(FormatError, match=problem):
        decode_plan(data, "plan")


def test_any_altered_byte_is_noticed():
    data = bytearray(encode_plan(a_plan()))
    digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    for position in digits[::7]:
        altered = bytes([*data[:position], ord("1") if data[position] != ord("1") else ord("2"), *data[position + 1 :]])
        with pytest.raises(FormatError):
            decode_plan(altered, "plan")


def signed(body):
    """A plan altered by one who knows how the id is made."""
    import hashlib

    rest = {key: value for key, value in body.items() if key != "plan_id"}
    canonical = json.dumps(rest, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return json.dumps({"plan_id": hashlib.sha256(canonical.encode()).hexdigest(), **rest}).encode()


def test_the_signature_of_these_tests_is_right():
    body = plan_to_json(a_plan())
    assert decode_plan(signed(body), "plan") == a_plan()


@pytest.mark.parametrize(
    "path",
    [(name,) for name in plan_to_json(a_plan()) if name not in ("plan_id", "format")]
    + [("catalog", name) for name in plan_to_json(a_plan())["catalog"]]
    + [("target", name) for name in plan_to_json(a_plan())["target"]]
    + [("target", "strategy", name) for name in ("device_count", "layouts", "stages")]
    + [("limits", "concurrency"), ("cost", "get_count"), ("cost", "peak_bytes")],
)
def test_fields_that_lack(path):
    body = plan_to_json(a_plan())
    holder = body
    for name in path[:-1]:
        holder = holder[name]
    del holder[path[-1]]
    if path == ("limits", "concurrency"):
        assert decode_plan(signed(body), "plan").limits.concurrency == Limits().concurrency
        return
    with pytest.raises(FormatError, match="cannot be read"):
        decode_plan(signed(body), "plan")


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.data(), junk)
def test_junk_anywhere_is_a_format_error_or_a_plan(data, value):
    """Whatever stands in a plan, reading it raises nothing but FormatError."""
    body = plan_to_json(a_plan())
    holder, depth = body, data.draw(st.integers(1, 7))
    for _ in range(depth):
        keys = [key for key in holder if key != "plan_id"] if isinstance(holder, dict) else list(range(len(holder)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(holder[key], dict | list) or not holder[key]:
            break
        parent, holder = holder, holder[key]
        place = (parent, key)
    else:
        parent, key = place
        parent[key] = value
        holder = None
    if holder is not None:
        holder[key] = value
    try:
        plan = decode_plan(signed(body), "plan")
    except FormatError:
        return
    assert isinstance(plan, Plan)


HUGE = 1 << 62


def at(*path, to):
    """A forgery: what stands at a path becomes something else."""

    def forge(body):
        holder = body
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = to(holder[path[-1]]) if callable(to) else to

    return forge


def both(*forgeries):
    def forge(body):
        for each in forgeries:
            each(body)

    return forge


def vast(body):
    """One tensor of 2**60 bytes, read byte by byte."""
    body["catalog"]["objects"] = [["big", HUGE, ""]]
    body["catalog"]["entries"] = [["big", "U8", [1 << 59, 2], [[[], [[0, 8]]]]]]
    body["target"] = {"kind": "ranks", "ranks": [0], "name": "r{rank}", "strategy": VAST}
    body["limits"] |= {"read_bytes": 1, "max_gap_bytes": 0, "max_part_bytes": HUGE, "memory_bytes": 1 << 40}
    body["groups"] = [[[0], []]]


VAST = {
    "device_count": 2,
    "layouts": [[[2], [[], [0]], 0, 0, None, 0]],
    "stages": [{"big": 0}],
}

FORGERIES = {
    "a boolean": at("catalog", "objects", 0, 1, to=True),
    "a float": at("catalog", "header_bytes", to=1.0),
    "a negative number": at("catalog", "header_bytes", to=-1),
    "a huge number": at("catalog", "objects", 0, 1, to=1 << 63),
    "an unknown key": lambda body: body.update(extra=1),
    "an unknown limit": lambda body: body["limits"].update(extra=1),
    "an unknown dtype": at("catalog", "entries", 0, 1, to="F31"),
    "a dtype that is a list": at("catalog", "entries", 0, 1, to=["F32"]),
    "many axes": at("catalog", "entries", 0, 2, to=[1] * 65),
    "a key that leads out": at("catalog", "objects", 0, 0, to="../x"),
    "an absolute key": at("catalog", "objects", 0, 0, to="/etc/passwd"),
    "a source key twice": at("catalog", "objects", to=lambda objects: [objects[0], objects[0], *objects[2:]]),
    "a tensor twice": at("catalog", "entries", to=lambda entries: [*entries, entries[0]]),
    "a long name": at("catalog", "entries", 0, 0, to="." * 5000),
    "no such object": at("catalog", "entries", 0, 3, 0, 1, to=[[99, 8]]),
    "no holders": at("catalog", "entries", 0, 3, 0, 1, to=[]),
    "a holder of three": at("catalog", "entries", 0, 3, 0, 1, to=[[0, 1, 2]]),
    "bytes outside the object": at("catalog", "entries", 0, 3, 0, 1, 0, 1, to=10**6),
    "bytes of another tensor": lambda body: body["catalog"]["entries"][0][3][0].__setitem__(
        1, body["catalog"]["entries"][1][3][0][1]
    ),
    "a hole": at("catalog", "entries", 0, 3, to=lambda placements: placements[:-1]),
    "an overlap": at("catalog", "entries", 0, 3, to=lambda placements: [*placements, placements[0]]),
    "one box twice, another not": at("catalog", "entries", 0, 3, to=lambda p: [p[0], p[0]]),
    "a box outside": at("catalog", "entries", 0, 3, 0, 0, to=[[0, 0], [9, 9]]),
    "a box of other axes": at("catalog", "entries", 0, 3, 0, 0, to=[[0], [1]]),
    "a box upside down": at("catalog", "entries", 0, 3, 0, 0, to=[[5, 0], [0, 6]]),
    "an unknown target": at("target", "kind", to="half"),
    "ranks that are not there": at("target", "ranks", to=[0, 99]),
    "ranks twice": at("target", "ranks", to=[0, 0, 1]),
    "ranks that descend": at("target", "ranks", to=[1, 0]),
    "one name for all": at("target", "name", to="r"),
    "attributes in the name": at("target", "name", to="{rank.__class__}"),
    "a width in the name": at("target", "name", to="{rank:99999999999}"),
    "half a brace": at("target", "name", to="{rank}{"),
    "a name that leads out": at("target", "name", to="../{rank}"),
    "a name twice after normalising": both(at("target", "name", to="\u00e9{rank}"), at("manifest_key", to="e\u03010")),
    "a name below another": at("manifest_key", to="r0/x"),
    "a manifest that is an output": at("manifest_key", to="r0"),
    "a manifest that leads out": at("manifest_key", to="a/../../b"),
    "many devices": at("target", "strategy", "device_count", to=HUGE),
    "no devices": at("target", "strategy", "device_count", to=0),
    "no stages": at("target", "strategy", "stages", to=[]),
    "a layout that is not there": at("target", "strategy", "stages", 0, to={FIRST: 99}),
    "a layout counted from the end": at("target", "strategy", "stages", 0, to={FIRST: -1}),
    "a grid of many": at("target", "strategy", "layouts", 0, 0, to=[1 << 40, 1 << 20]),
    "a grid of many axes": at("target", "strategy", "layouts", 0, 0, to=[1] * 10**5),
    "no grid": at("target", "strategy", "layouts", 0, 0, to=[0]),
    "many threads": at("limits", "concurrency", to=100_000),
    "no threads": at("limits", "concurrency", to=0),
    "much memory": at("limits", "memory_bytes", to=HUGE),
    "little memory": at("limits", "memory_bytes", to=1),
    "long reads": at("limits", "read_bytes", to=HUGE),
    "tiny reads": at("limits", "read_bytes", to=1),
    "tiny parts": at("limits", "max_part_bytes", to=1),
    "few parts": at("limits", "max_part_count", to=1),
    "no groups": at("groups", to=[]),
    "an output twice": at("groups", to=lambda groups: [*groups, groups[0]]),
    "an output that is not there": at("groups", 0, 0, to=[99]),
    "cuts that descend": at("groups", 0, 1, to=lambda cuts: [*cuts, *cuts]),
    "a cut at no tensor": at("groups", 0, 1, to=[[99, 0]]),
    "a cut at no row": at("groups", 0, 1, to=[[0, 10**9]]),
    "other cuts": at("groups", 0, 1, to=[]),
    "a large arena": at("cost", "peak_bytes", to=HUGE),
    "no arena": at("cost", "peak_bytes", to=0),
    "another cost": at("cost", "get_count", to=0),
    "reads without end": vast,
    "lists for everything": at("catalog", to=[]),
}


def forged(forge, target=None):
    body = json.loads(encode_plan(a_plan(target)))
    forge(body)
    return signed(body)


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_plans_are_refused_at_once(name):
    data = forged(FORGERIES[name])
    begun = time.process_time()
    with pytest.raises(FormatError, match=r"^plan: the plan cannot be read") as refused:
        decode_plan(data, "plan")
    assert time.process_time() - begun < 1
    assert refused.value.hint == "Make it anew."
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    "forge",
    [
        at("target", "name", to="{part.__class__}"),
        at("target", "name", to="{part:999999999999}"),
        at("target", "name", to="m-{parts}"),
        at("target", "name", to="../{part}"),
        at("target", "index_name", to="/i.json"),
        at("target", "object_bytes", to=True),
        at("target", "object_bytes", to=10**6),
        lambda body: body["target"].update(extra=1),
    ],
)
def test_forged_full_targets(forge):
    with pytest.raises(FormatError, match="cannot be read"):
        decode_plan(forged(forge, FULL), "plan")


def test_many_boxes_are_checked_in_linear_time():
    """128 x 128 boxes of one tensor; then one of them moved."""
    rows = columns = 128
    boxes = [[[i, j], [i + 1, j + 1]] for i in range(rows) for j in range(columns)]
    spec = TensorSpec("w", DType.U8, (rows, columns))

    def entry(boxes):
        placements = tuple(
            Placement(Box(tuple(start), tuple(stop)), ((0, number),)) for number, (start, stop) in enumerate(boxes)
        )
        return Catalog("memory://s", "test", (SourceObject("o", rows * columns, ""),), (Entry(spec, placements),))

    begun = time.process_time()
    check_catalog(entry(boxes))
    for wrong in ([*boxes[1:], boxes[1]], boxes[1:], [*boxes[:-1], [[0, 0], [1, 1]]]):
        with pytest.raises(FormatError, match="boxes of 'w'"):
            check_catalog(entry(wrong))
    assert time.process_time() - begun < 5


def test_layouts_of_boxes_that_are_no_grid():
    spiral = [((0, 0), (1, 2)), ((0, 2), (2, 3)), ((2, 1), (3, 3)), ((1, 0), (3, 1)), ((1, 1), (2, 2))]
    placements, first = [], 0
    for start, stop in spiral:
        placements.append(Placement(Box(start, stop), ((0, first),)))
        first += placements[-1].box.element_count
    spec = TensorSpec("w", DType.U8, (3, 3))
    check_catalog(Catalog("u", "k", (SourceObject("o", 9, ""),), (Entry(spec, tuple(placements)),)))


# What plans of other targets say.


CKPT_SOURCE = random_model({"w": ("F32", (8, 6)), "v": ("BF16", (4, 6)), "step": ("I64", (1,))})
CUT = Strategy(2, ({"w": Layout((2,), ((0,), ())), "v": Layout((2,), ((), ()))},))
TARGETS = {
    "rank ckpt": RankTarget(CUT, (0, 1), "rank_{rank}/c{rank}.ckpt", Container.CKPT),
    "no redundancy": RankTarget(CUT, (0, 1), "rank_{rank}/c{rank}.ckpt", Container.CKPT, remove_redundancy=True),
    "parts": PartsTarget(100),
    "full ckpt": FullTarget("m.ckpt", "m.ckpt", "", "pt", 10, Container.CKPT),
    "tree": TreeTarget(Container.CKPT),
}


def another_plan(kind):
    """A plan with everything that plans may say: texts, dropped and new names, tensors outside of layouts."""
    target = TARGETS[kind]
    if isinstance(target, TreeTarget):
        opened = [(SourceObject(f"rank_{rank}/m.safetensors", 10**6, "e"), contents_of(rank)) for rank in range(2)]
        return plan_for(tree_catalog("memory://s", "test", opened, tree_name), target, "memory://t", SMALL)
    catalog = catalog_of_ranks(shards(CKPT_SOURCE, CUT), CUT)
    texts = {} if isinstance(target, PartsTarget) else {"note": "x\u4e2d"}
    catalog = replace(catalog, texts=texts, dropped=("gone", "too"), metadata={"v": "noted"})
    renamed = {"step": "new.step"}
    return plan_for(catalog, target, "memory://t", replace(SMALL, min_part_bytes=200), renamed=renamed)


def contents_of(seed):
    return held_by(encode(random_model({"w": ("F32", (4, 6)), "v": ("BF16", (6,))}, seed)))


@pytest.mark.parametrize("kind", TARGETS)
def test_plans_of_every_target_there_and_back(kind):
    plan = another_plan(kind)
    again = decode_plan(encode_plan(plan), "plan")
    assert again == plan
    assert encode_plan(again) == encode_plan(plan)
    assert [list(again.steps(i)) for i in range(len(again.groups))] == [
        list(plan.steps(i)) for i in range(len(plan.groups))
    ]


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("value", [None, [], {}, "", "nonsense", -1, 1.5, [None], {"": ""}, 1 << 70])
def test_nonsense_in_any_field_of_a_target(kind, value):
    for field in json.loads(encode_plan(another_plan(kind)))["target"]:
        body = json.loads(encode_plan(another_plan(kind)))
        if isinstance(value, str) and (
            field in ("index_name", "format") or (field, value) == ("single_name", "nonsense")
        ):
            continue  # texts they may be
        if field == "name" and isinstance(value, str) and kind == "full ckpt":
            continue
        body["target"][field] = value
        with pytest.raises(FormatError, match="cannot be read"):
            decode_plan(signed(body), "plan")


def gigantic(bits):
    def forge(body):
        body["catalog"]["objects"] = [["o", HUGE, ""]]
        body["catalog"]["entries"] = [["w", "U8", [1 << bits], [[[], [[0, 8]]]], "whole"]]
        body["renamed"] = {}
        body["limits"] |= {"max_part_bytes": HUGE, "max_object_bytes": HUGE, "memory_bytes": 1 << 44}
        body["groups"] = [[[0], []]]

    return forge


OTHER_FORGERIES = {
    "a new name that is taken": ("rank ckpt", at("renamed", to={"step": "w"})),
    "a text's name that is taken": ("rank ckpt", at("renamed", to={"step": "note"})),
    "new names that are equal": ("rank ckpt", at("renamed", to={"step": "x", "gone": "x", "w": "x"})),
    "a new name that is no text": ("rank ckpt", at("renamed", to={"step": 1})),
    "a long new name": ("rank ckpt", at("renamed", to={"step": "." * 5000})),
    "new names in a list": ("rank ckpt", at("renamed", to=[["step", "x"]])),
    "a cut tensor with no layout": ("rank ckpt", at("renamed", to={"w": "x"})),
    "another tensor's layout": ("rank ckpt", at("renamed", to={"w": "v", "v": "w"})),
    "texts in a list": ("rank ckpt", at("catalog", "texts", to=["note"])),
    "a text that is none": ("rank ckpt", at("catalog", "texts", to={"note": 1})),
    "a text that is long": ("rank ckpt", at("catalog", "texts", to={"note": "x" * (1 << 19)})),
    "a text that ends in nothing": ("rank ckpt", at("catalog", "texts", to={"note": "x\0"})),
    "a text more": ("rank ckpt", at("catalog", "texts", to={"note": "x", "more": "y"})),
    "texts in safetensors": ("parts", at("catalog", "texts", to={"note": "x"})),
    "a name that was dropped and is none": ("rank ckpt", at("catalog", "dropped", to=[1])),
    "dropped names in a text": ("rank ckpt", at("catalog", "dropped", to="gone")),
    "an unknown origin": ("rank ckpt", at("catalog", "entries", 0, 4, to="inside")),
    "an origin that is no text": ("rank ckpt", at("catalog", "entries", 0, 4, to=["whole"])),
    "no origin": ("rank ckpt", at("catalog", "entries", 0, to=lambda entry: entry[:4])),
    "a tensor of the layouts as hyper-parameter": ("parts", at("catalog", "entries", 0, 4, to="outside")),
    "an unknown container": ("rank ckpt", at("target", "container", to="zip")),
    "another container": ("rank ckpt", at("target", "container", to="safetensors")),
    "redundancy in a text": ("rank ckpt", at("target", "remove_redundancy", to="True")),
    "redundancy in a number": ("rank ckpt", at("target", "remove_redundancy", to=1)),
    "redundancy where there was none": ("rank ckpt", at("target", "remove_redundancy", to=True)),
    "no redundancy where there was some": ("no redundancy", at("target", "remove_redundancy", to=False)),
    "parts of nothing": ("parts", at("target", "part_bytes", to=0)),
    "parts of less than nothing": ("parts", at("target", "part_bytes", to=-1)),
    "other parts": ("parts", at("target", "part_bytes", to=10**9)),
    "a target of another kind": ("parts", at("target", "kind", to="tree")),
    "a kind that is a list": ("parts", at("target", "kind", to=["parts"])),
    "an empty tensor in .ckpt": ("full ckpt", at("catalog", "entries", 0, 2, to=[0])),
    "a dtype that .ckpt lacks": ("full ckpt", at("catalog", "entries", 0, 1, to="C64")),
    "a packed tensor of floats": ("full ckpt", at("catalog", "metadata", to={"w": "Int4"})),
    "a tensor of no object": ("tree", at("catalog", "entries", 0, 0, to="w")),
    "an object without a name": ("tree", at("catalog", "entries", 0, 0, to="\nw")),
    "an object that leads out": ("tree", at("catalog", "entries", 0, 0, to="../m.safetensors\nw")),
    "an absolute object": ("tree", at("catalog", "entries", 0, 0, to="/etc/m.safetensors\nw")),
    "an object that is the directory of another": ("tree", at("catalog", "entries", 0, 0, to="rank_0.x\nw")),
    "two objects of one name": ("tree", at("catalog", "entries", 0, 0, to="rank_1/m.other\nv")),
    "the manifest as an object": (
        "tree",
        both(at("catalog", "entries", 0, 0, to="x.safetensors\nw"), at("manifest_key", to="x.ckpt")),
    ),
    "new names out of a tree": ("tree", at("renamed", to={"rank_0/m.safetensors\nw": "w"})),
    **{f"a tensor of 2**{bits} bytes": ("full ckpt", gigantic(bits)) for bits in (40, 44, 46, 50, 60)},
}


@pytest.mark.parametrize("name", OTHER_FORGERIES)
def test_other_forged_plans_are_refused_at_once(name):
    kind, forge = OTHER_FORGERIES[name]
    body = json.loads(encode_plan(another_plan(kind)))
    forge(body)
    begun = time.process_time()
    with pytest.raises(FormatError, match=r"^plan: .*the plan cannot be read") as refused:
        decode_plan(signed(body), "plan")
    assert time.process_time() - begun < 5
    assert len(str(refused.value)) < 2000


# What becomes of tensors, sources in several places, and what is copied beside.

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 6, "vocab_size": 10,
    "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False, "rope_scaling": {"factor": 8.0},
}  # fmt: skip
LLAMA_SHAPES = {
    "model.embed_tokens.weight": (10, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.mlp.down_proj.weight": (8, 6),
    "model.layers.0.mlp.gate_proj.weight": (6, 8),
    "model.layers.0.mlp.up_proj.weight": (6, 8),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (10, 8),
}
QUERY = "model.layers.0.self_attn.q_proj"
ADAPTERS = {f"base_model.model.{QUERY}.lora_A.weight": ("F32", (2, 8)),
            f"base_model.model.{QUERY}.lora_B.weight": ("F32", (8, 2))}  # fmt: skip
RULED = Change(
    family="llama",
    direction="to_ms",
    naming="legacy",
    options={"qkv_concat": True},
    config=LLAMA,
    dtype=DType.F32,
    kept=frozenset({"model.norm_out.weight", "lm_head.weight"}),
    scalings={f"{QUERY}.weight": 0.5},
)


def a_changed_plan(change=RULED):
    """Llama's rules, a merge of adapters from another place, a cast, and objects beside from a third."""
    model = random_model({name: ("BF16", shape) for name, shape in LLAMA_SHAPES.items()})
    catalog = catalog_of_objects({"model.safetensors": model})
    catalog = with_adapters(
        catalog, catalog_of_objects({"adapter_model.safetensors": random_model(ADAPTERS)}, "memory://l")
    )
    beside = (SourceObject("config.json", 99, "c", 2), SourceObject("tokenizer.json", 1000, "t", 2))
    catalog = replace(catalog, objects=(*catalog.objects, *beside), others=(*catalog.others, "memory://c"))
    attachments = [Attachment(each.key, index, each.nbytes) for index, each in enumerate(beside, start=2)]
    limits = replace(SMALL, min_part_bytes=200)
    return plan_for(catalog, FULL, "memory://t", limits, change=change, attachments=attachments)


def test_changes_there_and_back():
    plan = a_changed_plan()
    assert {piece.computation.kernel for t in plan.tensors for piece in t.pieces if piece.computation} == {
        "cast",
        "merge_lora",
    }
    again = decode_plan(encode_plan(plan), "plan")
    assert again == plan
    assert again.tensors == plan.tensors
    assert encode_plan(again) == encode_plan(plan)
    assert plan_id_of(again) == plan_id_of(plan)


OTHER_CHANGES = {
    "family": "qwen2_5", "direction": "to_hf", "naming": "mcore", "options": {}, "config": {}, "dtype": None,
    "kept": frozenset(), "scalings": {}, "transposed": True,
}  # fmt: skip


@pytest.mark.parametrize("name", [each.name for each in fields(Change)])
def test_everything_that_a_change_says_is_in_the_id(name):
    plan = a_changed_plan()
    changed = replace(plan, change=replace(plan.conversion.change, **{name: OTHER_CHANGES[name]}))
    assert plan_id_of(changed) != plan_id_of(plan)


@pytest.mark.parametrize(
    "alter",
    [
        lambda plan: replace(plan, attachments=plan.conversion.attachments[:1]),
        lambda plan: replace(plan, attachments=plan.conversion.attachments[::-1]),
        lambda plan: replace(plan, catalog=replace(plan.catalog, others=("memory://l", "memory://d"))),
        lambda plan: replace(plan, catalog=replace(plan.catalog, objects=tuple(
            replace(each, base=0) for each in plan.catalog.objects
        ))),
    ],
)  # fmt: skip
def test_places_and_attachments_are_in_the_id(alter):
    plan = a_changed_plan()
    assert plan_id_of(alter(plan)) != plan_id_of(plan)


NONSENSE = [
    None, True, 0, -1, 1.5, 1 << 70, "", "nonsense", "../../etc/passwd", [], [None], {}, {"": ""},
    {"num_hidden_layers": 1 << 39}, [[]], {"model.norm_out.weight": 1e308}, {"x": "1"}, "I32",
]  # fmt: skip
PATHS = [
    *(("change", each.name) for each in fields(Change)),
    *(("change", "config", name) for name in LLAMA),
    ("change", "options", "qkv_concat"), ("change", "options", "other"), ("change", "kept", 0),
    ("change", "scalings", f"{QUERY}.weight"), ("change", "scalings", "other"),
    ("attachments",), ("attachments", 0), *(("attachments", 0, i) for i in range(3)),
    ("catalog", "others"), ("catalog", "others", 0), *(("catalog", "objects", 2, i) for i in range(4)),
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_nonsense_in_what_is_changed(path):
    """Nothing but a FormatError, at once; what makes no difference to the tensors may be read."""
    good = encode_plan(a_changed_plan())
    for value in NONSENSE:
        body = json.loads(good)
        at(*path, to=value)(body)
        begun = time.process_time()
        try:
            plan = decode_plan(signed(body), "plan")
        except FormatError:
            pass
        else:
            assert json.loads(encode_plan(plan)) == json.loads(signed(body))
        assert time.process_time() - begun < 2


DEEPSEEK = {
    "num_hidden_layers": 1, "num_nextn_predict_layers": 1 << 39, "first_k_dense_replace": 0,
    "n_routed_experts": 1 << 39,
    "vocab_size": 4, "hidden_size": 4, "intermediate_size": 4, "moe_intermediate_size": 4, "num_attention_heads": 1,
    "q_lora_rank": 4, "kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4,
}  # fmt: skip


@pytest.mark.parametrize("naming", ["legacy", "mcore", "legacy_infer"])
@pytest.mark.parametrize("huge", [{}, {"n_routed_experts": 60_000, "num_nextn_predict_layers": 60_000}])
def test_a_model_without_end_is_refused_at_once(naming, huge):
    body = json.loads(encode_plan(a_changed_plan()))
    body["change"] |= {
        "family": "deepseek_v3",
        "naming": naming,
        "options": {},
        "config": DEEPSEEK | huge,
        "scalings": {},
    }
    begun = time.process_time()
    with pytest.raises(FormatError, match="cannot be read"):
        decode_plan(signed(body), "plan")
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "forge",
    [
        at("change", "dtype", to="I32"),
        at("change", "dtype", to="BOOL"),
        at("change", "dtype", to="F4"),
        at("change", "scalings", f"{QUERY}.weight", to=10**400),
        at("change", "scalings", f"{QUERY}.weight", to=True),
        at("change", "options", "qkv_concat", to=1.5),
        at("change", "options", "qkv_concat", to=None),
        at("attachments", 0, 0, to="../config.json"),
        at("attachments", 0, 0, to="reshard-manifest.json"),
        at("attachments", 0, 0, to="i.json"),
        at("attachments", 0, 1, to=99),
        at("attachments", 0, 2, to=98),
        at("catalog", "objects", 2, 3, to=3),
        at("catalog", "others", to=["memory://l"]),
        at("catalog", "others", 0, to=7),
    ],
)
def test_forged_changes(forge):
    body = json.loads(encode_plan(a_changed_plan()))
    forge(body)
    with pytest.raises(FormatError, match="cannot be read"):
        decode_plan(signed(body), "plan")
