"""Sets of strategy files: one a rank, as training leaves them below a prefix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..engine.workers import Workers, working
from ..engine.writer import check_length, checked_body
from ..errors import TargetExists, option, raise_all
from ..formats.mindspore.strategy_file import StrategyFile
from ..formats.mindspore.strategy_protobuf import encode_protobuf
from ..planning.limits import Integrity, Limits
from ..storage import Location, open_target, read_object

_MERGED_NAME = "merged_ckpt_strategy.ckpt"
_OF_A_SET = re.compile(rf"ckpt_strategy_rank_[0-9]+\.ckpt|{re.escape(_MERGED_NAME)}")
_FIRST_SAVE = 2  # a counter of MindSpore's, which says this in the files of every first save; nothing depends on it


def is_strategy_prefix(url: str) -> bool:
    """Return whether strategy files go below a URL: it ends in a slash, or objects are below it already."""
    if url.endswith(("/", "/.", "/..")) or url in (".", ".."):
        return True
    place = open_target(url)
    return place.head_or_none() is None and next(place.objects(), None) is not None


def write_strategy_set(
    url: str,
    stages: Sequence[StrategyFile],
    merged: StrategyFile,
    device_count: int,
    *,
    overwrite: bool,
    is_dry: bool = False,
) -> None:
    """Write ``ckpt_strategy_rank_R.ckpt`` for every rank, and with several stages ``merged_ckpt_strategy.ckpt``.

    All ranks of a stage, ``device_count`` of them, have the file of that stage. Those of an earlier set that are not
    written again are removed, so that readers find one set only. A part of this very set, which a
    run left that was broken off, is completed. Raise TargetExists if there is a set already and ``overwrite`` is not
    set, or other objects that readers would take for a part of this one. If ``is_dry``, that is all that is done.

    Source: MindSpore Transformers, ``strategy_ckpt_save_file``; mindspore 2.10.0, ``merge_pipeline_strategys``.
    """
    place = open_target(url)
    store = place.writable_store()
    contents = _contents(stages, merged, device_count)
    with working(Limits().concurrency, store) as workers:
        earlier = _earlier_set(place)
        same = _same_files(place, [name for name in earlier if name in contents], contents, workers)
        if not overwrite and (same != set(earlier) or len(same) == len(contents)):
            hint = f"Give {option('overwrite')} to replace them, or another prefix."
            raise_all(TargetExists, f"{place.url}: strategy files exist already", earlier, hint)
        if is_dry:
            return
        for name in earlier:
            if name not in contents:
                store.delete(place.child(name).key)

        def write(name: str) -> None:
            at = place.child(name)
            info = store.put(at.key, *checked_body(contents[name], Integrity.AUTO))
            check_length(at, len(contents[name]), info)

        workers.map(write, [name for name in contents if name not in same])


def _contents(stages: Sequence[StrategyFile], merged: StrategyFile, device_count: int) -> dict[str, bytes]:
    """Return the files of a set by name."""
    bodies = [encode_protobuf(replace(stage, current_stage=_FIRST_SAVE)) for stage in stages]
    contents = {
        f"ckpt_strategy_rank_{stage * device_count + device}.ckpt": body
        for stage, body in enumerate(bodies)
        for device in range(device_count)
    }
    if len(stages) > 1:
        contents[_MERGED_NAME] = encode_protobuf(merged)
    return contents


def _same_files(place: Location, names: Sequence[str], contents: Mapping[str, bytes], workers: Workers) -> set[str]:
    """Return the names of those files that hold what is to be written already."""
    same: set[str] = set()

    def compare(name: str) -> None:
        if read_object(place.child(name)) == contents[name]:
            same.add(name)

    workers.map(compare, names)
    return same


def _earlier_set(place: Location) -> list[str]:
    """Return the strategy files of an earlier set."""
    names = [name for name, _ in place.named_objects() if "/" not in name and name.endswith((".ckpt", ".json"))]
    earlier = [name for name in names if _OF_A_SET.fullmatch(name)]
    raise_all(
        TargetExists,
        f"{place.url}: objects are there that readers would take for strategy files of the same set",
        [name for name in names if name not in earlier],
        "Choose another prefix, or remove them.",
    )
    return earlier
