"""Options of the conversion that a training job needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..api.contents import inspect
from ..errors import option
from ..formats.containers import Container
from ..formats.strict_yaml import PlainValue
from ..models.family_file import family_names, load_config_names, load_family
from ..planning.limits import requests_for
from .training_config import TrainingConfig
from .training_source import TrainingSource, family_of, load_model_config

TRANSFORMED = "transformed_checkpoint"
STRATEGY = "strategy"
PREFIX = "checkpoint_"

_MODEL = "model.model_config."
# Options of families that have a key of the same name.
_SAME = ("qkv_concat", "mlp_concat", "mla_qkv_concat", "use_rearrange_rope")
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def target_url(config: TrainingConfig, source: TrainingSource) -> str:
    """Return where the ranks go.

    MindSpore Transformers names the folder after the source, up to the first dot in its name; here only the format's
    suffix is left out, so that ``qwen2.5.ckpt`` and ``qwen2.0.ckpt`` have places of their own.

    Source: MindSpore Transformers 1.6.0, ``TransformCkpt``.
    """
    return f"{config.output_dir.rstrip('/')}/{TRANSFORMED}/{source.name}"


def strategy_place(config: TrainingConfig) -> str:
    """Return where a job's strategy files go: a prefix, with the slash at its end."""
    return f"{config.output_dir.rstrip('/')}/{STRATEGY}/"


def target_format(config: TrainingConfig, source: TrainingSource) -> Container:
    """Return the format of the target: the source's, unless the job loads ``ckpt`` and saves ``safetensors``."""
    if changes_format(config, source) or Container.CKPT not in source.formats:
        return Container.SAFETENSORS
    if config.load_ckpt_format is not None and Container(config.load_ckpt_format) in source.formats:
        return Container(config.load_ckpt_format)
    return Container.SAFETENSORS if len(source.formats) > 1 else Container.CKPT


def changes_format(config: TrainingConfig, source: TrainingSource) -> bool:
    """Whether the job turns ``.ckpt`` into safetensors by loading one and saving the other."""
    asked = config.load_ckpt_format == Container.CKPT and config.checkpoint_format == Container.SAFETENSORS
    return asked and Container.CKPT in source.formats


def sharded_options(config: TrainingConfig, source: TrainingSource, notes: list[str]) -> dict[str, Any]:
    """Return the options that cut a source into the ranks of the job; notes say what was found out on the way."""
    options = _source_options(config, source)
    options |= {"dst": target_url(config, source), "parallel": config.parallel or f"dp={config.rank_count}"}
    if config.is_iteration:
        options |= {"form": "iteration", "prefix": config.iteration_prefix}
        if source.is_full and all(entry.spec.name != "global_step" for entry in inspect(source.url).entries):
            options["iteration"] = 0
            notes.append("the source has no global_step: what is written is iteration 0")
    else:
        options |= {"prefix": PREFIX, "format": target_format(config, source).value}
    if config.remove_redundancy and options.get("format") != Container.CKPT:
        options["remove_redundancy"] = True
    if source.is_full:
        found, model = family_of(config, source, notes)
        if found is not None and found.direction == "to_ms":
            naming = {None: None, True: "legacy", False: "mcore"}[config.use_legacy]
            own = family_options(config, found.family.name, notes)
            options |= {"to": "ms", "family": found.family.name, "naming": naming}
            return _without_nothing(options | {"config": model or None, "option": own or None})
        options["family"] = found.family.name if found is not None else None
    else:
        options["family"] = _family_named(load_model_config(config, source, notes))
    return _without_nothing(options)


def full_options(config: TrainingConfig, source: TrainingSource) -> dict[str, Any]:
    """Return the options that bring a source into one object for one card, ``rank_0/checkpoint_0``."""
    options = _source_options(config, source)
    options |= {"dst": target_url(config, source), "prefix": PREFIX, "format": target_format(config, source).value}
    return _without_nothing(options)


def _source_options(config: TrainingConfig, source: TrainingSource) -> dict[str, Any]:
    strategy = None if source.is_full else source.strategy_url
    is_layout = strategy is not None and strategy.endswith((".yaml", ".yml"))
    return {
        "src": source.url,
        "src_layout" if is_layout else "src_strategy": strategy,
        "file_suffix": source.file_suffix,
        "load_ckpt_format": config.load_ckpt_format if len(source.formats) > 1 else None,
        "concurrency": requests_for(config.transform_process_num),
    }


def family_options(config: TrainingConfig, family: str, notes: list[str]) -> dict[str, Any]:
    """Return the options of a family's rules that the job's ``model_config`` sets.

    Source: MindSpore Transformers 1.6.0 to 2.1.0, the models' configuration classes.
    """
    known = {choice.name for choice in load_family(family).options}
    given = {name: config.values[_MODEL + name] for name in _SAME if _MODEL + name in config.values}
    found: dict[str, Any] = dict(given)
    if _is(config, f"{_MODEL}use_contiguous_weight_layout_attention", True):
        found["qkv_layout"] = "contiguous"
    if _is(config, f"{_MODEL}use_interleaved_weight_layout_mlp", False):
        found["mlp_layout"] = "contiguous"
    if isinstance(use_gmm := config.values.get("moe_config.use_gmm"), bool):
        found["expert_layout"] = "gmm" if use_gmm else "bmm"
    in_runs = "contiguous" in found.values() or _is(config, f"{_MODEL}enable_high_performance", True)
    if in_runs and config.sizes.mp > 1:
        found["blocks"] = config.sizes.mp
    if "mla_qkv_concat" in known and "mla_qkv_concat" not in found and config.use_legacy is False:
        found["mla_qkv_concat"] = True
        notes.append("mla_qkv_concat is not given: the network's default, True, is taken")
    return {name: value for name, value in found.items() if name in known}


def conversion_options(arguments: Mapping[str, PlainValue], notes: list[str]) -> dict[str, Any]:
    """Return the options for the arguments of one conversion in a YAML file."""
    dtype = str(arguments["dtype"]).rpartition(".")[2] if arguments.get("dtype") else None
    if isinstance(qkv_concat := arguments.get("qkv_concat"), bool):
        notes.append(f"{option('option', f'qkv_concat={str(qkv_concat).lower()}')} is taken where the family has it")
    return _without_nothing(
        {
            "src": str(arguments["input_path"]),
            "dst": str(arguments["output_path"]),
            "dtype": _DTYPES.get(dtype, dtype) if dtype else None,
            "option": {"qkv_concat": qkv_concat} if isinstance(qkv_concat, bool) else None,
        }
    )


def _family_named(model: Mapping[str, object]) -> str | None:
    """Return the only family that ``config.json`` names; None leaves it to the tensors' names."""
    named = []
    for family in family_names():
        model_types, architectures = load_config_names(family)
        classes = model.get("architectures")
        given = [str(item) for item in classes] if isinstance(classes, list) else [str(classes)]
        if model.get("model_type") in model_types or set(given) & set(architectures):
            named.append(family)
    return named[0] if len(named) == 1 else None


def _is(config: TrainingConfig, key: str, value: bool) -> bool:
    return config.values.get(key) is value


def _without_nothing(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
