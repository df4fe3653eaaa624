"""What every key of MindSpore Transformers' configurations is for."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from jobs.training_places import new_place, put_full

from reshard.errors import NotFound, PlanError, UsageError
from reshard.jobs.training_config import read_training_config
from reshard.jobs.training_job import decide
from reshard.jobs.training_keys import find_known, flatten, known_keys, sort_keys
from reshard.models.family_file import family_names, load_family

ROOT = Path(__file__).resolve().parents[2]
YAMLS = Path(os.environ.get("ORACLE_YAML") or ROOT.parent / "shared" / "oracle" / "yaml")
FILES = sorted(path for kind in ("*.yaml", "*.yml") for path in YAMLS.rglob(kind))
PAGE = ROOT / "docs" / "howto" / "training-yaml.md"


@pytest.mark.skipif(not FILES, reason="MindSpore Transformers' own YAML files are not on this machine")
def test_no_key_of_mindspore_transformers_own_files_is_unknown() -> None:
    unknown = {}
    for path in FILES:
        config = read_training_config(str(path))
        if found := [key.path for key in config.keys_of("unknown")]:
            unknown[path.relative_to(YAMLS).as_posix()] = found
        assert len(config.keys) == sum(len(config.keys_of(use)) for use in ("used", "no effect", "training"))
    assert not unknown


@pytest.mark.skipif(not FILES, reason="MindSpore Transformers' own YAML files are not on this machine")
def test_mindspore_transformers_own_files_are_understood_up_to_their_paths() -> None:
    """Where one names weights, a decision goes as far as looking for them: they are not on this machine."""
    named = 0
    for path in FILES:
        config = read_training_config(str(path))
        if config.load_checkpoint:
            named += 1
            with pytest.raises(NotFound, match=re.escape(config.load_checkpoint.strip("./").rpartition("/")[2])):
                decide(config)
            continue
        verdict = decide(config).verdict
        assert verdict.startswith("Nothing to do: the job names no weights" if not config.conversions else "Nothing to")
    assert named > 5


@pytest.mark.skipif(not FILES, reason="MindSpore Transformers' own YAML files are not on this machine")
def test_mindspore_transformers_own_files_decide_on_weights_that_are_there() -> None:
    """With a checkpoint in the place of the one that each names, all are decided: what does not fit is refused."""
    full, place = put_full(f"{new_place()}/unified"), new_place()
    verdicts, refusals = set[str](), set[str]()
    for path in FILES:
        config = read_training_config(str(path), {"load_checkpoint": full, "output_dir": f"{place}/{path.stem}"})
        if config.conversions:
            continue
        try:
            verdicts.add(decide(config).verdict.partition(":")[0].partition(" for ")[0])
        except (UsageError, PlanError) as error:  # another model's sizes, or auto_trans_ckpt is not set
            refusals.add(type(error).__name__)
    assert verdicts >= {"Nothing to do"}
    assert "UsageError" in refusals


@pytest.mark.parametrize(
    ("key", "use"),
    [
        ("load_checkpoint", "used"),
        ("parallel_config.model_parallel", "used"),
        ("parallel_config.micro_batch_interleave_num", "training"),
        ("parallel_config.model_paralel", "unknown"),
        ("parallel.enable_parallel_optimizer", "used"),
        ("parallel.enable_paralel_optimizer", "unknown"),
        ("parallel.strategy_ckpt_config.save_file", "training"),
        ("callbacks.CheckpointMonitor.checkpoint_format", "used"),
        ("callbacks.CheckpointMonitor.save_checkpoint_steps", "training"),
        ("callbacks.CheckpointMonitor.checkpoint_fromat", "unknown"),
        ("callbacks.MFLossMonitor.per_print_times", "training"),
        ("callbacks.MyMonitor.type", "unknown"),
        ("checkpoint.load_path", "used"),
        ("checkpoint.save_max", "training"),
        ("checkpoint.load_pathh", "unknown"),
        ("model.model_config.num_layers", "used"),
        ("model.model_config.rotary_dtype", "training"),
        ("model.model_config.num_layer", "unknown"),
        ("train_dataset.data_loader.anything.at_all", "training"),
        ("runner_config.epochs", "training"),
        ("runner_config", "training"),
        ("load_chekpoint", "unknown"),
    ],
)
def test_a_key_is_used_or_training_s_own_or_unknown(key: str, use: str) -> None:
    *sections, name = key.split(".")
    document: object = {name: 1}
    for section in reversed(sections):
        document = {section: document}
    if sections and sections[0] == "callbacks":
        document = {"callbacks": [{"type": sections[1], name: sections[1] if name == "type" else 1}]}
    found = {each.path: each.use for each in sort_keys(document)}
    assert found[key] == use


def test_an_unknown_key_is_told_and_not_refused() -> None:
    config = read_training_config(None, {"load_chekpoint": "s3://b/llama", "parallel_config.model_parallel": 2})
    assert [(key.path, key.value) for key in config.keys_of("unknown")] == [("load_chekpoint", "s3://b/llama")]


def test_callbacks_go_by_their_type() -> None:
    callbacks = [{"type": "MFLossMonitor"}, {"type": "CheckpointMonitor", "prefix": "llama"}, {"prefix": "a"}, None]
    assert [path for path, _ in flatten({"callbacks": callbacks})] == [
        "callbacks.MFLossMonitor.type",
        "callbacks.CheckpointMonitor.type",
        "callbacks.CheckpointMonitor.prefix",
        "callbacks.?.prefix",
        "callbacks.?",
    ]


def test_every_pattern_is_reached() -> None:
    """A pattern behind one that covers it would never decide."""
    for known in known_keys():
        path = known.pattern.replace(".**", ".x").replace("*", "x")
        assert find_known(path, is_conversion=known.is_of_conversions) is known, known.pattern


def test_sizes_of_the_model_have_names_that_families_read() -> None:
    read = {
        key for family in family_names() for parameter in load_family(family).parameters for key in parameter.config
    }
    read |= {"model_type", "architectures"}
    for known in known_keys():
        if known.section == "config":
            assert set(known.config_names) & read, known.pattern


def test_the_page_lists_every_key() -> None:
    text = PAGE.read_text()
    missing = [known.pattern for known in known_keys() if f"`{known.pattern}`" not in text]
    assert not missing, "run python docs/make_tables.py"


def test_arguments_of_conversions_are_known_for_what_they_are() -> None:
    arguments = {"input_path": None, "output_path": None, "dtype": None}
    document = {"llama": {**arguments, "model_class": "LlamaForCausalLM"}, "blip": arguments}
    uses = {key.path: key.use for key in sort_keys(document, is_conversion=True)}
    assert uses.pop("llama.model_class") == "no effect"
    assert set(uses.values()) == {"used"}
    assert {key.use for key in sort_keys({"llama": {"input_pth": 1}}, is_conversion=True)} == {"unknown"}
    assert {key.use for key in sort_keys({"seed": 1}, is_conversion=True)} == {"training"}  # a hyper-parameter besides
