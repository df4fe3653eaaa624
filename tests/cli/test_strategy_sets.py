"""Whole sets of strategy files, as training writes them: made, merged and converted into a prefix."""

import json
from pathlib import Path
from uuid import uuid4

import pytest
from cli.runner import ok, run
from models.test_parallel_compiled import COMPILED, read

from reshard.api import convert_strategy, make_strategy, merge_strategies, read_strategy
from reshard.api.strategies import save_strategy
from reshard.errors import StrategyError, TargetExists
from reshard.formats.mindspore.strategy_merge import merge_strategy_files, parse_strategy_file
from reshard.formats.safetensors import plan_header
from reshard.storage import MemoryStore, open_location, read_object
from reshard.tensor import DType, Layout, Strategy, TensorSpec

CONFORMANCE = Path(__file__).parents[1] / "conformance"
MERGED = "merged_ckpt_strategy.ckpt"


@pytest.fixture
def bucket():
    return f"memory://{uuid4().hex}"


def files_at(url):
    place = open_location(url)
    return {name: read_object(place.child(name)) for name, _ in place.named_objects()}


def parsed(files):
    return {name: parse_strategy_file(body, name) for name, body in files.items()}


@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_a_set_is_the_compilers(case, bucket):
    """File by file it has the layouts that MindSpore compiled, its counter and stage; its merge rule takes them."""
    _, shapes, made, _ = read(case)
    save_strategy(made, f"{bucket}/strategy/")
    ours = parsed(files_at(f"{bucket}/strategy"))
    stages = {path.name: parse_strategy_file(path.read_bytes(), path.name) for path in (case / "strategy").iterdir()}
    theirs = {next(iter(file.operator_stages)): file for file in stages.values()}
    ranks = [f"ckpt_strategy_rank_{rank}.ckpt" for rank in range(made.rank_count)]
    assert [*ours] == sorted([*ranks, MERGED] if len(theirs) > 1 else ranks)
    for rank, name in enumerate(ranks):
        file, compiled = ours[name], theirs[rank // made.device_count]
        assert (file.current_stage, file.stage) == (compiled.current_stage, compiled.stage)
        assert file.layouts.keys() == compiled.layouts.keys()
        for parameter, layout in file.layouts.items():
            expected = compiled.layouts[parameter]
            assert layout.optimizer_shard_size == expected.optimizer_shard_size
            for device in range(made.device_count):
                assert layout.box_of(shapes[parameter], device) == expected.box_of(shapes[parameter], device)
    merged = merge_strategy_files([ours[name] for name in ranks])
    if len(theirs) > 1:
        assert (merged.layouts, merged.current_stage) == (ours[MERGED].layouts, ours[MERGED].current_stage)
    again = read_strategy(f"{bucket}/strategy")
    assert again.stage_count == made.stage_count
    assert [layouts.keys() for layouts in again.stages] == [layouts.keys() for layouts in made.stages]


def test_merging_into_a_prefix_keeps_the_files(bucket):
    """Operators and all: what is written for a rank is what its stage wrote."""
    folder = CONFORMANCE / "strategies" / "dp2mp2pp2" / "ckpt"
    merge_strategies(str(folder), f"{bucket}/set/")
    files = files_at(f"{bucket}/set")
    for rank in range(8):
        assert files[f"ckpt_strategy_rank_{rank}.ckpt"] == (folder / f"strategy_rank_{rank}.ckpt").read_bytes()
    theirs = CONFORMANCE / "mindspore" / "merge_strategies" / "expected" / "merged.ckpt"
    ours = parse_strategy_file(files[MERGED], "m")
    expected = parse_strategy_file(theirs.read_bytes(), "m")
    assert (ours.layouts, set(ours.operators), ours.current_stage) == (
        expected.layouts,
        set(expected.operators),
        expected.current_stage,
    )


def one_stage(rank_count):
    return Strategy(rank_count, ({"w": Layout((rank_count,), ((0,),))},))


TWO = Strategy(2, ({"w": Layout((2,), ((0,),))}, {"v": Layout((2,), ((0,),))}))


def test_a_prefix_is_one_that_ends_in_a_slash_or_is_there(bucket):
    save_strategy(one_stage(2), f"{bucket}/a/")
    assert len(files_at(f"{bucket}/a")) == 2
    save_strategy(one_stage(2), f"{bucket}/a", overwrite=True)
    assert len(files_at(f"{bucket}/a")) == 2
    save_strategy(one_stage(2), f"{bucket}/b")  # nothing is there: one object
    assert [*files_at(bucket)] == ["a/ckpt_strategy_rank_0.ckpt", "a/ckpt_strategy_rank_1.ckpt", "b"]


def test_local_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_strategy(one_stage(2), ".")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files_at(str(tmp_path)))
    assert len(files_at(str(tmp_path))) == 2
    save_strategy(one_stage(2), f"{tmp_path}/new/")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "readme.md").write_text("x")
    save_strategy(TWO, str(tmp_path / "there"))
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(
        [*(f"ckpt_strategy_rank_{rank}.ckpt" for rank in range(4)), MERGED, "readme.md"]
    )


def test_an_earlier_set_is_refused_then_replaced_whole(bucket):
    save_strategy(TWO, f"{bucket}/a/")
    before = files_at(f"{bucket}/a")
    with pytest.raises(TargetExists, match="strategy files exist already") as caught:
        save_strategy(one_stage(2), f"{bucket}/a/")
    assert len(caught.value.problems) == 5
    assert "`overwrite`" in str(caught.value)
    assert files_at(f"{bucket}/a") == before
    save_strategy(one_stage(2), f"{bucket}/a/", overwrite=True)
    assert [*files_at(f"{bucket}/a")] == ["ckpt_strategy_rank_0.ckpt", "ckpt_strategy_rank_1.ckpt"]
    assert read_strategy(f"{bucket}/a") == one_stage(2)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["other.ckpt", "strategy_rank_0.json", "ckpt_strategy_rank_0.json"])
def test_other_objects_that_readers_would_take(bucket, name, overwrite):
    place = open_location(bucket)
    place.store.put(f"a/{name}", b"x")
    place.store.put("a/below/ckpt_strategy_rank_0.ckpt", b"x")
    with pytest.raises(TargetExists, match="would take for strategy files") as caught:
        save_strategy(TWO, f"{bucket}/a/", overwrite=overwrite)
    assert caught.value.problems == (name,)


def test_names_that_mindspore_cannot_read(bucket):
    with pytest.raises(StrategyError, match="dash"):
        save_strategy(Strategy(1, ({"a-b": Layout((1,), ((),))},)), f"{bucket}/a/")
    assert files_at(bucket) == {}


def put_model(bucket):
    specs = [
        TensorSpec("model.embed_tokens.weight", DType.F32, (8, 4)),
        TensorSpec("model.norm.weight", DType.F32, (4,)),
    ]
    place = open_location(bucket)
    place.store.put("hf/model.safetensors", plan_header(specs, {}).data + bytes(144))
    place.store.put("hf/config.json", json.dumps({"model_type": "llama", "num_hidden_layers": 2}).encode())
    return f"{bucket}/hf"


def test_commands(bucket):
    model = put_model(bucket)
    made = ok("strategy", "make", f"{bucket}/set/", "--parallel", "mp=2,pp=2,vocab_emb_dp=false", "--for", model)
    assert "written    " in made.out
    assert "/set/" in made.out
    assert [*files_at(f"{bucket}/set")] == [*(f"ckpt_strategy_rank_{rank}.ckpt" for rank in range(4)), MERGED]
    again = run("strategy", "make", f"{bucket}/set/", "--parallel", "mp=2", "--for", model)
    assert again.code == 4
    assert "Give --overwrite to replace them" in again.err
    ok("strategy", "make", f"{bucket}/set", "--parallel", "mp=2", "--for", model, "--overwrite")
    assert len(files_at(f"{bucket}/set")) == 2
    ok("strategy", "convert", f"{bucket}/set", f"{bucket}/copy/")
    assert files_at(f"{bucket}/copy") == files_at(f"{bucket}/set")
    ok("convert", model, f"{bucket}/ranks", "--dst-strategy", f"{bucket}/copy")


def test_functions(bucket):
    model = put_model(bucket)
    made = make_strategy(f"{bucket}/set/", checkpoint=model, parallel="mp=2,pp=2")
    assert read_strategy(f"{bucket}/set").stages == made.stages
    converted = convert_strategy(f"{bucket}/set", f"{bucket}/layout.yaml")
    assert converted.stages == made.stages
    convert_strategy(f"{bucket}/layout.yaml", f"{bucket}/back/", checkpoint=model)
    assert read_strategy(f"{bucket}/back").rank_count == 4


def test_a_store_that_fails_says_so(bucket, monkeypatch):
    def full(self, key, data, *_more):
        raise OSError("no space")

    monkeypatch.setattr(MemoryStore, "put", full)
    with pytest.raises(OSError, match="no space"):
        save_strategy(TWO, f"{bucket}/a/")
