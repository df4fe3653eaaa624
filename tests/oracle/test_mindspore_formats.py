"""Every type of value that MindSpore saves: read, listed and written again, in both of its formats."""

from __future__ import annotations

import re

import pytest
from oracle.cases import Case, memory_url, objects_below, outputs_of, read_ckpt
from support.ckpt_parser import parse_ckpt
from support.planning import plan_for

import reshard
from reshard.engine.events import ignore
from reshard.engine.execute import Policy, execute
from reshard.engine.sources import SourceOptions, read_tree
from reshard.engine.workers import working
from reshard.errors import FormatError, PlanError
from reshard.formats.containers import Container
from reshard.planning.limits import Limits
from reshard.planning.targets.tree_target import TreeTarget, tree_name
from reshard.storage import MemoryStore, open_source, open_target

SAVED = Case.named("fmt_ckpt_all_types")
TREES = Case.named("by_rank")


def put(case: Case, folder: str) -> str:
    """A case's files of one folder in memory."""
    base = memory_url(f"formats-{case.name}")
    store = MemoryStore(base.removeprefix("memory://"))
    for name in case.below(folder):
        store.put(name, case.read(name))
    return f"{base}/{folder}"


@pytest.mark.parametrize("name", ["plain", "crc", "crc_scalar5", "rr_true", "rr_false"])
def test_every_type_of_safetensors_passes_unchanged(name):
    """What the writer noted about its own file (a checksum, removed redundancy) is not true of another, and goes."""
    case = Case.named("fmt_safetensors_all_types")
    src = put(case, "expected")
    reshard.convert(f"{src}/{name}.safetensors", f"{src}/out", prefix="net.safetensors")
    (made,) = outputs_of(f"{src}/out").values()
    before = case.content(f"expected/{name}.safetensors")
    assert made.tensors == before.tensors
    assert made.order == before.order
    gone = {"crc_num", "remove_redundancy"}
    assert made.metadata == {key: value for key, value in before.metadata.items() if key not in gone}


@pytest.mark.parametrize("name", ["plain", "rr_true"])
def test_every_type_of_safetensors_goes_to_ckpt(name):
    case = Case.named("fmt_safetensors_all_types")
    src = put(case, "expected")
    reshard.convert(f"{src}/{name}.safetensors", f"{src}/out/made.ckpt")
    assert read_ckpt(objects_below(f"{src}/out")["made.ckpt"]).tensors == (
        case.content(f"expected/{name}.safetensors").tensors
    )


@pytest.mark.parametrize(("name", "check_crc"), [("plain", False), ("plain", True), ("crc", False), ("crc", True)])
def test_every_type_of_ckpt_passes_unchanged(name, check_crc):
    """Texts too; the checksum is of the object that was read, and goes."""
    src = put(SAVED, "expected")
    reshard.convert(f"{src}/{name}.ckpt", f"{src}/out/made.ckpt", check_crc=check_crc)
    before = parse_ckpt(SAVED.read(f"expected/{name}.ckpt"))
    made = parse_ckpt(objects_below(f"{src}/out")["made.ckpt"])
    assert made.values == before.values
    assert made.texts == before.texts == {"note": "hello 测试"}
    assert (before.is_checked, made.is_checked) == (name == "crc", False)


@pytest.mark.parametrize("name", ["plain", "crc"])
def test_listed_as_mindspore_loads_it(name):
    """``load_checkpoint`` in the case's own words: shape and type of every value, and the text."""
    catalog = reshard.inspect(f"{put(SAVED, 'expected')}/{name}.ckpt")
    loaded = SAVED.json["load_checkpoint"]
    texts = {name: value for name, value in loaded.items() if isinstance(value, str)}
    assert catalog.texts == texts != {}
    shapes = {entry.spec.name: list(entry.spec.shape) for entry in catalog.entries}
    assert shapes == {name: value[0] for name, value in loaded.items() if name not in texts}
    listed = SAVED.listed(f"expected/{name}.ckpt")
    assert {entry.spec.name: entry.spec.dtype.value for entry in catalog.entries} == {
        name: tensor.dtype for name, tensor in listed.items()
    }


def test_text_has_no_place_in_safetensors():
    """MindSpore fails without a word of which; here the text is named, and the rest goes once it is left out."""
    src = put(SAVED, "expected")
    with pytest.raises(PlanError, match=r"cannot hold text values\n  - note"):
        reshard.convert(f"{src}/plain.ckpt", f"{src}/out/made.safetensors")
    reshard.convert(f"{src}/plain.ckpt", f"{src}/out", prefix="made.safetensors", drop=["note"])
    (made,) = outputs_of(f"{src}/out").values()
    assert made.tensors == SAVED.content("expected/plain.ckpt").tensors


@pytest.mark.parametrize("mode", ["AES-GCM", "AES-CBC"])
def test_encryption_is_refused_by_name(mode):
    case = Case.named("fmt_encrypted")
    src = put(case, "expected")
    with pytest.raises(FormatError, match=f"{mode.lower()}.ckpt.*encrypted object.*encrypted with {mode}"):
        reshard.convert(f"{src}/{mode.lower()}.ckpt", f"{src}/out/made.safetensors")
    assert case.content("in/plain.ckpt").tensors == case.listed("in/plain.ckpt")


@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
@pytest.mark.parametrize("pattern", [None, "net_rank_[02]"])
def test_a_tree_of_shards(form, pattern):
    """The same shards in both formats, as MindSpore cut them: each object becomes the other one."""
    base = put(TREES, "in")
    theirs = {"ckpt": "st", "safetensors": "ckpt"}[form]
    converted(f"{base}/{theirs}", f"{base}/out", Container(form), pattern and re.compile(pattern))
    found = outputs_of(f"{base}/out")
    mine = {"ckpt": "ckpt", "safetensors": "st"}[form]
    wanted = [name for name in TREES.below(f"in/{mine}") if pattern is None or re.search(pattern, name)]
    assert sorted(f"in/{mine}/{key}" for key in found) == wanted
    for key, content in found.items():
        expected = TREES.content(f"in/{mine}/{key}")
        assert content.tensors == expected.tensors, key
        assert content.metadata == expected.metadata, key


def test_a_tree_of_shards_renamed():
    base = put(TREES, "in")
    converted(f"{base}/ckpt", f"{base}/out", Container.SAFETENSORS, new_names={"lm_head.weight": "output.weight"})
    for key, content in outputs_of(f"{base}/out").items():
        before = dict(TREES.content(f"in/st/{key}").tensors)
        before["output.weight"] = before.pop("lm_head.weight")
        assert content.tensors == before


def converted(src: str, dst: str, container: Container, pattern=None, new_names=None) -> None:
    """Every object of a tree on its own, as ``ckpt_to_safetensors`` and its reverse do."""
    source, target = open_source(src), open_target(dst)
    (other,) = set(Container) - {container}
    with working(2, source.store) as workers:
        catalog = read_tree(source, other, pattern, SourceOptions(), workers)
    renamed = {
        tree_name(key, old): tree_name(key, new)
        for key in {item.key for item in catalog.objects}
        for old, new in (new_names or {}).items()
    }
    plan = plan_for(catalog, TreeTarget(container), target.url, Limits(), renamed=renamed)
    execute(plan, source, target, policy=Policy(overwrite=False), listener=ignore)
    assert reshard.verify(dst).is_ok
