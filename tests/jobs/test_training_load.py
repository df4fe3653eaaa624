"""What a rank of a training job starts with, read straight into memory."""

import json

import numpy as np
import pytest
from jobs.training_places import (
    new_place,
    put,
    put_full,
    put_hugging_face,
    put_ranks,
    put_training_ranks,
)
from support.stores import arrays_at

import reshard
from reshard.errors import UsageError
from reshard.jobs.training_config import config_of
from reshard.jobs.training_job import decide
from reshard.jobs.training_run import run_training_job
from reshard.storage import open_location

MP2 = {"use_parallel": True, "parallel_config": {"model_parallel": 2}}


@pytest.fixture
def place():
    return new_place()


def load(config, **options):
    return reshard.load_for(config, framework="numpy", **options)


def transformed(config, place):
    """What the job's own conversion writes, by rank."""
    written = config | {"output_dir": f"{place}/output"}
    manifest = run_training_job(decide(config_of(written), network_only=not config.get("resume_training"))).manifest
    url = manifest.conversion.target_url
    keys = [receipt.key for receipt in manifest.receipts if receipt.key.endswith(".safetensors")]
    return {int(key.split("/")[0].removeprefix("rank_")): arrays_at(url, [key]) for key in keys}


def same(shard, expected):
    found = shard.tensors()
    assert found.keys() == expected.keys()
    assert all(
        np.array_equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items()
    )


def put_four_ranks(url):
    return put_ranks(url, "mp=4", url.replace("/ranks", "/strategy"))


@pytest.mark.parametrize("put_source", [put_full, put_hugging_face, put_four_ranks])
def test_a_rank_gets_what_would_be_written_for_it(place, put_source):
    source = put_source(f"{place}/ranks")
    config = {"load_checkpoint": source, "auto_trans_ckpt": True, **MP2}
    written = transformed(config, place)
    before = {info.key for info in open_location(place).store.list("")}
    for rank in (0, 1):
        same(load(config, rank=rank), written[rank])
    assert {info.key for info in open_location(place).store.list("")} == before


def test_yaml_files_are_read_and_refused_as_a_run_does(place):
    source = put_full(f"{place}/full")
    url = put(f"{place}/job.yaml", json.dumps({"load_checkpoint": source, **MP2}).encode())
    with pytest.raises(UsageError, match="auto_trans_ckpt is not True"):
        load(url, rank=1)
    with pytest.raises(UsageError, match=r"`rank` 2 does not exist: expected one of 0\.\.1"):
        load(url, rank=2)
    with pytest.raises(UsageError, match="no weights to load"):
        load({"use_parallel": False})


def test_ranks_that_fit_load_their_own_shard(place):
    strategy = f"{place}/strategy"
    for at, kept in ((f"{place}/known/ranks", strategy), (f"{place}/unknown/ranks", None)):
        source = put_ranks(at, "mp=2", kept)
        config = {"load_checkpoint": source, "src_strategy_path_or_dir": kept or "", **MP2}
        for rank in (0, 1):
            same(load(config, rank=rank), arrays_at(source, [f"rank_{rank}/checkpoint_{rank}.safetensors"]))


def test_one_card_gets_whole_tensors_in_its_own_names(place):
    expected = arrays_at(put_full(f"{place}/full"))
    for source in (put_hugging_face(f"{place}/hf"), f"{place}/full"):
        same(load({"load_checkpoint": source, "use_parallel": False}), expected)


def test_optimizer_and_counters_come_with_jobs_that_resume(place):
    source = put_training_ranks(f"{place}/ranks", f"{place}/strategy")
    config = {
        "load_checkpoint": source,
        "src_strategy_path_or_dir": f"{place}/strategy",
        "auto_trans_ckpt": True,
        "resume_training": True,
        **MP2,
    }
    resumed = load(config, rank=1)
    plain = load(config | {"resume_training": False}, rank=1)
    more = set(resumed.keys()) - set(plain.keys())
    assert set(plain.keys()) < set(resumed.keys())
    assert "global_step" in more
    assert any(name.startswith("adam_") for name in more)
