"""What is fuzzed: every parser and every document that reshard reads, each as a target of its own.

A target takes any bytes. It may return, or raise a :class:`reshard.errors.ReshardError`; anything else is a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from reshard.engine.manifest import ids_at_start
from reshard.formats.container_format import HeaderScan
from reshard.formats.dcp_metadata import join_metadata, parse_dcp_metadata
from reshard.formats.layout_file import parse_layout_file
from reshard.formats.mindspore.ckpt_read import scan_ckpt
from reshard.formats.mindspore.iteration import parse_common, parse_iteration_name, parse_object_name, parse_tracker
from reshard.formats.mindspore.iteration_metadata import parse_metadata
from reshard.formats.mindspore.iteration_shards import parse_shard_id
from reshard.formats.mindspore.rank_names import label_of, pattern_of, resumable
from reshard.formats.mindspore.rank_objects import choose, find_rank_objects, parse_meta
from reshard.formats.mindspore.strategy_merge import merge_strategy_files, parse_strategy_file, to_strategy
from reshard.formats.name_map import parse_name_map
from reshard.formats.safetensors import scan_safetensors
from reshard.formats.sharding_info import parse_sharding_info
from reshard.formats.strict_json import parse_json_object
from reshard.formats.strict_yaml import parse_yaml
from reshard.formats.torch_zip import ArchiveScan, scan_torch_zip
from reshard.formats.weight_index import parse_param_name_map, parse_weight_index
from reshard.formats.zarr_read import is_group, parse_array, parse_group, parse_node
from reshard.jobs.job_file import parse_job_file
from reshard.jobs.training_config import config_of
from reshard.models.detecting import detect
from reshard.models.family_file import load_family, parse_family
from reshard.models.lora_config import parse_adapter_config
from reshard.models.parallel_config import parse_parallel, parse_parallel_yaml
from reshard.models.settings import resolve_settings
from reshard.planning.cost.prices import parse_prices
from reshard.planning.share_documents import shared_ranks
from reshard.planning.sources.selection import NameFilter, Renames
from reshard.planning.sources.tiling import find_flaw

from .answers import ANSWERS, SEPARATOR
from .stores import STORES
from .texts import TEXTS, one_client

Target = Callable[[bytes], object]

_WHERE = "input"
_SHAPES = {"w": (8, 8), "a.weight": (4, 16), "b": (8,)}
_MODEL = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight")
_NAMES = ("model.layers.0.w", "model.embed", "a" * 200, "", "λ.b\n")


def _scanned(scan: Callable[[int], HeaderScan | ArchiveScan]) -> Target:
    def target(data: bytes) -> object:
        steps = scan(len(data))
        try:
            span = next(steps)
            while True:
                span = steps.send(data[span.start : span.stop])
        except StopIteration as done:
            return done.value

    return target


def _dcp(data: bytes) -> object:
    several = data.split(SEPARATOR)[:4]
    metadata = join_metadata({f"{n}": parse_dcp_metadata(each, f"{n}") for n, each in enumerate(several)})
    return [find_flaw(each.spec.shape, [piece.box for piece in each.pieces]) for each in metadata.tensors.values()]


def _strategy(name: str) -> Target:
    def target(data: bytes) -> object:
        file = parse_strategy_file(data, name)
        return to_strategy([file], _SHAPES), to_strategy([file], _SHAPES, local=True)

    return target


def _merged(data: bytes) -> object:
    several = data.split(SEPARATOR)[:16]
    return merge_strategy_files([parse_strategy_file(each, f"{n}.ckpt") for n, each in enumerate(several)])


def _layout(data: bytes) -> object:
    rules = parse_layout_file(data, _WHERE)
    strategy = rules.strategy(_SHAPES)
    return [strategy.layout(name, 0).box_of(_SHAPES[name], 0) for name in strategy.names if name in strategy.stages[0]]


def _training(data: bytes) -> object:
    document = parse_yaml(data, _WHERE, foreign=True)
    return config_of(document, _WHERE) if isinstance(document, dict) else None


def _config(data: bytes) -> object:
    config = parse_json_object(data, _WHERE)
    settings = [resolve_settings(load_family(name), config, {}) for name in ("llama", "deepseek_v3", "qwen3_moe")]
    return detect(config, _MODEL), settings


def _zarr(data: bytes) -> object:
    node = parse_node(data, _WHERE)
    return parse_group(node, _WHERE) if is_group(node) else parse_array(node, "a/b", _WHERE)


def _names(data: bytes) -> object:
    names = data.decode("utf-8", "replace").split("\n")
    for name in names:
        found = (
            resumable(name),
            label_of(name, 3),
            pattern_of(name, 3),
            shared_ranks(name),
            parse_object_name(name),
            parse_iteration_name(name),
            parse_shard_id(name),
        )
        assert found is not None
    ids_at_start(data)
    return choose(find_rank_objects(names))


def _patterns(data: bytes) -> object:
    texts = tuple(data.decode("utf-8", "replace").split("\n"))[:2]
    chosen = NameFilter(texts[::2], texts[1::2])
    kept = [name for name in _NAMES if chosen.is_kept(name)]
    return kept, Renames({}, texts).apply(_NAMES)


def _job(data: bytes) -> object:
    with one_client():
        return parse_job_file(data, _WHERE, {"HOME": "/h"})


TARGETS: Mapping[str, Target] = {
    "adapter_config": lambda data: parse_adapter_config(data, _WHERE),
    "ckpt": _scanned(scan_ckpt),
    "common": lambda data: parse_common(data, _WHERE),
    "config": _config,
    "dcp_metadata": _dcp,
    "family": lambda data: parse_family(data, _WHERE),
    "index": lambda data: parse_weight_index(data, _WHERE),
    "iteration_metadata": lambda data: parse_metadata(data, _WHERE),
    "job": _job,
    "layout": _layout,
    "meta": lambda data: parse_meta(data, _WHERE),
    "name_map": lambda data: parse_name_map(data, _WHERE),
    "parallel_text": lambda data: parse_parallel(data.decode("utf-8", "replace")),
    "parallel_yaml": lambda data: parse_parallel_yaml(data, _WHERE),
    "param_name_map": lambda data: parse_param_name_map(data, _WHERE),
    "patterns": _patterns,
    "prices": lambda data: parse_prices(data, _WHERE),
    "rank_names": _names,
    "safetensors": _scanned(scan_safetensors),
    "sharding_info": lambda data: parse_sharding_info(data.decode("utf-8", "replace"), _WHERE),
    "strategy_json": _strategy("s.json"),
    "strategy_merged": _merged,
    "strategy_protobuf": _strategy("s.ckpt"),
    "torch_zip": _scanned(scan_torch_zip),
    "tracker": lambda data: parse_tracker(data, _WHERE),
    "training": _training,
    "zarr": _zarr,
    **ANSWERS,
    **STORES,
    **TEXTS,
}
"""Every target by its name, which is also that of its corpus."""
