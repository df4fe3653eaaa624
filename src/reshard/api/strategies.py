"""Strategy files: read, merged, written in another form, and made from the sizes of a parallel job.

Where they are written, a URL that ends in a slash, or below which objects are already, stands for a whole set: a file
for every rank, as training leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engine.sources.strategy_files import StrategySource
from ..errors import UsageError, option
from ..formats.layout_file import encode_layout_file
from ..formats.mindspore.strategy_file import StrategyFile, split_stage
from ..formats.mindspore.strategy_json import encode_json
from ..formats.mindspore.strategy_merge import from_strategy, merge_strategy_files, stage_files
from ..formats.mindspore.strategy_protobuf import encode_protobuf
from ..planning.change import Change, make_tensors
from ..storage import shared_connections
from ..tensor import Strategy, TensorSpec
from .changes import change_of, strategy_from_parallel
from .contents import YAML, inspect, load_parallel, load_strategy_source
from .request import STRATEGY_OPTIONS, Request
from .statements import save
from .strategy_set import is_strategy_prefix, write_strategy_set


def read_strategy(url: str, *, checkpoint: str | None = None) -> Strategy:
    """Read a MindSpore strategy file, a prefix that holds those of all stages, or a layout file.

    A layout file has rules, which are applied to the tensors of the full checkpoint at a URL; without one, raise
    UsageError.
    """
    return read_strategy_of(url, checkpoint=checkpoint)[0]


def read_strategy_of(url: str, *, checkpoint: str | None = None) -> tuple[Strategy, dict[str, TensorSpec]]:
    """Read a strategy as :func:`read_strategy` does; return it and the tensors of the checkpoint, if one is named."""
    specs = _specs(checkpoint)
    return _strategy(load_strategy_source(url), url, specs), specs


@shared_connections()
def merge_strategies(src: str, dst: str, *, overwrite: bool = False) -> Strategy:
    """Merge the strategy files of all ranks or stages below a prefix into one, as MindSpore's merge does.

    The merged file is JSON if its name ends in .json, protobuf otherwise; if ``dst`` is a prefix, it is written there
    with the file of every rank. Raise StrategyError if stages are missing, or files of one stage differ.
    """
    source = load_strategy_source(src)
    if source.rules is not None:
        hint = "reshard strategy convert writes it in another form."
        raise UsageError(f"{src}: a layout file has nothing to merge", hint=hint)
    merged = merge_strategy_files(source.files)
    strategy = source.strategy({}, local=False)
    if is_strategy_prefix(dst):
        write_strategy_set(dst, stage_files(source.files), merged, strategy.device_count, overwrite=overwrite)
    else:
        save(dst, _encode(merged, dst, {}), overwrite=overwrite)
    return strategy


def convert_strategy(src: str, dst: str, *, checkpoint: str | None = None, overwrite: bool = False) -> Strategy:
    """Write a strategy in another form, by the name of ``dst``: see :func:`save_strategy`.

    A layout file needs the tensors of the full checkpoint at a URL, and the JSON form records their shapes.
    """
    specs = _specs(checkpoint)
    strategy = _strategy(load_strategy_source(src), src, specs)
    save_strategy(strategy, dst, specs, overwrite=overwrite)
    return strategy


def make_strategy(dst: str, *, checkpoint: str, parallel: str, overwrite: bool = False, **options: Any) -> Strategy:
    """Write the strategy that training with these parallel sizes would have, and return it.

    It is written as by :func:`save_strategy`, for the tensors of a full checkpoint. ``parallel`` has the sizes, as
    text like ``dp=2,mp=4``, or is the URL of the YAML configuration of a training job. Options are ``to``, ``family``,
    ``naming``, ``config`` and ``option`` of :class:`Request`; with ``to`` the strategy is for what the checkpoint
    becomes when it is converted so.

    Raises
    ------
    UsageError
        The naming is not clear, or the sizes cannot be read.
    PlanError
        The family is not known, sizes and tensors do not fit, or ``dst`` exists and ``overwrite`` is not set.
    """
    request = Request.of(("src", *STRATEGY_OPTIONS), **(options | {"src": checkpoint, "parallel": parallel}))
    sizes = load_parallel(parallel)  # first: what is wrong with it needs no store
    catalog = inspect(checkpoint)
    change = Change()
    if request.to is not None:
        names = {entry.spec.name: entry.spec.name for entry in catalog.entries}
        change, _ = change_of(request, catalog, names, sizes)
    specs = [tensor.spec for tensor in make_tensors(catalog, {}, change).tensors]
    strategy, _ = strategy_from_parallel(sizes, change, specs, request)
    save_strategy(strategy, dst, {spec.name: spec for spec in specs}, overwrite=overwrite)
    return strategy


@shared_connections()
def save_strategy(
    strategy: Strategy, dst: str, specs: Mapping[str, TensorSpec] | None = None, *, overwrite: bool = False
) -> None:
    """Write a strategy in the form that a name asks for.

    Parameters
    ----------
    dst
        A prefix, if it ends in a slash or objects are below it already: ``ckpt_strategy_rank_R.ckpt`` is written for
        every rank, and with several stages ``merged_ckpt_strategy.ckpt``. Else one object: a layout file if the name
        ends in .yaml or .yml, JSON if in .json, protobuf otherwise.
    specs
        The whole tensors by name; the JSON form records their shapes.

    Raises
    ------
    StrategyError
        The form cannot express the strategy.
    TargetExists
        Objects exist, and ``overwrite`` is not set; or a prefix holds other objects that readers would take for
        strategy files.
    """
    if is_strategy_prefix(dst):
        save_strategy_set(strategy, dst, overwrite=overwrite)
        return
    is_layout = dst.endswith(YAML)
    data = encode_layout_file(strategy) if is_layout else _encode(from_strategy(strategy), dst, specs or {})
    save(dst, data, overwrite=overwrite)


@shared_connections()
def save_strategy_set(strategy: Strategy, dst: str, *, overwrite: bool = False, is_dry: bool = False) -> None:
    """Write the files of a strategy below a prefix as :func:`save_strategy` does; if ``is_dry``, only look."""
    stages = [from_strategy(strategy, stage) for stage in range(strategy.stage_count)]
    merged, count = from_strategy(strategy), strategy.device_count
    write_strategy_set(dst, stages, merged, count, overwrite=overwrite, is_dry=is_dry)


def _strategy(source: StrategySource, url: str, specs: Mapping[str, TensorSpec]) -> Strategy:
    if source.rules is not None and not specs:
        hint = f"Name a full checkpoint that they apply to: {option('checkpoint', 'URL')}."
        raise UsageError(f"{url}: a layout file holds rules, not tensors", hint=hint)
    return source.strategy(specs, local=False)


def _specs(checkpoint: str | None) -> dict[str, TensorSpec]:
    return {entry.spec.name: entry.spec for entry in inspect(checkpoint).entries} if checkpoint is not None else {}


def _encode(file: StrategyFile, url: str, specs: Mapping[str, TensorSpec]) -> bytes:
    if not url.endswith(".json"):
        return encode_protobuf(file)
    named = {name: specs[plain].shape for name in file.layouts for plain in [split_stage(name)[1]] if plain in specs}
    return encode_json(file, named)
