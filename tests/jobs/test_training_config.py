"""Configurations of training jobs, read into typed values."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs.training_places import new_place, put

from reshard.errors import FormatError, NotFound, StrategyError, UsageError
from reshard.jobs.training_config import TrainingConfig, config_of, plain_value, read_training_config


def of(text: str, **overrides: object) -> TrainingConfig:
    """Read a YAML text."""
    return read_training_config(put(f"{new_place()}/train.yaml", text.encode()), overrides)


def test_values_are_read_by_their_types() -> None:
    config = of(
        """
        load_checkpoint: '/a'
        pretrained_model_dir: /hf
        load_ckpt_format: safetensors
        src_strategy_path_or_dir: ''
        auto_trans_ckpt: True
        use_parallel: True
        use_legacy: False
        remove_redundancy: True
        transform_process_num: 2
        transform_by_rank: False
        npu_num_per_node: 16
        resume_training: llama_rank_0-3_2.ckpt
        only_save_strategy: False
        output_dir: ./elsewhere
        run_mode: finetune
        parallel_config: {data_parallel: 2, model_parallel: 4, pipeline_stage: 2}
        callbacks:
          - {type: MFLossMonitor}
          - {type: CheckpointMonitor, checkpoint_format: ckpt}
        """
    )
    assert (config.load_checkpoint, config.pretrained_model_dir, config.output_dir) == ("/a", "/hf", "./elsewhere")
    assert (config.load_ckpt_format, config.checkpoint_format) == ("safetensors", "ckpt")
    assert config.src_strategy_path_or_dir == ""
    assert (config.auto_trans_ckpt, config.use_parallel, config.use_legacy) == (True, True, False)
    assert (config.remove_redundancy, config.only_save_strategy, config.transform_by_rank) == (True, False, False)
    assert (config.transform_process_num, config.npu_num_per_node, config.run_mode) == (2, 16, "finetune")
    assert config.resume_training == "llama_rank_0-3_2.ckpt"
    assert config.rank_count == 16  # whatever npu_num_per_node says


def test_defaults_are_those_of_mindspore_transformers() -> None:
    config = read_training_config(None)
    assert (config.auto_trans_ckpt, config.resume_training, config.only_save_strategy) == (False, False, False)
    assert (config.use_parallel, config.load_ckpt_format, config.use_legacy) == (None, None, None)
    assert (config.output_dir, config.rank_count, config.is_parallel) == ("./output", 1, False)


@pytest.mark.parametrize(
    ("text", "expected"), [("True", True), ("true", True), ("1", True), ("False", False), ("0", False)]
)
def test_hyper_parameters_may_be_text(text: str, expected: bool) -> None:
    config = read_training_config(None, {"auto_trans_ckpt": text})
    assert config.auto_trans_ckpt is expected


def test_hyper_parameters_take_precedence() -> None:
    config = of(
        "parallel_config: {data_parallel: 2, model_parallel: 4}\ncallbacks: [{type: CheckpointMonitor, prefix: a}]",
        **{
            "parallel_config.model_parallel": "8",
            "callbacks.checkpoint_format": "safetensors",
            "output_dir": "s3://b/o",
        },
    )
    assert (config.sizes.dp, config.sizes.mp, config.output_dir) == (2, 8, "s3://b/o")
    assert config.checkpoint_format == "safetensors"
    assert "callbacks.CheckpointMonitor.prefix" in [key.path for key in config.keys]


def test_a_hyper_parameter_of_a_callback_makes_the_callback() -> None:
    given = {"callbacks.CheckpointMonitor.checkpoint_format": "safetensors"}
    assert read_training_config(None, given).checkpoint_format == "safetensors"


def test_wrong_values_are_listed_together() -> None:
    with pytest.raises(FormatError, match="values do not fit their keys") as caught:
        of("auto_trans_ckpt: perhaps\nload_ckpt_format: zip\ntransform_process_num: many\nload_checkpoint: [a]")
    assert caught.value.problems == (
        "load_checkpoint: expected text, found ['a']",
        "load_ckpt_format: expected ckpt or safetensors, found 'zip'",
        "auto_trans_ckpt: expected True or False, found 'perhaps'",
        "transform_process_num: expected a number, 1 or more, found 'many'",
    )


def test_sizes_that_cannot_be_read() -> None:
    with pytest.raises(FormatError, match="the parallel sizes cannot be read") as caught:
        of("parallel_config: {data_parallel: two}")
    assert caught.value.problems == ("data_parallel: expected a whole number, found 'two'",)


def test_a_size_cannot_pass_for_several() -> None:
    with pytest.raises(FormatError) as caught:
        of("parallel_config: {data_parallel: '2,model_parallel=4'}")
    assert caught.value.problems == ("parallel_config.data_parallel: expected a size, found '2,model_parallel=4'",)


def test_a_hyper_parameter_of_very_many_sections() -> None:
    with pytest.raises(UsageError, match="a hyper-parameter with 5000 sections"):
        read_training_config(None, {".".join("a" * 5000): 1})


def test_very_many_unknown_keys_take_little_time() -> None:
    config = of("\n".join(f"a{n}: {{b: 1}}" for n in range(5_000)))
    assert len(config.keys_of("unknown")) == 5_000


def test_sizes_that_contradict_each_other() -> None:
    with pytest.raises(StrategyError, match="parallel configuration is invalid"):
        of("parallel_config: {data_parallel: 2, expert_parallel: 3}")


def test_every_size_reaches_the_strategy() -> None:
    config = of(
        """
        use_legacy: False
        parallel_config: {data_parallel: 4, model_parallel: 2, context_parallel: 2, pipeline_stage: 2,
          expert_parallel: 2, vocab_emb_dp: False, use_seq_parallel: True, micro_batch_num: 4, ulysses_degree_in_cp: 2}
        parallel:
          enable_parallel_optimizer: True
          parallel_optimizer_config: {parallel_optimizer_threshold: 8, optimizer_weight_shard_size: 4}
          pipeline_config: {pipeline_interleave: True, pipeline_scheduler: zero_bubble_v}
        model:
          model_config:
            {offset: [[1, 0], [0, 1]], pp_interleave_num: 2, params_dtype: float32, param_init_type: bfloat16}
        """
    )
    sizes = config.sizes
    assert (sizes.dp, sizes.mp, sizes.cp, sizes.pp, sizes.ep, sizes.rank_count) == (4, 2, 2, 2, 2, 32)
    assert (sizes.vocab_emb_dp, sizes.use_seq_parallel, sizes.micro_batch_num) == (False, True, 4)
    assert (sizes.optimizer_shard, sizes.optimizer_threshold_kib, sizes.optimizer_weight_shard_size) == (True, 8, 4)
    assert (sizes.pipeline_interleave, sizes.pp_interleave_num, sizes.zero_bubble_v) == (True, 2, True)
    assert (sizes.offset, sizes.ulysses_degree_in_cp, sizes.use_legacy) == (((1, 0), (0, 1)), 2, False)
    assert str(sizes.param_dtype) == "F32"


def test_use_parallel_false_is_one_card_whatever_the_sizes() -> None:
    config = of("use_parallel: False\nparallel_config: {model_parallel: 2}")
    assert (config.rank_count, config.sizes.rank_count) == (1, 2)


def test_the_checkpoint_block_takes_precedence_over_older_keys() -> None:
    config = of("load_checkpoint: /old\ncheckpoint: {load_path: /new, prefix: a, no_load_optim: False}")
    assert (config.load_checkpoint, config.iteration_prefix, config.is_iteration) == ("/new", "a", True)
    assert config.resume_training is True
    assert of("use_legacy_format: False").is_iteration
    assert not of("use_legacy_format: True").is_iteration


def test_sizes_of_the_model_have_the_names_of_config_json() -> None:
    config = of("model: {model_config: {num_layers: 2, num_heads: 8, n_kv_heads: 4, q_lora_rank: null, theta: 1.e4}}")
    assert config.model_sizes == {
        "num_hidden_layers": 2,
        "num_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }


def test_anchors_aliases_and_merge_keys() -> None:
    config = of(
        """
        sizes: &sizes {model_parallel: 4, data_parallel: 1}
        parallel_config:
          <<: *sizes
          data_parallel: 2
        load_checkpoint: &source s3://b/llama
        pretrained_model_dir: *source
        """
    )
    assert (config.sizes.dp, config.sizes.mp) == (2, 4)
    assert config.pretrained_model_dir == "s3://b/llama"


def test_a_bomb_is_refused() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(FormatError, match="aliases expand"):
        of("\n".join(levels))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a, b]", "not a training configuration: expected a mapping"),
        (
            "axes: {mp: 2}\nrules: [{match: '*', split: [mp]}]",
            "this is a layout file, not the configuration of a training",
        ),
        ("jobs: {a: {src: x, dst: y}}", "this is a job file of reshard, not the configuration of a training job"),
        ("src: a\ndst: b", "this is a job file"),
        ("a: {b", "invalid YAML"),
    ],
)
def test_files_of_other_kinds_are_told_apart(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        of(text)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(NotFound):
        read_training_config(f"{new_place()}/none.yaml")


def test_a_path_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("auto_trans_ckpt: True\n")
    assert read_training_config(str(tmp_path / "train.yaml")).auto_trans_ckpt


def test_arguments_of_conversions() -> None:
    config = of("llama: {input_path: , output_path: , dtype: , model_class: LlamaForCausalLM}")
    assert list(config.conversions) == ["llama"]
    assert not config_of({"llama": {"input_path": None}}).conversions


def test_text_stays_text() -> None:
    assert [plain_value(value) for value in ("1_10", "s3://b/a: b", "{a", "None", 3)] == [
        "1_10",
        "s3://b/a: b",
        "{a",
        None,
        3,
    ]
