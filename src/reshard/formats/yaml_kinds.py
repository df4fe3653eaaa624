"""Tells the YAML documents that people mix up apart: layout files, job files, configurations of training jobs."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from .strict_yaml import PlainValue


class YamlKind(StrEnum):
    """What a YAML document is, in the words of a message."""

    LAYOUT_FILE = "a layout file"
    TRAINING = "the configuration of a training job"
    JOB_FILE = "a job file of reshard"


# Keys at the top of MindSpore Transformers' own files; the first two, or the first of the others, settle it.
_LAYOUT_KEYS = frozenset({"axes", "rules"})
_JOB_KEYS = frozenset({"src", "dst"})
_TRAINING_KEYS = frozenset(
    {
        "parallel_config", "parallel", "use_parallel", "run_mode", "trainer", "model", "runner_config",
        "runner_wrapper", "context", "callbacks", "optimizer", "lr_schedule", "train_dataset", "train_dataset_task",
        "eval_dataset", "output_dir", "load_checkpoint", "pretrained_model_dir", "src_strategy_path_or_dir",
        "auto_trans_ckpt", "load_ckpt_format", "resume_training", "only_save_strategy", "transform_process_num",
        "remove_redundancy", "recompute_config", "moe_config", "use_legacy", "checkpoint", "training_args",
        "distribute_parallel_config", "micro_batch_interleave_num", "processor",
    }
)  # fmt: skip


def kind_of(document: PlainValue) -> YamlKind | None:
    """Return what a document is by the keys at its top; None if they show neither.

    Examples
    --------
    >>> str(kind_of({"axes": {"mp": 2}, "rules": []})), str(kind_of({"model": {}, "run_mode": "train"}))
    ('a layout file', 'the configuration of a training job')
    >>> kind_of({"axes": {"mp": 2}}) is kind_of(["rules"]) is None
    True
    """
    if not isinstance(document, Mapping):
        return None
    if document.keys() >= _LAYOUT_KEYS:
        return YamlKind.LAYOUT_FILE
    if "jobs" in document or document.keys() >= _JOB_KEYS:
        return YamlKind.JOB_FILE
    return YamlKind.TRAINING if document.keys() & _TRAINING_KEYS else None
