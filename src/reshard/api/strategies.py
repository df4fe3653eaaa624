"""Strategy files shown, merged and brought into another form."""

from __future__ import annotations

from collections.abc import Mapping

from ..engine.sources.strategy_files import StrategySource
from ..errors import UsageError
from ..formats.layout_file import encode_layout_file
from ..formats.mindspore.strategy_file import StrategyFile, split_stage
from ..formats.mindspore.strategy_json import encode_json
from ..formats.mindspore.strategy_merge import from_strategy, merge_strategy_files
from ..formats.mindspore.strategy_protobuf import encode_protobuf
from ..tensor import Shape, Strategy
from .statements import inspect, load_strategy_source, save

_YAML = (".yaml", ".yml")


def read_strategy(url: str, *, checkpoint: str | None = None) -> Strategy:
    """Read a strategy of any form.

    Parameters
    ----------
    url
        A MindSpore strategy file, a prefix that holds those of all stages, or a layout file.
    checkpoint
        URL of a full checkpoint whose tensors a layout file is applied to.

    Raises
    ------
    UsageError
        A layout file without a checkpoint: its rules have no tensors to speak of.
    """
    return _strategy(load_strategy_source(url), url, _shapes(checkpoint))


def merge_strategies(src: str, dst: str, *, overwrite: bool = False) -> Strategy:
    """Merge the strategy files of all ranks or stages into one, as MindSpore's merge does.

    Parameters
    ----------
    src
        A prefix that holds the files.
    dst
        The merged file: JSON if its name ends in .json, protobuf otherwise.

    Raises
    ------
    StrategyError
        Stages are missing, or files of one stage differ.
    """
    source = load_strategy_source(src)
    if source.rules is not None:
        raise UsageError(f"{src}: a layout file has nothing to merge", hint="reshard strategy convert writes it anew.")
    merged = merge_strategy_files(source.files)
    strategy = source.strategy({}, local=False)
    save(dst, _encode(merged, dst, {}), overwrite=overwrite)
    return strategy


def convert_strategy(src: str, dst: str, *, checkpoint: str | None = None, overwrite: bool = False) -> Strategy:
    """Write a strategy in another form, by the name of ``dst``: .yaml, .json, or protobuf for any other.

    Parameters
    ----------
    checkpoint
        URL of a full checkpoint: a layout file needs its tensors, and the JSON form records their shapes.
    """
    shapes = _shapes(checkpoint)
    strategy = _strategy(load_strategy_source(src), src, shapes)
    save(dst, encode_strategy(strategy, dst, shapes), overwrite=overwrite)
    return strategy


def encode_strategy(strategy: Strategy, url: str, shapes: Mapping[str, Shape]) -> bytes:
    """Write a strategy in the form that a name asks for: .yaml, .json, or protobuf for any other.

    Parameters
    ----------
    shapes
        Of the whole tensors, as far as they are known: the JSON form records them.
    """
    if url.endswith(_YAML):
        return encode_layout_file(strategy)
    return _encode(from_strategy(strategy), url, shapes)


def _strategy(source: StrategySource, url: str, shapes: Mapping[str, Shape]) -> Strategy:
    if source.rules is not None and not shapes:
        raise UsageError(
            f"{url}: a layout file holds rules, not tensors",
            hint="Name a full checkpoint whose tensors they are for: --for URL.",
        )
    return source.strategy(shapes, local=False)


def _shapes(checkpoint: str | None) -> dict[str, Shape]:
    if checkpoint is None:
        return {}
    return {entry.spec.name: entry.spec.shape for entry in inspect(checkpoint).entries}


def _encode(file: StrategyFile, url: str, shapes: Mapping[str, Shape]) -> bytes:
    if not url.endswith(".json"):
        return encode_protobuf(file)
    named = {name: shapes[plain] for name in file.layouts for plain in [split_stage(name)[1]] if plain in shapes}
    return encode_json(file, named)
