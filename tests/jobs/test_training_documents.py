"""Every YAML fragment of MindSpore Transformers' pages, as printed there but for paths: the decision and its outputs.

The files of ``documents/`` are the fragments; only lines of dots, which stand for what a page leaves out, are gone. A
fragment changes a file that the reader has; what such a file has besides is given as hyper-parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from jobs.training_places import (
    RANKS_CASE,
    content_of,
    names_below,
    new_place,
    put_full,
    put_full_ckpt,
    put_genuine_ranks,
    put_hugging_face,
    put_pipeline_ranks,
    put_ranks,
)
from oracle.test_mindformers_scripts import files_of
from support.ckpt_parser import parse_ckpt

from reshard.api.strategies import read_strategy
from reshard.errors import UsageError
from reshard.jobs.training_config import read_training_config
from reshard.jobs.training_job import TrainingJob, decide
from reshard.jobs.training_run import run_training_job
from reshard.storage import open_location, read_object

FOLDER = Path(__file__).parent / "documents"

MP2 = {"parallel_config.model_parallel": 2}
DP2MP2 = {"parallel_config.data_parallel": 2, **MP2, "parallel_config.vocab_emb_dp": False}
DP2MP4 = {"parallel_config.data_parallel": 2, "parallel_config.model_parallel": 4}
DP2MP2PP2 = {
    "parallel_config.data_parallel": 2,
    "parallel_config.model_parallel": 2,
    "parallel_config.pipeline_stage": 2,
}


DP2MP4PP2 = {**DP2MP4, "parallel_config.pipeline_stage": 2}
ONE_CARD = "Nothing to do: the source is full, and the job runs on one card: there is nothing to cut."
SERVED = "Nothing to do: each rank of the serving network reads its part of Hugging Face's files."
STRATEGIES = "Write the strategy files of 16 ranks, and nothing else: only_save_strategy is True."
RANDOM = "Nothing to do: the job names no weights, so they are initialised at random."
AS_SAFETENSORS = "Write the 4 ranks as safetensors: they are cut as the job needs them."


@dataclass(frozen=True)
class Case:
    """A fragment: what lies where it points, what its file has besides, and what is made of it."""

    source: str
    verdict: str
    base: Mapping[str, object] = field(default_factory=dict)
    ranks: int = 0
    format: str = "safetensors"


NOTHING = "Nothing to do: "
CASES = {
    # safetensors: loading
    "full_one_card": Case("full", ONE_CARD),
    "full_many_cards": Case("full", "Cut the full weights for 4 ranks.", ranks=4),
    "ranks_same_strategy": Case("dp=2,mp=4", NOTHING + "the 8 ranks are cut as the job needs them."),
    "ranks_other_strategy": Case("dp=2,mp=4", "Cut 8 ranks anew for 8 ranks.", ranks=8),
    "shared_disk": Case("full", "Cut the full weights for 16 ranks.", ranks=16),
    "no_shared_disk_online": Case("full", "Cut the full weights for 16 ranks.", DP2MP4PP2, 16),
    "no_shared_disk_offline": Case("dp=2,mp=2,pp=2", NOTHING + "the 8 ranks are cut as the job needs them.", DP2MP2PP2),
    "load_without_redundancy": Case("full", "Cut the full weights for 2 ranks.", {**MP2, "auto_trans_ckpt": True}, 2),
    # examples of jobs
    "finetune_full": Case("hf", "Cut the full weights for 8 ranks.", ranks=8),
    "finetune_ranks": Case("dp=2,mp=4", NOTHING + "the 8 ranks are cut as the job needs them."),
    "predict_full": Case("hf", "Cut the full weights for 2 ranks.", {"run_mode": "predict"}, 2),
    "predict_ranks": Case("mp=2", NOTHING + "the 2 ranks are cut as the job needs them.", {"run_mode": "predict"}),
    "resume_same_strategy": Case("dp=2,mp=4", NOTHING + "the 8 ranks are cut as the job needs them.", DP2MP4),
    "resume_other_strategy": Case("pipeline", "Cut 4 ranks anew for 8 ranks.", ranks=8),
    "early_finetune_full": Case("hf", "Cut the full weights for 2 ranks.", ranks=2),
    "early_finetune_ranks": Case("mp=2", NOTHING + "the 2 ranks are cut as the job needs them."),
    "early_predict_full": Case("hf", "Cut the full weights for 2 ranks.", ranks=2),
    "early_predict_ranks": Case("mp=2", NOTHING + "the 2 ranks are cut as the job needs them."),
    "early_resume": Case("mp=2", NOTHING + "the 2 ranks are cut as the job needs them.", MP2),
    "early_resume_other": Case("pipeline", "Cut 4 ranks anew for 8 ranks.", ranks=8),
    # what a job saves says nothing about what it loads
    "saving": Case("", RANDOM),
    "early_saving": Case("", RANDOM),
    "save_without_redundancy": Case("", RANDOM),
    # Hugging Face's weights by pretrained_model_dir
    "hugging_face": Case("hf", SERVED, {**MP2, "run_mode": "predict"}),
    # ckpt
    "ckpt_full_to_ranks": Case("ckpt", "Cut the full weights for 4 ranks.", DP2MP2, 4, "ckpt"),
    "ckpt_ranks_to_ranks": Case("genuine", "Cut 4 ranks anew for 8 ranks.", DP2MP2PP2, 8, "ckpt"),
    "ckpt_ranks_to_full": Case("genuine", "Merge 4 ranks into full weights for one card.", MP2, 1, "ckpt"),
    "transform_process_num": Case(
        "ckpt", "Cut the full weights for 2 ranks.", {**MP2, "auto_trans_ckpt": True}, 2, "ckpt"
    ),
    "ckpt_shared_disk": Case("ckpt", "Cut the full weights for 16 ranks.", ranks=16, format="ckpt"),
    "ckpt_to_safetensors": Case("genuine", AS_SAFETENSORS, DP2MP2, 4),
    "ckpt_after_only_save_strategy": Case("dp=2,mp=4", NOTHING + "the 8 ranks are cut as the job needs them.", DP2MP4),
    # strategies alone
    "only_save_strategy": Case("full", STRATEGIES),
    "ckpt_only_save_strategy": Case("full", STRATEGIES),
}


def put_source(kind: str, place: str, *, names_strategy: bool) -> dict[str, object]:
    """Write a source, and return the paths to it as hyper-parameters; a strategy that none names lies beside it."""
    given: dict[str, object] = {"output_dir": f"{place}/output"}
    strategy = f"{place}/{'src_strategy' if names_strategy else 'strategy'}"
    if kind == "ckpt":
        return given | {"load_checkpoint": put_full_ckpt(f"{place}/llama3_8b/llama3_8b.ckpt")}
    if kind == "full":
        return given | {"load_checkpoint": put_full(f"{place}/unified")}
    if kind == "hf":
        return given | {"load_checkpoint": put_hugging_face(f"{place}/hf_unified")}
    if kind == "genuine":
        url = put_genuine_ranks(f"{place}/ranks", strategy)
    elif kind == "pipeline":
        url = put_pipeline_ranks(f"{place}/ranks", strategy)
    elif kind:
        url = put_ranks(f"{place}/ranks", kind, strategy)
    else:
        return given
    return given | {"load_checkpoint": url, **({"src_strategy_path_or_dir": strategy} if names_strategy else {})}


def decided(name: str, place: str) -> TrainingJob:
    case, text = CASES[name], (FOLDER / f"{name}.yaml").read_text()
    paths = put_source(case.source, place, names_strategy="src_strategy_path_or_dir" in text)
    if name == "hugging_face":
        paths = {"pretrained_model_dir": paths["load_checkpoint"]}
    return decide(read_training_config(str(FOLDER / f"{name}.yaml"), {**case.base, **paths}))


def test_every_fragment_has_a_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_fragment_decides_as_its_page_promises(name: str) -> None:
    job = decided(name, new_place())
    assert job.verdict == CASES[name].verdict
    assert not job.config.keys_of("unknown")
    assert (job.options is not None) == bool(CASES[name].ranks)


@pytest.mark.parametrize("name", sorted(name for name, case in CASES.items() if case.ranks))
def test_a_fragment_makes_the_right_weights(name: str) -> None:
    place, case = new_place(), CASES[name]
    job = decided(name, place)
    outcome = run_training_job(job)
    assert job.options is not None
    target = str(job.options["dst"])
    source = target.rpartition("/")[2]
    assert target == f"{place}/output/transformed_checkpoint/{source}"
    assert source == {"ckpt": "llama3_8b", "full": "unified", "hf": "hf_unified"}.get(case.source, "ranks")
    # A resumed run looks for epoch and step in names.
    shard = "llama_rank_{0}-2_3" if job.config.resume_training else "checkpoint_{0}"
    shards = {f"rank_{rank}/{shard.format(rank)}.{case.format}" for rank in range(case.ranks)}
    assert names_below(target) == {*shards, "reshard-manifest.json"}
    assert outcome.manifest is not None
    strategy = {} if job.strategy_url is None else {"src_strategy": job.strategy_url}
    if case.ranks > 1 and not strategy:
        strategy = {"src_strategy": f"{place}/strategy"}
    if case.source == "pipeline":
        expected = content_of(put_pipeline_ranks(f"{place}/same", f"{place}/its"), src_strategy=f"{place}/its")
    else:
        expected = content_of(put_full_ckpt(f"{place}/same/model.ckpt"))
    assert content_of(target, **strategy) == expected


def test_what_is_cut_equals_what_mindspore_transformers_cut() -> None:
    place = new_place()
    job = decided("ckpt_full_to_ranks", place)
    run_training_job(job)
    genuine = {name: data for name, data in files_of(RANKS_CASE).items() if name.startswith("mf/in/src_ckpt/")}
    assert len(genuine) == 4
    for name, data in genuine.items():
        key = f"{place}/output/transformed_checkpoint/llama3_8b/{name.removeprefix('mf/in/src_ckpt/')}"
        assert parse_ckpt(read_object(open_location(key))) == parse_ckpt(data)


@pytest.mark.parametrize("name", ["only_save_strategy", "ckpt_only_save_strategy"])
def test_only_save_strategy_writes_the_whole_set_and_nothing_else(name: str) -> None:
    place = new_place()
    job = decided(name, place)
    outcome = run_training_job(job)
    assert outcome.manifest is None
    assert outcome.strategy == read_strategy(f"{place}/output/strategy")
    files = {f"strategy/ckpt_strategy_rank_{rank}.ckpt" for rank in range(16)}
    assert names_below(f"{place}/output") == {*files, "strategy/merged_ckpt_strategy.ckpt"}


def test_only_save_strategy_needs_to_know_the_tensors() -> None:
    config = read_training_config(str(FOLDER / "only_save_strategy.yaml"))
    with pytest.raises(UsageError, match="no checkpoint tells which tensors the model has"):
        decide(config)


def test_where_the_original_put_what_it_went_through() -> None:
    """One pass: no unified_checkpoint, no ms_safetensors, no merged_strategy stays behind."""
    place = new_place()
    run_training_job(decided("ranks_other_strategy", place))
    assert {name.partition("/")[0] for name in names_below(f"{place}/output")} == {"strategy", "transformed_checkpoint"}
