"""What a training configuration says against itself, and against its source."""

from __future__ import annotations

from collections.abc import Iterator

from ..formats.containers import Container
from .training_config import TrainingConfig
from .training_options import target_format
from .training_source import TrainingSource


def refusals(config: TrainingConfig) -> Iterator[str]:
    """Yield the contradictions that no decision can follow from."""
    if config.has_eager_engine:
        yield "parallelism: the eager engine's sizes do not say how many ranks there are; set parallel_config instead"
    if config.only_save_strategy and config.is_iteration:
        yield "only_save_strategy: a job with a checkpoint block has no strategy files; metadata.json has the layouts"
    if config.only_save_strategy and not config.is_parallel:
        yield "only_save_strategy: a job on one card has no strategy; set use_parallel: True and parallel_config"
    if config.is_iteration and isinstance(config.resume_training, str):
        yield f"resume_training: a job with a checkpoint block takes True or False, found {config.resume_training!r}"


def contradictions_within(config: TrainingConfig) -> Iterator[str]:
    """Yield what a configuration says against itself, with what is done about it."""
    values = config.values
    ranks = config.sizes.rank_count
    if config.use_parallel is False and ranks > 1:
        yield f"use_parallel is False: the sizes of {ranks} ranks in parallel_config have no effect"
    if config.use_parallel is True and ranks == 1:
        yield "use_parallel is True, but the sizes are those of one rank: the job is taken for one of one card"
    old, new = values.get("load_checkpoint"), values.get("checkpoint.load_path")
    if old and new and old != new:
        yield f"load_checkpoint is {old}, checkpoint.load_path is {new}: the second is taken"
    if values.get("parallel_config.optimizer_shard") is True and not config.sizes.optimizer_shard:
        yield "parallel_config.optimizer_shard has no effect: parallel.enable_parallel_optimizer is not True"
    nodes = config.npu_num_per_node
    if nodes is not None and nodes & (nodes - 1):
        yield f"npu_num_per_node is {nodes}: training expects a power of two"
    if config.resume_training and config.run_mode == "predict":
        yield "resume_training has no effect with run_mode: predict but to choose the checkpoint"
    if config.use_legacy is True and config.pretrained_model_dir and not config.load_checkpoint:
        yield "use_legacy is True: training loads pretrained_model_dir with use_legacy: False only; it is taken here"


def contradictions_with(config: TrainingConfig, source: TrainingSource) -> Iterator[str]:
    """Yield what a configuration says against its source, with what is done about it."""
    if source.is_full and config.src_strategy_path_or_dir:
        yield "src_strategy_path_or_dir is not used: the source is full"
    if source.is_full and config.rank_count == 1 and config.auto_trans_ckpt:
        yield "auto_trans_ckpt is True, but one card loads full weights as they are: set it to False"
    wanted = config.load_ckpt_format
    if wanted is not None and source.formats and Container(wanted) not in source.formats:
        found = " and ".join(sorted(source.formats))
        yield f"load_ckpt_format is {wanted}, but {found} lies at {source.url}: that is read"
    if config.remove_redundancy and config.rank_count > 1 and target_format(config, source) is Container.CKPT:
        yield "remove_redundancy is for safetensors: .ckpt shards are written whole"
    if config.resume_training and source.is_full and not source.has_counters:
        yield "resume_training: no hyper_param.safetensors lies beside the full weights: counters start anew"
