"""What MindSpore's own tools made of the same input: reproduced tensor for tensor, through the public API."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from oracle.calls import TRANSLATIONS
from oracle.cases import (
    BROKEN,
    KNOWN_WRONG,
    MADE_WRONG,
    PASSED_RAW,
    WRONG,
    Case,
    cases,
    check,
    check_deduplicated,
    compare,
    copies,
    memory_url,
    objects_below,
    outputs_of,
    read_content,
)

import reshard
from reshard.api.strategies import merge_strategies, read_strategy
from reshard.errors import PlanError
from reshard.storage import MemoryStore

CASES = [case for case in cases() if case.is_ours]
SETTINGS = ["dev222", "optmix", "optmix2", "optmix4"]


def of_kind(name: str) -> str:
    return "to_full" if name.startswith("to_full") else name.split("_")[0]


def test_every_kind_is_here():
    assert Counter(of_kind(case.name) for case in CASES) == {
        "split": 11, "reshard": 15, "unify": 14, "lds": 5, "fmt": 2, "to_full": 1, "by": 1,
    }  # fmt: skip


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_no_case_is_left_out(case):
    assert case.is_known, f"nobody compares the answers of {case.functions}"


def test_tables_name_cases_that_exist():
    names = {case.name for case in cases()}
    assert {name for name, _ in KNOWN_WRONG} | MADE_WRONG.keys() | PASSED_RAW | WRONG | copies().keys() <= names
    assert {call["function"] for case in cases() for call in case.json["calls"]} >= BROKEN


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_files_are_what_the_case_says(case):
    """Every file that ``case.json`` lists is there, or its copy is, with the tensors that are listed.

    Of answers there is what tests need the bytes of.
    """
    missing = case.json["files"].keys() - case.paths.keys()
    assert not [name for name in missing if not name.startswith("expected/")]
    for name, listed in case.json["files"].items():
        if name not in missing and listed.get("tensors") and "truncated" not in name:
            assert case.content(name).tensors == case.listed(name), name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_as_mindspore_does_it(case):
    check(case, memory_url(f"oracle-{case.name}"))


def preparations():
    """Calls that made the inputs of cases, where these are still there; of equal ones the first."""
    found = {}
    for case in (case for case in cases() if case.functions <= TRANSLATIONS.keys()):
        for step in case.prepared:
            kwargs = step.get("kwargs", {})
            made, strategy = case.below(kwargs.get("dst_checkpoints_dir", "?")), kwargs.get("dst_strategy_file")
            if made and step["call"] == "mindspore.transform_checkpoints":
                what = [case.read(name) for name in (*case.below(kwargs["src_checkpoints_dir"]), strategy)]
                found.setdefault((*what, kwargs["output_format"]), (case, step))
    return [pytest.param(*each, id=f"{each[0].name}-{each[1]['kwargs']['output_format']}") for each in found.values()]


@pytest.mark.parametrize(("case", "step"), preparations())
def test_inputs_as_mindspore_made_them(case, step):
    """Every input was cut from a whole model by a call like those of the cases."""
    base = case.upload(memory_url(f"oracle-prepare-{case.name}"))
    request = TRANSLATIONS[step["call"]](dict(step["kwargs"]), base)
    reshard.convert(**request.arguments)
    compare(case, [request])


@pytest.mark.parametrize("case", [Case.named(name) for name in sorted(PASSED_RAW)], ids=lambda case: case.name)
def test_raw_slices_are_refused(case):
    """MindSpore passes on one rank's slice of what the target has no layout for. Exactly those are named here."""
    base = case.upload(memory_url(f"oracle-raw-{case.name}"))
    full = whole_tensors(case)
    for request, answered in zip(case.requests(base), case.answered_requests(base), strict=True):
        with pytest.raises(PlanError, match="drop='"):
            reshard.convert(**request.arguments)
        passed = {
            tensor
            for name in case.below(request.answer)
            for tensor, held in case.content(name).tensors.items()
            if tensor.startswith("accu_grads.") and held.shape != full[tensor].shape
        }
        assert sorted(answered.arguments["drop"]) == sorted(passed) != []
    assert list(MemoryStore(base.removeprefix("memory://")).list("out")) == []


def whole_tensors(case):
    """Everything of the model that the case's shards were cut from."""
    (name,) = case.below("in/full")
    return case.content(name).tensors


@pytest.mark.parametrize("case", [case for case in CASES if case.name.startswith("unify_")], ids=lambda case: case.name)
def test_what_is_left_out_is_told(case):
    """MindSpore puts rank 0's raw slices of these beside its hyper-parameters; here they are named in the plan."""
    (request,) = case.requests(case.upload(memory_url(f"oracle-left-{case.name}")))
    made = reshard.plan(**request.arguments)
    held = {t for name in case.below("in/shards") for t in case.content(name).tensors if request.is_dropped(t)}
    assert set(made.catalog.dropped) == held
    told = [note for note in made.notes if "left out as requested" in note]
    assert len(told) == bool(held)
    assert all(note.startswith(f"{len(held)} tensors are left out as requested: ") for note in told)
    raw = case.content(f"{request.answer}/hyper_param.safetensors").tensors
    assert {tensor for tensor in raw if request.is_dropped(tensor)} <= held


@pytest.mark.parametrize("name", ["unify_mp4", "unify_pp2", "unify_choice_func"])
@pytest.mark.parametrize("part_count", [2, 5])
def test_several_parts(name, part_count):
    """The same tensors and hyper-parameters; parts are filled evenly, the largest tensor first."""
    case = Case.named(name)
    (request,) = case.requests(case.upload(memory_url(f"oracle-parts-{name}")))
    expected = {name: case.content(name) for name in case.below(request.answer)}
    whole = expected[f"{request.answer}/part0.safetensors"]
    total = expected[f"{request.answer}/param_name_map.json"]["metadata"]["total_size"]
    reshard.convert(**request.arguments, part_size=-(-total // part_count))
    found = outputs_of(request.dst)
    assert found.pop("param_name_map.json") == {
        "metadata": {"total_size": total},
        "weight_map": {
            tensor: name
            for name, content in found.items()
            for tensor in content.tensors
            if name != "hyper_param.safetensors"
        },
    }
    assert "global_step" in found.pop("hyper_param.safetensors").tensors
    assert sorted(found) == [f"part{number}.safetensors" for number in range(part_count)]
    assert {k: v for content in found.values() for k, v in content.tensors.items()} == whole.tensors
    assert [sum(map(nbytes, found[key].tensors.values())) for key in sorted(found)] == filled_evenly(
        [nbytes(tensor) for tensor in whole.tensors.values()], part_count
    )


def nbytes(tensor):
    width = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I8": 1}[tensor.dtype]
    return math.prod(tensor.shape) * width


def filled_evenly(sizes, part_count):
    """How full parts are when the largest goes first, always to the emptiest; which of equal ones does not matter."""
    parts = [0] * part_count
    for size in sorted(sizes, reverse=True):
        parts[parts.index(min(parts))] += size
    return parts


@pytest.mark.parametrize("name", ["split_pp2", "lds_pp2_ckpt", "reshard_mp4_to_pp2", "reshard_pp2_to_pp4", "unify_pp2"])
def test_stage_files_do_as_well_as_the_merged_one(name):
    case = Case.named(name)
    base = case.upload(memory_url(f"oracle-stages-{name}"))
    (request,) = case.answered_requests(base)
    merged = {
        k: v for k, v in request.arguments.items() if k.endswith("_strategy") and v and v.endswith("_merged.ckpt")
    }
    assert merged
    stages = {key: value.replace("_merged.ckpt", "_stages") for key, value in merged.items()}
    request = replace(request, arguments=request.arguments | stages)
    reshard.convert(**request.arguments)
    compare(case, [request])


@pytest.mark.parametrize("setting", SETTINGS)
def test_ranks_get_what_training_holds(setting):
    base, expected = training(setting)
    made = f"{base}/made"
    reshard.convert(
        f"{base}/in/{setting}.safetensors",
        made,
        dst_strategy=f"{base}/strategy/{setting}.ckpt",
        prefix="net.safetensors",
    )
    found = outputs_of(made)
    assert sorted(found) == sorted(expected)
    for key, content in expected.items():
        assert content.tensors.items() <= found[key].tensors.items(), key
        assert len(content.tensors) >= 14
    assert reshard.verify(made).is_ok


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_training_holds_is_merged(setting):
    base, expected = training(setting)
    whole = Case.named("training_slices").content(f"in/{setting}.safetensors")
    reshard.convert(
        f"{base}/expected/{setting}", f"{base}/full/all.safetensors", src_strategy=f"{base}/strategy/{setting}.ckpt"
    )
    found = read_content(objects_below(f"{base}/full")["all.safetensors"])
    assert found.tensors.items() <= whole.tensors.items()
    assert found.tensors.keys() == next(iter(expected.values())).tensors.keys()
    assert reshard.verify(f"{base}/full/all.safetensors").is_ok


def training(setting):
    """Everything of training_slices in memory, and what each rank holds under one setting."""
    case = Case.named("training_slices")
    base = case.upload(memory_url(f"oracle-training-{setting}"))
    store, expected = MemoryStore(base.removeprefix("memory://")), {}
    for name in case.below(f"expected/{setting}"):
        store.put(name, case.read(name))
        expected[name.removeprefix(f"expected/{setting}/")] = case.content(name)
    assert len(expected) == 8
    return base, expected


DEDUPLICATED = [
    case for case in CASES if any("remove_redundancy=True" in step.get("call", "") for step in case.prepared)
]


@pytest.mark.parametrize("case", DEDUPLICATED, ids=lambda case: case.name)
def test_redundancy_is_removed_as_mindspore_does_it(case):
    check_deduplicated(case, memory_url(f"oracle-dedup-{case.name}"))


def test_redundancy_is_removed_in_all_of_these_cases():
    assert len(DEDUPLICATED) == 4


def test_rank_by_rank_of_safetensors():
    """What MindSpore has a function for that raises whatever it is given."""
    case = Case.named("by_rank")
    base = case.upload(memory_url("oracle-by-rank"))
    for request in case.requests(base):
        (rank,) = request.arguments["ranks"]
        asked = request.arguments | {"src": f"{base}/in/st", "format": "safetensors", "prefix": f"r{rank}.safetensors"}
        reshard.convert(**asked)
        (made,) = outputs_of(request.dst).values()
        assert made.tensors == case.content(f"expected/r{rank}.ckpt").tensors


@pytest.mark.parametrize("form", ["ckpt", "json"])
def test_strategies_are_merged(form):
    case = Case.named("merge_strategies")
    base = memory_url(f"oracle-merge-{form}")
    store = MemoryStore(base.removeprefix("memory://"))
    for name in (*case.below("in"), *case.below("expected")):
        store.put(name, case.read(name))
    merged = merge_strategies(f"{base}/in/{form}", f"{base}/out/merged.{form}")
    assert merged == read_strategy(f"{base}/out/merged.{form}") == read_strategy(f"{base}/expected/merged.{form}")
    assert merged.stage_count == 2
