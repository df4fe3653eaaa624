"""Decisions on training jobs: what contradicts itself, what follows from a source, and what a run writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jobs.training_places import (
    CONFIG,
    content_of,
    names_below,
    new_place,
    put,
    put_full,
    put_full_ckpt,
    put_genuine_ranks,
    put_hugging_face,
    put_pipeline_ranks,
    put_ranks,
    put_training_ranks,
    remove,
)
from support.model_cases import FOLDER, read_config

import reshard
from reshard.api.strategies import read_strategy
from reshard.errors import NotFound, PlanError, StrategyError, TargetExists, UsageError, write_options
from reshard.jobs import training_run
from reshard.jobs.training_config import read_training_config
from reshard.jobs.training_job import TrainingJob, decide
from reshard.jobs.training_options import sharded_options
from reshard.jobs.training_run import plan_training_job, run_training_job
from reshard.jobs.training_source import find_source, suffix_of
from reshard.storage import open_location

AUTO = {"auto_trans_ckpt": True, "use_parallel": True}
MP2 = {"parallel_config.model_parallel": 2}
MP4 = {"parallel_config.model_parallel": 4}


def job_of(place: str, **given: Any) -> TrainingJob:
    """Decide on a configuration; keys have ``__`` for dots."""
    given = {"output_dir": f"{place}/output", **given}
    return decide(read_training_config(None, {name.replace("__", "."): value for name, value in given.items()}))


def refused(place: str, **given: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        job_of(place, **given)
    return caught.value


@pytest.fixture
def place() -> str:
    return new_place()


@pytest.fixture
def full(place: str) -> str:
    return put_full(f"{place}/unified")


@pytest.fixture
def ranks(place: str) -> str:
    """Four ranks, mp 4."""
    return put_ranks(f"{place}/ranks", "mp=4", f"{place}/strategy")


# Mismatches.


def test_full_weights_on_many_cards_need_auto_trans_ckpt(place: str, full: str) -> None:
    error = refused(place, load_checkpoint=full, use_parallel=True, **MP2)
    assert "the source is full, and the job runs on 2 ranks, but auto_trans_ckpt is not True" in error.message
    assert "Set auto_trans_ckpt: True" in error.hint


def test_shards_of_other_ranks_need_auto_trans_ckpt(place: str, ranks: str) -> None:
    error = refused(place, load_checkpoint=ranks, use_parallel=True, **MP2)
    assert "the source is cut another way than the job" in error.message
    assert "the source has rank 3, the job has 2 ranks" in error.message


def test_shards_cut_another_way_need_auto_trans_ckpt(place: str, ranks: str) -> None:
    error = refused(place, load_checkpoint=ranks, use_parallel=True, parallel_config__data_parallel=2, **MP2)
    assert "attention.wq.weight: rank 0 has [0:16, 0:64], and the job needs [0:32, 0:64]" in error.message


def test_shards_on_one_card_need_auto_trans_ckpt(place: str, ranks: str) -> None:
    error = refused(place, load_checkpoint=ranks, use_parallel=False, **MP4)
    assert "the source is 4 ranks, and the job runs on one card, but auto_trans_ckpt is not True" in error.message


def test_without_a_strategy_the_number_of_ranks_is_compared(place: str) -> None:
    ranks = put_ranks(f"{place}/ranks", "mp=4")
    error = refused(place, load_checkpoint=ranks, **MP2)
    assert "the source is 4 ranks, and the job runs on 2, but auto_trans_ckpt is not True" in error.message
    job = job_of(place, load_checkpoint=ranks, **MP4)
    assert job.verdict == "Nothing to do: each of 4 ranks loads its own shard."
    assert any(note.startswith("the layouts were not compared: no strategy at ") for note in job.notes)


def test_shards_without_a_strategy_cannot_be_cut_anew(place: str) -> None:
    ranks = put_ranks(f"{place}/ranks", "mp=4")
    error = refused(place, load_checkpoint=ranks, **AUTO, **MP2)
    assert error.message == f"{ranks}: no strategy says how these shards are cut"
    assert error.problems == (f"{place}/strategy", f"{ranks}/strategy", f"{ranks}/reshard-manifest.json")
    assert "src_strategy_path_or_dir" in error.hint


def test_nothing_at_the_path(place: str) -> None:
    with pytest.raises(NotFound, match="load_checkpoint: nothing lies at"):
        job_of(place, load_checkpoint=f"{place}/none")


# use_parallel.


def test_use_parallel_false_never_makes_ranks(place: str, full: str) -> None:
    job = job_of(place, load_checkpoint=full, use_parallel=False, auto_trans_ckpt=True, **MP2)
    assert job.verdict.startswith("Nothing to do: the source is full, and the job runs on one card")
    assert job.options is None
    assert job.strategy_url is None
    assert job.contradictions == (
        "use_parallel is False: the sizes of 2 ranks in parallel_config have no effect",
        "auto_trans_ckpt is True, but one card loads full weights as they are: set it to False",
    )


def test_use_parallel_false_merges_shards_into_one_object(place: str, ranks: str) -> None:
    job = job_of(place, load_checkpoint=ranks, use_parallel=False, auto_trans_ckpt=True, **MP4)
    assert job.verdict == "Merge 4 ranks into full weights for one card."
    run_training_job(job)
    target = f"{place}/output/transformed_checkpoint/ranks"
    assert names_below(f"{place}/output") == {
        "transformed_checkpoint/ranks/rank_0/checkpoint_0.safetensors",
        "transformed_checkpoint/ranks/reshard-manifest.json",
    }
    assert content_of(target) == content_of(put_full_ckpt(f"{place}/whole/model.ckpt"))


def test_use_parallel_not_given_is_told(place: str, full: str) -> None:
    job = job_of(place, load_checkpoint=full, auto_trans_ckpt=True, **MP2)
    assert job.notes[0] == "use_parallel is not given, and taken for True: the sizes are those of 2 ranks"


def test_npu_num_per_node_is_not_the_number_of_ranks(place: str, full: str) -> None:
    job = job_of(place, load_checkpoint=full, npu_num_per_node=16, **AUTO, **MP2)
    assert job.verdict == "Cut the full weights for 2 ranks."


# What contradicts itself.


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"use_parallel": True}, "use_parallel is True, but the sizes are those of one rank"),
        ({"npu_num_per_node": 6}, "npu_num_per_node is 6: training expects a power of two"),
        ({"parallel_config__optimizer_shard": True}, "parallel_config.optimizer_shard has no effect"),
        ({"resume_training": True, "run_mode": "predict"}, "resume_training has no effect with run_mode: predict"),
        ({"src_strategy_path_or_dir": "memory://x/strategy"}, "src_strategy_path_or_dir is not used: the source"),
        ({"load_ckpt_format": "ckpt"}, "load_ckpt_format is ckpt, but safetensors lies at"),
        ({"resume_training": True}, "resume_training: no hyper_param.safetensors lies beside the full weights"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_told_with_what_is_done(
    place: str, full: str, given: dict[str, Any], told: str
) -> None:
    job = job_of(place, load_checkpoint=full, **given)
    assert [text for text in job.contradictions if told in text], job.contradictions


def test_two_places_to_load_from(place: str, full: str) -> None:
    job = job_of(place, load_checkpoint=f"{place}/other", checkpoint__load_path=full, auto_trans_ckpt=True)
    told = f"load_checkpoint is {place}/other, checkpoint.load_path is {full}: the second is taken"
    assert job.contradictions[0] == told


def test_pretrained_model_dir_with_the_older_networks(place: str) -> None:
    job = job_of(place, pretrained_model_dir=put_hugging_face(f"{place}/hf"), use_legacy=True)
    assert job.contradictions[0].startswith("use_legacy is True: training loads pretrained_model_dir with")


def test_remove_redundancy_is_for_safetensors(place: str) -> None:
    source = put_full_ckpt(f"{place}/model.ckpt")
    job = job_of(place, load_checkpoint=source, remove_redundancy=True, **AUTO, parallel_config__data_parallel=2)
    assert job.contradictions == ("remove_redundancy is for safetensors: .ckpt shards are written whole",)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"parallelism__tensor_parallel": 2}, "parallelism: the eager engine's sizes do not say how many ranks"),
        ({"only_save_strategy": True, "checkpoint__load_path": "x", **MP2}, "only_save_strategy: a job with a check"),
        ({"only_save_strategy": True, "use_parallel": False}, "only_save_strategy: a job on one card has no strategy"),
        ({"checkpoint__load_path": "x", "resume_training": "a.ckpt"}, "resume_training: a job with a checkpoint block"),
    ],
)  # fmt: skip
def test_what_cannot_be_decided_is_refused(place: str, given: dict[str, Any], problem: str) -> None:
    error = refused(place, **given)
    assert "the configuration contradicts itself" in error.message
    assert len(error.problems) == 1
    assert error.problems[0].startswith(problem)


def test_hugging_face_is_no_state_to_resume_from(place: str) -> None:
    source = put_hugging_face(f"{place}/hf")
    error = refused(place, load_checkpoint=source, resume_training=True, **AUTO, **MP2)
    assert "no state to resume from" in error.message


def test_names_of_the_older_networks_for_a_job_of_the_newer(place: str, full: str) -> None:
    with pytest.raises(StrategyError) as caught:
        job_of(place, load_checkpoint=full, use_legacy=False, **AUTO, **MP2)
    assert any("use_legacy" in problem for problem in caught.value.problems)


# Where the source and its strategy are.


def test_load_checkpoint_takes_precedence(place: str, full: str) -> None:
    job = job_of(place, load_checkpoint=full, pretrained_model_dir=put_hugging_face(f"{place}/hf"), **AUTO, **MP2)
    assert job.options is not None
    assert job.options["src"] == full
    assert "pretrained_model_dir gives config.json alone: load_checkpoint takes precedence" in job.notes


def test_pretrained_model_dir_without_weights(place: str) -> None:
    put(f"{place}/hf/config.json", json.dumps(CONFIG).encode())
    job = job_of(place, pretrained_model_dir=f"{place}/hf", **AUTO, **MP2)
    assert job.verdict == "Nothing to do: the job names no weights, so they are initialised at random."


def test_the_strategy_beside_the_shards_is_found(place: str, ranks: str) -> None:
    job = job_of(place, load_checkpoint=ranks, **AUTO, **MP2)
    assert job.options is not None
    assert job.options["src_strategy"] == f"{place}/strategy"


def test_the_strategy_below_an_output_folder_is_found(place: str) -> None:
    put_ranks(f"{place}/run/checkpoint", "mp=4", f"{place}/run/strategy")
    job = job_of(place, load_checkpoint=f"{place}/run", **AUTO, **MP2)
    assert job.options is not None
    assert job.options["src_strategy"] == f"{place}/run/strategy"


def test_the_manifest_beside_the_shards_is_enough(place: str, full: str) -> None:
    job = job_of(place, load_checkpoint=full, **AUTO, **MP4)
    run_training_job(job)
    shards = f"{place}/output/transformed_checkpoint/unified"
    again = job_of(place, load_checkpoint=shards, use_parallel=True, **MP4)
    assert again.verdict == "Nothing to do: the 4 ranks are cut as the job needs them."
    other = job_of(f"{place}/other", load_checkpoint=shards, **AUTO, **MP2)
    assert other.options is not None
    assert "src_strategy" not in other.options
    run_training_job(other)
    whole = content_of(f"{place}/other/output/transformed_checkpoint/unified")
    assert whole == content_of(put_full_ckpt(f"{place}/whole/model.ckpt"))


def test_a_layout_file_may_be_the_strategy(place: str) -> None:
    put_ranks(f"{place}/ranks", "mp=4", f"{place}/strategy")
    reshard.api.convert_strategy(f"{place}/strategy", f"{place}/layout.yaml")
    given = {"load_checkpoint": f"{place}/ranks", "src_strategy_path_or_dir": f"{place}/layout.yaml"}
    assert job_of(place, **given, use_parallel=True, **MP4).verdict.startswith("Nothing to do: the 4 ranks")


def test_shards_without_redundancy_are_compared_by_what_they_hold(place: str) -> None:
    source = put_full_ckpt(f"{place}/whole/model.ckpt")
    options = {"parallel": "dp=2,mp=2", "family": "llama"}
    reshard.convert(source, f"{place}/ranks", remove_redundancy=True, **options)
    given = {"load_checkpoint": f"{place}/ranks", "use_parallel": True, "remove_redundancy": True, **MP2}
    put(f"{place}/ranks/config.json", json.dumps(CONFIG).encode())
    assert job_of(place, **given, parallel_config__data_parallel=2).verdict.startswith("Nothing to do: the 4 ranks")


def test_pipelines_are_compared(place: str) -> None:
    source = put_pipeline_ranks(f"{place}/ranks", f"{place}/strategy")
    given = {"load_checkpoint": source, "use_parallel": True, "parallel_config__vocab_emb_dp": False, **MP2}
    assert job_of(place, **given, parallel_config__pipeline_stage=2).verdict.startswith("Nothing to do: the 4 ranks")
    error = refused(place, **given, parallel_config__data_parallel=2)
    assert "does not have it" in error.message


# Which of several checkpoints.


@pytest.fixture
def steps(place: str) -> str:
    """Shards of two steps, of which rank 1 did not save the last."""
    url = f"{place}/ranks"
    for step in ("1_10", "1_9"):
        put_ranks(url, "mp=2", f"{place}/strategy", step=step)
    for rank, last in enumerate((10, 9)):
        meta = {"last_epoch": 1, "last_step": last, "last_ckpt_file": f"llama_rank_{rank}-1_{last}.safetensors"}
        put(f"{url}/rank_{rank}/meta.json", json.dumps(meta).encode())
    return url


def test_resume_training_takes_the_last_step_that_all_ranks_saved(place: str, steps: str) -> None:
    job = job_of(place, load_checkpoint=steps, resume_training=True, **AUTO, **MP4)
    assert job.options is not None
    assert job.options["file_suffix"] == "1_9"


def test_resume_training_may_name_a_file(place: str, steps: str) -> None:
    job = job_of(place, load_checkpoint=steps, resume_training="llama_rank_0-1_10.safetensors", **AUTO, **MP4)
    assert job.options is not None
    assert job.options["file_suffix"] == "-1_10"
    run_training_job(job)


def test_a_resumed_job_finds_epoch_and_step_in_names(place: str) -> None:
    source = put_training_ranks(f"{place}/checkpoint", f"{place}/strategy")
    job = job_of(place, load_checkpoint=source, resume_training=True, **AUTO, **MP2)
    run_training_job(job)
    target = f"{place}/output/transformed_checkpoint/checkpoint"
    assert names_below(target) == {
        *(f"rank_{rank}/llama_rank_{rank}-2_3.safetensors" for rank in range(2)),
        *(f"rank_{rank}/meta.json" for rank in range(2)),
        "reshard-manifest.json",
    }
    kept = content_of(target)
    assert {"global_step", "epoch_num", "step_num"} <= kept.keys()
    assert kept == content_of(source, src_strategy=f"{place}/strategy")
    started = job_of(f"{place}/other", load_checkpoint=source, **AUTO, **MP2)
    assert started.options is not None
    assert started.options["prefix"] == "checkpoint_"


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("llama_rank_3-1_10.safetensors", "-1_10"),
        ("llama_rank_3_2-1_10.ckpt", "_2-1_10"),
        ("rank_3/llama_rank_3-1_10.ckpt", "-1_10"),
        ("net-1_10.ckpt", "net-1_10"),
        ("1_10", "1_10"),
    ],
)
def test_the_end_of_a_name_is_that_of_all_ranks(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


# Formats.


def test_ckpt_becomes_safetensors_where_the_job_saves_them(place: str) -> None:
    source = put_full_ckpt(f"{place}/model.ckpt")
    saves = {"load_ckpt_format": "ckpt", "callbacks__checkpoint_format": "safetensors"}
    job = job_of(place, load_checkpoint=source, **saves)
    assert job.verdict == "Write the full weights as safetensors; one card has nothing to cut."
    run_training_job(job)
    target = f"{place}/output/transformed_checkpoint/model"
    assert names_below(target) == {"rank_0/checkpoint_0.safetensors", "reshard-manifest.json"}
    cut = job_of(f"{place}/cut", load_checkpoint=source, **saves, **AUTO, **MP2)
    assert cut.options is not None
    assert cut.options["format"] == "safetensors"


def test_a_format_change_leaves_the_strategy_alone(place: str) -> None:
    source = put_genuine_ranks(f"{place}/output/checkpoint", f"{place}/output/strategy")
    saves = {"load_ckpt_format": "ckpt", "callbacks__checkpoint_format": "safetensors"}
    sizes = {"parallel_config__data_parallel": 2, "parallel_config__vocab_emb_dp": False, **MP2}
    job = job_of(place, load_checkpoint=source, **saves, **sizes)
    assert job.strategy_url is None
    run_training_job(job)
    assert content_of(f"{place}/output/transformed_checkpoint/checkpoint") == content_of(
        put_full_ckpt(f"{place}/whole/model.ckpt")
    )


def test_load_ckpt_format_chooses_where_both_lie(place: str) -> None:
    url = put_genuine_ranks(f"{place}/ranks", f"{place}/strategy")
    put_ranks(url, "dp=2,mp=2,vocab_emb_dp=false")
    given = {"load_checkpoint": url, "load_ckpt_format": "ckpt", **AUTO, **MP2}
    config = read_training_config(None, given)
    source = find_source(config)
    assert source is not None
    options = sharded_options(config, source, [])
    assert (options["load_ckpt_format"], options["format"]) == ("ckpt", "ckpt")


def test_transform_process_num_stands_for_requests(place: str, full: str) -> None:
    job = job_of(place, load_checkpoint=full, transform_process_num=4, **AUTO, **MP2)
    assert job.options is not None
    assert job.options["concurrency"] == 32


def test_remove_redundancy_of_loading_is_that_of_the_shards(place: str, full: str) -> None:
    given = {"load_checkpoint": full, "callbacks__remove_redundancy": True, **AUTO, "parallel_config__data_parallel": 2}
    job = job_of(place, **given)
    assert job.options is not None
    assert "remove_redundancy" not in job.options
    loaded = job_of(place, **given, remove_redundancy=True)
    assert loaded.options is not None
    assert loaded.options["remove_redundancy"] is True


# Names.


def put_qwen3(url: str) -> str:
    """A Qwen3 as Hugging Face has it."""
    case = FOLDER / "qwen3_mcore180_qwen3_bf16_interleaved"
    for path in (case / "hf").iterdir():
        put(f"{url}/{path.name}", path.read_bytes())
    put(f"{url}/config.json", json.dumps(read_config(case.name)).encode())
    weights = {}
    for path in sorted((case / "hf").iterdir()):
        header = json.loads(path.read_bytes()[8:][: int.from_bytes(path.read_bytes()[:8], "little")])
        weights |= {name: path.name for name in header if name != "__metadata__"}
    index = {"metadata": {"total_size": 0}, "weight_map": weights}
    put(f"{url}/model.safetensors.index.json", json.dumps(index).encode())
    return url


def test_hugging_face_becomes_the_newer_networks_names(place: str) -> None:
    job = job_of(place, pretrained_model_dir=put_qwen3(f"{place}/qwen3"), use_legacy=False, **AUTO, **MP2)
    assert job.options is not None
    assert (job.options["to"], job.options["family"], job.options["naming"]) == ("ms", "qwen3", "mcore")
    run_training_job(job)
    strategy = read_strategy(f"{place}/output/strategy")
    assert "decoder.layers.0.self_attention.linear_qkv.weight" in strategy.names
    assert strategy.rank_count == 2


def test_a_serving_job_reads_hugging_face_s_files_itself(place: str) -> None:
    source = put_qwen3(f"{place}/qwen3")
    job = job_of(place, pretrained_model_dir=source, use_legacy=False, use_parallel=True, run_mode="predict", **MP2)
    assert job.verdict == "Nothing to do: each rank of the serving network reads its part of Hugging Face's files."


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"use_contiguous_weight_layout_attention": True}, {"qkv_layout": "contiguous", "blocks": 2}),
        ({"use_interleaved_weight_layout_mlp": False}, {"mlp_layout": "contiguous", "blocks": 2}),
        ({"use_interleaved_weight_layout_mlp": True}, None),
        ({"qkv_concat": True}, None),  # no option of the family
    ],
)
def test_layouts_of_the_model_are_those_of_model_config(
    place: str, given: dict[str, bool], options: dict[str, object] | None
) -> None:
    keys = {f"model__model_config__{name}": value for name, value in given.items()}
    job = job_of(place, load_checkpoint=put_qwen3(f"{place}/qwen3"), use_legacy=False, **keys, **AUTO, **MP2)
    assert job.options is not None
    assert job.options.get("option") == options


def test_qkv_concat_of_the_older_networks(place: str) -> None:
    source = put_hugging_face(f"{place}/hf")
    job = job_of(place, load_checkpoint=source, model__model_config__qkv_concat=True, **AUTO, **MP2)
    run_training_job(job)
    assert "model.layers.0.attention.w_qkv.weight" in read_strategy(f"{place}/output/strategy").names


def test_sizes_that_differ_from_config_json_are_told(place: str) -> None:
    source = put_hugging_face(f"{place}/hf")
    with pytest.raises(PlanError, match="does not fit the rules of llama"):
        job_of(place, load_checkpoint=source, model__model_config__vocab_size=128, **AUTO, **MP2)
    job = job_of(place, load_checkpoint=put_full(f"{place}/ms"), model__model_config__vocab_size=128, **AUTO, **MP2)
    assert "model_config says vocab_size 128, config.json 96: the first is taken" in job.notes


def test_the_network_s_class_tells_the_family_where_no_config_json_does(place: str) -> None:
    source = put_full_ckpt(f"{place}/model.ckpt")
    remove(f"{place}/config.json")
    job = job_of(place, load_checkpoint=source, model__arch__type="LlamaForCausalLM", **AUTO, **MP2)
    assert job.options is not None
    assert job.options["family"] == "llama"


# Iterations.


def test_a_job_with_a_checkpoint_block_gets_an_iteration(place: str, full: str) -> None:
    job = job_of(place, checkpoint__load_path=full, checkpoint__prefix="llama", **AUTO, **MP2)
    assert job.verdict == "Write the full weights as an iteration of 2 ranks."
    assert job.strategy_url is None
    run_training_job(job)
    target = f"{place}/output/transformed_checkpoint/unified"
    assert f"{target}/iteration_00000000/metadata.json".removeprefix(f"{target}/") in names_below(target)
    again = job_of(place, checkpoint__load_path=target, **MP4)
    assert again.verdict == "Nothing to do: the job cuts iterations anew while it loads them."


def test_an_iteration_for_an_older_job(place: str, full: str) -> None:
    run_training_job(job_of(place, checkpoint__load_path=full, **AUTO, **MP2))
    iteration = f"{place}/output/transformed_checkpoint/unified"
    other = f"{place}/other"
    assert "the source is cut another way than the job" in refused(other, load_checkpoint=iteration, **MP2).message
    assert "an iteration" in refused(other, load_checkpoint=iteration).message
    job = job_of(other, load_checkpoint=iteration, **AUTO, **MP4)
    assert job.verdict == "Cut the iteration anew for 4 ranks."
    run_training_job(job)
    strategy = f"{other}/output/strategy"
    whole = content_of(f"{other}/output/transformed_checkpoint/unified", src_strategy=strategy)
    assert whole == content_of(put_full_ckpt(f"{place}/whole/model.ckpt"))


def test_full_weights_for_a_job_with_a_checkpoint_block_need_auto_trans_ckpt(place: str, full: str) -> None:
    assert "the job loads iterations" in refused(place, checkpoint__load_path=full, **MP2).message
    hugging_face = put_hugging_face(f"{place}/hf")
    job = job_of(place, checkpoint__load_path=hugging_face, **MP2)
    assert job.verdict == "Nothing to do: the job reads Hugging Face's files as they are."


# Runs.


def test_a_plan_writes_nothing(place: str, full: str) -> None:
    job = job_of(place, load_checkpoint=full, **AUTO, **MP2)
    plan = plan_training_job(job)
    assert plan is not None
    assert len(plan.conversion.keys) == 2
    assert not names_below(f"{place}/output")
    assert plan_training_job(job_of(place, load_checkpoint=full)) is None


def test_more_options_take_precedence(place: str, full: str) -> None:
    config = read_training_config(None, {"load_checkpoint": full, "output_dir": f"{place}/output", **AUTO, **MP2})
    job = decide(config, memory="64MiB", ranks="1", prefix="own_")
    run_training_job(job)
    names = names_below(f"{place}/output/transformed_checkpoint/unified")
    assert "rank_1/own_1.safetensors" in names
    assert "rank_0/own_0.safetensors" not in names


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"src": "elsewhere"}, "load_checkpoint"),
        ({"dst": "elsewhere"}, "output_dir"),
        ({"parallel": "mp=4"}, "parallel_config"),
        ({"dst_layout": "l.yaml"}, "parallel_config"),
        ({"dst_strategy": "s.ckpt"}, "parallel_config"),
        ({"src_strategy": "s.ckpt"}, "src_strategy_path_or_dir"),
        ({"to": "hf"}, "use_legacy"),
        ({"form": "zarr"}, "checkpoint"),
    ],
)
def test_options_that_the_configuration_decides_are_refused(
    place: str, full: str, given: dict[str, str], key: str
) -> None:
    config = read_training_config(None, {"load_checkpoint": full, "output_dir": f"{place}/output", **AUTO, **MP2})
    with pytest.raises(UsageError, match="the training configuration decides what these options say") as caught:
        decide(config, **given)
    assert caught.value.problems[0].endswith(f": set {key}")


def test_outputs_that_exist_are_not_replaced_unless_asked(place: str, full: str) -> None:
    job = job_of(place, load_checkpoint=full, **AUTO, **MP2)
    run_training_job(job)
    assert run_training_job(job).manifest.was_done
    with pytest.raises(TargetExists):
        run_training_job(decide(job.config, if_exists="fail"))
    assert not run_training_job(decide(job.config, if_exists="replace")).manifest.was_done


def test_a_job_with_optimizer_shards_runs_again(place: str, full: str) -> None:
    """Its strategy files say more than the sizes that they were made of."""
    sizes = {"parallel.enable_parallel_optimizer": True, "parallel_config.data_parallel": 2, **MP2}
    job = job_of(place, load_checkpoint=full, **AUTO, **sizes)
    run_training_job(job)
    assert run_training_job(job_of(place, load_checkpoint=full, **AUTO, **sizes)).manifest.was_done


def test_strategy_files_of_another_job_are_not_replaced_unless_asked(place: str, full: str) -> None:
    run_training_job(job_of(place, load_checkpoint=full, **AUTO, **MP4))
    other = job_of(place, load_checkpoint=full, **AUTO, **MP2)
    with pytest.raises(TargetExists, match="strategy files of another job are there"):
        run_training_job(other)
    assert run_training_job(decide(other.config, if_exists="replace")).strategy is not None
    assert names_below(f"{place}/output/strategy") == {f"ckpt_strategy_rank_{rank}.ckpt" for rank in range(2)}
    again = run_training_job(other)  # the same again is no trouble
    assert again.strategy == read_strategy(f"{place}/output/strategy")
    assert again.manifest is not None
    assert again.manifest.was_done


def everything_below(place: str) -> dict[str, str]:
    return {name: info.etag for name, info in open_location(f"{place}/output").named_objects()}


def test_a_refusal_leaves_ranks_and_strategies_as_they_were(place: str, full: str) -> None:
    run_training_job(job_of(place, load_checkpoint=full, **AUTO, **MP4))
    before = everything_below(place)
    # The strategy files are in the way.
    only_strategies = job_of(place, load_checkpoint=full, output_dir=f"{place}/output", **AUTO, **MP2)
    with pytest.raises(TargetExists):
        run_training_job(only_strategies)
    assert everything_below(place) == before
    # The conversion is refused although both may be replaced: memory, and a source that changes on the way.
    config = only_strategies.config
    with pytest.raises(PlanError):
        run_training_job(decide(config, if_exists="replace", memory="1KiB"))
    assert everything_below(place) == before

    def fail(*_: object) -> None:
        raise PlanError("refused")

    with pytest.raises(PlanError, match="refused"):
        run_training_job(decide(config, if_exists="replace"), convert=fail)
    assert everything_below(place) == before


def test_a_run_that_is_stopped_before_its_strategies_says_what_is_there(
    place: str, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(place, load_checkpoint=full, **AUTO, **MP2)

    def stop(*_: object, is_dry: bool = False, **__: object) -> None:
        if not is_dry:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "save_strategy_set", stop)
        with pytest.raises(KeyboardInterrupt) as caught:
            run_training_job(job)
    assert "the ranks are complete; strategy files are missing in" in caught.value.__notes__[0]
    again = run_training_job(job)
    assert again.manifest is not None
    assert again.manifest.was_done
    assert "strategy/ckpt_strategy_rank_1.ckpt" in everything_below(place)


def test_options_of_a_conversion_that_is_not_due_are_conflicts(place: str, full: str) -> None:
    config = job_of(place, load_checkpoint=full, use_parallel=False).config
    job = decide(config, dtype="bf16", memory="64MiB", if_exists="fail")
    assert job.options is None
    assert [write_options(text) for text in job.contradictions] == ["dtype='bf16' has no effect: nothing is converted"]


def test_a_plan_raises_what_a_run_would(place: str, full: str) -> None:
    run_training_job(job_of(place, load_checkpoint=full, **AUTO, **MP4))
    with pytest.raises(TargetExists, match="strategy files of another job are there"):
        plan_training_job(job_of(place, load_checkpoint=full, **AUTO, **MP2))
    config = job_of(place, load_checkpoint=full, **AUTO, **MP4).config
    with pytest.raises(TargetExists, match="outputs exist already"):
        plan_training_job(decide(config, dtype="bf16"))


def test_the_source_s_strategy_is_never_replaced(place: str) -> None:
    source = put_ranks(f"{place}/output/checkpoint", "mp=4", f"{place}/output/strategy")
    error = refused(place, load_checkpoint=source, **AUTO, **MP2)
    assert "the source's strategy files lie where those of the job go" in error.message
    with_other = job_of(f"{place}/other", load_checkpoint=source, **AUTO, **MP2)
    run_training_job(with_other)


def test_the_source_is_never_replaced(place: str, full: str) -> None:
    run_training_job(job_of(place, load_checkpoint=full, **AUTO, **MP4))
    shards = f"{place}/output/transformed_checkpoint/unified"
    put_ranks(f"{place}/elsewhere", "mp=4", f"{place}/strategy")
    given = {"load_checkpoint": shards, "src_strategy_path_or_dir": f"{place}/strategy"}
    assert "the source lies where the ranks of the job go" in refused(place, **given, **AUTO, **MP2).message


# Arguments of conversions.


def test_arguments_of_a_conversion_are_one(place: str) -> None:
    source = put_hugging_face(f"{place}/hf")
    nothing = {"input_path": None, "output_path": None, "dtype": None}
    filled = {"input_path": source, "output_path": f"{place}/ms", "dtype": "bfloat16"}
    job = job_of_conversion(llama=filled, glm=nothing)
    assert job.verdict == f"Convert {source} to MindSpore Transformers' names (llama)."
    assert job.options is not None
    assert job.options["dtype"] == "bf16"
    run_training_job(job)
    back = job_of_conversion(
        llama={"input_path": f"{place}/ms", "output_path": f"{place}/back"}, config=f"{source}/config.json"
    )
    assert back.verdict == f"Convert {place}/ms to Hugging Face's names (llama)."


def test_arguments_of_no_conversion() -> None:
    nothing = {"input_path": None, "output_path": None}
    assert job_of_conversion(llama=nothing).verdict.startswith("Nothing to convert: the file holds arguments")


def test_arguments_of_two_conversions() -> None:
    filled = {"input_path": "a", "output_path": "b"}
    with pytest.raises(UsageError, match="arguments of 2 conversions"):
        job_of_conversion(llama=filled, qwen=filled)


def job_of_conversion(config: str | None = None, **models: dict[str, Any]) -> TrainingJob:
    given = {f"{model}.{name}": value for model, section in models.items() for name, value in section.items()}
    return decide(read_training_config(None, given), **({} if config is None else {"config": config}))
