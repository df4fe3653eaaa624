"""Names that scripts rely on: commands and flags."""

from __future__ import annotations

import re

import pytest
from cli.runner import run

import reshard

SOURCE = {
    "--src-strategy,--src-strategy-path-or-dir", "--src-layout", "--src-parallel", "--file-suffix",
    "--load-ckpt-format", "--check-crc", "--keep", "--drop", "--network-only", "--keep-rank", "--concurrency",
    "--give-up-after",
}  # fmt: skip
CONVERSION = SOURCE | {
    "--to", "--family", "--naming", "--option", "--config", "--dtype", "--keep-dtype", "--merge-lora", "--lora",
    "--lora-scaling", "--parallel", "--dst-strategy,--dst-strategy-path-or-dir", "--dst-layout", "--rename",
    "--name-map",
    "--serve", "--vllm", "--form", "--format", "--prefix", "--ranks",
    "--remove-redundancy", "--part-size", "--overwrite", "--memory", "--copy", "--staging", "--staging-url",
    "--iteration", "--integrity", "--verify", "--on-overflow", "--processes", "--engine", "--ray-address",
}  # fmt: skip
ALWAYS = {"--verbose", "--color", "--help"}
SHOWN = {"--output", "--quiet"} | ALWAYS
EXTRAS = SHOWN | {"--if_exists", "--overwrite", "--drop", "--memory"}
CHECKPOINTS = EXTRAS | {"--load_ckpt_format", "--network_only"}
REWRITING = EXTRAS | {"--file_path", "--save_path", "--name_map", "--file_name_regex", "--processes_num"}

FLAGS = {
    "convert": CONVERSION | SHOWN | {"--plan", "--keep-staging", "--if-exists", "--on-failure", "--restart"},
    "plan": CONVERSION | SHOWN | {
        "--out", "--plan", "--explain", "--html", "--picture",
        "--bandwidth", "--latency", "--nodes", "--egress", "--prices", "--price-table",
    },
    "inspect": SOURCE | {"--family", "--naming", "--option", "--config", "--tensors", "--html", "--output"} | ALWAYS,
    "cat": SOURCE | {
        "--family", "--naming", "--option", "--config", "--memory", "--verify", "--out", "--overwrite", "--output",
    } | ALWAYS,
    "run": SHOWN | {
        "--config", "--set", "--only", "--dry-run", "--check", "--schema", "--jobs", "--memory",
        "--fail-fast,--keep-going", "--if-exists",
    },
    "verify": SHOWN | {"--source", "--subset", "--html", "--give-up-after"},
    "ls": {"--recursive", "--output", "--give-up-after"} | ALWAYS,
    "doctor": {"--output", "--give-up-after"} | ALWAYS,
    "runs": {"--output", "--give-up-after"} | ALWAYS, "abort": {"--output", "--give-up-after"} | ALWAYS,
    "unified-safetensors": CHECKPOINTS | {
        "--mindspore_ckpt_dir", "--src_strategy_dirs,--src_strategy_path_or_dir", "--output_dir", "--file_suffix",
        "--format", "--has_redundancy,--merge_with_redundancy", "--filter_out_param_prefix", "--max_process_num",
        "--keep-rank",
    },
    "transform-checkpoint": CHECKPOINTS | {
        "--src_checkpoint,--src_ckpt_dir", "--dst_checkpoint,--dst_checkpoint_dir,--dst_ckpt_dir",
        "--src_strategy,--src_ckpt_strategy,--src_strategy_path_or_dir",
        "--dst_strategy,--dst_ckpt_strategy,--dst_strategy_path_or_dir", "--prefix", "--rank_id", "--world_size",
        "--process_num,--transform_process_num", "--transform_by_rank", "--format", "--file_suffix", "--keep-rank",
        "--config", "--family",
    },
    "load-distributed-checkpoint": CHECKPOINTS | {
        "--unified_safetensors_dir", "--dst_safetensors_dir", "--predict_strategy,--dst_strategy_path_or_dir",
        "--format", "--output_format", "--rank_id", "--name_map", "--max_process_num", "--config", "--family",
    },
    "merge-pipeline-strategys": {
        "--src_strategy_dirs,--src_strategy_path_or_dir", "--dst_strategy_file", "--overwrite", "--output",
    } | ALWAYS,
    "ckpt-to-safetensors": REWRITING,
    "safetensors-to-ckpt": REWRITING,
    "convert-weight": CHECKPOINTS | {
        "--model", "--input_path", "--output_path", "--reversed", "--dtype", "--config", "--is_lora", "--save_format",
        "--max_worker", "--keep-rank", "--qkv_concat", "--mlp_concat", "--use_rearrange_rope", "--use_gmm",
        "--use_grouped_gemm", "--num_layers", "--num_nextn_predict_layers", "--first_k_dense_replace",
        "--num_routed_experts", "--hidden_size", "--vocab_size", "--ffn_hidden_size", "--moe_ffn_hidden_size",
        "--num_attention_heads,--n_head", "--num_query_groups", "--kv_channels", "--qk_nope_head_dim",
        "--qk_rope_head_dim", "--v_head_dim",
    },
    "transform-ckpt-lora": CHECKPOINTS | {
        "--src_ckpt_path_or_dir,--src_ckpt_path", "--dst_ckpt_dir,--dst_ckpt_path",
        "--src_ckpt_strategy,--src_strategy_path_or_dir", "--dst_ckpt_strategy,--dst_strategy_path_or_dir",
        "--prefix", "--lora_scaling", "--save_format", "--keep-rank",
    },
    "modelarts": {"--config", "--npu_num_per_node", "--wait", "--data_url", "--train_url"} | ALWAYS,
    "strategy show": {"--give-up-after", "--for", "--picture", "--output"} | ALWAYS,
    "strategy merge": {"--give-up-after", "--overwrite", "--output"} | ALWAYS,
    "strategy convert": {"--give-up-after", "--for", "--overwrite", "--output"} | ALWAYS,
    "strategy make": {"--to", "--give-up-after",
        "--parallel", "--for", "--family", "--naming", "--config", "--option", "--overwrite", "--output",
    } | ALWAYS,
}  # fmt: skip
ARGUMENTS = {
    "convert": ["src", "dst"], "plan": ["src", "dst"], "inspect": ["url"], "cat": ["url", "tensor"], "verify": ["url"],
    "unified-safetensors": [], "transform-checkpoint": [], "load-distributed-checkpoint": [],
    "merge-pipeline-strategys": ["src", "dst"], "ckpt-to-safetensors": ["src", "dst"],
    "safetensors-to-ckpt": ["src", "dst"], "strategy make": ["dst"], "convert-weight": [], "transform-ckpt-lora": [],
    "modelarts": [], "run": [], "ls": ["url"], "doctor": ["url"], "runs": ["url"], "abort": ["dst"],
}  # fmt: skip


ROW = re.compile(
    r"^  (?P<flags>(?:-\w, )?--[a-z_-]+(?:, --[a-z_-]+)*)(?: [^ ]+)?\s\s+(?P<text>\S.*(?:\n {4,}\S.*)*)", re.MULTILINE
)


def rows(command):
    """The help of every flag, by its long names."""
    done = run(*command.split(), "--help")
    assert done.code == 0
    found = {re.sub(r"^-\w, | ", "", row["flags"]): " ".join(row["text"].split()) for row in ROW.finditer(done.out)}
    usage = re.search(r"Usage: (.*(?:\n {4,}.*)*)", done.out)[1]
    return found, usage


@pytest.mark.parametrize("command", FLAGS)
def test_flags_are_exactly_these(command):
    found, usage = rows(command)
    assert found.keys() == FLAGS[command]
    for argument in ARGUMENTS.get(command, ["src"]):
        assert re.search(rf"[\[{{]{argument.upper()}[\]}}]", usage), usage


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_is_explained_in_a_sentence(command):
    for flag, text in rows(command)[0].items():
        sentence = re.sub(r" ?\[(default: .*|required)\]$", "", text)
        assert re.fullmatch(r"[A-Z.].{8,}\.", sentence) or sentence.startswith(("config.json", "safetensors")), flag
        assert len(sentence.split()) >= 3, flag
        assert "\u27e6" not in text, flag


def test_commands_are_exactly_these():
    listed, originals = run("--help").out.split("\nCommands:\n")[1].split("own commands:\n")
    assert re.findall(r"^  ([a-z-]+)", listed, re.MULTILINE) == [
        "inspect", "ls", "cat", "plan", "convert", "run", "verify", "modelarts", "runs", "abort", "doctor", "family",
        "strategy",
    ]  # fmt: skip
    assert re.findall(r"^  ([a-z-]+)", originals, re.MULTILINE) == [
        "unified-safetensors", "transform-checkpoint", "load-distributed-checkpoint", "merge-pipeline-strategys",
        "ckpt-to-safetensors", "safetensors-to-ckpt", "convert-weight", "transform-ckpt-lora",
    ]  # fmt: skip
    listed = run("strategy", "--help").out.split("\nCommands:\n")[1]
    assert re.findall(r"^  ([a-z]+)", listed, re.MULTILINE) == ["show", "merge", "convert", "make"]


@pytest.mark.parametrize("command", FLAGS)
def test_a_command_is_listed_with_the_help_that_it_has(command):
    *above, name = command.split()
    listed = " ".join(run(*above, "--help").out.split())
    first = run(*command.split(), "--help").out.split("\n\n")[1]
    assert f" {name} {' '.join(first.split())}" in listed


def test_version():
    assert run("--version").out == f"reshard {reshard.__version__}\n"


@pytest.mark.parametrize("command", FLAGS)
def test_underscores_do_as_well_as_dashes(command):
    as_listed = run(*command.split(), "--help")
    assert run(*command.replace("-", "_").split(), "--help").out == as_listed.out
    flags = sorted(flag for listed in FLAGS[command] for flag in listed.split(",") if flag != "--help")
    for flag in flags:
        for spelled in {f"--{flag[2:].replace('-', '_')}", f"--{flag[2:].replace('_', '-')}"}:
            assert "No such option" not in run(*command.split(), spelled).err, spelled


@pytest.mark.parametrize("arguments", [[], ["strategy"]])
def test_without_a_command_help_is_shown(arguments):
    done = run(*arguments)
    assert done.code == 2
    assert "Commands" in done.out + done.err


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["inspect"], ["plan", "a", "b", "c"], ["convert", "a", "b", "c"], ["convert", "a", "b", "--bogus"],
     ["inspect", "a", "--output", "xml"], ["convert", "a", "b", "--concurrency", "0"], ["strategy", "merge", "a"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments):
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage:" in done.err
