"""Do the Chinese pages say what the English ones do, and do both name all that users come with?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs.blocks import blocks_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted((DOCS / "zh").glob("*.md"))

# What MindSpore Transformers' pages on weights name: keys of YAML, arguments, scripts, folders and files.
THEIRS = re.findall(
    r"[\w.]+",
    """
    load_checkpoint load_ckpt_format use_parallel auto_trans_ckpt src_strategy_path_or_dir parallel_config
    output_dir only_save_strategy remove_redundancy pretrained_model_dir use_legacy resume_training
    transform_process_num transform_by_rank npu_num_per_node save_checkpoint_steps keep_checkpoint_max
    integrated_save async_save checkpoint_format save_network_params CheckpointMonitor src_strategy_dirs
    mindspore_ckpt_dir file_suffix has_redundancy filter_out_param_prefix merge_pipeline_strategys
    load_distributed_checkpoint ckpt_to_safetensors convert_pt_to_ms convert_ms_to_pt n_head hidden_size layers
    is_pretrain telechat_type reversed input_path output_path src_checkpoint src_strategy dst_checkpoint
    dst_checkpoint_dir dst_strategy prefix world_size process_num lora_scaling unified_safetensors.py
    convert_weight.py transform_checkpoint.py transform_checkpoint.sh transform_ckpt_lora.py checkpoint_network
    meta.json hyper_param.safetensors param_name_map.json model.safetensors.index.json merged_ckpt_strategy.ckpt
    unified_checkpoint ms_safetensors transformed_checkpoint
    """,
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_those_of_the_english_page(page: Path) -> None:
    english = next(path for path in (DOCS / page.name, DOCS / "tasks" / page.name) if path.exists())
    assert f"[English](../{english.relative_to(DOCS)})" in page.read_text()
    assert without_comments(page) == without_comments(english)  # which run, in test_docs.py


def without_comments(page: Path) -> list[tuple[str, ...]]:
    blocks = blocks_of(page.read_text())
    return [(each.note, each.value, each.language, re.sub(r" +# .*", "", each.body)) for each in blocks]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_of_chinese_text_is_broken(page: Path) -> None:
    """A line's end would show as a space between two characters."""
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"[^\x00-\x7f].*\n(?=[^\s\x00-\x7f])", prose) == []


@pytest.mark.parametrize("folder", [DOCS, DOCS / "zh"], ids=["en", "zh"])
def test_all_that_the_original_pages_name_is_on_ours(folder: Path) -> None:
    page = (folder / "coming-from-mindspore-transformers.md").read_text()
    assert [name for name in THEIRS if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", page)] == []
