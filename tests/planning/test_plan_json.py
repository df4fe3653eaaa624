"""Saved plans: the same plan comes back, made anew, and anything else is refused at once."""

import hashlib
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
from support.checkpoints import catalog_of_objects, catalog_of_ranks, encode, header_of, random_model, shards
from support.planning import plan_for

from reshard.errors import FormatError, PlanError
from reshard.formats.containers import Container
from reshard.models.serving_rules import Serving
from reshard.planning.catalog import SourceObject
from reshard.planning.change import Change
from reshard.planning.codec import check_tilings
from reshard.planning.conversion import Conversion
from reshard.planning.limits import Limits
from reshard.planning.outputs.output import Attachment
from reshard.planning.plan import Plan, StagingMode, make_plan
from reshard.planning.plan_json import (
    conversion_from_json,
    conversion_id,
    conversion_to_json,
    decode_plan,
    encode_plan,
    plan_id_of,
)
from reshard.planning.sources.full_source import tree_catalog, with_adapters
from reshard.planning.sources.source_headers import SourceHeaders
from reshard.planning.staging import staged_plan
from reshard.planning.steps.copies import REPLICAS
from reshard.planning.targets.full_target import FullTarget, PartsTarget
from reshard.planning.targets.iteration_target import IterationTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.planning.targets.sharded_target import ShardedTarget
from reshard.planning.targets.tree_target import TreeTarget, tree_name
from reshard.planning.targets.zarr_target import ZarrTarget
from reshard.tensor import Box, DType, Layout, RowSplit, Strategy

SMALL = Limits(min_part_bytes=20, part_bytes=20, row_bytes=1)
ROOMY = replace(SMALL, min_part_bytes=200)


# Plans of every kind of target, source, change and staging.


MODEL = random_model({'é.\u4e2d"\\\n': ("F32", (8, 6)), "norm": ("F4", (6,)), "step": ("I64", ())})
FIRST = next(iter(MODEL))
UNEVEN = Layout((2,), ((0,), ()), row_split=RowSplit((5, 3), (0, 5)))
SHARDED = Layout((2,), ((), ()), optimizer_shard_size=-1, optimizer_shard_step=1)
SOURCE = Strategy(2, ({FIRST: UNEVEN, "norm": Layout((2,), ((),)), "step": Layout((2,), ())},))
TARGET = Strategy(2, ({FIRST: SHARDED}, {"norm": Layout((1, 2), ((),), field_size=3), "step": Layout((2,), ())}))
FULL = FullTarget("m-{part}.safetensors", "m.safetensors", "i.json", "pt", 10)
CKPT_SOURCE = random_model({"w": ("F32", (8, 6)), "v": ("BF16", (4, 6)), "step": ("I64", (1,))})
CUT = Strategy(2, ({"w": Layout((2,), ((0,), ())), "v": Layout((2,), ((), ()))},))
TARGETS = {
    "ranks ckpt": RankTarget(CUT, (0, 1), "rank_{rank}/c{rank}.ckpt", Container.CKPT),
    "no redundancy": RankTarget(CUT, (0, 1), "rank_{rank}/c{rank}.ckpt", Container.CKPT, remove_redundancy=True),
    "iteration": IterationTarget(CUT, 7, "p", common={"global_step": 7, "loss_scale": 2.0, "epoch_num": None}),
    "parts": PartsTarget(100),
    "sharded": ShardedTarget(CUT),
    "full ckpt": FullTarget("m.ckpt", "m.ckpt", "", "pt", 10, Container.CKPT),
    "zarr": ZarrTarget(100, {"w": (4, 3)}),
    "tree": TreeTarget(Container.CKPT),
}


def plan_of_ranks(target=None):
    """From uneven rank shards with replicas, under names that JSON must escape."""
    catalog = catalog_of_ranks(shards(MODEL, SOURCE), SOURCE)
    catalog = replace(catalog, metadata={"a": "ü"}, notes=("n",), header_bytes=7)
    return plan_for(catalog, target or RankTarget(TARGET, (0, 1, 3), "r{rank}"), "memory://t", SMALL, "manifest.json")


def plan_of(kind):
    """From a source with texts, notes of tensors, dropped and new names, and tensors outside of layouts."""
    target = TARGETS[kind]
    if isinstance(target, TreeTarget):
        models = [random_model({"w": ("F32", (4, 6)), "v": ("BF16", (6,))}, rank) for rank in range(2)]
        headers = [header_of(f"rank_{rank}/m.safetensors", encode(model)) for rank, model in enumerate(models)]
        catalog = tree_catalog(SourceHeaders("memory://s", "test", headers), tree_name)
        return plan_for(catalog, target, "memory://t", SMALL)
    catalog = catalog_of_ranks(shards(CKPT_SOURCE, CUT), CUT)
    texts = {"note": "x\u4e2d"} if "ckpt" in kind or kind in ("no redundancy", "zarr") else {}
    catalog = replace(catalog, texts=texts, dropped=("gone", "too"), metadata={"v": "noted"})
    return plan_for(catalog, target, "memory://t", ROOMY, renamed={"step": "new.step"})


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


def plan_of_changes(change=RULED):
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


def staged(bases=()):
    """Columns of a wide tensor, which would be read again and again in one pass."""
    model = random_model({"inner": ("F32", (16, 16)), "norm": ("F32", (8,))})
    columns = Strategy(4, ({"inner": Layout((4,), ((), (0,))), "norm": Layout((4,), ((),))},))
    limits = replace(SMALL, max_gap_bytes=0, min_copy_source_bytes=1, chunk_bytes=128)
    target = RankTarget(columns, tuple(range(4)), "r{rank}")
    plan = plan_for(catalog_of_objects({"m": model}), target, "memory://t", limits, copy_bases=bases)
    made = staged_plan(plan, StagingMode("memory://s", is_near=True, is_always=True, limits=limits))
    assert made.staging is not None
    return made


PLANS = {
    "ranks": plan_of_ranks,
    "full": lambda: plan_of_ranks(FULL),
    **{kind: lambda kind=kind: plan_of(kind) for kind in TARGETS},
    "changed": lambda: plan_of_changes(),
    "copied": lambda: copied(),
    "staged": staged,
    "staged by copies": lambda: staged((REPLICAS, 0)),
}


def copied():
    """Whole objects that the store copies, and replicas."""
    limits = replace(SMALL, min_copy_source_bytes=1)
    target = RankTarget(Strategy(2, ({"a": Layout((2,), ((), ()))},)), (0, 1), "r{rank}")
    catalog = catalog_of_objects({"m": random_model({"a": ("U8", (40, 40))})})
    plan = plan_for(catalog, target, "memory://t", limits, copy_bases=(REPLICAS, 0))
    assert plan.copy_bases
    return plan


@pytest.mark.parametrize("kind", PLANS)
def test_there_and_back(kind):
    plan = PLANS[kind]()
    again = decode_plan(encode_plan(plan), "plan")
    assert again == plan
    assert encode_plan(again) == encode_plan(plan)
    assert (plan_id_of(again), conversion_id(again.conversion)) == (plan_id_of(plan), conversion_id(plan.conversion))
    assert again.tensors == plan.tensors
    assert [list(again.steps(i)) for i in range(len(again.groups))] == [
        list(plan.steps(i)) for i in range(len(plan.groups))
    ]


@pytest.mark.parametrize("kind", PLANS)
def test_conversions_there_and_back(kind):
    conversion = PLANS[kind]().conversion
    body = json.loads(json.dumps(conversion_to_json(conversion)))
    assert conversion_from_json(body, 1000) == conversion


def test_documents_with_too_many_tensors_for_their_length_are_refused(monkeypatch):
    plan = PLANS["full"]()
    data = encode_plan(plan)
    monkeypatch.setattr("reshard.planning.plan_json._TENSOR_BYTES", 64 << 20)
    with pytest.raises(FormatError, match=rf"tensors: expected at most 1 in a document of {len(data)} bytes"):
        decode_plan(data, "plan.json")
    with pytest.raises(PlanError, match="in a document of 1000 bytes"):
        conversion_from_json(json.loads(json.dumps(conversion_to_json(plan.conversion))), 1000)


def test_changes_are_computed():
    plan = plan_of_changes()
    kernels = {piece.computation.kernel for t in plan.tensors for piece in t.pieces if piece.computation}
    assert kernels == {"cast", "merge_lora"}


def test_the_order_of_keys_means_nothing():
    body = json.loads(encode_plan(plan_of_ranks()))
    mixed = json.dumps(dict(reversed(body.items())), indent=2).encode()
    assert decode_plan(mixed, "plan") == plan_of_ranks()


# Identities.


def test_a_conversion_knows_no_limits():
    plan = plan_of_ranks()
    other = make_plan(plan.conversion, replace(plan.limits, memory_bytes=1 << 30))
    assert plan_id_of(other) != plan_id_of(plan)
    assert conversion_id(other.conversion) == conversion_id(plan.conversion)


def test_names_that_stay_are_no_renames():
    conversion = plan_of_ranks().conversion
    assert conversion_id(replace(conversion, renamed={FIRST: FIRST})) == conversion_id(conversion)


def with_catalog(**changes):
    return lambda conversion: {"catalog": replace(conversion.catalog, **changes)}


CHANGES = {
    "catalog": with_catalog(url="memory://other"),
    "target": lambda conversion: {"target": replace(conversion.target, name="m-{parts}.safetensors")},
    "target_url": lambda _: {"target_url": "memory://other"},
    "manifest_key": lambda _: {"manifest_key": "other"},
    "renamed": lambda _: {"renamed": {"lm_head.weight": "head"}},
    "change": lambda _: {"change": Change(transposed=True)},
    "attachments": lambda conversion: {"attachments": conversion.attachments[:1]},
    "attachments in another order": lambda conversion: {"attachments": conversion.attachments[::-1]},
    "an etag": lambda conversion: {
        "catalog": replace(conversion.catalog, objects=tuple(replace(o, etag="x") for o in conversion.catalog.objects))
    },
    "a base": lambda conversion: {
        "catalog": replace(conversion.catalog, objects=tuple(replace(o, base=0) for o in conversion.catalog.objects))
    },
    "fewer tensors": lambda conversion: {
        "catalog": replace(conversion.catalog, entries=conversion.catalog.entries[:-1])
    },
    "metadata": with_catalog(metadata={"a": "b"}),
    "other places": with_catalog(others=("memory://l", "memory://d")),
    "texts": with_catalog(texts={"a": "b"}),
    "dropped names": with_catalog(dropped=("a",)),
}


def test_every_part_of_a_conversion_is_changed_below():
    assert {each.name for each in fields(Conversion)} <= CHANGES.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_every_part_of_a_conversion_is_in_its_id(name):
    conversion = plan_of_changes().conversion
    assert conversion_id(replace(conversion, **CHANGES[name](conversion))) != conversion_id(conversion)


@pytest.mark.parametrize("given", [{"kind": "x"}, {"notes": ("x",)}, {"header_bytes": 1}], ids=lambda x: next(iter(x)))
def test_remarks_for_people_are_not_in_the_id_of_a_conversion(given):
    """Two runs of one conversion are known by its id, whatever the second has to remark; a saved plan keeps all."""
    plan = plan_of_changes()
    other = replace(plan.conversion, catalog=replace(plan.conversion.catalog, **given))
    assert conversion_id(other) == conversion_id(plan.conversion)
    assert plan_id_of(replace(plan, conversion=other)) != plan_id_of(plan)


OTHER_CHANGES = {
    "family": "qwen2_5", "family_file": "a", "direction": "to_hf", "naming": "mcore", "options": {}, "config": {},
    "dtype": None, "kept": frozenset(), "scalings": {}, "transposed": True, "on_overflow": "saturate",
    "serving": Serving("vllm", "llama", 2),
}  # fmt: skip


@pytest.mark.parametrize("name", [each.name for each in fields(Change)])
def test_every_part_of_a_change_is_in_the_id(name):
    conversion = plan_of_changes().conversion
    changed = replace(conversion, change=replace(conversion.change, **{name: OTHER_CHANGES[name]}))
    assert conversion_id(changed) != conversion_id(conversion)


def test_everything_that_decides_the_parts_is_in_the_id_of_a_plan():
    plan = staged((REPLICAS, 0))
    others = [
        replace(plan, conversion=replace(plan.conversion, target_url="memory://other")),
        replace(plan, limits=replace(plan.limits, row_bytes=2)),
        replace(plan, copy_bases=()),
        replace(plan, groups=plan.groups[1:]),
        replace(plan, staging=None),
        replace(plan, staging=replace(plan.staging, copy_bases=())),
        replace(plan, staging=replace(plan.staging, groups=plan.staging.groups[1:])),
        replace(plan, staging_mode=replace(plan.staging_mode, url="memory://elsewhere")),
        replace(plan, staging_note="other"),
    ]
    assert len({plan_id_of(other) for other in (plan, *others)}) == len(others) + 1


IN_A_FRESH_PROCESS = """
from support.checkpoints import catalog_of_ranks, random_model, shards
from reshard.planning.limits import Limits
from support.planning import plan_for

from reshard.planning.plan_json import plan_id_of
from reshard.planning.targets.rank_target import RankTarget
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
    printed = set()
    for seed in ("0", "1"):
        environ = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
        command = [sys.executable, "-c", IN_A_FRESH_PROCESS]
        printed.add(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)
    assert len(printed) == 1


# Documents that are altered, or no plans at all.


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "plan"),
        (b"\xff", "plan"),
        (b"[]", "plan"),
        (b"{}", "not a saved plan"),
        (b'{"format": "reshard-plan/1"}', "expected reshard-plan/2, found 'reshard-plan/1'"),
        (b'{"format": ["reshard-plan/2"]}', "not a saved plan"),
        (b'{"format": "reshard-plan/2"}', "wrong keys"),
        (b'{"format": "reshard-plan/2", "format": "reshard-plan/2"}', "plan"),
    ],
)
def test_what_is_no_plan(data, problem):
    with pytest.raises(FormatError, match=problem):
        decode_plan(data, "plan")


@pytest.mark.parametrize("value", [None, "", "0", ["x"], 7])
def test_an_altered_id_is_refused(value):
    body = json.loads(encode_plan(plan_of_ranks()))
    with pytest.raises(FormatError, match="altered, or made by another version"):
        decode_plan(json.dumps(body | {"plan_id": value}).encode(), "plan")


def test_any_altered_byte_is_refused_or_changes_nothing():
    plan = plan_of_ranks()
    data = bytearray(encode_plan(plan))
    digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    unread = data.index(b'"cost"')
    refused = 0
    for position in digits[::7]:
        altered = bytes([*data[:position], ord("1") if data[position] != ord("1") else ord("2"), *data[position + 1 :]])
        try:
            assert decode_plan(altered, "plan") == plan
        except FormatError:
            refused += 1
            assert position < unread
    assert refused > 20


@pytest.mark.parametrize("key", ["groups", "staged_groups", "cost", "notes", "conversion_id", "estimate", "explained"])
def test_what_follows_from_the_rest_is_not_read(key):
    body = json.loads(encode_plan(plan_of_ranks()))
    assert decode_plan(json.dumps(body | {key: "nonsense"}).encode(), "plan") == plan_of_ranks()
    body.pop(key, None)
    assert decode_plan(json.dumps(body).encode(), "plan") == plan_of_ranks()


# Documents of one who knows how ids are made: ids are no signature.


def signed(body):
    """A document with the ids that belong to it."""
    conversion_id = made_id(body["conversion"]) if "conversion" in body else ""
    keys = ("format", "limits", "copy_bases", "staging", "groups", "staged_groups")
    covered = {key: body[key] for key in keys if key in body} | {"conversion_id": conversion_id}
    covered["conversion"] = digest(body.get("conversion"))
    return json.dumps({**body, "conversion_id": conversion_id, "plan_id": digest(covered)}).encode()


def made_id(conversion):
    try:
        catalog = {k: v for k, v in conversion["catalog"].items() if k not in ("kind", "notes", "header_bytes")}
        return digest({**conversion, "catalog": catalog})
    except (AttributeError, KeyError, TypeError):  # a forgery without a catalog
        return ""


def digest(body):
    canonical = json.dumps(body, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


@pytest.mark.parametrize("kind", PLANS)
def test_ids_are_made_as_these_tests_make_them(kind):
    plan = PLANS[kind]()
    body = json.loads(encode_plan(plan))
    assert json.loads(signed(body)) == body


def test_another_plan_with_its_own_id_is_read():
    body = json.loads(encode_plan(plan_of_ranks()))
    body["conversion"]["target_url"] = "memory://elsewhere"
    assert decode_plan(signed(body), "plan").conversion.target_url == "memory://elsewhere"


def at(*path, to):
    """A forgery: what is at a path of the conversion becomes something else."""
    return anywhere("conversion", *path, to=to)


def anywhere(*path, to):
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


def refuse(body, seconds=1):
    """Expect one short error soon, of what is wrong and not of an id that does not fit."""
    data = signed(body)
    begun = time.process_time()
    with pytest.raises(FormatError, match=r"^plan: the plan cannot be read: ") as refused:
        decode_plan(data, "plan")
    assert time.process_time() - begun < seconds
    assert refused.value.hint == "Make a new plan."
    assert len(str(refused.value)) < 2000
    return str(refused.value)


def paths(body, path=()):
    """The path of every key of every object."""
    for key, value in body.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from paths(value, (*path, key))


INPUTS = ("conversion", "limits", "copy_bases", "staging")


@pytest.mark.parametrize("kind", ["ranks", "changed", "staged", "iteration"])
def test_keys_that_lack_or_are_unknown(kind):
    """Wherever keys are those of a value; maps of names take any."""
    good = PLANS[kind]()
    maps = ("stages", "config", "options", "scalings", "metadata", "texts", "renamed", "chunk_shapes", "common")
    body = json.loads(encode_plan(good))
    for path in [path for path in paths(body) if path[0] in INPUTS and not set(path[:-1]) & set(maps)]:
        body = json.loads(encode_plan(good))
        holder = body
        for name in path[:-1]:
            holder = holder[name]
        value = holder.pop(path[-1])
        assert "wrong keys" in refuse(body) or path[-1] == "kind"
        holder |= {path[-1]: value, "extra": 1}
        assert "wrong keys" in refuse(body)


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
@given(st.data(), st.sampled_from(sorted(PLANS)), junk)
def test_junk_anywhere_is_a_format_error_or_a_plan(data, kind, value):
    """Whatever is in a document, reading it raises nothing but FormatError."""
    body = json.loads(BODIES[kind])
    holder, key = body, data.draw(st.sampled_from(INPUTS))
    for _ in range(data.draw(st.integers(0, 7))):
        if not isinstance(holder[key], dict | list) or not holder[key]:
            break
        holder = holder[key]
        key = data.draw(st.sampled_from(list(holder) if isinstance(holder, dict) else list(range(len(holder)))))
    holder[key] = value
    try:
        plan = decode_plan(signed(body), "plan")
    except FormatError:
        return
    assert isinstance(plan, Plan)


HUGE = 1 << 62
ENTRIES = ("catalog", "entries")
KIND, HELD = (*ENTRIES, "kinds", 0), (*ENTRIES, "tensors", 0)
BOXES = (*KIND, 3)
STRATEGY = ("target", "strategy")
FORGERIES = {
    "a boolean": at("catalog", "objects", 0, 1, to=True),
    "a float": at("catalog", "header_bytes", to=1.0),
    "a negative number": at("catalog", "header_bytes", to=-1),
    "a huge number": at("catalog", "objects", 0, 1, to=1 << 63),
    "a key that leads out": at("catalog", "objects", 0, 0, to="../x"),
    "an absolute key": at("catalog", "objects", 0, 0, to="/etc/passwd"),
    "a source key twice": at("catalog", "objects", to=lambda objects: [objects[0], objects[0], *objects[2:]]),
    "a base that is not there": at("catalog", "objects", 0, 3, to=1),
    "a negative base": at("catalog", "objects", 0, 3, to=-1),
    "a fill that is no hexadecimal": at("catalog", "objects", 0, 4, to="xx"),
    "a long fill": at("catalog", "objects", 0, 4, to="00" * 9),
    "an unknown dtype": at(*KIND, 0, to="F31"),
    "a dtype that is a list": at(*KIND, 0, to=["F32"]),
    "many axes": at(*KIND, 1, to=[1] * 65),
    "more bits than there are": at(*KIND, 1, to=[1 << 40, 1 << 40]),
    "half a byte": at(*ENTRIES, "kinds", 1, 1, to=[5]),
    "an unknown sharding": at(*KIND, 2, to="inside"),
    "a sharding that is no text": at(*KIND, 2, to=["whole"]),
    "no sharding": at(*KIND, to=lambda kind: kind[:2]),
    "a tensor twice": at(*ENTRIES, "tensors", to=lambda tensors: [*tensors, tensors[0]]),
    "a long name": at(*HELD, 0, to="." * 5000),
    "a name that is no text": at(*HELD, 0, to=7),
    "no name": at(*HELD, to=[]),
    "a kind that is not there": at(*HELD, 1, to=99),
    "a kind counted from the end": at(*HELD, 1, to=-1),
    "a kind that is no number": at(*HELD, 1, to=True),
    "no such object": at(*HELD, 2, to=[99, 8]),
    "an object counted from the end": at(*HELD, 2, to=[-1, 8]),
    "no holders": at(*HELD, 2, to=[]),
    "half a holder": at(*HELD, 2, to=[0, 1, 2]),
    "holders of a box more": at(*HELD, to=lambda tensor: [*tensor, [0, 8]]),
    "holders of a box less": at(*HELD, to=lambda tensor: tensor[:-1]),
    "bytes outside the object": at(*HELD, 2, 1, to=10**6),
    "bytes of another tensor": at(*HELD, 2, to=[0, 192]),
    "a hole": both(at(*BOXES, to=lambda boxes: boxes[:1]), at(*HELD, to=lambda tensor: tensor[:3])),
    "an overlap": at(*BOXES, 1, 0, to=[4, 0]),
    "one box twice, another not": at(*BOXES, to=lambda boxes: [boxes[0], boxes[0]]),
    "a box outside": at(*BOXES, 0, to=[[9, 9], [10, 10]]),
    "a box of other axes": at(*BOXES, 0, to=[[0], [1]]),
    "a box upside down": at(*BOXES, 0, to=[[5, 0], [0, 6]]),
    "a box of three sides": at(*BOXES, 0, to=[[0, 0], [5, 6], [5, 6]]),
    "lists for everything": at("catalog", to=[]),
    "an unknown target": at("target", "kind", to="half"),
    "a target of another kind": at("target", "kind", to="tree"),
    "a kind of target that is a list": at("target", "kind", to=["ranks"]),
    "ranks that are not there": at("target", "ranks", to=[0, 99]),
    "ranks counted from the end": at("target", "ranks", to=[-1, 0]),
    "ranks twice": at("target", "ranks", to=[0, 0, 1]),
    "ranks that descend": at("target", "ranks", to=[1, 0]),
    "one name for all": at("target", "name", to="r"),
    "attributes in the name": at("target", "name", to="{rank.__class__}"),
    "a width in the name": at("target", "name", to="{rank:99999999999}"),
    "half a brace": at("target", "name", to="{rank}{"),
    "a name that leads out": at("target", "name", to="../{rank}"),
    "an unknown container": at("target", "container", to="zip"),
    "redundancy in a text": at("target", "remove_redundancy", to="True"),
    "redundancy in a number": at("target", "remove_redundancy", to=1),
    "a name twice after normalising": both(at("target", "name", to="\u00e9{rank}"), at("manifest_key", to="e\u03010")),
    "a name below another": at("manifest_key", to="r0/x"),
    "a manifest that is an output": at("manifest_key", to="r0"),
    "a manifest that leads out": at("manifest_key", to="a/../../b"),
    "many devices": at(*STRATEGY, "device_count", to=HUGE),
    "no devices": at(*STRATEGY, "device_count", to=0),
    "no stages": at(*STRATEGY, "stages", to=[]),
    "a long name in the strategy": at(*STRATEGY, "stages", 0, to={"." * 5000: 0}),
    "a layout that is not there": at(*STRATEGY, "stages", 0, to={FIRST: 99}),
    "a layout counted from the end": at(*STRATEGY, "stages", 0, to={FIRST: -1}),
    "a layout of another tensor": at(*STRATEGY, "stages", 0, to={FIRST: 2}),
    "a grid of many": at(*STRATEGY, "layouts", 0, 0, to=[1 << 40, 1 << 20]),
    "a grid of many axes": at(*STRATEGY, "layouts", 0, 0, to=[1] * 10**5),
    "no grid": at(*STRATEGY, "layouts", 0, 0, to=[0]),
    "a map of many axes": at(*STRATEGY, "layouts", 0, 1, to=[[]] * 10**5),
    "an optimizer shard of -2": at(*STRATEGY, "layouts", 0, 2, to=-2),
    "an unknown limit": anywhere("limits", "extra", to=1),
    "many threads": anywhere("limits", "concurrency", to=100_000),
    "no threads": anywhere("limits", "concurrency", to=0),
    "much memory": anywhere("limits", "memory_bytes", to=HUGE),
    "little memory": anywhere("limits", "memory_bytes", to=1),
    "long reads": anywhere("limits", "read_bytes", to=HUGE),
    "tiny reads": anywhere("limits", "read_bytes", to=0),
    "tiny parts": anywhere("limits", "max_part_bytes", to=1),
    "few small parts": both(anywhere("limits", "max_part_count", to=1), anywhere("limits", "max_part_bytes", to=20)),
    "bases that are no numbers": anywhere("copy_bases", to=["0"]),
    "a base of -2": anywhere("copy_bases", to=[-2]),
    "bases in a text": anywhere("copy_bases", to="0"),
    "staging in a text": anywhere("staging", to="always"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_plans_are_refused_at_once(name):
    body = json.loads(BODIES["ranks"])
    FORGERIES[name](body)
    assert "altered" not in refuse(body)


def gigantic(bits):
    def forge(body):
        conversion = body["conversion"]
        conversion["catalog"]["objects"] = [["o", HUGE, "", 0, ""]]
        conversion["catalog"]["entries"] = {
            "kinds": [["U8", [1 << bits], "whole", None]],
            "tensors": [["w", 0, [0, 8]]],
        }
        conversion["renamed"] = {}
        body["limits"] |= {"max_part_bytes": HUGE, "max_object_bytes": HUGE, "memory_bytes": 1 << 44}

    return forge


OTHER_FORGERIES = {
    "a new name that is taken": ("ranks ckpt", at("renamed", to={"step": "w"})),
    "a text's name that is taken": ("ranks ckpt", at("renamed", to={"step": "note"})),
    "new names that are equal": ("ranks ckpt", at("renamed", to={"step": "x", "gone": "x", "w": "x"})),
    "a new name that is no text": ("ranks ckpt", at("renamed", to={"step": 1})),
    "a long new name": ("ranks ckpt", at("renamed", to={"step": "." * 5000})),
    "new names in a list": ("ranks ckpt", at("renamed", to=[["step", "x"]])),
    "a cut tensor with no layout": ("ranks ckpt", at("renamed", to={"w": "x"})),
    "another tensor's layout": ("iteration", at("renamed", to={"new.step": "w", "w": "new.step"})),
    "texts in a list": ("ranks ckpt", at("catalog", "texts", to=["note"])),
    "a text that is none": ("ranks ckpt", at("catalog", "texts", to={"note": 1})),
    "a text that is long": ("ranks ckpt", at("catalog", "texts", to={"note": "x" * (1 << 19)})),
    "a text that ends in nothing": ("ranks ckpt", at("catalog", "texts", to={"note": "x\0"})),
    "texts in safetensors": ("parts", at("catalog", "texts", to={"note": "x"})),
    "a name that was dropped and is none": ("ranks ckpt", at("catalog", "dropped", to=[1])),
    "dropped names in a text": ("ranks ckpt", at("catalog", "dropped", to="gone")),
    "parts of nothing": ("parts", at("target", "part_bytes", to=0)),
    "parts of less than nothing": ("parts", at("target", "part_bytes", to=-1)),
    "an object size that is a boolean": ("full ckpt", at("target", "object_bytes", to=True)),
    "a packed tensor of floats": ("full ckpt", at("catalog", "metadata", to={"w": "Int4"})),
    "a name that leads out": ("full ckpt", at("target", "single_name", to="../m.ckpt")),
    "an index that is absolute": ("full", at("target", "index_name", to="/i.json")),
    "an iteration without end": ("iteration", at("target", "iteration", to=10**18)),
    "an iteration before the first": ("iteration", at("target", "iteration", to=-1)),
    "a prefix that leads out": ("iteration", at("target", "prefix", to="../")),
    "training state that is a list": ("iteration", at("target", "common", to={"global_step": []})),
    "chunks of nothing": ("zarr", at("target", "chunk_bytes", to=0)),
    "chunks of no shape": ("zarr", at("target", "chunk_shapes", to={"w": [0, 3]})),
    "chunks of other axes": ("zarr", at("target", "chunk_shapes", to={"w": [4]})),
    "chunks of no tensor": ("zarr", at("target", "chunk_shapes", to={"x": [4]})),
    "chunks that are no numbers": ("zarr", at("target", "chunk_shapes", to={"w": ["4", "3"]})),
    "a tensor of no object": ("tree", at(*HELD, 0, to="w")),
    "an object that leads out": ("tree", at(*HELD, 0, to="../m.safetensors\nw")),
    "an absolute object": ("tree", at(*HELD, 0, to="/etc/m.safetensors\nw")),
    "an object that is the directory of another": ("tree", at(*HELD, 0, to="rank_1/m.ckpt/x.y\nw")),
    "two objects of one name": ("tree", at(*HELD, 0, to="rank_1/m.other\nv")),
    "the manifest as an object": (
        "tree",
        both(at(*HELD, 0, to="x.safetensors\nw"), at("manifest_key", to="x.ckpt")),
    ),
    "new names out of a tree": ("tree", at("renamed", to={"rank_0/m.safetensors\nw": "w"})),
    "a dtype that is no float": ("changed", at("change", "dtype", to="I32")),
    "a dtype of packed floats": ("changed", at("change", "dtype", to="F4")),
    "a scaling that is no float": ("changed", at("change", "scalings", to=lambda x: dict.fromkeys(x, 10**400))),
    "a scaling that is a boolean": ("changed", at("change", "scalings", to=lambda x: dict.fromkeys(x, True))),
    "an option of a float": ("changed", at("change", "options", "qkv_concat", to=1.5)),
    "an option of nothing": ("changed", at("change", "options", "qkv_concat", to=None)),
    "an attachment that leads out": ("changed", at("attachments", 0, 0, to="../config.json")),
    "an attachment over the manifest": ("changed", at("attachments", 0, 0, to="reshard-manifest.json")),
    "an attachment over the index": ("changed", at("attachments", 0, 0, to="i.json")),
    "an attachment of no object": ("changed", at("attachments", 0, 1, to=99)),
    "an attachment counted from the end": ("changed", at("attachments", 0, 1, to=-1)),
    "an attachment of another length": ("changed", at("attachments", 0, 2, to=98)),
    "a large attachment": (
        "changed",
        both(at("catalog", "objects", 2, 1, to=1 << 30), at("attachments", 0, 2, to=1 << 30)),
    ),
    "an object of no place": ("changed", at("catalog", "objects", 2, 3, to=3)),
    "a place that lacks": ("changed", at("catalog", "others", to=["memory://l"])),
    "a place that is a number": ("changed", at("catalog", "others", 0, to=7)),
    "a first pass to no zarr": ("staged", anywhere("staging", "target", to={"kind": "tree", "container": "ckpt"})),
    "a first pass in chunks of nothing": ("staged", anywhere("staging", "target", "chunk_bytes", to=0)),
    "a first pass of no such tensor": ("staged", anywhere("staging", "target", "chunk_shapes", to={"x": [1, 1]})),
    "a first pass of uneven chunks": ("staged", anywhere("staging", "target", "chunk_shapes", "inner", to=[16, 3])),
    "a first pass with little memory": ("staged", anywhere("staging", "limits", "memory_bytes", to=1)),
    "a place that is no text": ("staged", anywhere("staging", "mode", "url", to=1)),
    "nearness in a number": ("staged", anywhere("staging", "mode", "is_near", to=1)),
    "no mode": ("staged", anywhere("staging", "mode", to=None)),
    **{f"a tensor of 2**{bits} bytes": ("full ckpt", gigantic(bits)) for bits in (46, 50, 60)},
}


@pytest.mark.parametrize("name", OTHER_FORGERIES)
def test_other_forged_plans_are_refused_at_once(name):
    kind, forge = OTHER_FORGERIES[name]
    body = json.loads(BODIES[kind])
    forge(body)
    assert "altered" not in refuse(body, seconds=5)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("value", [None, [], {}, "", "nonsense", -1, 1.5, [None], {"": ""}, 1 << 70])
def test_nonsense_in_any_field_of_a_target(kind, value):
    for field in json.loads(BODIES[kind])["conversion"]["target"]:
        body = json.loads(BODIES[kind])
        body["conversion"]["target"][field] = value
        try:
            plan = decode_plan(signed(body), "plan")
        except FormatError:
            continue
        assert getattr(plan.conversion.target, field) in (value, tuple(value) if isinstance(value, list) else value)


def vast(shape, cut):
    """One tensor of 2**59 bytes, read byte by byte; and much memory."""

    def forge(body):
        layout = [[2], cut, 0, 0, None, 0]
        strategy = {"device_count": 2, "layouts": [layout], "stages": [{"big": 0}]}
        body["conversion"]["target"] |= {"ranks": [0], "strategy": strategy}
        body["conversion"]["catalog"] |= {
            "objects": [["big", HUGE, "", 0, ""]],
            "entries": {"kinds": [["U8", shape, "whole", None]], "tensors": [["big", 0, [0, 8]]]},
        }
        body["limits"] |= {"read_bytes": 1, "max_gap_bytes": 0, "max_part_bytes": HUGE, "max_object_bytes": HUGE}
        body["limits"] |= {"memory_bytes": 1 << 40}

    return forge


@pytest.mark.parametrize("memory_bytes", [1 << 30, 1 << 40, 1 << 44])
@pytest.mark.parametrize(
    ("shape", "cut"),
    [([1 << 58, 2], [[], [0]]), ([2, 1 << 58], [[0], []]), ([1 << 29, 1 << 30], [[], [0]]), ([1 << 59], [[0]])],
)
def test_reads_without_end_are_refused(shape, cut, memory_bytes):
    body = json.loads(BODIES["ranks"])
    vast(shape, cut)(body)
    body["limits"]["memory_bytes"] = memory_bytes
    assert "altered" not in refuse(body)


def test_many_objects_in_many_places_are_checked_in_linear_time():
    body = json.loads(BODIES["ranks"])
    catalog = body["conversion"]["catalog"]
    catalog["others"] = [f"memory://{number}" for number in range(50_000)]
    catalog["objects"] += [["k", 1, "e", number + 1, ""] for number in range(50_000)]
    begun = time.process_time()
    assert len(decode_plan(signed(body), "plan").catalog.objects) > 50_000
    assert time.process_time() - begun < 5


DEEPSEEK = {
    "num_hidden_layers": 1, "num_nextn_predict_layers": 1 << 39, "first_k_dense_replace": 0,
    "n_routed_experts": 1 << 39,
    "vocab_size": 4, "hidden_size": 4, "intermediate_size": 4, "moe_intermediate_size": 4, "num_attention_heads": 1,
    "q_lora_rank": 4, "kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4,
}  # fmt: skip


@pytest.mark.parametrize("naming", ["legacy", "mcore", "legacy_infer"])
@pytest.mark.parametrize("huge", [{}, {"n_routed_experts": 60_000, "num_nextn_predict_layers": 60_000}])
def test_a_model_without_end_is_refused_at_once(naming, huge):
    body = json.loads(BODIES["changed"])
    body["conversion"]["change"] |= {
        "family": "deepseek_v3",
        "naming": naming,
        "options": {},
        "config": DEEPSEEK | huge,
        "scalings": {},
    }
    refuse(body, seconds=5)


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
    for value in NONSENSE:
        body = json.loads(BODIES["changed"])
        at(*path, to=value)(body)
        begun = time.process_time()
        try:
            plan = decode_plan(signed(body), "plan")
        except FormatError:
            pass
        else:
            assert json.loads(encode_plan(plan))["conversion"] == body["conversion"]
        assert time.process_time() - begun < 2


BODIES = {kind: encode_plan(make()) for kind, make in PLANS.items()}


# Tilings.


def test_many_boxes_are_checked_in_linear_time():
    """128 x 128 boxes of one tensor; then one of them moved."""
    rows = columns = 128
    boxes = [Box((i, j), (i + 1, j + 1)) for i in range(rows) for j in range(columns)]
    begun = time.process_time()
    check_tilings([((rows, columns), boxes)])
    for wrong in ([*boxes[1:], boxes[1]], boxes[1:], [*boxes[:-1], boxes[0]]):
        with pytest.raises(FormatError, match="boxes that tile"):
            check_tilings([((rows, columns), wrong)])
    assert time.process_time() - begun < 5


def test_boxes_that_are_no_grid():
    spiral = [((0, 0), (1, 2)), ((0, 2), (2, 3)), ((2, 1), (3, 3)), ((1, 0), (3, 1)), ((1, 1), (2, 2))]
    check_tilings([((3, 3), [Box(start, stop) for start, stop in spiral])])


def test_boxes_of_three_axes():
    halves = [Box((i, j, k), (i + 1, j + 1, k + 1)) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    check_tilings([((2, 2, 2), halves)])
    with pytest.raises(FormatError, match="boxes that tile"):
        check_tilings([((2, 2, 2), [*halves[:-1], halves[0]])])


def test_boxes_may_hang_over_the_end():
    check_tilings([((3,), [Box((0,), (2,)), Box((2,), (4,))])])
    with pytest.raises(FormatError, match="boxes inside"):
        check_tilings([((2,), [Box((0,), (2,)), Box((2,), (4,))])])


def test_boxes_cut_on_many_axes_are_refused_at_once():
    begun = time.process_time()
    box = Box((0,) * 60, (1,) * 60)
    with pytest.raises(FormatError, match="corners"):
        check_tilings([((2,) * 60, [box])])
    assert time.process_time() - begun < 1
